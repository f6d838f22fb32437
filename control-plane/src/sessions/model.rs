//! What a session is, what opens one, and what of that is accepted.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::issuance::template;
use crate::registry::{Client, ClientStatus, FieldError, GrantType};

/// Bytes of a subject.
const MAX_SUBJECT: usize = 256;
/// Seconds that a session may be given at most: ten years.
const MAX_LIFETIME_SECONDS: u64 = 3_653 * 86_400;

/// Whether a session can be refreshed. Time, watermarks and a disabled subject end it, too, without a trace in its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// It can.
    Active,
    /// It was ended.
    Ended,
    /// It was ended because a used refresh token was used again.
    Reused,
}

impl SessionStatus {
    /// The name in the store and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Ended => "ended",
            Self::Reused => "reused",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Active, Self::Ended, Self::Reused].into_iter().find(|status| status.as_str() == text)
    }
}

/// What a session's tokens may be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDetails {
    /// The scopes that were granted; a refresh may ask for fewer.
    pub scopes: Vec<String>,
    /// Whom its tokens may be for.
    pub audiences: Vec<String>,
    /// Claims of its access tokens.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub claims: Map<String, Value>,
}

/// A session. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// Random; the `sid` of its tokens.
    pub id: String,
    /// Its realm.
    #[serde(skip)]
    pub realm: String,
    /// The client that holds its refresh token.
    pub client_id: String,
    /// Whose it is (`sub`).
    pub subject: String,
    /// What its tokens may be.
    #[serde(flatten)]
    pub details: SessionDetails,
    /// What a refresh must prove to hold: empty, `jkt:..` or `x5t#S256:..`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bound_to: String,
    /// How often it has been refreshed, from 1 on.
    pub generation: u64,
    /// Whether it can be refreshed.
    pub status: SessionStatus,
    /// The issue clock's instant of its opening.
    pub opened_at: i64,
    /// When it was opened or last refreshed.
    pub refreshed_at: i64,
    /// When it ends unless it is refreshed before.
    pub idle_expires_at: i64,
    /// When it ends in any case.
    pub expires_at: i64,
    /// When it was ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<i64>,
}

/// What opens a session.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// Whom the login service has authenticated: 1 to 256 bytes.
    pub subject: String,
    /// The client that gets the tokens.
    pub client_id: String,
    /// Out of the client's; none: all of them.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// Out of the client's; none: all of them.
    #[serde(default)]
    pub audiences: Option<Vec<String>>,
    /// Claims of its access tokens, such as roles; those that a token says of itself cannot be set.
    #[serde(default)]
    pub claims: Map<String, Value>,
    /// The DPoP key that its tokens are bound to (RFC 7638 thumbprint).
    #[serde(default)]
    pub dpop_jkt: Option<String>,
    /// Seconds without a refresh after which it ends; the client's own and the configured one are upper bounds.
    #[serde(default)]
    pub idle_seconds: Option<u64>,
    /// Seconds after which it ends in any case; the client's own and the configured one are upper bounds.
    #[serde(default)]
    pub lifetime_seconds: Option<u64>,
}

/// A subject that gets no tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DisabledSubject {
    /// Its `sub`.
    pub subject: String,
    /// As given by the caller.
    pub reason: Option<String>,
    /// Who disabled it.
    pub actor: String,
    /// When, in milliseconds since the Unix epoch.
    pub created_at: i64,
}

pub(super) fn check(new: &NewSession, client: &Client) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut refuse = |field: &str, message: &str| {
        errors.push(FieldError { field: field.to_owned(), message: message.to_owned() });
    };
    let configuration = &client.configuration;
    if client.status != ClientStatus::Active {
        refuse("client_id", "the client is disabled");
    }
    if !configuration.grant_types.contains(&GrantType::RefreshToken) {
        refuse("client_id", "the client has no refresh_token in its grant_types; it could not go on");
    }
    if let Err(message) = check_subject(&new.subject) {
        refuse("subject", message);
    }
    for scope in new.scopes.iter().flatten().filter(|scope| !configuration.scopes.contains(scope)) {
        refuse("scopes", &format!("the client is not registered for {scope:?}"));
    }
    let audiences = new.audiences.as_ref().unwrap_or(&configuration.audiences);
    if audiences.is_empty() {
        refuse("audiences", "must name at least one, or the client must be registered for one");
    }
    for audience in audiences.iter().filter(|audience| !configuration.audiences.contains(audience)) {
        refuse("audiences", &format!("the client is not registered for {audience:?}"));
    }
    for (name, message) in template::mistakes(&new.claims) {
        refuse(&format!("claims.{name}"), message);
    }
    if configuration.dpop_bound_access_tokens && new.dpop_jkt.is_none() {
        refuse("dpop_jkt", "must name the client's key: the client is registered for DPoP-bound tokens");
    }
    let is_digest = |text: &str| atm_core::base64url::decode(text).is_ok_and(|bytes| bytes.len() == 32);
    if new.dpop_jkt.as_deref().is_some_and(|jkt| !is_digest(jkt)) {
        refuse("dpop_jkt", "must be the base64url of 32 bytes (RFC 7638)");
    }
    for (field, seconds) in [("idle_seconds", new.idle_seconds), ("lifetime_seconds", new.lifetime_seconds)] {
        if seconds.is_some_and(|seconds| seconds == 0 || seconds > MAX_LIFETIME_SECONDS) {
            refuse(field, "must be 1 to 315619200");
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

pub(super) fn check_subject(subject: &str) -> Result<(), &'static str> {
    if subject.is_empty() || subject.len() > MAX_SUBJECT || subject.chars().any(char::is_control) {
        return Err("must be 1 to 256 bytes without control characters");
    }
    Ok(())
}
