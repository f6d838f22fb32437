//! What is known of a client, in the words of RFC 7591 §2 where it has them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How a client authenticates (RFC 7591 §2, RFC 8705 §2, OpenID Connect Core §9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthenticationMethod {
    /// By its secret, in the `Authorization` header or in the body: the two are one credential.
    #[default]
    ClientSecretBasic,
    /// As [`Self::ClientSecretBasic`].
    ClientSecretPost,
    /// By an assertion that one of its keys signed (RFC 7523).
    PrivateKeyJwt,
    /// By a certificate of a configured authority (RFC 8705 §2.1).
    TlsClientAuth,
    /// By a certificate that is registered itself (RFC 8705 §2.2).
    SelfSignedTlsClientAuth,
    /// Not at all: a public client.
    None,
}

impl AuthenticationMethod {
    /// Every method, as metadata lists them.
    pub const ALL: [Self; 6] = [
        Self::ClientSecretBasic,
        Self::ClientSecretPost,
        Self::PrivateKeyJwt,
        Self::TlsClientAuth,
        Self::SelfSignedTlsClientAuth,
        Self::None,
    ];

    /// The registered name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientSecretBasic => "client_secret_basic",
            Self::ClientSecretPost => "client_secret_post",
            Self::PrivateKeyJwt => "private_key_jwt",
            Self::TlsClientAuth => "tls_client_auth",
            Self::SelfSignedTlsClientAuth => "self_signed_tls_client_auth",
            Self::None => "none",
        }
    }

    /// Whether the client has a secret that we mint.
    pub const fn has_secret(self) -> bool {
        matches!(self, Self::ClientSecretBasic | Self::ClientSecretPost)
    }
}

/// What a client may ask the token endpoint for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrantType {
    /// RFC 6749 §4.4.
    #[serde(rename = "client_credentials")]
    ClientCredentials,
    /// RFC 6749 §6.
    #[serde(rename = "refresh_token")]
    RefreshToken,
    /// RFC 8693.
    #[serde(rename = "urn:ietf:params:oauth:grant-type:token-exchange")]
    TokenExchange,
    /// RFC 7523 §2.1.
    #[serde(rename = "urn:ietf:params:oauth:grant-type:jwt-bearer")]
    JwtBearer,
}

impl GrantType {
    /// Every grant that is offered, as metadata lists them.
    pub const ALL: [Self; 4] =
        [Self::ClientCredentials, Self::RefreshToken, Self::TokenExchange, Self::JwtBearer];

    /// The registered name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientCredentials => "client_credentials",
            Self::RefreshToken => "refresh_token",
            Self::TokenExchange => "urn:ietf:params:oauth:grant-type:token-exchange",
            Self::JwtBearer => "urn:ietf:params:oauth:grant-type:jwt-bearer",
        }
    }

    /// A label of metrics and log lines.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ClientCredentials => "client_credentials",
            Self::RefreshToken => "refresh_token",
            Self::TokenExchange => "token_exchange",
            Self::JwtBearer => "jwt_bearer",
        }
    }

    /// The grant of that registered name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|grant| grant.as_str() == name)
    }
}

/// What an access token looks like to those who carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessTokenFormat {
    /// A signed JWT (RFC 9068), which sidecars judge by themselves.
    #[default]
    Jwt,
    /// A random text (`atm_at_`), which sidecars ask about once and then remember.
    Opaque,
}

/// What a client may do with the tokens of others (RFC 8693). Nothing, unless it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExchangeRules {
    /// May take the place of the subject: no `act`.
    pub impersonation: bool,
    /// May act for the subject, and is named in `act`.
    pub delegation: bool,
}

/// How much a client may ask of the OAuth endpoints. What is left out is as configured for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientLimits {
    /// Requests a second in the long run, 1 to 1,000,000.
    pub requests_per_second: Option<u32>,
    /// Requests at once before the rate counts, 1 to 1,000,000.
    pub burst: Option<u32>,
    /// Requests under way at one time, 1 to 100,000.
    pub concurrency: Option<u32>,
}

/// All that an operator decides about a client. Lists keep their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfiguration {
    /// For people; at most 256 bytes.
    pub name: Option<String>,
    /// How it authenticates.
    pub token_endpoint_auth_method: AuthenticationMethod,
    /// What it may ask for.
    pub grant_types: Vec<GrantType>,
    /// The scopes that it may have (RFC 6749 §3.3), at most 256.
    pub scopes: Vec<String>,
    /// Whom its tokens may be for (RFC 8707), at most 64.
    pub audiences: Vec<String>,
    /// Its public keys (RFC 7517 §5): for assertions, or with `x5c` for self-signed certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks: Option<Value>,
    /// Where it publishes its public keys, for assertions, in the place of `jwks`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<String>,
    /// The distinguished name in its certificate (RFC 4514), for `tls_client_auth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_auth_subject_dn: Option<String>,
    /// A DNS name in its certificate, for `tls_client_auth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_auth_san_dns: Option<String>,
    /// A URI in its certificate, for `tls_client_auth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_auth_san_uri: Option<String>,
    /// An IP address in its certificate, for `tls_client_auth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_auth_san_ip: Option<String>,
    /// An e-mail address in its certificate, for `tls_client_auth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_auth_san_email: Option<String>,
    /// Whether its tokens are bound to the certificate that it presents (RFC 8705 §3.4).
    pub tls_client_certificate_bound_access_tokens: bool,
    /// Whether it must ask for its tokens with a DPoP proof (RFC 9449 §5.2).
    pub dpop_bound_access_tokens: bool,
    /// What its access tokens look like.
    pub access_token_format: AccessTokenFormat,
    /// Seconds; none: the configured default.
    pub access_token_lifetime_seconds: Option<u32>,
    /// Seconds without a refresh after which a session of it ends; none: the configured default.
    pub refresh_token_idle_seconds: Option<u32>,
    /// Seconds after which a session of it ends in any case; none: the configured default.
    pub refresh_token_lifetime_seconds: Option<u32>,
    /// The `sub` of tokens that it gets for itself; `${client_id}` and the like are replaced. None: its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Claims of its access tokens; `${subject}` and the like are replaced in texts.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub claims: Map<String, Value>,
    /// What it may do with the tokens of others.
    pub exchange: ExchangeRules,
    /// How much it may ask.
    pub limits: ClientLimits,
    /// Whether it registered itself (RFC 7591), and so manages its registration.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub registered_itself: bool,
}

impl Default for ClientConfiguration {
    fn default() -> Self {
        Self {
            name: None,
            token_endpoint_auth_method: AuthenticationMethod::default(),
            grant_types: vec![GrantType::ClientCredentials],
            scopes: Vec::new(),
            audiences: Vec::new(),
            jwks: None,
            jwks_uri: None,
            tls_client_auth_subject_dn: None,
            tls_client_auth_san_dns: None,
            tls_client_auth_san_uri: None,
            tls_client_auth_san_ip: None,
            tls_client_auth_san_email: None,
            tls_client_certificate_bound_access_tokens: false,
            dpop_bound_access_tokens: false,
            access_token_format: AccessTokenFormat::default(),
            access_token_lifetime_seconds: None,
            refresh_token_idle_seconds: None,
            refresh_token_lifetime_seconds: None,
            subject: None,
            claims: Map::new(),
            exchange: ExchangeRules::default(),
            limits: ClientLimits::default(),
            registered_itself: false,
        }
    }
}

/// Whether a client may get tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientStatus {
    /// May authenticate.
    Active,
    /// Is refused everywhere; what it holds is revoked.
    Disabled,
}

impl ClientStatus {
    /// The name in the store and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Disabled].into_iter().find(|status| status.as_str() == text)
    }
}

/// A registered client. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Client {
    /// Given by the caller, or 22 random characters.
    pub client_id: String,
    /// What an operator decided.
    #[serde(flatten)]
    pub configuration: ClientConfiguration,
    /// Whether it may get tokens.
    pub status: ClientStatus,
    /// Until when the secret before the current one is taken too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_secret_expires_at: Option<i64>,
    /// When it was registered.
    pub created_at: i64,
    /// When it was last changed.
    pub updated_at: i64,
}

/// The keyed hashes of a client's secrets. No `Debug`.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct SecretHashes {
    /// None: the client has no secret.
    pub(crate) current: Option<Vec<u8>>,
    /// Taken until [`Client::previous_secret_expires_at`].
    pub(crate) previous: Option<Vec<u8>>,
}

/// What registers a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewClient {
    /// 1 to 128 characters out of letters, digits and `-._~`; none: a random one.
    pub client_id: Option<String>,
    /// What it is to be.
    pub configuration: ClientConfiguration,
}

impl<'de> Deserialize<'de> for NewClient {
    /// One flat object. By hand, because serde cannot refuse unknown members of a flattened struct.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let mut members = Map::deserialize(deserializer)?;
        let client_id = match members.remove("client_id") {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(id),
            Some(_) => return Err(D::Error::custom("client_id: must be a string")),
        };
        let configuration = serde_json::from_value(Value::Object(members)).map_err(D::Error::custom)?;
        Ok(Self { client_id, configuration })
    }
}

/// What changes a client: a merge patch (RFC 7396) of its members. Null brings a member's default back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ClientChange {
    /// Disabling also revokes every token that the client holds.
    #[serde(default)]
    pub status: Option<ClientStatus>,
    /// The other members.
    #[serde(flatten)]
    pub members: Map<String, Value>,
}

impl ClientConfiguration {
    /// With `change` merged into it. The error names what cannot be read.
    pub(crate) fn merged(&self, change: Map<String, Value>) -> Result<Self, String> {
        // A configuration always serialises: its keys are texts.
        let mut document = serde_json::to_value(self).map_err(|error| error.to_string())?;
        merge(&mut document, change);
        serde_json::from_value(document).map_err(|error| error.to_string())
    }
}

fn merge(target: &mut Value, change: Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(members) = target.as_object_mut() else { return };
    for (name, value) in change {
        match value {
            Value::Null => {
                members.remove(&name);
            }
            Value::Object(inner) => merge(members.entry(name).or_insert(Value::Null), inner),
            other => {
                members.insert(name, other);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn new(value: Value) -> Result<NewClient, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_client_is_one_flat_object_without_unknown_members() {
        let read = new(json!({"client_id": "c", "scopes": ["a"], "grant_types": ["refresh_token"]})).unwrap();
        assert_eq!(read.client_id.as_deref(), Some("c"));
        assert_eq!(read.configuration.grant_types, [GrantType::RefreshToken]);
        assert_eq!(new(json!({})).unwrap().configuration, ClientConfiguration::default());
        for (wrong, named) in [
            (json!({"scope": ["a"]}), "scope"),
            (json!({"client_id": 1}), "client_id"),
            (json!({"grant_types": ["password"]}), "password"),
            (json!({"exchange": {"all": true}}), "all"),
        ] {
            let error = new(wrong).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_change_merges_and_null_brings_the_default_back() {
        let before = ClientConfiguration {
            name: Some("n".into()),
            access_token_lifetime_seconds: Some(60),
            claims: json!({"a": 1, "b": 2}).as_object().unwrap().clone(),
            ..ClientConfiguration::default()
        };
        let change = json!({
            "status": "disabled", "access_token_lifetime_seconds": null,
            "claims": {"a": null, "c": 3}, "scopes": ["x"],
        });
        let change: ClientChange = serde_json::from_value(change).unwrap();
        assert_eq!(change.status, Some(ClientStatus::Disabled));
        let after = before.merged(change.members).unwrap();
        assert_eq!(after.name.as_deref(), Some("n"));
        assert_eq!(after.access_token_lifetime_seconds, None);
        assert_eq!(Value::Object(after.claims), json!({"b": 2, "c": 3}));
        assert_eq!(after.scopes, ["x"]);
        let error = before.merged(json!({"scops": []}).as_object().unwrap().clone()).unwrap_err();
        assert!(error.contains("scops"), "{error}");
    }

    #[test]
    fn names_are_those_on_the_wire() {
        for method in AuthenticationMethod::ALL {
            assert_eq!(serde_json::to_value(method).unwrap(), method.as_str());
        }
        for grant in GrantType::ALL {
            assert_eq!(serde_json::to_value(grant).unwrap(), grant.as_str());
            assert_eq!(GrantType::parse(grant.as_str()), Some(grant));
        }
    }
}
