//! What the OAuth side tells of itself: one typed event for every issuance, refresh, exchange, session and refusal, through one
//! function. It is counted and logged here; whoever keeps records durably takes the same events.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

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

/// Where events go; clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters([AtomicU64; EventKind::ALL.len()]);

impl Events {
    /// Takes note of an event. Never waits and never fails: what it is about has happened.
    pub fn tell(&self, event: &Event<'_>) {
        self.0.0[event.kind as usize].fetch_add(1, Ordering::Relaxed);
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
        EventKind::ALL.map(|kind| (kind, self.0.0[kind as usize].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_counter_of_its_own() {
        let events = Events::default();
        for (times, kind) in EventKind::ALL.into_iter().enumerate() {
            for _ in 0..times {
                events.tell(&Event::new(kind, "default"));
            }
        }
        for (times, (_, count)) in events.counts().into_iter().enumerate() {
            assert_eq!(count, times as u64);
        }
    }
}
