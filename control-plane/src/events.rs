//! What the OAuth side tells of itself: one typed event for every issuance, refresh, exchange, session and refusal, through one
//! function. It is counted and logged here, and recorded in the audit chain.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::anomalies::{Anomalies, Anomaly, AnomalyKind};
use crate::audit::{self, Action, Actor, Audit};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An access token was issued by a grant.
    TokenIssued,
    /// A session was opened for a subject.
    SessionOpened,
    /// A refresh token was rotated.
    TokenRefreshed,
    /// A refresh token that had been used was used again: its session has ended.
    RefreshReuse,
    /// A session was ended.
    SessionEnded,
    /// An access token was issued for another one.
    TokenExchanged,
    /// A token was revoked by its client.
    TokenRevoked,
    /// A token was introspected and is not active.
    IntrospectedInactive,
    /// The token endpoint refused.
    GrantRefused,
    /// A client was not authenticated.
    AuthenticationFailed,
    /// A client asked for more than its limits allow.
    LimitReached,
}

impl EventKind {
    /// Every kind; each is a counter.
    pub const ALL: [Self; 11] = [
        Self::TokenIssued,
        Self::SessionOpened,
        Self::TokenRefreshed,
        Self::RefreshReuse,
        Self::SessionEnded,
        Self::TokenExchanged,
        Self::TokenRevoked,
        Self::IntrospectedInactive,
        Self::GrantRefused,
        Self::AuthenticationFailed,
        Self::LimitReached,
    ];

    /// The label of metrics and log lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TokenIssued => "token_issued",
            Self::SessionOpened => "session_opened",
            Self::TokenRefreshed => "token_refreshed",
            Self::RefreshReuse => "refresh_reuse",
            Self::SessionEnded => "session_ended",
            Self::TokenExchanged => "token_exchanged",
            Self::TokenRevoked => "token_revoked",
            Self::IntrospectedInactive => "introspected_inactive",
            Self::GrantRefused => "grant_refused",
            Self::AuthenticationFailed => "authentication_failed",
            Self::LimitReached => "limit_reached",
        }
    }
}

/// One event. Holds no credential: tokens are named by their `jti`, sessions by their id.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Event<'a> {
    /// What happened.
    pub kind: EventKind,
    /// In which realm.
    pub realm: &'a str,
    /// By which grant, if by one: its short name.
    pub grant: Option<&'a str>,
    /// The client, as far as it is known.
    pub client_id: Option<&'a str>,
    /// Whom it is about.
    pub subject: Option<&'a str>,
    /// The session.
    pub session: Option<&'a str>,
    /// The `jti` of the token that was issued, revoked or asked about.
    pub token_id: Option<&'a str>,
    /// The `jti` of the token that it was derived from.
    pub parent_id: Option<&'a str>,
    /// Why not: the code of the answer.
    pub refusal: Option<&'a str>,
    /// Where the request came from.
    pub remote: Option<IpAddr>,
}

impl<'a> Event<'a> {
    /// An event that says no more than its kind yet.
    pub fn new(kind: EventKind, realm: &'a str) -> Self {
        Self {
            kind,
            realm,
            grant: None,
            client_id: None,
            subject: None,
            session: None,
            token_id: None,
            parent_id: None,
            refusal: None,
            remote: None,
        }
    }
}

/// Where events go; clones share everything.
#[derive(Debug, Clone)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    counters: [AtomicU64; EventKind::ALL.len()],
    audit: Audit,
    anomalies: Anomalies,
}

impl Event<'_> {
    /// What the audit chain keeps of it; none where what was done is recorded by who did it.
    fn record(&self) -> Option<audit::Event> {
        let (action, refusal) = match self.kind {
            EventKind::TokenIssued => (Action::TokenIssued, None),
            EventKind::SessionOpened => (Action::SessionOpened, None),
            EventKind::TokenRefreshed => (Action::TokenRefreshed, None),
            EventKind::RefreshReuse => (Action::RefreshReuse, Some("a used refresh token was used again")),
            EventKind::SessionEnded => (Action::SessionEnded, None),
            EventKind::TokenExchanged => (Action::TokenExchanged, None),
            // The revocation engine has recorded it.
            EventKind::TokenRevoked => return None,
            EventKind::IntrospectedInactive => {
                (Action::IntrospectionFailed, Some("the token is not in force"))
            }
            EventKind::GrantRefused => (Action::TokenIssued, Some("refused")),
            EventKind::AuthenticationFailed => (Action::ClientAuthentication, Some("not authenticated")),
            EventKind::LimitReached => (Action::TokenIssued, Some("limit reached")),
        };
        let event = audit::Event::of(action).realm(self.realm);
        let event = self.client_id.iter().fold(event, audit::Event::client);
        let event = self.subject.iter().fold(event, audit::Event::subject);
        let event = self.session.iter().fold(event, audit::Event::session);
        let event = self.token_id.iter().fold(event, audit::Event::token);
        let event = self.grant.iter().fold(event, |event, grant| event.detail("grant", *grant));
        let event = self.parent_id.iter().fold(event, |event, parent| event.detail("parent", *parent));
        // Who did not authenticate is nobody yet; a reuse may be another's.
        let event = match self.client_id {
            Some(client) if self.kind != EventKind::AuthenticationFailed => {
                event.by_default(Actor::client(client))
            }
            _ => event,
        };
        Some(match refusal {
            Some(refusal) => event.refused(self.refusal.unwrap_or(refusal)),
            None => event,
        })
    }
}

impl Events {
    /// Events are recorded in `audit`, and those that should not happen are told to `anomalies`.
    pub fn new(audit: Audit, anomalies: Anomalies) -> Self {
        Self(Arc::new(Inner { counters: Default::default(), audit, anomalies }))
    }

    /// Takes note of an event. Never waits and never fails: what it is about has happened.
    pub fn tell(&self, event: &Event<'_>) {
        self.0.counters[event.kind as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(record) = event.record() {
            self.0.audit.record(record);
        }
        if event.kind == EventKind::RefreshReuse {
            self.0.anomalies.found(&Anomaly {
                kind: AnomalyKind::RefreshReuse,
                token: event.token_id.map(ToOwned::to_owned),
                client: event.client_id.map(ToOwned::to_owned),
                subject: event.subject.map(ToOwned::to_owned),
                number: 1,
                reason: None,
            });
        }
        let Event { kind, realm, grant, client_id, subject, session, token_id, parent_id, refusal, remote } =
            *event;
        let (event, remote) = (kind.as_str(), remote.map(tracing::field::display));
        match kind {
            // Somebody has a token that was stolen, or a client that is broken.
            EventKind::RefreshReuse => tracing::warn!(
                event,
                realm,
                client_id,
                subject,
                session,
                remote,
                "a used refresh token was used again"
            ),
            EventKind::SessionOpened | EventKind::SessionEnded | EventKind::TokenRevoked => {
                tracing::info!(event, realm, client_id, subject, session, token_id, remote, "oauth");
            }
            _ => tracing::debug!(
                event, realm, grant, client_id, subject, session, token_id, parent_id, refusal, remote,
                "oauth"
            ),
        }
    }

    /// How many events of each kind there were in this process.
    pub fn counts(&self) -> [(EventKind, u64); EventKind::ALL.len()] {
        EventKind::ALL.map(|kind| (kind, self.0.counters[kind as usize].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_kind_has_a_counter_of_its_own_and_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open_embedded(&dir.path().join("atm.db")).await.unwrap();
        let audit = crate::audit::tests::recording(&store).await;
        let anomalies = Anomalies::new(audit.clone());
        let events = Events::new(audit.clone(), anomalies.clone());
        for (times, kind) in EventKind::ALL.into_iter().enumerate() {
            for _ in 0..times {
                events.tell(&Event::new(kind, "default"));
            }
        }
        for (times, (_, count)) in events.counts().into_iter().enumerate() {
            assert_eq!(count, times as u64);
        }
        let reuses = EventKind::ALL.iter().position(|kind| *kind == EventKind::RefreshReuse).unwrap() as u64;
        assert_eq!(anomalies.counts()[AnomalyKind::RefreshReuse as usize].1, reuses);
        // The last one: what was told before it is written before it.
        audit.written(audit::Event::of(Action::AuditRead)).await;
        let filter = audit::Filter { action: Some("token.".to_owned()), ..Default::default() };
        let page = audit.list(&filter, None, 1_000).await.unwrap().unwrap();
        let of = |action: &str| page.items.iter().filter(|item| item.get().contains(action)).count() as u64;
        assert_eq!(of("token.refresh_reuse"), reuses);
        assert!(page.items.iter().all(|item| item.get().contains(r#""realm":"default""#)));
    }
}
