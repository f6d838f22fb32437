//! What upstream services learn of a permitted request: headers whose client-sent copies never get through.

use std::borrow::Cow;

use atm_core::claims::Claims;
use atm_core::decision::Permit;
use atm_core::request::Request;

/// Every identity header. Those that a permit has no value for are removed, or a client could send its own.
pub(super) const HEADERS: [&str; 7] = [
    "x-atm-subject",
    "x-atm-client",
    "x-atm-issuer",
    "x-atm-scope",
    "x-atm-token-id",
    "x-atm-session",
    "x-atm-policy",
];

/// The value of each of [`HEADERS`], in their order; `None` where there is none, or where it could not be a header's value.
pub(super) fn values(permit: &Permit) -> [Option<Cow<'_, str>>; HEADERS.len()] {
    let claims = permit.token.as_ref().map(|token| &token.claims);
    [
        claims.map(|claims| Cow::Borrowed(&*claims.subject)),
        claims.and_then(|claims| claims.client_id.as_deref()).map(Cow::Borrowed),
        claims.map(|claims| Cow::Borrowed(&*claims.issuer)),
        claims.map(scope),
        claims.and_then(|claims| claims.jti.as_deref()).map(Cow::Borrowed),
        claims.and_then(|claims| claims.session.as_deref()).map(Cow::Borrowed),
        Some(Cow::Borrowed(&*permit.rule.policy)),
    ]
    .map(|value| value.filter(|value| is_header_value(value)))
}

/// The scopes as RFC 6749 §3.3 has them; empty where there are none.
fn scope(claims: &Claims) -> Cow<'_, str> {
    match &claims.scope[..] {
        [] => Cow::Borrowed(""),
        [one] => Cow::Borrowed(one),
        several => Cow::Owned(several.join(" ")),
    }
}

/// The headers that the rule makes from claims, each with its value; none where it is to be removed.
pub(super) fn from_claims(permit: &Permit) -> impl Iterator<Item = (&str, Option<String>)> {
    permit.rule.upstream.headers.iter().map(|header| {
        let value = permit.token.as_ref().and_then(|token| header.value(&token.claims.raw));
        (&*header.name, value.filter(|value| is_header_value(value)))
    })
}

/// The `cookie` header without the cookie `name`; none where nothing is left of it.
pub(super) fn without_cookie(request: &Request<'_>, name: &str) -> Option<String> {
    let values = request.header_values("cookie").filter_map(|value| std::str::from_utf8(value).ok());
    let pairs = values.flat_map(|value| value.split(';')).map(str::trim);
    let others = pairs.filter(|pair| !pair.is_empty() && pair.split('=').next() != Some(name));
    let rest: Vec<&str> = others.collect();
    Some(rest.join("; ")).filter(|rest| is_header_value(rest))
}

/// Visible ASCII and inner spaces (RFC 9110 §5.5): a control character could split a header, other bytes are read in
/// different ways by different servers.
fn is_header_value(value: &str) -> bool {
    !value.is_empty() && value.trim() == value && value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_can_break_a_header() {
        for value in ["a\r\nb: c", "a\0", "é", "", " a", "a\u{7f}"] {
            assert!(!is_header_value(value), "{value:?}");
        }
        assert!(is_header_value("alice smith"));
    }
}
