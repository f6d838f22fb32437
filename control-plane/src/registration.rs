//! Dynamic client registration (RFC 7591) and its management (RFC 7592). Off, unless an initial access token is configured.
//!
//! The token that manages a registration is derived from the client's id and the instant of its registration, as refresh tokens
//! are: the store holds nothing that could be used as one.

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::registry::{
    AuthenticationMethod, Client, ClientConfiguration, FieldError, GrantType, NewClient, Registry,
    RegistryError,
};
use crate::secret::{SecretHasher, base62, constant_time_equal};

/// Characters of a registration access token after its prefix: 256 bits in base 62.
const TOKEN_LENGTH: usize = 43;
/// What it begins with.
const PREFIX: &str = "atm_cr_";

/// Who may register clients, and what they may have.
#[derive(Clone)]
pub struct RegistrationSettings {
    /// The initial access token (RFC 7591 §3).
    pub token: Zeroizing<String>,
    /// The scopes that a client may ask for.
    pub scopes: Vec<String>,
    /// The audiences that every client gets.
    pub audiences: Vec<String>,
}

impl std::fmt::Debug for RegistrationSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrationSettings").field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

/// Registers clients on their own behalf; clones share everything.
#[derive(Debug, Clone)]
pub struct Registration {
    registry: Registry,
    hasher: SecretHasher,
    settings: RegistrationSettings,
    issuer: String,
    realm: String,
}

/// Why a registration was refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// No token, or a wrong one (`invalid_token`). For management also: no such registration.
    #[error("the token is not valid here")]
    Token,
    /// The metadata cannot be accepted (`invalid_client_metadata`).
    #[error("{0}")]
    Metadata(String),
    /// The registry failed.
    #[error(transparent)]
    Registry(RegistryError),
}

impl From<RegistryError> for RegistrationError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Invalid(errors) => Self::Metadata(described(&errors)),
            other => Self::Registry(other),
        }
    }
}

fn described(errors: &[FieldError]) -> String {
    let each: Vec<String> =
        errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
    each.join("; ")
}

impl Registration {
    /// Over the clients of `registry`.
    pub fn new(
        registry: Registry,
        hasher: SecretHasher,
        settings: RegistrationSettings,
        issuer: &str,
        realm: &str,
    ) -> Self {
        Self { registry, hasher, settings, issuer: issuer.to_owned(), realm: realm.to_owned() }
    }

    /// Registers a client (RFC 7591 §3.1). The answer is that of §3.2.1.
    pub async fn register(
        &self,
        token: &str,
        metadata: Map<String, Value>,
    ) -> Result<Value, RegistrationError> {
        if !constant_time_equal(token.as_bytes(), self.settings.token.as_bytes()) {
            return Err(RegistrationError::Token);
        }
        let configuration = self.configuration(&metadata)?;
        let new = NewClient { client_id: None, configuration };
        let (client, secret) = self.registry.create_client(new).await?;
        Ok(self.described(&client, secret.as_ref()))
    }

    /// The registration (RFC 7592 §2.1).
    pub async fn read(&self, client_id: &str, token: &str) -> Result<Value, RegistrationError> {
        let client = self.managed(client_id, token).await?;
        Ok(self.described(&client, None))
    }

    /// Replaces the metadata (RFC 7592 §2.2). The client keeps its id, its secret and its way to authenticate.
    pub async fn replace(
        &self,
        client_id: &str,
        token: &str,
        mut metadata: Map<String, Value>,
    ) -> Result<Value, RegistrationError> {
        let client = self.managed(client_id, token).await?;
        // RFC 7592 §2.2: these must be there or not as they were, and must not be the server's own.
        if metadata.remove("client_id").and_then(|id| id.as_str().map(|id| id == client_id)) != Some(true) {
            return Err(RegistrationError::Metadata("client_id: must be the registered one".to_owned()));
        }
        for own in [
            "registration_access_token",
            "registration_client_uri",
            "client_secret_expires_at",
            "client_id_issued_at",
        ] {
            if metadata.contains_key(own) {
                return Err(RegistrationError::Metadata(format!("{own}: is not the client's to set")));
            }
        }
        metadata.remove("client_secret");
        let configuration = self.configuration(&metadata)?;
        if configuration.token_endpoint_auth_method != client.configuration.token_endpoint_auth_method {
            let message = "token_endpoint_auth_method: cannot be changed; register anew";
            return Err(RegistrationError::Metadata(message.to_owned()));
        }
        let client = self.registry.replace_configuration(client_id, configuration).await?;
        Ok(self.described(&client, None))
    }

    /// Removes the client and ends its tokens (RFC 7592 §2.3).
    pub async fn remove(&self, client_id: &str, token: &str) -> Result<(), RegistrationError> {
        self.managed(client_id, token).await?;
        let actor = format!("client:{client_id}");
        self.registry.delete(client_id, &actor).await?;
        Ok(())
    }

    /// The client, if it registered itself and `token` is its own. Which of that is not so is nobody's business.
    async fn managed(&self, client_id: &str, token: &str) -> Result<Client, RegistrationError> {
        match self.registry.get(client_id).await {
            Ok(client) if client.configuration.registered_itself => {
                let expected = self.token(&client);
                let fits = constant_time_equal(token.as_bytes(), expected.as_bytes());
                if fits { Ok(client) } else { Err(RegistrationError::Token) }
            }
            Ok(_) | Err(RegistryError::NotFound) => Err(RegistrationError::Token),
            Err(error) => Err(error.into()),
        }
    }

    fn token(&self, client: &Client) -> Zeroizing<String> {
        // No other input of the hasher begins like this: those are minted secrets or hexadecimal.
        let input = format!("registration v1\n{}\n{}\n{}", self.realm, client.client_id, client.created_at);
        Zeroizing::new(format!("{PREFIX}{}", base62(&self.hasher.hash(&input), TOKEN_LENGTH)))
    }

    /// What of the metadata (RFC 7591 §2) is ours; members that are not known are passed over, as §2 has it.
    fn configuration(&self, metadata: &Map<String, Value>) -> Result<ClientConfiguration, RegistrationError> {
        let refuse = |name: &str, problem: &str| RegistrationError::Metadata(format!("{name}: {problem}"));
        let text = |name: &str| match metadata.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(refuse(name, "must be a string")),
        };
        let flag = |name: &str| match metadata.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(refuse(name, "must be true or false")),
        };
        let method = text("token_endpoint_auth_method")?;
        let method = method.map_or(Ok(AuthenticationMethod::default()), |name| {
            let known = AuthenticationMethod::ALL.into_iter().find(|method| method.as_str() == name);
            known.ok_or_else(|| refuse("token_endpoint_auth_method", "is not supported"))
        })?;
        let grant_types = match metadata.get("grant_types") {
            None | Some(Value::Null) => vec![GrantType::ClientCredentials],
            Some(Value::Array(names)) => names.iter().map(grant).collect::<Result<_, _>>()?,
            Some(_) => return Err(refuse("grant_types", "must be an array of strings")),
        };
        if metadata.get("response_types").and_then(Value::as_array).is_some_and(|types| !types.is_empty()) {
            return Err(refuse("response_types", "none is supported: there is no authorization endpoint"));
        }
        let scopes = match text("scope")? {
            None => self.settings.scopes.clone(),
            Some(scope) => {
                scope.split(' ').filter(|scope| !scope.is_empty()).map(ToOwned::to_owned).collect()
            }
        };
        if let Some(refused) = scopes.iter().find(|scope| !self.settings.scopes.contains(scope)) {
            return Err(refuse("scope", &format!("{refused} is not for clients that register themselves")));
        }
        Ok(ClientConfiguration {
            name: text("client_name")?,
            token_endpoint_auth_method: method,
            grant_types,
            scopes,
            audiences: self.settings.audiences.clone(),
            jwks: metadata.get("jwks").filter(|jwks| !jwks.is_null()).cloned(),
            jwks_uri: text("jwks_uri")?,
            tls_client_auth_subject_dn: text("tls_client_auth_subject_dn")?,
            tls_client_auth_san_dns: text("tls_client_auth_san_dns")?,
            tls_client_auth_san_uri: text("tls_client_auth_san_uri")?,
            tls_client_auth_san_ip: text("tls_client_auth_san_ip")?,
            tls_client_auth_san_email: text("tls_client_auth_san_email")?,
            tls_client_certificate_bound_access_tokens: flag("tls_client_certificate_bound_access_tokens")?,
            dpop_bound_access_tokens: flag("dpop_bound_access_tokens")?,
            registered_itself: true,
            ..ClientConfiguration::default()
        })
    }

    /// RFC 7591 §3.2.1 and RFC 7592 §3.
    fn described(&self, client: &Client, secret: Option<&Zeroizing<String>>) -> Value {
        let configuration = &client.configuration;
        let grants: Vec<&str> = configuration.grant_types.iter().map(|grant| grant.as_str()).collect();
        let mut answer = json!({
            "client_id": client.client_id,
            "client_id_issued_at": client.created_at.div_euclid(1_000),
            "token_endpoint_auth_method": configuration.token_endpoint_auth_method,
            "grant_types": grants,
            "registration_access_token": *self.token(client),
            "registration_client_uri": format!("{}/oauth2/register/{}", self.issuer, client.client_id),
            "tls_client_certificate_bound_access_tokens": configuration.tls_client_certificate_bound_access_tokens,
            "dpop_bound_access_tokens": configuration.dpop_bound_access_tokens,
        });
        if let Some(secret) = secret {
            answer["client_secret"] = secret.as_str().into();
            // RFC 7591 §3.2.1: 0 where it does not expire; required beside a secret.
            answer["client_secret_expires_at"] = 0.into();
        }
        let optional = [
            ("client_name", configuration.name.clone().map(Value::from)),
            ("scope", (!configuration.scopes.is_empty()).then(|| configuration.scopes.join(" ").into())),
            ("jwks", configuration.jwks.clone()),
            ("jwks_uri", configuration.jwks_uri.clone().map(Value::from)),
            ("tls_client_auth_subject_dn", configuration.tls_client_auth_subject_dn.clone().map(Value::from)),
            ("tls_client_auth_san_dns", configuration.tls_client_auth_san_dns.clone().map(Value::from)),
            ("tls_client_auth_san_uri", configuration.tls_client_auth_san_uri.clone().map(Value::from)),
            ("tls_client_auth_san_ip", configuration.tls_client_auth_san_ip.clone().map(Value::from)),
            ("tls_client_auth_san_email", configuration.tls_client_auth_san_email.clone().map(Value::from)),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                answer[name] = value;
            }
        }
        answer
    }
}

/// What a client that registers itself may ask for. The other grants hand out what others have, which takes an operator.
fn grant(name: &Value) -> Result<GrantType, RegistrationError> {
    match name.as_str().and_then(GrantType::parse) {
        Some(grant @ (GrantType::ClientCredentials | GrantType::RefreshToken)) => Ok(grant),
        _ => Err(RegistrationError::Metadata(
            "grant_types: only client_credentials and refresh_token may be registered".to_owned(),
        )),
    }
}
