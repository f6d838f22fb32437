//! Issuance: the access tokens of all grants, as JWTs (RFC 9068) or opaque.

use std::time::Duration;

use atm_core::claims::{ANCESTORS, Ancestor, ISSUED_AT_MS};
use atm_core::opaque;
use atm_core::time::UnixMillis;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use crate::keys::{Keys, KeysError};
use crate::registry::{AccessTokenFormat, Client};
use crate::secret::{self, SecretHasher, SecretKind};
use crate::store::{Store, StoreError, opaque_tokens};

pub(crate) mod narrowing;
pub mod template;

use template::Places;

/// The header's `typ` (RFC 9068 §2.1).
const TYPE: &str = "at+jwt";

/// A request of the client credentials grant (RFC 6749 §4.4), apart from who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientCredentials {
    /// `scope`: space-delimited; none means all that the client is registered for.
    pub scope: Option<String>,
    /// `audience` and `resource` (RFC 8707). None means the client's audience, if it has exactly one.
    pub audience: Vec<String>,
    /// What the client has proved to hold.
    pub possession: Possession,
}

/// The keys that a request has proved to hold, and that its tokens are bound to (RFC 7800).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Possession {
    /// The thumbprint of a DPoP key (RFC 9449 §6.1).
    pub jkt: Option<String>,
    /// The thumbprint of a client certificate (RFC 8705 §3.1).
    pub x5t_s256: Option<String>,
}

impl Possession {
    /// The `cnf` claim; none for a bearer token.
    pub fn confirmation(&self) -> Option<Value> {
        let members = [("jkt", &self.jkt), ("x5t#S256", &self.x5t_s256)];
        let members: Map<String, Value> = members
            .into_iter()
            .filter_map(|(name, thumbprint)| Some((name.to_owned(), thumbprint.as_deref()?.into())))
            .collect();
        (!members.is_empty()).then_some(Value::Object(members))
    }

    /// `token_type` (RFC 6749 §7.1, RFC 9449 §5).
    pub fn token_type(&self) -> &'static str {
        if self.jkt.is_some() { "DPoP" } else { "Bearer" }
    }
}

/// What an access token is to say, apart from what is the same for all.
#[derive(Debug)]
pub struct AccessToken<'a> {
    /// `client_id`, and how its tokens are made.
    pub client: &'a Client,
    /// `sub`
    pub subject: &'a str,
    /// `aud`, one or more.
    pub audience: &'a [String],
    /// `scope`; none: without.
    pub scope: Option<String>,
    /// `sid`
    pub session: Option<&'a str>,
    /// `cnf`
    pub possession: &'a Possession,
    /// `act` (RFC 8693 §4.1).
    pub actor: Option<Value>,
    /// The tokens that it is derived from.
    pub ancestors: Vec<Ancestor>,
    /// Seconds since the Unix epoch beyond which it must not live.
    pub latest_expiry: Option<i64>,
    /// Claims that the session was opened with.
    pub session_claims: Option<&'a Map<String, Value>>,
    /// Claims of the assertion that it is issued for.
    pub assertion_claims: Option<&'a Map<String, Value>>,
    /// From the issue clock, taken **before** the client, the subject and the session were read, so that what was disabled or
    /// ended since then has a watermark that covers the token.
    pub issued_at: UnixMillis,
}

/// An access token and what the token response says of it.
#[derive(Debug)]
pub struct IssuedToken {
    /// Compact JWS, or `atm_at_..`.
    pub access_token: String,
    /// `Bearer` or `DPoP`.
    pub token_type: &'static str,
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
    /// The scope is beyond what may be granted (`invalid_scope`).
    #[error("the client may not ask for scope {0:?}")]
    Scope(String),
    /// `scope` has characters outside RFC 6749 §3.3 (`invalid_scope`).
    #[error("the scope is not a list of scope tokens with one space between them")]
    MalformedScope,
    /// The audience is beyond what may be granted (`invalid_target`, RFC 8707 §2).
    #[error("the client may not ask for a token for {0:?}")]
    Target(String),
    /// There is no audience, or several and none is named (`invalid_target`): a token is for whom it is meant.
    #[error("{0}")]
    NoTarget(&'static str),
    /// The client's subject template has no value here (`invalid_grant`).
    #[error("the client's subject cannot be made: a place of its template has no value")]
    Subject,
    /// What it is derived from has expired or is about to (`invalid_grant`).
    #[error("what the token would be derived from has expired")]
    Expired,
    /// Signing failed.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// No randomness.
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
    /// An opaque token could not be kept, and so is none.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How tokens are issued.
#[derive(Debug, Clone)]
pub struct IssuanceSettings {
    /// `iss`.
    pub issuer: String,
    /// The realm of the issuer.
    pub realm: String,
    /// Life where the client has none of its own.
    pub lifetime: Duration,
    /// Life at most.
    pub max_lifetime: Duration,
}

/// Issues tokens; clones share the keys.
#[derive(Debug, Clone)]
pub struct Issuance {
    keys: Keys,
    store: Store,
    hasher: SecretHasher,
    settings: IssuanceSettings,
}

/// The claims (RFC 9068 §2.2), in the order of the RFC, then ours, then the operator's.
struct AccessClaims<'a> {
    issuer: &'a str,
    jti: &'a str,
    expires_at: i64,
    token: &'a AccessToken<'a>,
    confirmation: Option<Value>,
    further: Map<String, Value>,
}

impl Serialize for AccessClaims<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let token = self.token;
        let mut claims = serializer.serialize_map(None)?;
        claims.serialize_entry("iss", self.issuer)?;
        claims.serialize_entry("exp", &self.expires_at)?;
        match token.audience {
            [one] => claims.serialize_entry("aud", one)?,
            several => claims.serialize_entry("aud", several)?,
        }
        claims.serialize_entry("sub", token.subject)?;
        claims.serialize_entry("client_id", &token.client.client_id)?;
        claims.serialize_entry("iat", &token.issued_at.seconds())?;
        claims.serialize_entry("jti", self.jti)?;
        if let Some(scope) = &token.scope {
            claims.serialize_entry("scope", scope)?;
        }
        claims.serialize_entry(ISSUED_AT_MS, &token.issued_at.0)?;
        if let Some(session) = token.session {
            claims.serialize_entry("sid", session)?;
        }
        if let Some(confirmation) = &self.confirmation {
            claims.serialize_entry("cnf", confirmation)?;
        }
        if let Some(actor) = &token.actor {
            claims.serialize_entry("act", actor)?;
        }
        if !token.ancestors.is_empty() {
            let ancestors: Vec<Value> = token.ancestors.iter().map(described).collect();
            claims.serialize_entry(ANCESTORS, &ancestors)?;
        }
        for (name, value) in &self.further {
            claims.serialize_entry(name, value)?;
        }
        claims.end()
    }
}

/// An entry of [`ANCESTORS`].
fn described(ancestor: &Ancestor) -> Value {
    let mut entry = json!({"jti": ancestor.jti, "exp": ancestor.expires_at});
    let optional =
        [("iss", &ancestor.issuer), ("sid", &ancestor.session), ("client_id", &ancestor.client_id)];
    for (name, value) in optional {
        if let Some(value) = value {
            entry[name] = value.as_str().into();
        }
    }
    entry
}

impl Issuance {
    /// Issues with the active key of `keys`; opaque tokens are kept in `store`.
    pub fn new(keys: Keys, store: Store, hasher: SecretHasher, settings: IssuanceSettings) -> Self {
        Self { keys, store, hasher, settings }
    }

    /// `iss`.
    pub fn issuer(&self) -> &str {
        &self.settings.issuer
    }

    /// The realm of the issuer.
    pub fn realm(&self) -> &str {
        &self.settings.realm
    }

    /// An access token for `client` itself, which has been authenticated. For `issued_at` see [`AccessToken::issued_at`].
    pub async fn client_credentials(
        &self,
        client: &Client,
        request: &ClientCredentials,
        issued_at: UnixMillis,
    ) -> Result<IssuedToken, IssuanceError> {
        let configuration = &client.configuration;
        let scopes = narrowing::scopes(|_| true, &configuration.scopes, request.scope.as_deref())?;
        let audience = narrowing::audience(&configuration.audiences, &request.audience)?;
        // No resource owner is involved, so the subject stands for the client (RFC 9068 §2.2).
        let subject = self.subject_of(client, None)?;
        self.issue(AccessToken {
            client,
            subject: &subject,
            audience: &audience,
            scope: narrowing::joined(&scopes),
            session: None,
            possession: &request.possession,
            actor: None,
            ancestors: Vec::new(),
            latest_expiry: None,
            session_claims: None,
            assertion_claims: None,
            issued_at,
        })
        .await
    }

    /// The `sub` of tokens that `client` gets for itself.
    pub(crate) fn subject_of(
        &self,
        client: &Client,
        assertion: Option<&Map<String, Value>>,
    ) -> Result<String, IssuanceError> {
        let Some(template) = &client.configuration.subject else { return Ok(client.client_id.clone()) };
        self.places(client, &client.client_id, None, assertion).text(template).ok_or(IssuanceError::Subject)
    }

    fn places<'a>(
        &'a self,
        client: &'a Client,
        subject: &'a str,
        session: Option<&'a Map<String, Value>>,
        assertion: Option<&'a Map<String, Value>>,
    ) -> Places<'a> {
        Places {
            client_id: &client.client_id,
            client_name: client.configuration.name.as_deref(),
            subject,
            realm: &self.settings.realm,
            session,
            assertion,
        }
    }

    /// Issues what was decided. An opaque token is in the store before anybody has it.
    pub async fn issue(&self, token: AccessToken<'_>) -> Result<IssuedToken, IssuanceError> {
        let now = token.issued_at.seconds();
        let expires_at = self.expiry(token.client, now, token.latest_expiry)?;
        let jti = secret::random_id()?;
        let configuration = &token.client.configuration;
        let mut further = if configuration.claims.is_empty() {
            Map::new()
        } else {
            let (session, assertion) = (token.session_claims, token.assertion_claims);
            self.places(token.client, token.subject, session, assertion).claims(&configuration.claims)
        };
        for (name, value) in token.session_claims.into_iter().flatten() {
            further.entry(name.clone()).or_insert_with(|| value.clone());
        }
        let claims = AccessClaims {
            issuer: &self.settings.issuer,
            jti: &jti,
            expires_at,
            confirmation: token.possession.confirmation(),
            token: &token,
            further,
        };
        let access_token = match configuration.access_token_format {
            AccessTokenFormat::Jwt => self.keys.sign_jwt(TYPE, &claims).await?,
            AccessTokenFormat::Opaque => self.keep_opaque(&claims).await?,
        };
        Ok(IssuedToken {
            access_token,
            token_type: token.possession.token_type(),
            expires_in: u64::try_from(expires_at - now).unwrap_or(0),
            scope: token.scope,
            jti,
        })
    }

    fn expiry(&self, client: &Client, now: i64, latest: Option<i64>) -> Result<i64, IssuanceError> {
        let own = client.configuration.access_token_lifetime_seconds;
        let wanted = own.map_or(self.settings.lifetime.as_secs(), u64::from);
        let lifetime = wanted.min(self.settings.max_lifetime.as_secs());
        let expires_at = now.saturating_add(i64::try_from(lifetime).unwrap_or(i64::MAX));
        let expires_at = latest.map_or(expires_at, |latest| latest.min(expires_at));
        if expires_at > now { Ok(expires_at) } else { Err(IssuanceError::Expired) }
    }

    async fn keep_opaque(&self, claims: &AccessClaims<'_>) -> Result<String, IssuanceError> {
        let text = secret::mint(SecretKind::AccessToken)?;
        let Value::Object(members) = serde_json::to_value(claims).map_err(KeysError::Claims)? else {
            return Err(IssuanceError::Subject); // unreachable: claims are an object
        };
        let digest_hash = self.hasher.hash(&hex::encode(opaque::digest(&text)));
        let expires_at = UnixMillis::from_seconds(claims.expires_at);
        opaque_tokens::insert(&self.store, &digest_hash, &self.settings.realm, &members, expires_at).await?;
        Ok(text.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{ClientConfiguration, ClientStatus};

    fn client(configuration: ClientConfiguration) -> Client {
        Client {
            client_id: "c".to_owned(),
            configuration,
            status: ClientStatus::Active,
            previous_secret_expires_at: None,
            created_at: 0,
            updated_at: 0,
        }
    }

    #[test]
    fn claims_are_those_of_rfc_9068_and_no_more_than_apply() {
        let client = client(ClientConfiguration::default());
        let audience = ["api".to_owned()];
        let jkt = atm_core::base64url::encode(&[7; 32]);
        let bound = Possession { jkt: Some(jkt.clone()), x5t_s256: None };
        let mut token = AccessToken {
            client: &client,
            subject: "alice",
            audience: &audience,
            scope: Some("a".into()),
            session: None,
            possession: &Possession::default(),
            actor: None,
            ancestors: Vec::new(),
            latest_expiry: None,
            session_claims: None,
            assertion_claims: None,
            issued_at: UnixMillis(1_700_000_000_123),
        };
        let written = |token: &AccessToken<'_>| {
            serde_json::to_value(AccessClaims {
                issuer: "https://i",
                jti: "j",
                expires_at: 1_700_000_060,
                confirmation: token.possession.confirmation(),
                token,
                further: Map::new(),
            })
            .unwrap()
        };
        let mut expected = json!({
            "iss": "https://i", "exp": 1_700_000_060, "aud": "api", "sub": "alice", "client_id": "c",
            "iat": 1_700_000_000, "jti": "j", "scope": "a", "atm_iat_ms": 1_700_000_000_123_i64,
        });
        assert_eq!(written(&token), expected);
        token.session = Some("s");
        token.possession = &bound;
        token.actor = Some(json!({"sub": "robot"}));
        token.ancestors = vec![Ancestor {
            issuer: None,
            session: Some("q".into()),
            client_id: None,
            jti: "p".into(),
            expires_at: 1_700_000_070,
        }];
        expected["sid"] = "s".into();
        expected["cnf"] = json!({"jkt": jkt});
        expected["act"] = json!({"sub": "robot"});
        expected["atm_ancestors"] = json!([{"jti": "p", "exp": 1_700_000_070, "sid": "q"}]);
        assert_eq!(written(&token), expected);
        // What a sidecar reads of it.
        let read =
            atm_core::claims::Claims::from_object(written(&token).as_object().unwrap().clone()).unwrap();
        assert_eq!((read.ancestors.len(), read.actors.len(), read.session.as_deref()), (1, 1, Some("s")));
    }

    #[test]
    fn a_dpop_token_says_so() {
        let both = Possession { jkt: Some("k".into()), x5t_s256: Some("c".into()) };
        assert_eq!(both.confirmation(), Some(json!({"jkt": "k", "x5t#S256": "c"})));
        assert_eq!(both.token_type(), "DPoP");
        assert_eq!(Possession { jkt: None, ..both }.token_type(), "Bearer");
        assert_eq!(Possession::default().confirmation(), None);
    }
}
