//! Client authentication: `client_secret_basic` and `client_secret_post` (RFC 6749 §2.3.1), exactly one of them.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::error::OAuthError;
use super::parameters::Parameters;
use crate::http::Services;
use crate::registry::Client;

/// What `token_endpoint_auth_methods_supported` says.
pub(super) const METHODS: [&str; 2] = ["client_secret_basic", "client_secret_post"];

struct Credentials {
    client_id: String,
    secret: Zeroizing<String>,
}

/// The client that sent the request. Disabled ones are refused at every endpoint.
pub(super) async fn authenticated(
    services: &Services,
    headers: &HeaderMap,
    parameters: &Parameters,
) -> Result<Client, OAuthError> {
    let Credentials { client_id, secret } = credentials(headers, parameters)?;
    Ok(services.registry.authenticate(&client_id, &secret).await?)
}

fn credentials(headers: &HeaderMap, parameters: &Parameters) -> Result<Credentials, OAuthError> {
    let (client_id, secret) = (parameters.get("client_id"), parameters.get("client_secret"));
    let mut authorizations = headers.get_all(AUTHORIZATION).iter();
    let basic = match (authorizations.next(), authorizations.next()) {
        (None, _) => None,
        (Some(value), None) => Some(basic(value.as_bytes()).ok_or_else(OAuthError::client)?),
        (Some(_), Some(_)) => return Err(OAuthError::request("there is more than one Authorization header")),
    };
    match (basic, client_id, secret) {
        (Some(_), _, Some(_)) => Err(OAuthError::request("the client authenticates in more than one way")),
        // RFC 6749 §3.2.1 lets a client name itself beside its credentials, as long as it is itself.
        (Some(basic), Some(named), None) if named != basic.client_id => {
            Err(OAuthError::request("client_id is not the client of the Authorization header"))
        }
        (Some(basic), _, None) => Ok(basic),
        (None, Some(client_id), Some(secret)) => {
            Ok(Credentials { client_id: client_id.to_owned(), secret: Zeroizing::new(secret.to_owned()) })
        }
        (None, _, _) => Err(OAuthError::client()),
    }
}

/// `Basic base64(form(client_id) ":" form(client_secret))`; none for anything else.
fn basic(header: &[u8]) -> Option<Credentials> {
    let (scheme, encoded) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = Zeroizing::new(STANDARD.decode(encoded.trim_matches(' ')).ok()?);
    let (client_id, secret) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(Credentials { client_id: form_decoded(client_id)?, secret: Zeroizing::new(form_decoded(secret)?) })
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
        let credentials = basic(header("a%3Ab+c:s%25%c3%a9").as_bytes()).unwrap();
        assert_eq!((credentials.client_id.as_str(), credentials.secret.as_str()), ("a:b c", "s%é"));
        assert_eq!(basic(header("a:b:c").as_bytes()).unwrap().secret.as_str(), "b:c");
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
