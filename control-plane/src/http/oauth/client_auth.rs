//! What a request presents to authenticate its client: exactly one of the ways of RFC 6749 §2.3, RFC 7523 §2.2 and RFC 8705 §2.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::caller::Caller;
use super::error::OAuthError;
use super::parameters::Parameters;
use crate::audit::{Actor, scoped_actor};
use crate::authentication::assertion::JWT_BEARER;
use crate::authentication::{Credential, Presented};
use crate::events::{Event, EventKind};
use crate::http::Services;
use crate::limits::Permit;
use crate::registry::Client;

/// Bytes of a `client_id`.
const MAX_CLIENT_ID: usize = 256;

/// A client that is itself, and its place among those that are served now.
pub(super) struct Authenticated {
    pub(super) client: Client,
    /// Given back when the request has been answered.
    _permit: Permit,
}

/// The client that sent the request. Disabled ones are refused at every endpoint, and so is one that asks too much.
pub(super) async fn authenticated(
    services: &Services,
    caller: &Caller,
    parameters: &Parameters,
) -> Result<Authenticated, OAuthError> {
    let presented = presented(&caller.headers, parameters)?;
    let outcome = services.authenticator.authenticate(&presented, caller.certificate.as_ref()).await;
    match outcome {
        Ok(client) => {
            scoped_actor(Actor::client(&client.client_id));
            let limits = &client.configuration.limits;
            let permit = services.limits.admit(&client.client_id, limits).inspect_err(|_| {
                let mut event = Event::new(EventKind::LimitReached, services.realm());
                event.client_id = Some(&client.client_id);
                event.remote = caller.remote;
                services.events.tell(&event);
            })?;
            Ok(Authenticated { client, _permit: permit })
        }
        Err(error) => {
            let mut event = Event::new(EventKind::AuthenticationFailed, services.realm());
            event.client_id = presented.client_id.as_deref();
            event.remote = caller.remote;
            services.events.tell(&event);
            Err(error.into())
        }
    }
}

/// Whether the request tries to authenticate at all; where a grant does without (RFC 7523 §3.1).
pub(super) fn is_attempted(headers: &HeaderMap, parameters: &Parameters) -> bool {
    headers.contains_key(AUTHORIZATION)
        || parameters.get("client_secret").is_some()
        || parameters.get("client_assertion").is_some()
}

fn presented(headers: &HeaderMap, parameters: &Parameters) -> Result<Presented, OAuthError> {
    let named = parameters.get("client_id");
    if named.is_some_and(|named| named.len() > MAX_CLIENT_ID) {
        return Err(OAuthError::request("client_id is too long"));
    }
    let mut authorizations = headers.get_all(AUTHORIZATION).iter();
    let basic = match (authorizations.next(), authorizations.next()) {
        (None, _) => None,
        (Some(value), None) => Some(basic(value.as_bytes()).ok_or_else(OAuthError::client)?),
        (Some(_), Some(_)) => return Err(OAuthError::request("there is more than one Authorization header")),
    };
    let secret = parameters.get("client_secret");
    let assertion = assertion(parameters)?;
    let ways =
        usize::from(basic.is_some()) + usize::from(secret.is_some()) + usize::from(assertion.is_some());
    if ways > 1 {
        return Err(OAuthError::request("the client authenticates in more than one way"));
    }
    // Only an assertion says by itself whose it is.
    if named.is_none() && basic.is_none() && assertion.is_none() {
        return Err(OAuthError::client());
    }
    let named = named.map(ToOwned::to_owned);
    match (basic, secret, assertion) {
        // RFC 6749 §3.2.1 lets a client name itself beside its credentials, as long as it is itself.
        (Some((client_id, _)), ..) if named.as_ref().is_some_and(|named| *named != client_id) => {
            Err(OAuthError::request("client_id is not the client of the Authorization header"))
        }
        (Some((client_id, secret)), ..) => {
            Ok(Presented { client_id: Some(client_id), credential: Credential::Secret(secret) })
        }
        (None, Some(secret), _) => {
            let credential = Credential::Secret(Zeroizing::new(secret.to_owned()));
            Ok(Presented { client_id: named, credential })
        }
        (None, None, Some(assertion)) => {
            Ok(Presented { client_id: named, credential: Credential::Assertion(assertion.to_owned()) })
        }
        (None, None, None) => Ok(Presented { client_id: named, credential: Credential::None }),
    }
}

/// RFC 7521 §4.2: both parameters, and the one type that is known.
fn assertion(parameters: &Parameters) -> Result<Option<&str>, OAuthError> {
    match (parameters.get("client_assertion_type"), parameters.get("client_assertion")) {
        (None, None) => Ok(None),
        (Some(JWT_BEARER), Some(assertion)) => Ok(Some(assertion)),
        (Some(_), Some(_)) => {
            Err(OAuthError::request("client_assertion_type is not that of a JWT (RFC 7523)"))
        }
        _ => Err(OAuthError::request("client_assertion and client_assertion_type belong together")),
    }
}

/// `Basic base64(form(client_id) ":" form(client_secret))`; none for anything else.
fn basic(header: &[u8]) -> Option<(String, Zeroizing<String>)> {
    let (scheme, encoded) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = Zeroizing::new(STANDARD.decode(encoded.trim_matches(' ')).ok()?);
    let (client_id, secret) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    let client_id = form_decoded(client_id).filter(|id| id.len() <= MAX_CLIENT_ID)?;
    Some((client_id, Zeroizing::new(form_decoded(secret)?)))
}

/// `application/x-www-form-urlencoded`, as RFC 6749 §2.3.1 wants both halves; none where the encoding is broken.
fn form_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit =
                    |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|d| u8::try_from(d).ok());
                digit(rest.next())? << 4 | digit(rest.next())?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn both_halves_are_form_decoded() {
        let (client_id, secret) = basic(header("a%3Ab+c:s%25%c3%a9").as_bytes()).unwrap();
        assert_eq!((client_id.as_str(), secret.as_str()), ("a:b c", "s%é"));
        assert_eq!(basic(header("a:b:c").as_bytes()).unwrap().1.as_str(), "b:c");
    }

    #[test]
    fn anything_else_is_no_credential() {
        for text in [
            header("a%3:b"),
            header("a%zz:b"),
            header("ab"),
            "Basic ???".into(),
            "Bearer x".into(),
            "Basic".into(),
        ] {
            assert!(basic(text.as_bytes()).is_none(), "{text}");
        }
        assert!(basic(b"Basic \xff").is_none());
    }
}
