//! A share of the requests, chosen by a stable hash: the same caller always falls on the same side, on every sidecar.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};

use super::{CredentialSource, Rule};
use crate::request::Request;

/// The share of the requests that a policy is enforced for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// Hundredths of a percent, 1 to 10,000.
    pub per_ten_thousand: u32,
    /// What the share is chosen by.
    pub by: Share,
}

/// What a share is chosen by. A request that lacks it falls outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// The credential, wherever the rule looks for it: stable for the life of a token.
    Credential,
    /// The peer's address.
    Address,
    /// A header of that name, in lower case.
    Header(Arc<str>),
}

impl Rollout {
    pub(super) fn includes(&self, rule: &Rule, request: &Request<'_>) -> bool {
        if self.per_ten_thousand >= 10_000 {
            return true;
        }
        let mut context = Context::new(&SHA256);
        context.update(rule.policy.as_bytes());
        context.update(&[0]);
        let found = match &self.by {
            Share::Address => request.source_address.is_some_and(|address| {
                context.update(address.as_bytes());
                true
            }),
            Share::Header(name) => update_with(&mut context, request.header_values(name)),
            Share::Credential => rule.credential.iter().fold(false, |found, source| {
                let here = match source {
                    CredentialSource::Scheme { header, .. } | CredentialSource::Header { header, .. } => {
                        update_with(&mut context, request.header_values(header))
                    }
                    CredentialSource::Cookie(name) => update_with(&mut context, cookies(request, name)),
                    CredentialSource::Query(name) => {
                        update_with(&mut context, query_parameters(request, name).map(str::as_bytes))
                    }
                };
                found || here
            }),
        };
        let digest = context.finish();
        let number = digest.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        found && number % 10_000 < u64::from(self.per_ten_thousand)
    }
}

fn update_with<'a>(context: &mut Context, values: impl Iterator<Item = &'a [u8]>) -> bool {
    values.fold(false, |_, value| {
        context.update(value);
        context.update(&[0]);
        true
    })
}

/// The values of the cookie `name` (RFC 6265 §5.4), in every `cookie` header.
pub(crate) fn cookies<'a>(request: &Request<'a>, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = request.header_values("cookie").flat_map(|value| value.split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let pair = pair.trim_ascii();
        pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
    })
}

/// The values of the query parameter `name`, undecoded. The name may be spelt with percent-encoding: an upstream decodes it, so
/// a second credential must not hide behind it.
pub(crate) fn query_parameters<'a>(request: &Request<'a>, name: &str) -> impl Iterator<Item = &'a str> {
    let pairs = request.query().into_iter().flat_map(|query| query.split('&'));
    pairs.filter_map(move |pair| {
        let (raw, value) = pair.split_once('=').unwrap_or((pair, ""));
        decodes_to(raw.as_bytes(), name.as_bytes()).then_some(value)
    })
}

fn decodes_to(mut raw: &[u8], name: &[u8]) -> bool {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for expected in name {
        let decoded = match raw {
            [b'%', high, low, rest @ ..] => {
                raw = rest;
                digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low)
            }
            [byte, rest @ ..] => {
                raw = rest;
                Some(*byte)
            }
            [] => None,
        };
        if decoded != Some(*expected) {
            return false;
        }
    }
    raw.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_however_their_name_is_spelt() {
        let request =
            Request { target: "/p?a=1&token=x&%74oken=y&tokens=z&token&b=token", ..Request::default() };
        assert_eq!(query_parameters(&request, "token").collect::<Vec<_>>(), ["x", "y", ""]);
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let headers = [("cookie", &b"a=1; session=x;session2=y"[..]), ("cookie", b"session=z")];
        let request = Request { headers: &headers, ..Request::default() };
        assert_eq!(cookies(&request, "session").collect::<Vec<_>>(), [b"x", b"z"]);
    }
}
