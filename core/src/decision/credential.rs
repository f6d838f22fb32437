//! Step 2: exactly one bounded credential (RFC 6750 §2.1).

use crate::jws::MAX_TOKEN_BYTES;
use crate::policy::CredentialSource;
use crate::reason::Reason;
use crate::request::Request;

/// The one credential of a request: bounded, and with the characters of `token68` only (RFC 9110 §11.2).
#[derive(Debug, Clone, Copy)]
pub(super) struct Credential<'r>(&'r str);

impl<'r> Credential<'r> {
    /// Reads the credential from where the rule says. Two of them are refused, in two fields or joined by a comma in one:
    /// whoever is behind us might take the other.
    pub(super) fn read(request: &Request<'r>, source: &CredentialSource) -> Result<Self, Reason> {
        let mut values = request.header_values(&source.header);
        let value = values.next().ok_or(Reason::CredentialMissing)?;
        if values.next().is_some() {
            return Err(Reason::CredentialMultiple);
        }
        let value = std::str::from_utf8(value).map_err(|_| Reason::CredentialMalformed)?;
        let token = match &source.scheme {
            Some(scheme) => after_scheme(value, scheme)?,
            None if value.contains(',') => return Err(Reason::CredentialMultiple),
            None => value.trim_matches([' ', '\t']),
        };
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Reason::TokenTooLarge);
        }
        match token {
            "" if source.scheme.is_none() => Err(Reason::CredentialMissing),
            token if is_token68(token) => Ok(Self(token)),
            _ => Err(Reason::CredentialMalformed),
        }
    }

    pub(super) fn token(self) -> &'r str {
        self.0
    }
}

/// What follows `scheme` and spaces. Another scheme is no credential for this rule, so that the challenge names the right one.
fn after_scheme<'r>(value: &'r str, scheme: &str) -> Result<&'r str, Reason> {
    let mut parts = value.split(',').map(|part| part.trim_matches([' ', '\t']));
    let first = parts.next().unwrap_or_default();
    let token = strip_scheme(first, scheme);
    match (token, parts.next()) {
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
