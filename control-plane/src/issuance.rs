//! Issuance: what a client gets for its credentials.

use std::time::Duration;

use atm_core::claims::ISSUED_AT_MS;
use atm_core::time::UnixMillis;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::keys::{Keys, KeysError};
use crate::registry::Client;
use crate::secret;

/// The header's `typ` (RFC 9068 §2.1).
const TYPE: &str = "at+jwt";

/// A request of the client credentials grant (RFC 6749 §4.4), apart from who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientCredentials {
    /// `scope`: space-delimited; none means all that the client is registered for.
    pub scope: Option<String>,
    /// `audience` and `resource` (RFC 8707). None means the client's audience, if it has exactly one.
    pub audience: Vec<String>,
}

/// An access token and what the token response says of it.
#[derive(Debug)]
pub struct IssuedToken {
    /// Compact JWS.
    pub access_token: String,
    /// Seconds that it lives.
    pub expires_in: u64,
    /// Space-delimited; none where it is empty.
    pub scope: Option<String>,
    /// Its `jti`, for logs.
    pub jti: String,
}

/// Why no token was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssuanceError {
    /// The scope is malformed or beyond what the client is registered for (`invalid_scope`).
    #[error("the client may not ask for scope {0:?}")]
    Scope(String),
    /// `scope` has characters outside RFC 6749 §3.3 (`invalid_scope`).
    #[error("the scope is not a list of scope tokens with one space between them")]
    MalformedScope,
    /// The audience is beyond what the client is registered for (`invalid_target`, RFC 8707 §2).
    #[error("the client may not ask for a token for {0:?}")]
    Target(String),
    /// The client has no audience, or several and none is named (`invalid_target`): a token is for whom it is meant.
    #[error("{0}")]
    NoTarget(&'static str),
    /// Signing failed.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// No randomness.
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
}

/// How tokens are issued.
#[derive(Debug, Clone)]
pub struct IssuanceSettings {
    /// `iss`.
    pub issuer: String,
    /// Life where the client has none of its own.
    pub lifetime: Duration,
    /// Life at most.
    pub max_lifetime: Duration,
}

/// Issues tokens; clones share the keys.
#[derive(Debug, Clone)]
pub struct Issuance {
    keys: Keys,
    settings: IssuanceSettings,
}

/// The claims (RFC 9068 §2.2), in the order of the RFC.
struct AccessClaims<'a> {
    issuer: &'a str,
    client_id: &'a str,
    audience: &'a [String],
    scope: Option<&'a str>,
    jti: &'a str,
    issued_at: UnixMillis,
    lifetime: i64,
}

impl Serialize for AccessClaims<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let issued_at = self.issued_at.seconds();
        let mut claims = serializer.serialize_map(None)?;
        claims.serialize_entry("iss", self.issuer)?;
        claims.serialize_entry("exp", &issued_at.saturating_add(self.lifetime))?;
        match self.audience {
            [one] => claims.serialize_entry("aud", one)?,
            several => claims.serialize_entry("aud", several)?,
        }
        // No resource owner is involved, so the subject is the client (RFC 9068 §2.2).
        claims.serialize_entry("sub", self.client_id)?;
        claims.serialize_entry("client_id", self.client_id)?;
        claims.serialize_entry("iat", &issued_at)?;
        claims.serialize_entry("jti", self.jti)?;
        if let Some(scope) = self.scope {
            claims.serialize_entry("scope", scope)?;
        }
        claims.serialize_entry(ISSUED_AT_MS, &self.issued_at.0)?;
        claims.end()
    }
}

impl Issuance {
    /// Issues with the active key of `keys`.
    pub fn new(keys: Keys, settings: IssuanceSettings) -> Self {
        Self { keys, settings }
    }

    /// An access token for `client`, which has been authenticated. `issued_at` was taken from the issue clock **before**
    /// the client was read, so that a client disabled since then has a watermark that covers the token.
    pub async fn client_credentials(
        &self,
        client: &Client,
        request: &ClientCredentials,
        issued_at: UnixMillis,
    ) -> Result<IssuedToken, IssuanceError> {
        let scope = granted_scope(client, request.scope.as_deref())?;
        let audience = granted_audience(client, &request.audience)?;
        let lifetime = self.lifetime_of(client);
        let jti = secret::random_id()?;
        let claims = AccessClaims {
            issuer: &self.settings.issuer,
            client_id: &client.client_id,
            audience,
            scope: scope.as_deref(),
            jti: &jti,
            issued_at,
            lifetime: i64::try_from(lifetime).unwrap_or(i64::MAX),
        };
        let access_token = self.keys.sign_jwt(TYPE, &claims).await?;
        Ok(IssuedToken { access_token, expires_in: lifetime, scope, jti })
    }

    fn lifetime_of(&self, client: &Client) -> u64 {
        let wanted = client.access_token_lifetime_seconds.map_or(self.settings.lifetime.as_secs(), u64::from);
        wanted.min(self.settings.max_lifetime.as_secs())
    }
}

/// The granted scope, in the order asked for and without repetitions.
fn granted_scope(client: &Client, requested: Option<&str>) -> Result<Option<String>, IssuanceError> {
    let Some(requested) = requested else {
        return Ok(Some(client.scopes.join(" ")).filter(|scope| !scope.is_empty()));
    };
    let mut granted: Vec<&str> = Vec::new();
    for scope in requested.split(' ') {
        // RFC 6749 §3.3: %x21 / %x23-5B / %x5D-7E.
        let in_alphabet = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        if scope.is_empty() || !scope.bytes().all(in_alphabet) {
            return Err(IssuanceError::MalformedScope);
        }
        if !client.scopes.iter().any(|own| own == scope) {
            return Err(IssuanceError::Scope(scope.to_owned()));
        }
        if !granted.contains(&scope) {
            granted.push(scope);
        }
    }
    Ok(Some(granted.join(" ")))
}

fn granted_audience<'a>(client: &'a Client, requested: &'a [String]) -> Result<&'a [String], IssuanceError> {
    if let Some(refused) = requested.iter().find(|audience| !client.audiences.contains(audience)) {
        return Err(IssuanceError::Target(refused.clone()));
    }
    match (requested, &client.audiences[..]) {
        ([], []) => Err(IssuanceError::NoTarget("the client is registered for no audience")),
        ([], own @ [_]) => Ok(own),
        ([], _) => Err(IssuanceError::NoTarget(
            "the client is registered for several audiences; name one with audience or resource",
        )),
        (requested, _) => Ok(requested),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::ClientStatus;

    fn client(scopes: &[&str], audiences: &[&str]) -> Client {
        let owned = |list: &[&str]| list.iter().map(|entry| (*entry).to_owned()).collect();
        Client {
            client_id: "c".to_owned(),
            name: None,
            scopes: owned(scopes),
            audiences: owned(audiences),
            access_token_lifetime_seconds: None,
            status: ClientStatus::Active,
            created_at: 0,
            updated_at: 0,
        }
    }

    #[test]
    fn scope_is_what_was_asked_for_or_all() {
        let client = client(&["a", "b"], &["api"]);
        let granted = |scope| granted_scope(&client, scope).unwrap();
        assert_eq!(granted(None).as_deref(), Some("a b"));
        assert_eq!(granted(Some("b a b")).as_deref(), Some("b a"));
        assert!(
            matches!(granted_scope(&client, Some("a c")), Err(IssuanceError::Scope(scope)) if scope == "c")
        );
        for malformed in ["a  b", " a", "a\tb", "\"a\"", "é"] {
            assert!(
                matches!(granted_scope(&client, Some(malformed)), Err(IssuanceError::MalformedScope)),
                "{malformed:?}"
            );
        }
    }

    #[test]
    fn a_client_without_scopes_gets_none() {
        assert_eq!(granted_scope(&client(&[], &["api"]), None).unwrap(), None);
    }

    #[test]
    fn audience_is_never_wider_than_named() {
        let named = ["two".to_owned()];
        assert_eq!(granted_audience(&client(&[], &["one", "two"]), &named).unwrap(), named);
        assert_eq!(granted_audience(&client(&[], &["one"]), &[]).unwrap(), ["one"]);
        assert!(matches!(granted_audience(&client(&[], &["one"]), &named), Err(IssuanceError::Target(_))));
        assert!(matches!(
            granted_audience(&client(&[], &["one", "two"]), &[]),
            Err(IssuanceError::NoTarget(_))
        ));
        assert!(matches!(granted_audience(&client(&[], &[]), &[]), Err(IssuanceError::NoTarget(_))));
    }

    #[test]
    fn claims_are_those_of_rfc_9068() {
        let claims = AccessClaims {
            issuer: "https://i",
            client_id: "c",
            audience: &["api".to_owned()],
            scope: Some("a"),
            jti: "j",
            issued_at: UnixMillis(1_700_000_000_123),
            lifetime: 60,
        };
        let expected = serde_json::json!({
            "iss": "https://i", "exp": 1_700_000_060, "aud": "api", "sub": "c", "client_id": "c",
            "iat": 1_700_000_000, "jti": "j", "scope": "a", "atm_iat_ms": 1_700_000_000_123_i64,
        });
        assert_eq!(serde_json::to_value(&claims).unwrap(), expected);
    }
}
