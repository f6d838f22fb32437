//! What a client's fields may hold.

use std::net::IpAddr;

use atm_core::base64url;
use serde::Serialize;
use serde_json::Value;

use super::client::{AuthenticationMethod, ClientConfiguration, GrantType, NewClient};
use crate::authentication::assertion;
use crate::authentication::distinguished_name::DistinguishedName;
use crate::issuance::template;

/// One field of a request and what is wrong with it; all of them are reported at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Path of the field, as in `scopes[2]`.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

const MAX_SCOPES: usize = 256;
const MAX_AUDIENCES: usize = 64;
const MAX_TEXT: usize = 256;
const MAX_LIFETIME_SECONDS: u32 = 86_400;
/// Seconds of a session: ten years.
const MAX_SESSION_SECONDS: u32 = 3_653 * 86_400;
/// Keys of one client.
const MAX_KEYS: usize = 16;
/// Bytes of its key set.
const MAX_JWKS: usize = 64 * 1024;

pub(super) fn check(new: &NewClient) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    if let Some(id) = &new.client_id {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if id.is_empty() || id.len() > 128 || !id.bytes().all(allowed) {
            errors.push(error("client_id", "must be 1 to 128 letters, digits or any of -._~"));
        }
    }
    errors.extend(check_configuration(&new.configuration).err().into_iter().flatten());
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

pub(super) fn check_configuration(client: &ClientConfiguration) -> Result<(), Vec<FieldError>> {
    let mut errors = check_common(client.name.as_deref(), &client.scopes, &client.audiences);
    numbers(&mut errors, client);
    grants(&mut errors, client);
    credentials(&mut errors, client);
    if let Some(message) = client.subject.as_deref().and_then(template::text_mistake) {
        errors.push(error("subject", message));
    }
    for (name, message) in template::mistakes(&client.claims) {
        let field = if name.is_empty() { "claims".to_owned() } else { format!("claims.{name}") };
        errors.push(error(&field, message));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Mistakes in what clients and API keys have in common.
pub(crate) fn check_common(name: Option<&str>, scopes: &[String], audiences: &[String]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if name.is_some_and(|name| name.len() > MAX_TEXT || name.chars().any(char::is_control)) {
        errors.push(error("name", "must be at most 256 bytes without control characters"));
    }
    if scopes.len() > MAX_SCOPES {
        errors.push(error("scopes", "must be at most 256"));
    }
    if audiences.len() > MAX_AUDIENCES {
        errors.push(error("audiences", "must be at most 64"));
    }
    for (index, scope) in scopes.iter().enumerate() {
        if !is_scope_token(scope) {
            let message =
                "must be 1 to 256 printable ASCII characters without space, '\"' or '\\' (RFC 6749 §3.3)";
            errors.push(error(&format!("scopes[{index}]"), message));
        } else if scopes[..index].contains(scope) {
            errors.push(error(&format!("scopes[{index}]"), "is there twice"));
        }
    }
    for (index, audience) in audiences.iter().enumerate() {
        if audience.is_empty() || audience.len() > MAX_TEXT || audience.chars().any(char::is_control) {
            let message = "must be 1 to 256 bytes without control characters";
            errors.push(error(&format!("audiences[{index}]"), message));
        } else if audiences[..index].contains(audience) {
            errors.push(error(&format!("audiences[{index}]"), "is there twice"));
        }
    }
    errors
}

fn numbers(errors: &mut Vec<FieldError>, client: &ClientConfiguration) {
    let limits = &client.limits;
    for (field, value, most) in [
        ("access_token_lifetime_seconds", client.access_token_lifetime_seconds, MAX_LIFETIME_SECONDS),
        ("refresh_token_idle_seconds", client.refresh_token_idle_seconds, MAX_SESSION_SECONDS),
        ("refresh_token_lifetime_seconds", client.refresh_token_lifetime_seconds, MAX_SESSION_SECONDS),
        ("limits.requests_per_second", limits.requests_per_second, 1_000_000),
        ("limits.burst", limits.burst, 1_000_000),
        ("limits.concurrency", limits.concurrency, 100_000),
    ] {
        if value.is_some_and(|value| value == 0 || value > most) {
            errors.push(error(field, &format!("must be 1 to {most}")));
        }
    }
}

fn grants(errors: &mut Vec<FieldError>, client: &ClientConfiguration) {
    for (index, grant) in client.grant_types.iter().enumerate() {
        if client.grant_types[..index].contains(grant) {
            errors.push(error(&format!("grant_types[{index}]"), "is there twice"));
        }
        // RFC 6749 §4.4: only a confidential client may get tokens for itself; the others hand out what is worth more.
        let is_public = client.token_endpoint_auth_method == AuthenticationMethod::None;
        if is_public && *grant != GrantType::RefreshToken {
            let message = "a public client (token_endpoint_auth_method none) may have refresh_token alone";
            errors.push(error(&format!("grant_types[{index}]"), message));
        }
    }
    let exchange = client.exchange;
    if (exchange.impersonation || exchange.delegation)
        && !client.grant_types.contains(&GrantType::TokenExchange)
    {
        errors.push(error("exchange", "needs token-exchange among grant_types"));
    }
}

/// What the way to authenticate needs is there, and what it does not need is not.
fn credentials(errors: &mut Vec<FieldError>, client: &ClientConfiguration) {
    let method = client.token_endpoint_auth_method;
    let names = [
        ("tls_client_auth_subject_dn", &client.tls_client_auth_subject_dn),
        ("tls_client_auth_san_dns", &client.tls_client_auth_san_dns),
        ("tls_client_auth_san_uri", &client.tls_client_auth_san_uri),
        ("tls_client_auth_san_ip", &client.tls_client_auth_san_ip),
        ("tls_client_auth_san_email", &client.tls_client_auth_san_email),
    ];
    let given = names.iter().filter(|(_, name)| name.is_some()).count();
    // RFC 8705 §2.1.2: exactly one.
    if method == AuthenticationMethod::TlsClientAuth && given != 1 {
        let message = "tls_client_auth needs exactly one of tls_client_auth_subject_dn, _san_dns, _san_uri, _san_ip and \
                       _san_email";
        errors.push(error("token_endpoint_auth_method", message));
    }
    for (field, name) in names {
        match name.as_deref() {
            Some(_) if method != AuthenticationMethod::TlsClientAuth => {
                errors.push(error(field, "is for token_endpoint_auth_method tls_client_auth"));
            }
            Some(name) if name.is_empty() || name.len() > 1_024 || name.chars().any(char::is_control) => {
                errors.push(error(field, "must be 1 to 1024 bytes without control characters"));
            }
            _ => {}
        }
    }
    let dn = client.tls_client_auth_subject_dn.as_deref();
    if dn.is_some_and(|dn| DistinguishedName::parse(dn).is_none()) {
        let message = "must be a distinguished name (RFC 4514), the most specific part first, as in CN=a,O=b";
        errors.push(error("tls_client_auth_subject_dn", message));
    }
    if client.tls_client_auth_san_ip.as_ref().is_some_and(|ip| ip.parse::<IpAddr>().is_err()) {
        errors.push(error(
            "tls_client_auth_san_ip",
            "must be an IPv4 or IPv6 address, as in 192.0.2.7 or 2001:db8::7",
        ));
    }
    let email = client.tls_client_auth_san_email.as_deref();
    if email.is_some_and(|email| {
        email.rsplit_once('@').is_none_or(|(user, host)| user.is_empty() || host.is_empty())
    }) {
        errors
            .push(error("tls_client_auth_san_email", "must be an e-mail address, as in client@example.com"));
    }
    if let Some(uri) = client.jwks_uri.as_deref() {
        key_set_uri(errors, uri, client);
    } else {
        key_set(errors, client.jwks.as_ref(), method);
    }
}

/// RFC 7591 §2: `jwks_uri` or `jwks`, not both. Whether the address may be called is told when it is.
fn key_set_uri(errors: &mut Vec<FieldError>, uri: &str, client: &ClientConfiguration) {
    if client.token_endpoint_auth_method != AuthenticationMethod::PrivateKeyJwt {
        errors.push(error("jwks_uri", "is for private_key_jwt"));
    }
    if client.jwks.is_some() {
        errors.push(error("jwks_uri", "is given beside jwks; keep one of them"));
    }
    let is_url = uri.parse::<reqwest::Url>().is_ok_and(|url| {
        matches!(url.scheme(), "https" | "http") && url.username().is_empty() && url.password().is_none()
    });
    if !is_url || uri.len() > 1_024 {
        errors.push(error(
            "jwks_uri",
            "must be an https URL of at most 1024 bytes (http with clientKeys.allowPrivateAddresses)",
        ));
    }
}

fn key_set(errors: &mut Vec<FieldError>, jwks: Option<&Value>, method: AuthenticationMethod) {
    let needs_keys =
        matches!(method, AuthenticationMethod::PrivateKeyJwt | AuthenticationMethod::SelfSignedTlsClientAuth);
    let Some(jwks) = jwks else {
        if needs_keys {
            errors.push(error(
                "jwks",
                "must hold the client's public keys for this token_endpoint_auth_method (or, for private_key_jwt, give jwks_uri)",
            ));
        }
        return;
    };
    if !needs_keys {
        errors.push(error("jwks", "is for private_key_jwt and self_signed_tls_client_auth"));
    }
    let keys = jwks.get("keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if keys.is_empty() || keys.len() > MAX_KEYS || jwks.to_string().len() > MAX_JWKS {
        errors.push(error("jwks", "must be an object with 1 to 16 keys in its member keys (RFC 7517 §5)"));
    }
    for (index, jwk) in keys.iter().enumerate() {
        let field = format!("jwks.keys[{index}]");
        let names_certificate = jwk.get("x5c").is_some()
            || jwk
                .get("x5t#S256")
                .and_then(Value::as_str)
                .is_some_and(|thumbprint| base64url::decode(thumbprint).is_ok_and(|bytes| bytes.len() == 32));
        if method == AuthenticationMethod::SelfSignedTlsClientAuth {
            if !names_certificate {
                errors.push(error(&field, "must have the certificate in x5c, or its SHA-256 in x5t#S256"));
            }
        } else if let Err(problem) = atm_core::jwk::spki_from_jwk(jwk) {
            errors.push(error(&field, &problem.to_string()));
        }
    }
    if method == AuthenticationMethod::PrivateKeyJwt && !keys.is_empty() && assertion::keys(jwks).is_empty() {
        errors.push(error("jwks", "holds no key that can verify an assertion"));
    }
}

fn is_scope_token(scope: &str) -> bool {
    !scope.is_empty()
        && scope.len() <= MAX_TEXT
        && scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

fn error(field: &str, message: &str) -> FieldError {
    FieldError { field: field.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(new: &Value) -> Vec<String> {
        let new: NewClient = serde_json::from_value(new.clone()).unwrap();
        check(&new).err().into_iter().flatten().map(|error| error.field).collect()
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let new = json!({
            "client_id": "a b", "name": "\n", "scopes": ["ok", "with space", "ok", "\""], "audiences": [""],
            "access_token_lifetime_seconds": 0, "limits": {"burst": 0}, "subject": "${x}", "claims": {"sub": 1},
        });
        let expected = [
            "client_id",
            "name",
            "scopes[1]",
            "scopes[2]",
            "scopes[3]",
            "audiences[0]",
            "access_token_lifetime_seconds",
            "limits.burst",
            "subject",
            "claims.sub",
        ];
        assert_eq!(fields(&new), expected);
    }

    /// RFC 8705 §2.1.2 and §2.2.2, RFC 6749 §4.4.
    #[test]
    fn each_way_to_authenticate_has_what_it_needs_and_nothing_else() {
        let digest = base64url::encode(&[7; 32]);
        for good in [
            json!({}),
            json!({"token_endpoint_auth_method": "none", "grant_types": ["refresh_token"]}),
            json!({"token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_san_dns": "a.example"}),
            json!({"token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_san_ip": "2001:db8::7"}),
            json!({"token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_san_email": "a@example.com"}),
            json!({"token_endpoint_auth_method": "self_signed_tls_client_auth",
                   "jwks": {"keys": [{"x5t#S256": digest}]}}),
            json!({"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "https://client.example/keys"}),
        ] {
            assert_eq!(fields(&good), Vec::<String>::new(), "{good}");
        }
        for (wrong, field) in [
            (json!({"token_endpoint_auth_method": "none"}), "grant_types[0]"),
            (json!({"token_endpoint_auth_method": "tls_client_auth"}), "token_endpoint_auth_method"),
            (
                json!({"token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_san_dns": "a",
                       "tls_client_auth_san_uri": "b:c"}),
                "token_endpoint_auth_method",
            ),
            (
                json!({"token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_subject_dn": "x"}),
                "tls_client_auth_subject_dn",
            ),
            (
                json!({"token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_san_ip": "client.example"}),
                "tls_client_auth_san_ip",
            ),
            (
                json!({"token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_san_email": "@example.com"}),
                "tls_client_auth_san_email",
            ),
            (json!({"tls_client_auth_san_dns": "a"}), "tls_client_auth_san_dns"),
            (json!({"token_endpoint_auth_method": "private_key_jwt"}), "jwks"),
            (
                json!({"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": [{"kty": "oct", "k": "A"}]}}),
                "jwks.keys[0]",
            ),
            (
                json!({"token_endpoint_auth_method": "self_signed_tls_client_auth", "jwks": {"keys": [{}]}}),
                "jwks.keys[0]",
            ),
            (json!({"jwks": {"keys": []}}), "jwks"),
            (json!({"jwks_uri": "https://client.example/keys"}), "jwks_uri"),
            (
                json!({"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "file:///etc/passwd"}),
                "jwks_uri",
            ),
            (
                json!({"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "https://a.example",
                       "jwks": {"keys": []}}),
                "jwks_uri",
            ),
            (json!({"exchange": {"delegation": true}}), "exchange"),
            (json!({"grant_types": ["refresh_token", "refresh_token"]}), "grant_types[1]"),
        ] {
            assert!(fields(&wrong).contains(&field.to_owned()), "{wrong}: {:?}", fields(&wrong));
        }
    }
}
