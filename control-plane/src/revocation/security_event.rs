//! Security event tokens (RFC 8417) from trusted transmitters: what an identity provider learns of a session or an account becomes
//! a revocation here. CAEP and RISC events of the OpenID Shared Signals Framework are understood; the subject by RFC 9493.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use atm_core::jws::UnverifiedToken;
use atm_core::{base64url, json};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Applied, Order, RevocationError, Revocations, Selector};
use crate::audit::{Action, Actor, Event};
use crate::secret::{constant_time_equal, sha256};
use crate::store::{StoreError, security_events, transact, trusted_issuers};

/// The media type and, without `application/`, the `typ` (RFC 8417 §2.3, §7.2).
pub const MEDIA_TYPE: &str = "application/secevent+jwt";
const TYP: &str = "secevent+jwt";
/// Seconds that clocks may differ by.
const SKEW: i64 = 300;
/// Seconds that an event may have been on its way: longer than any sensible retry, shorter than what is remembered.
const OLDEST: i64 = 7 * 24 * 60 * 60;
/// Transmitters at most.
const MAX_TRANSMITTERS: usize = 64;
/// Bytes of the transmitters file at most.
const MAX_FILE: u64 = 256 * 1024;

/// What begins the names of CAEP events.
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
/// What begins the names of RISC events.
const RISC: &str = "https://schemas.openid.net/secevent/risc/event-type/";

/// Who may send events.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Transmitter {
    /// For the record.
    name: String,
    /// Its `iss`: a trusted issuer, whose keys are known here.
    issuer: String,
    /// The `aud` that it sends to us.
    audience: String,
    /// SHA-256 of the bearer token that it sends, 64 hexadecimal digits.
    token_sha256: String,
    /// What makes its subjects ours: put before them.
    #[serde(default)]
    subject_prefix: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    transmitters: Vec<Transmitter>,
}

/// All who may send events.
#[derive(Debug, Clone, Default)]
pub struct Transmitters(Arc<Vec<Transmitter>>);

impl Transmitters {
    /// Reads the file, or says what is wrong with it.
    pub fn load(file: &Path) -> Result<Self, String> {
        let said = |problem: String| format!("{} {problem}", file.display());
        let data = std::fs::metadata(file).map_err(|error| said(format!("cannot be read: {error}")))?;
        if data.len() > MAX_FILE {
            return Err(said("is too large".to_owned()));
        }
        let text = std::fs::read_to_string(file).map_err(|error| said(format!("cannot be read: {error}")))?;
        let document: Document = serde_norway::from_str(&text).map_err(|error| said(error.to_string()))?;
        if document.transmitters.len() > MAX_TRANSMITTERS {
            return Err(said(format!("has more than {MAX_TRANSMITTERS} transmitters")));
        }
        let mut names = BTreeSet::new();
        for (index, transmitter) in document.transmitters.iter().enumerate() {
            let hash = hex::decode(&transmitter.token_sha256).is_ok_and(|hash| hash.len() == 32);
            if !hash {
                return Err(said(format!("transmitters[{index}].tokenSha256 must be 64 hexadecimal digits")));
            }
            if transmitter.name.is_empty() || !names.insert(&transmitter.name) {
                return Err(said(format!("transmitters[{index}].name must be there, and its own")));
            }
        }
        Ok(Self(Arc::new(document.transmitters)))
    }

    /// Whether nobody may.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one with this bearer token. Each is looked at, whichever fits.
    fn holder(&self, token: &[u8]) -> Option<&Transmitter> {
        let presented = hex::encode(sha256(token));
        let mut found = None;
        for transmitter in self.0.iter() {
            if constant_time_equal(
                presented.as_bytes(),
                transmitter.token_sha256.to_ascii_lowercase().as_bytes(),
            ) {
                found = Some(transmitter);
            }
        }
        found
    }
}

/// Why an event is not taken; each is an error code of RFC 8935 §2.4.
#[derive(Debug, thiserror::Error)]
pub enum SecurityEventError {
    /// No known transmitter (`authentication_failed`).
    #[error("the transmitter is not known; send its token as Authorization: Bearer")]
    Authentication,
    /// No SET, or not one that can be read (`invalid_request`).
    #[error("{0}")]
    Request(&'static str),
    /// Signed by no key of the issuer (`invalid_key`).
    #[error("the token is not signed by a published key of its issuer")]
    Key,
    /// Another's (`invalid_issuer`).
    #[error("the token is not of the issuer that this transmitter sends for")]
    Issuer,
    /// For another (`invalid_audience`).
    #[error("the token is not for us")]
    Audience,
    /// Could not be done; send it again.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
}

impl From<StoreError> for SecurityEventError {
    fn from(error: StoreError) -> Self {
        Self::Revocation(error.into())
    }
}

/// What one event came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// What was revoked; empty where the event asks for nothing, or came before.
    pub selectors: Vec<Selector>,
    /// Whether it had come before.
    pub repeated: bool,
}

impl Revocations {
    /// Takes a security event token that was pushed with the bearer token `credential` (RFC 8935 §2).
    pub async fn take_security_event(
        &self,
        transmitters: &Transmitters,
        credential: Option<&[u8]>,
        token: &str,
    ) -> Result<Taken, SecurityEventError> {
        let transmitter = credential
            .and_then(|credential| transmitters.holder(credential))
            .ok_or(SecurityEventError::Authentication)?;
        let outcome = self.take(transmitter, token).await;
        let event = Event::of(Action::SecurityEvent)
            .by(Actor::transmitter(&transmitter.name))
            .issuer(&transmitter.issuer);
        self.audit.record(match &outcome {
            Ok(taken) => event.detail("revoked", taken.selectors.len()).detail("repeated", taken.repeated),
            Err(error @ SecurityEventError::Revocation(_)) => event.failed(error.to_string()),
            Err(error) => event.refused(error.to_string()),
        });
        outcome
    }

    async fn take(&self, transmitter: &Transmitter, token: &str) -> Result<Taken, SecurityEventError> {
        let claims = self.verified(transmitter, token).await?;
        let now = self.clock.wall();
        let issued_at =
            claims.get("iat").and_then(Value::as_i64).ok_or(SecurityEventError::Request("iat is missing"))?;
        if issued_at > now.seconds() + SKEW || issued_at < now.seconds() - OLDEST {
            return Err(SecurityEventError::Request("iat is in the future, or more than a week past"));
        }
        let jti = claims.get("jti").and_then(Value::as_str).filter(|jti| (1..=256).contains(&jti.len()));
        let jti = jti.ok_or(SecurityEventError::Request("jti must be there, of 1 to 256 bytes"))?;
        let id = sha256(format!("{}\0{jti}", transmitter.issuer).as_bytes());
        let selectors = selectors(&claims, transmitter)?;
        let order = Order {
            selectors: &selectors,
            before: None,
            actor: &transmitter.name,
            reason: Some("security event token"),
        };
        if selectors.is_empty() {
            let first = transact!(self.store, |transaction| -> Result<bool, StoreError> {
                security_events::first(transaction, &id, now).await
            })?;
            return Ok(Taken { selectors, repeated: !first });
        }
        let repeated = Taken { selectors: Vec::new(), repeated: true };
        // Looked at before anything is done, and again in the transaction.
        if security_events::is_taken(&self.store, &id).await? {
            return Ok(repeated);
        }
        let prepared = self.prepare(&order).await?;
        let applied = transact!(self.store, |transaction| -> Result<Option<Applied>, RevocationError> {
            // With the revocation: an event that is taken and has no effect would be worse than one that comes twice.
            if !security_events::first(transaction, &id, now).await? {
                return Ok(None);
            }
            self.apply(transaction, &order, &prepared).await.map(Some)
        })?;
        let Some(applied) = applied else { return Ok(repeated) };
        self.concluded(&order, &prepared, &applied, Some(Actor::transmitter(&transmitter.name))).await?;
        Ok(Taken { selectors, repeated: false })
    }

    /// The claims, if a key of the transmitter's issuer signed them, for us.
    async fn verified(
        &self,
        transmitter: &Transmitter,
        token: &str,
    ) -> Result<Map<String, Value>, SecurityEventError> {
        const MALFORMED: SecurityEventError =
            SecurityEventError::Request("the body is no security event token");
        let parsed = UnverifiedToken::parse(token).map_err(|_| MALFORMED)?;
        let header = parsed.header();
        let typ = header.typ.as_deref().unwrap_or_default();
        if !typ.trim_start_matches("application/").eq_ignore_ascii_case(TYP) {
            return Err(SecurityEventError::Request("typ must be secevent+jwt"));
        }
        if parsed.issuer().ok() != Some(transmitter.issuer.as_str()) {
            return Err(SecurityEventError::Issuer);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(MALFORMED)?;
        let signature = base64url::decode(signature).map_err(|_| MALFORMED)?;
        let keys =
            trusted_issuers::published_keys(&self.store, &transmitter.issuer).await?.unwrap_or_default();
        let fits = |key: &&atm_core::key::VerificationKey| {
            key.algorithm() == header.algorithm && header.kid.as_deref().is_none_or(|kid| kid == key.kid())
        };
        if !keys.iter().filter(fits).any(|key| key.verify(message.as_bytes(), &signature).is_ok()) {
            return Err(SecurityEventError::Key);
        }
        let payload = message.split_once('.').map(|(_, payload)| payload).ok_or(MALFORMED)?;
        let payload = base64url::decode(payload).map_err(|_| MALFORMED)?;
        let claims = json::parse_object(&payload).map_err(|_| MALFORMED)?;
        // RFC 8417 §2.2: an event is in the past, so it does not expire; a token that does is another kind of token.
        if claims.contains_key("exp") {
            return Err(SecurityEventError::Request("a security event token has no exp"));
        }
        let is_ours = match claims.get("aud") {
            Some(Value::String(audience)) => *audience == transmitter.audience,
            Some(Value::Array(audiences)) => {
                audiences.iter().any(|audience| *audience == transmitter.audience)
            }
            _ => false,
        };
        if is_ours { Ok(claims) } else { Err(SecurityEventError::Audience) }
    }
}

/// What the events ask for. Those that are not understood ask for nothing (RFC 8417 §2.2 lets them be ignored).
fn selectors(
    claims: &Map<String, Value>,
    transmitter: &Transmitter,
) -> Result<Vec<Selector>, SecurityEventError> {
    let Some(Value::Object(events)) = claims.get("events") else {
        return Err(SecurityEventError::Request("events must be an object with at least one event"));
    };
    if events.is_empty() {
        return Err(SecurityEventError::Request("events must be an object with at least one event"));
    }
    let mut selectors = Vec::new();
    for (name, event) in events {
        // RFC 9493 §4.1; RISC's first version had the subject in the event.
        let subject = claims.get("sub_id").or_else(|| event.get("subject"));
        let wanted = match (name.strip_prefix(CAEP), name.strip_prefix(RISC)) {
            (Some("session-revoked"), _) => {
                session(subject).map(Selector::Session).or_else(|| user(claims, subject, transmitter))
            }
            (Some("credential-change"), _)
            | (
                _,
                Some(
                    "account-disabled"
                    | "account-purged"
                    | "account-credential-change-required"
                    | "credential-compromise"
                    | "sessions-revoked",
                ),
            ) => user(claims, subject, transmitter),
            _ => continue,
        };
        let wanted = wanted.ok_or(SecurityEventError::Request(
            "the subject must be of format iss_sub, opaque or complex, or be the claim sub",
        ))?;
        if !selectors.contains(&wanted) {
            selectors.push(wanted);
        }
    }
    Ok(selectors)
}

/// The session's id, in a complex subject.
fn session(subject: Option<&Value>) -> Option<String> {
    let session = subject?.get("session")?;
    session["id"].as_str().or_else(|| session["sub"].as_str()).map(ToOwned::to_owned)
}

/// Whom it is about.
fn user(claims: &Map<String, Value>, subject: Option<&Value>, transmitter: &Transmitter) -> Option<Selector> {
    let subject = match subject {
        None => claims.get("sub")?.as_str()?,
        Some(subject) => {
            let subject = subject.get("user").unwrap_or(subject);
            // Another issuer's subject of the same name is somebody else.
            if subject.get("iss").is_some_and(|issuer| *issuer != transmitter.issuer) {
                return None;
            }
            subject["sub"].as_str().or_else(|| subject["id"].as_str())?
        }
    };
    (!subject.is_empty()).then(|| Selector::Subject(format!("{}{subject}", transmitter.subject_prefix)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn transmitter() -> Transmitter {
        Transmitter {
            name: "idp".into(),
            issuer: "https://idp.test".into(),
            audience: "https://atm.test".into(),
            token_sha256: hex::encode(sha256(b"secret")),
            subject_prefix: "idp|".into(),
        }
    }

    fn wanted(claims: &Value) -> Result<Vec<Selector>, SecurityEventError> {
        selectors(claims.as_object().unwrap(), &transmitter())
    }

    #[test]
    fn every_event_that_ends_something_names_whom() {
        let session = json!({
            "sub_id": { "format": "complex", "session": { "format": "opaque", "id": "s1" },
                        "user": { "format": "iss_sub", "iss": "https://idp.test", "sub": "u1" } },
            "events": { "https://schemas.openid.net/secevent/caep/event-type/session-revoked": {} },
        });
        assert_eq!(wanted(&session).unwrap(), [Selector::Session("s1".into())]);
        for event in ["caep/event-type/credential-change", "risc/event-type/account-disabled"] {
            let name = format!("https://schemas.openid.net/secevent/{event}");
            let claims = json!({ "sub_id": { "format": "iss_sub", "iss": "https://idp.test", "sub": "u1" }, "events": { name: {} } });
            assert_eq!(wanted(&claims).unwrap(), [Selector::Subject("idp|u1".into())]);
        }
        let old = json!({ "sub": "u2", "events": { "https://schemas.openid.net/secevent/risc/event-type/account-purged": {} } });
        assert_eq!(wanted(&old).unwrap(), [Selector::Subject("idp|u2".into())]);
    }

    #[test]
    fn what_is_not_understood_ends_nothing_and_what_names_nobody_is_refused() {
        let verification =
            json!({ "events": { "https://schemas.openid.net/secevent/ssf/event-type/verification": {} } });
        assert!(wanted(&verification).unwrap().is_empty());
        let name = "https://schemas.openid.net/secevent/caep/event-type/session-revoked";
        for subject in [
            json!({ "format": "email", "email": "a@b" }),
            json!({ "format": "iss_sub", "iss": "https://other.test", "sub": "u1" }),
        ] {
            assert!(wanted(&json!({ "sub_id": subject, "events": { name: {} } })).is_err());
        }
        for events in [json!({}), json!([]), json!(null)] {
            assert!(wanted(&json!({ "sub": "u", "events": events })).is_err());
        }
    }

    #[test]
    fn a_transmitter_is_known_by_its_token() {
        let transmitters = Transmitters(Arc::new(vec![transmitter()]));
        assert_eq!(transmitters.holder(b"secret").map(|found| found.name.as_str()), Some("idp"));
        assert!(transmitters.holder(b"Secret").is_none());
    }
}
