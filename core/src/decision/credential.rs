//! Step 2: exactly one bounded credential (RFC 6750 §2, RFC 9449 §7.1).

use std::fmt;

use crate::jws::MAX_TOKEN_BYTES;
use crate::policy::{CredentialSource, cookies, query_parameters};
use crate::reason::Reason;
use crate::request::Request;

/// The one credential of a request: bounded, and with the characters of `token68` only (RFC 9110 §11.2).
#[derive(Debug, Clone, Copy)]
pub(super) struct Credential<'r> {
    text: &'r str,
    /// Which of the rule's places it came from.
    source: usize,
    place: &'r CredentialSource,
}

impl<'r> Credential<'r> {
    /// Reads the credential from where the rule says. Two of them are refused, in two places, in two fields or joined by a
    /// comma in one: whoever is behind us might take the other.
    pub(super) fn read(request: &Request<'r>, places: &'r [CredentialSource]) -> Result<Self, Reason> {
        let mut found: Option<Self> = None;
        let mut missing = Reason::CredentialMissing;
        for (source, place) in places.iter().enumerate() {
            match read_place(request, place) {
                Ok(text) if found.is_none() => found = Some(Self { text, source, place }),
                Ok(_) => return Err(Reason::CredentialMultiple),
                Err(Reason::CredentialMissing) => {}
                // A field that can be read in no way is told only if no other place holds a credential: else there are two.
                Err(reason) => missing = reason,
            }
        }
        let credential = match found {
            Some(_) if missing != Reason::CredentialMissing => return Err(Reason::CredentialMultiple),
            found => found.ok_or(missing)?,
        };
        match credential.text {
            text if text.len() > MAX_TOKEN_BYTES => Err(Reason::TokenTooLarge),
            text if is_token68(text) => Ok(credential),
            _ => Err(Reason::CredentialMalformed),
        }
    }

    /// The token itself.
    pub(super) fn text(&self) -> &'r str {
        self.text
    }

    /// The place in the rule's list that it came from.
    pub(super) fn source(&self) -> usize {
        self.source
    }

    /// The authentication scheme that it came with.
    pub(super) fn scheme(&self) -> Option<&'r str> {
        match self.place {
            CredentialSource::Scheme { scheme, .. } => Some(scheme),
            _ => None,
        }
    }
}

/// Where it came from; never the credential.
impl fmt::Display for Credential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one, from {}", self.place)
    }
}

fn read_place<'r>(request: &Request<'r>, place: &CredentialSource) -> Result<&'r str, Reason> {
    match place {
        CredentialSource::Scheme { header, scheme } => {
            let value = only(request.header_values(header))?;
            let value = std::str::from_utf8(value).map_err(|_| Reason::CredentialMalformed)?;
            after_scheme(value, scheme)
        }
        CredentialSource::Header { header, prefix } => {
            let value = only(request.header_values(header))?;
            let value = std::str::from_utf8(value).map_err(|_| Reason::CredentialMalformed)?;
            if value.contains(',') {
                return Err(Reason::CredentialMultiple);
            }
            let value = value.trim_matches([' ', '\t']);
            value.strip_prefix(&**prefix).filter(|text| !text.is_empty()).ok_or(Reason::CredentialMissing)
        }
        CredentialSource::Cookie(name) => {
            let value = only(cookies(request, name).filter(|value| !value.is_empty()))?;
            std::str::from_utf8(value).map_err(|_| Reason::CredentialMalformed)
        }
        CredentialSource::Query(name) => {
            only(query_parameters(request, name).filter(|value| !value.is_empty()))
        }
    }
}

fn only<T>(mut values: impl Iterator<Item = T>) -> Result<T, Reason> {
    let first = values.next().ok_or(Reason::CredentialMissing)?;
    if values.next().is_some() { Err(Reason::CredentialMultiple) } else { Ok(first) }
}

/// What follows `scheme` and spaces. Another scheme is no credential for this place, so that the challenge names the right one.
fn after_scheme<'r>(value: &'r str, scheme: &str) -> Result<&'r str, Reason> {
    let mut parts = value.split(',').map(|part| part.trim_matches([' ', '\t']));
    let first = parts.next().unwrap_or_default();
    let token = strip_scheme(first, scheme);
    match (token, parts.next()) {
        (Some(""), None) => Err(Reason::CredentialMalformed),
        (Some(token), None) => Ok(token),
        (None, None) => Err(Reason::CredentialMissing),
        (Some(_), Some(_)) => Err(Reason::CredentialMultiple),
        // `Digest a="b", c="d"` is one credential of another scheme; `Basic x, Bearer y` is two.
        (None, Some(second)) => {
            let ours = std::iter::once(second).chain(parts).any(|part| strip_scheme(part, scheme).is_some());
            Err(if ours { Reason::CredentialMultiple } else { Reason::CredentialMissing })
        }
    }
}

/// Schemes compare without case (RFC 9110 §11.1).
fn strip_scheme<'r>(value: &'r str, scheme: &str) -> Option<&'r str> {
    let (name, token) = value.split_once(' ').unwrap_or((value, ""));
    name.eq_ignore_ascii_case(scheme).then(|| token.trim_start_matches(' '))
}

fn is_token68(token: &str) -> bool {
    let body = token.trim_end_matches('=');
    !body.is_empty() && body.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte))
}
