//! What can be recorded: typed, bounded, and without a place for a secret.

use serde::Serialize;
use serde_json::{Map, Value};

use super::Origin;

/// Bytes of a text in an event at most; more is cut off.
const MAX_TEXT: usize = 512;
/// Details of an event at most.
const MAX_DETAILS: usize = 16;

macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What happened. The part before the point is what it happened to.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Action {
            $($(#[$doc])* $variant,)*
        }

        impl Action {
            /// Every action.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in records.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

actions! {
    /// A process began its chain; details: how the chains before it ended.
    ChainOpened = "chain.opened",
    /// A process ended its chain in order.
    ChainClosed = "chain.closed",
    /// Events were lost because the store was blocked; detail `lost`.
    Gap = "audit.gap",
    /// Old events were removed.
    Retention = "audit.retention",
    /// Records were read or exported.
    AuditRead = "audit.read",
    /// An access token was issued or refused.
    TokenIssued = "token.issued",
    /// Tokens were issued for a refresh token, or refused.
    TokenRefreshed = "token.refreshed",
    /// A token was exchanged (RFC 8693), or refused.
    TokenExchanged = "token.exchanged",
    /// A rotated refresh token came again; the family is over.
    RefreshReuse = "token.refresh_reuse",
    /// An introspection was refused, or named a token that is not in force.
    IntrospectionFailed = "token.introspection_failed",
    /// A client did not authenticate.
    ClientAuthentication = "client.authentication",
    /// A session was opened.
    SessionOpened = "session.opened",
    /// A session has ended.
    SessionEnded = "session.ended",
    /// Tokens, or all of a session, subject, client, realm, issuer or key, were revoked.
    Revoked = "revocation.applied",
    /// A revocation was scheduled.
    RevocationScheduled = "revocation.scheduled",
    /// A scheduled revocation was withdrawn before its time.
    RevocationCancelled = "revocation.cancelled",
    /// A security event token was taken or refused (RFC 8935).
    SecurityEvent = "revocation.security_event",
    /// A signing key was made and published.
    KeyPublished = "key.published",
    /// A signing key signs from now on.
    KeyActivated = "key.activated",
    /// A signing key was activated although not every live sidecar had reported it.
    KeyActivatedUnconfirmed = "key.activated_unconfirmed",
    /// A signing key has left the key set.
    KeyRetired = "key.retired",
    /// A signing key was revoked, with whatever it signed.
    KeyCompromised = "key.compromised",
    /// Stored keys were wrapped anew.
    KeysRewrapped = "key.rewrapped",
    /// Signing failed or recovered.
    SigningOutage = "key.signing_outage",
    /// A client was registered.
    ClientCreated = "client.created",
    /// A client was changed.
    ClientChanged = "client.changed",
    /// A client was removed.
    ClientDeleted = "client.deleted",
    /// An API key was made.
    ApiKeyCreated = "api_key.created",
    /// An API key was changed.
    ApiKeyChanged = "api_key.changed",
    /// An API key was revoked.
    ApiKeyRevoked = "api_key.revoked",
    /// An issuer that is not ours was registered.
    IssuerAdded = "issuer.added",
    /// The keys of an issuer that is not ours were fetched anew.
    IssuerRefreshed = "issuer.refreshed",
    /// An issuer that is not ours was removed.
    IssuerRemoved = "issuer.removed",
    /// A policy set was applied or rolled back.
    PoliciesApplied = "policy.applied",
    /// A realm was made, changed or removed.
    RealmChanged = "realm.changed",
    /// Any other request of the admin API that changes something.
    AdminRequest = "admin.request",
    /// A request of the admin API was refused: no credential, or a role that does not suffice.
    AdminRefused = "admin.refused",
    /// A workload was let in to NATS by its platform's token, or refused; detail `address`.
    NatsLogin = "nats.login",
    /// Something that should not happen did; detail `kind`.
    Anomaly = "anomaly.detected",
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Success,
    /// Not allowed; `reason` says why.
    Refused,
    /// Could not be done; a fault of ours.
    Failed,
}

/// What kind of actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// An operator or a program with an admin credential.
    Admin,
    /// An OAuth client.
    Client,
    /// A transmitter of security events.
    Transmitter,
    /// A sidecar.
    Sidecar,
    /// The control plane itself: schedules, retention.
    System,
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Actor {
    /// What kind.
    pub kind: ActorKind,
    /// Its name.
    pub id: String,
}

impl Actor {
    /// An OAuth client.
    pub fn client(id: &str) -> Self {
        Self { kind: ActorKind::Client, id: bounded(id) }
    }

    /// An admin credential, by its name.
    pub fn admin(id: &str) -> Self {
        Self { kind: ActorKind::Admin, id: bounded(id) }
    }

    /// A transmitter of security events, by its name.
    pub fn transmitter(id: &str) -> Self {
        Self { kind: ActorKind::Transmitter, id: bounded(id) }
    }

    /// A sidecar, by its id.
    pub fn sidecar(id: &str) -> Self {
        Self { kind: ActorKind::Sidecar, id: bounded(id) }
    }

    /// The control plane itself.
    pub fn system() -> Self {
        Self { kind: ActorKind::System, id: "control-plane".to_owned() }
    }
}

/// What happened, to what. Identifiers only: no token, secret or header has a place here.
#[derive(Debug, Clone)]
pub struct Event {
    action: Action,
    outcome: Outcome,
    reason: Option<String>,
    actor: Option<Actor>,
    default_actor: Option<Actor>,
    references: References,
    detail: Map<String, Value>,
}

/// What an event is about; a record can be found by each of these.
#[derive(Debug, Clone, Default, Serialize)]
struct References {
    #[serde(skip_serializing_if = "Option::is_none")]
    realm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    /// A token's `jti`.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// A `kid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
}

/// The names of references that records are found by.
pub(super) const REFERENCES: [&str; 7] =
    ["client", "subject", "session", "token", "key", "api_key", "issuer"];

macro_rules! references {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self, value: impl AsRef<str>) -> Self {
                self.references.$name = Some(bounded(value.as_ref()));
                self
            }
        )*
    };
}

impl Event {
    /// Something that was done.
    pub fn of(action: Action) -> Self {
        Self {
            action,
            outcome: Outcome::Success,
            reason: None,
            actor: None,
            default_actor: None,
            references: References::default(),
            detail: Map::new(),
        }
    }

    /// It was not allowed.
    #[must_use]
    pub fn refused(mut self, reason: impl AsRef<str>) -> Self {
        self.outcome = Outcome::Refused;
        self.reason = Some(bounded(reason.as_ref()));
        self
    }

    /// It could not be done.
    #[must_use]
    pub fn failed(mut self, reason: impl AsRef<str>) -> Self {
        self.outcome = Outcome::Failed;
        self.reason = Some(bounded(reason.as_ref()));
        self
    }

    /// Who did it, where neither the event nor [`super::scope`] says somebody else.
    #[must_use]
    pub fn by_default(mut self, actor: Actor) -> Self {
        self.default_actor = Some(actor);
        self
    }

    /// Who did it, whatever [`super::scope`] knows.
    #[must_use]
    pub fn by(mut self, actor: Actor) -> Self {
        self.actor = Some(actor);
        self
    }

    references! {
        /// The realm.
        realm,
        /// The client's id.
        client,
        /// The subject.
        subject,
        /// The session's id.
        session,
        /// The token's `jti`. Never the token.
        token,
        /// The signing key's `kid`.
        key,
        /// The API key's id. Never the key.
        api_key,
        /// The issuer.
        issuer,
    }

    /// Something more to know of it: a number, a short text, a short list. Never a secret.
    #[must_use]
    pub fn detail(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        if self.detail.len() < MAX_DETAILS {
            self.detail.insert(name.to_owned(), bounded_value(value.into()));
        }
        self
    }

    /// What happened.
    pub fn action(&self) -> Action {
        self.action
    }

    pub(super) fn is_issuance(&self) -> bool {
        matches!(self.action, Action::TokenIssued | Action::TokenRefreshed | Action::TokenExchanged)
            && self.outcome == Outcome::Success
    }

    pub(super) fn client_and_realm(&self) -> (Option<&str>, Option<&str>) {
        (self.references.client.as_deref(), self.references.realm.as_deref())
    }

    pub(super) fn is_refusal(&self) -> bool {
        self.outcome == Outcome::Refused
    }

    /// Values that the record is found by.
    pub(super) fn references(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let References { client, subject, session, token, key, api_key, issuer, .. } = &self.references;
        REFERENCES
            .into_iter()
            .zip([client, subject, session, token, key, api_key, issuer])
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    /// The exact bytes that are linked and kept.
    pub(super) fn record(
        &self,
        origin: &Origin,
        chain: &str,
        sequence: u64,
        time_ms: i64,
    ) -> Result<String, serde_json::Error> {
        #[derive(Serialize)]
        struct From {
            address: std::net::IpAddr,
        }
        #[derive(Serialize)]
        struct Record<'a> {
            chain: &'a str,
            seq: u64,
            time_ms: i64,
            action: &'static str,
            outcome: Outcome,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            actor: Option<&'a Actor>,
            #[serde(skip_serializing_if = "Option::is_none")]
            from: Option<From>,
            #[serde(skip_serializing_if = "Option::is_none")]
            trace_id: Option<&'a str>,
            #[serde(flatten)]
            references: &'a References,
            #[serde(skip_serializing_if = "Map::is_empty")]
            detail: &'a Map<String, Value>,
        }
        serde_json::to_string(&Record {
            chain,
            seq: sequence,
            time_ms,
            action: self.action.as_str(),
            outcome: self.outcome,
            reason: self.reason.as_deref(),
            actor: self.actor.as_ref().or_else(|| origin.actor()).or(self.default_actor.as_ref()),
            from: origin.address.map(|address| From { address }),
            trace_id: origin.trace_id.as_deref(),
            references: &self.references,
            detail: &self.detail,
        })
    }
}

/// `text`, cut off where it is too long.
fn bounded(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.to_owned();
    }
    let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

fn bounded_value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(bounded(&text)),
        Value::Array(values) => values.into_iter().take(100).map(bounded_value).collect(),
        Value::Object(fields) => {
            fields.into_iter().take(100).map(|(name, value)| (bounded(&name), bounded_value(value))).collect()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_bounded_and_says_where_from() {
        let origin = Origin::new("192.0.2.7".parse().ok(), None);
        let event = Event::of(Action::TokenIssued)
            .by(Actor::client("c"))
            .client("c")
            .token("j")
            .detail("grant", "x".repeat(10_000));
        let record = event.record(&origin, "ch", 3, 5).unwrap();
        assert!(record.len() < 1_000, "{record}");
        assert!(record.starts_with(
            r#"{"chain":"ch","seq":3,"time_ms":5,"action":"token.issued","outcome":"success","actor":{"kind":"client","id":"c"},"from":{"address":"192.0.2.7"},"client":"c","token":"j","detail":"#
        ), "{record}");
        assert_eq!(event.references().collect::<Vec<_>>(), [("client", "c"), ("token", "j")]);
    }

    #[test]
    fn names_of_actions_are_unique() {
        let mut names: Vec<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Action::ALL.len());
    }
}
