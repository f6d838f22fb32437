//! Keys that clients publish themselves (`jwks_uri`, RFC 7591 §2): fetched when an assertion needs them, and kept.
//!
//! However many assertions need them, one fetch of a place is under way at a time, and one a minute at most. The last good set stays
//! through an outage, and whoever can be served from it does not wait. A key that is not in the set is looked for once
//! more, so that a client may rotate without telling anybody.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use atm_core::key::VerificationKey;
use quick_cache::sync::Cache;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

use crate::issuers::cache::RefreshIntervals;
use crate::issuers::fetch::{self, FetchBounds, FetchError, Fetched, Known, Source};

/// Places whose keys are kept.
const KNOWN_PLACES: usize = 4_096;

/// From where clients' keys may be fetched.
#[derive(Debug, Clone, Default)]
pub struct KeySetSettings {
    /// Whether clients that an operator registered may have theirs at private addresses and without TLS.
    pub allow_private_addresses: bool,
    /// PEM certificates that are trusted in place of the system's.
    pub ca_certificate: Option<String>,
}

/// The key sets of clients; clones share them.
#[derive(Debug, Clone)]
pub struct KeySets {
    places: Arc<Cache<(bool, String), Arc<Place>>>,
    settings: Arc<KeySetSettings>,
    intervals: RefreshIntervals,
}

/// The client's keys have never been had, and cannot be had now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client's keys cannot be fetched from its jwks_uri")]
pub struct KeysAway;

/// What is known of one `jwks_uri`.
#[derive(Debug, Default)]
struct Place {
    held: Mutex<Held>,
    /// Held by whoever fetches.
    turn: Arc<Turn<()>>,
}

#[derive(Debug, Clone, Default)]
struct Held {
    /// None: never fetched with success.
    keys: Option<Arc<[VerificationKey]>>,
    known: Option<Known>,
    /// When it was last fetched, with success or without.
    looked_at: Option<Instant>,
    /// When it has to be fetched again.
    due_at: Option<Instant>,
    failures: u32,
}

impl Held {
    fn has(&self, kid: Option<&str>) -> bool {
        let keys = self.keys.as_deref().unwrap_or_default();
        !keys.is_empty() && kid.is_none_or(|kid| keys.iter().any(|key| key.kid() == kid))
    }

    /// Whether to fetch it for whoever needs `kid`.
    fn is_due(&self, kid: Option<&str>, now: Instant, shortest: Duration) -> bool {
        let is_old = self.due_at.is_none_or(|due| now >= due);
        // A key that is not there may be new. After a failure the time to wait stands.
        let may_be_new = !self.has(kid)
            && self.failures == 0
            && self.looked_at.is_none_or(|last| now.saturating_duration_since(last) >= shortest);
        is_old || may_be_new
    }

    fn usable(&self) -> Result<Arc<[VerificationKey]>, KeysAway> {
        self.keys.clone().ok_or(KeysAway)
    }
}

impl Place {
    fn held(&self) -> Held {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl KeySets {
    /// None is known yet.
    pub fn new(settings: KeySetSettings) -> Self {
        Self::with_intervals(settings, RefreshIntervals::default())
    }

    fn with_intervals(settings: KeySetSettings, intervals: RefreshIntervals) -> Self {
        Self { places: Arc::new(Cache::new(KNOWN_PLACES)), settings: Arc::new(settings), intervals }
    }

    /// The keys at `uri`, with the one named `kid` as far as its client has published it. `by_operator`: the place was registered by
    /// an operator, and not by the client itself.
    pub async fn keys(
        &self,
        uri: &str,
        kid: Option<&str>,
        by_operator: bool,
    ) -> Result<Arc<[VerificationKey]>, KeysAway> {
        let allow_private = by_operator && self.settings.allow_private_addresses;
        let place = self.place(allow_private, uri);
        let (held, now) = (place.held(), Instant::now());
        if !held.is_due(kid, now, self.intervals.shortest) {
            return held.usable();
        }
        let source = Source {
            issuer: String::new(),
            jwks_uri: Some(uri.to_owned()),
            algorithms: Vec::new(),
            allow_private_addresses: allow_private,
            ca_certificate: self.settings.ca_certificate.clone(),
        };
        if held.has(kid) {
            if let Ok(turn) = Arc::clone(&place.turn).try_lock_owned() {
                // Nobody waits for it: what is held is good enough, and a failure is logged.
                tokio::spawn(look(place, source, self.intervals, turn));
            }
            return held.usable();
        }
        let turn = Arc::clone(&place.turn).lock_owned().await;
        // Whoever had the turn before may have found it.
        if place.held().is_due(kid, Instant::now(), self.intervals.shortest) {
            look(Arc::clone(&place), source, self.intervals, turn).await;
        }
        place.held().usable()
    }

    fn place(&self, allow_private: bool, uri: &str) -> Arc<Place> {
        let key = (allow_private, uri.to_owned());
        let made = self.places.get_or_insert_with(&key, || Ok::<_, std::convert::Infallible>(Arc::default()));
        made.unwrap_or_else(|never| match never {})
    }
}

/// Fetches the set and keeps what came of it.
async fn look(place: Arc<Place>, source: Source, intervals: RefreshIntervals, turn: OwnedMutexGuard<()>) {
    let mut held = place.held();
    let fetched = fetch::fetch(&source, held.known.as_ref(), FetchBounds::default()).await;
    let now = Instant::now();
    held.looked_at = Some(now);
    held.due_at = Some(now + held.take_over(fetched, &source, intervals));
    *place.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    drop(turn);
}

impl Held {
    /// Takes over what a fetch came to. Returns how long to wait before the next.
    fn take_over(
        &mut self,
        fetched: Result<Fetched, FetchError>,
        source: &Source,
        intervals: RefreshIntervals,
    ) -> Duration {
        match fetched {
            Ok(Fetched::NotModified { headers }) => {
                self.failures = 0;
                intervals.freshness(&headers)
            }
            Ok(Fetched::Set { set, known, headers }) => {
                (self.keys, self.known, self.failures) = (Some(set.keys.into()), known, 0);
                intervals.freshness(&headers)
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                let (jwks_uri, has_keys) = (source.jwks_uri.as_deref(), self.keys.is_some());
                tracing::warn!(%error, jwks_uri, has_keys, "the keys of a client cannot be fetched");
                intervals.backoff(self.failures)
            }
        }
    }
}

#[cfg(test)]
mod tests;
