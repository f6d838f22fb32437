//! Issuers that are not ours: registered by operators, fetched here, and only here, and streamed to every sidecar.
//!
//! A set of keys that cannot be used changes nothing: the last good one stays, through an outage and a restart, and an issuer
//! that never had one is trusted by nobody yet. Each issuer is fetched by itself, so that a slow one holds up no other.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atm_core::key::{Algorithm, NO_TOKEN_TYPE, VerificationKey};
use atm_core::time::UnixMillis;
use atm_proto::change::Change;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::clock::IssueClock;
use crate::feed::FeedHandle;
use crate::realms;
use crate::registry::FieldError;
use crate::secret::{self, SecretError};
use crate::store::outbox::{self, Ticket};
use crate::store::trusted_issuers::{self, Due};
use crate::store::{Store, StoreError, transact};

pub mod address;
pub mod cache;
pub mod fetch;
pub mod key_set;

use cache::{RefreshIntervals, jittered};
use fetch::{FetchBounds, FetchError, Fetched, Known, Source};
use key_set::SkippedKey;

/// Issuers at most: every sidecar holds them all.
pub const MAX_ISSUERS: u64 = 1_000;
/// Fetches under way at most, of issuers that answered the last time or are new.
const CONCURRENCY: usize = 32;
/// Fetches under way at most of issuers that failed the last time: they wait for each other, and nobody waits for them.
const CONCURRENCY_OF_FAILING: usize = 8;
/// How often it is looked for what is due; with [`CONCURRENCY`] the most fetches that are begun in that time.
const TICK: Duration = Duration::from_secs(1);
/// Issuers that one look finds at most.
const DUE_AT_ONCE: u32 = 256;
/// Bytes of a name or a URL.
const MAX_TEXT: usize = 1_024;
/// Types of tokens that one issuer may have.
const MAX_TYPES: usize = 8;
/// Bytes of a CA's certificates or of a key set that is given at the registration.
const MAX_INLINE: usize = 256 * 1024;
/// What a static key set is due for: never.
const NEVER: i64 = i64::MAX;

/// What an operator registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerSettings {
    /// Exactly as in the tokens' `iss`.
    pub issuer: String,
    /// Where the keys are; none: the issuer's metadata says (OpenID Connect Discovery §4, RFC 8414 §3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<String>,
    /// The keys themselves (RFC 7517 §5), for issuers that cannot be reached; nothing is fetched then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<Value>,
    /// Algorithms that its keys may have; empty: every accepted one.
    #[serde(default)]
    pub algorithms: Vec<String>,
    /// The `typ` values of its access tokens, `none` for a missing one; empty: `at+jwt` alone. With `JWT` or `none` only the
    /// audience tells an access token from an ID token.
    #[serde(default)]
    pub token_types: Vec<String>,
    /// Whether it may be at a private address and without TLS.
    #[serde(default)]
    pub allow_private_addresses: bool,
    /// PEM certificates that are trusted in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificate: Option<String>,
}

/// A registered issuer. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone)]
pub struct TrustedIssuer {
    /// Random.
    pub id: String,
    /// As registered.
    pub settings: IssuerSettings,
    /// The change that the feed carries, encoded; none before the first usable key set.
    pub published: Option<Vec<u8>>,
    /// Keys in force.
    pub key_count: u64,
    /// Keys of the last set that were passed over.
    pub skipped: Vec<SkippedKey>,
    /// Where the last set came from.
    pub jwks_uri: Option<String>,
    /// Its entity tag.
    pub etag: Option<String>,
    /// When it was fetched last.
    pub succeeded_at: Option<i64>,
    /// Why the newest fetch failed; none where it did not.
    pub last_error: Option<String>,
    /// Failures in a row.
    pub failures: u64,
    /// When it is fetched again.
    pub next_fetch: i64,
    /// When it was registered.
    pub created_at: i64,
}

/// Why an issuer was not registered, changed or found.
#[derive(Debug, thiserror::Error)]
pub enum IssuersError {
    /// Fields that cannot be accepted, all of them.
    #[error("{} fields cannot be accepted", .0.len())]
    Invalid(Vec<FieldError>),
    /// The name is taken.
    #[error("this issuer is registered already")]
    Exists,
    /// No such issuer.
    #[error("there is no issuer with this id")]
    NotFound,
    /// Somebody is fetching it.
    #[error("the issuer is being fetched; look at it again in a moment")]
    UnderWay,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// The trusted issuers; clones share everything.
#[derive(Debug, Clone)]
pub struct Issuers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    feed: FeedHandle,
    clock: Arc<IssueClock>,
    own_issuer: String,
    intervals: RefreshIntervals,
    bounds: FetchBounds,
    /// Ids of issuers that are being fetched: one fetch an issuer at a time.
    under_way: Mutex<HashSet<String>>,
    slots: Arc<Semaphore>,
    slots_of_failing: Arc<Semaphore>,
}

/// What of a fetch is kept.
struct Learnt {
    keys: Vec<VerificationKey>,
    skipped: Vec<SkippedKey>,
    known: Option<Known>,
}

impl TrustedIssuer {
    /// Notes what a fetch came to. Returns what the feed is to carry, where the keys differ from those in force.
    fn take_over(&mut self, learnt: &Result<Option<Learnt>, FetchError>, now: UnixMillis) -> Option<Change> {
        let learnt = match learnt {
            Err(error) => {
                self.failures += 1;
                self.last_error = Some(error.to_string());
                return None;
            }
            Ok(learnt) => learnt,
        };
        (self.failures, self.last_error, self.succeeded_at) = (0, None, Some(now.0));
        let Learnt { keys, skipped, known } = learnt.as_ref()?;
        (self.key_count, self.skipped) = (keys.len() as u64, skipped.clone());
        (self.jwks_uri, self.etag) = known
            .as_ref()
            .map_or((None, None), |known| (Some(known.jwks_uri.clone()), Some(known.etag.clone())));
        let change = Change::IssuerKeys {
            issuer: self.settings.issuer.clone(),
            realm: None,
            keys: keys.clone(),
            token_types: self.settings.token_types.clone(),
        };
        let encoded = change.encode();
        if self.published.as_ref() == Some(&encoded) {
            return None;
        }
        self.published = Some(encoded);
        Some(change)
    }
}

impl Issuers {
    /// The issuers in `store`. `own_issuer` is none that may be registered.
    pub fn new(
        store: Store,
        feed: FeedHandle,
        clock: Arc<IssueClock>,
        own_issuer: &str,
        intervals: RefreshIntervals,
    ) -> Self {
        Self(Arc::new(Shared {
            store,
            feed,
            clock,
            own_issuer: own_issuer.to_owned(),
            intervals,
            bounds: FetchBounds::default(),
            under_way: Mutex::default(),
            slots: Arc::new(Semaphore::new(CONCURRENCY)),
            slots_of_failing: Arc::new(Semaphore::new(CONCURRENCY_OF_FAILING)),
        }))
    }

    /// Registers an issuer, and looks at it once: the answer says what came of that. One that cannot be reached is kept, and
    /// trusted as soon as it can.
    pub async fn register(&self, settings: IssuerSettings) -> Result<TrustedIssuer, IssuersError> {
        let algorithms = check(&settings, &self.0.own_issuer).map_err(IssuersError::Invalid)?;
        let now = self.0.clock.wall().0;
        let issuer = TrustedIssuer {
            id: secret::random_id()?,
            published: None,
            key_count: 0,
            skipped: Vec::new(),
            jwks_uri: None,
            etag: None,
            succeeded_at: None,
            last_error: None,
            failures: 0,
            next_fetch: if settings.jwks.is_some() { NEVER } else { now },
            created_at: now,
            settings,
        };
        let given = issuer
            .settings
            .jwks
            .as_ref()
            .map(|jwks| key_set::parse(jwks.to_string().as_bytes(), &algorithms));
        let given = given.transpose().map_err(|error| {
            IssuersError::Invalid(vec![FieldError { field: "jwks".into(), message: error.to_string() }])
        })?;
        transact!(self.0.store, |transaction| -> Result<(), IssuersError> {
            if trusted_issuers::count(transaction).await? >= MAX_ISSUERS {
                let message = format!("there are {MAX_ISSUERS} issuers already; remove one");
                return Err(IssuersError::Invalid(vec![FieldError { field: "issuer".into(), message }]));
            }
            trusted_issuers::insert(transaction, &issuer).await.map_err(|error| match error {
                StoreError::Exists => IssuersError::Exists,
                other => other.into(),
            })
        })?;
        match given {
            None => self.refresh(&issuer.id).await,
            Some(set) => {
                let learnt = Learnt { keys: set.keys, skipped: set.skipped, known: None };
                self.keep(&issuer.id, Ok(Some(learnt)), NEVER).await
            }
        }
    }

    /// The issuer with this id.
    pub async fn get(&self, id: &str) -> Result<TrustedIssuer, IssuersError> {
        trusted_issuers::get(&self.0.store, id).await?.ok_or(IssuersError::NotFound)
    }

    /// Issuers by name, those after `after`, at most `limit`.
    pub async fn list(&self, after: Option<&str>, limit: u32) -> Result<Vec<TrustedIssuer>, IssuersError> {
        Ok(trusted_issuers::list(&self.0.store, after.unwrap_or_default(), limit).await?)
    }

    /// Ends the trust. Returns the revision from which on its tokens are refused; none where it was never trusted.
    pub async fn remove(&self, id: &str) -> Result<Option<u64>, IssuersError> {
        let ticket = transact!(self.0.store, |transaction| -> Result<Option<Ticket>, IssuersError> {
            let issuer = trusted_issuers::locked(transaction, id).await?.ok_or(IssuersError::NotFound)?;
            trusted_issuers::delete(transaction, id).await?;
            let name = issuer.settings.issuer;
            // A name that has become our own since is not ours to remove.
            if issuer.published.is_none() || name == self.0.own_issuer {
                return Ok(None);
            }
            let change =
                Change::IssuerKeys { issuer: name, realm: None, keys: Vec::new(), token_types: Vec::new() };
            Ok(Some(outbox::enqueue(transaction, &change, self.0.clock.wall()).await?))
        })?;
        match ticket {
            None => Ok(None),
            // Committed; the feed takes it up as soon as the store lets it.
            Some(ticket) => Ok(self.0.feed.sequenced(&ticket).await.ok()),
        }
    }

    /// Looks at an issuer now.
    pub async fn refresh(&self, id: &str) -> Result<TrustedIssuer, IssuersError> {
        let Some(_turn) = Turn::take(&self.0, id) else { return Err(IssuersError::UnderWay) };
        let issuer = self.get(id).await?;
        if issuer.settings.jwks.is_some() {
            return Ok(issuer);
        }
        let known = issuer.jwks_uri.clone().zip(issuer.etag.clone());
        let known =
            known.map(|(jwks_uri, etag)| Known { jwks_uri, etag }).filter(|_| issuer.published.is_some());
        let fetched = fetch::fetch(&source(&issuer.settings), known.as_ref(), self.0.bounds).await;
        let now = self.0.clock.wall().0;
        let after =
            |wait: Duration| now.saturating_add(i64::try_from(jittered(wait).as_millis()).unwrap_or(NEVER));
        let fresh = |headers: &HeaderMap| after(self.0.intervals.freshness(headers));
        let (learnt, next) = match fetched {
            Ok(Fetched::NotModified { headers }) => (Ok(None), fresh(&headers)),
            Ok(Fetched::Set { set, known, headers }) => {
                (Ok(Some(Learnt { keys: set.keys, skipped: set.skipped, known })), fresh(&headers))
            }
            Err(error) => {
                let failures = u32::try_from(issuer.failures + 1).unwrap_or(u32::MAX);
                (Err(error), after(self.0.intervals.backoff(failures)))
            }
        };
        self.keep(id, learnt, next).await
    }

    /// Keeps what a fetch came to and, where the keys differ from those in force, gives them to the feed, in one transaction.
    async fn keep(
        &self,
        id: &str,
        learnt: Result<Option<Learnt>, FetchError>,
        next_fetch: i64,
    ) -> Result<TrustedIssuer, IssuersError> {
        let now = self.0.clock.wall();
        let (issuer, changed) =
            transact!(self.0.store, |transaction| -> Result<(TrustedIssuer, bool), IssuersError> {
                // Removed meanwhile: there is nothing to keep.
                let mut issuer =
                    trusted_issuers::locked(transaction, id).await?.ok_or(IssuersError::NotFound)?;
                issuer.next_fetch = next_fetch;
                let change = issuer.take_over(&learnt, now);
                if let Some(change) = &change {
                    outbox::enqueue(transaction, change, now).await?;
                }
                trusted_issuers::update(transaction, &issuer).await?;
                Ok((issuer, change.is_some()))
            })?;
        match learnt {
            Err(error) => {
                tracing::warn!(issuer = issuer.settings.issuer, %error, trusted = issuer.published.is_some(), "an issuer's keys cannot be fetched; those in force stay");
            }
            Ok(_) if changed => {
                tracing::info!(
                    issuer = issuer.settings.issuer,
                    keys = issuer.key_count,
                    "an issuer's keys have changed"
                );
            }
            Ok(_) => {}
        }
        self.0.feed.sequence_soon();
        Ok(issuer)
    }

    /// Fetches what is due, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match trusted_issuers::due(&self.0.store, self.0.clock.wall().0, DUE_AT_ONCE).await {
                Ok(due) => {
                    for Due { id, failing } in due {
                        if self.0.is_under_way(&id) {
                            continue;
                        }
                        // What finds no slot is still due at the next tick.
                        let slots = if failing { &self.0.slots_of_failing } else { &self.0.slots };
                        let Ok(slot) = Arc::clone(slots).try_acquire_owned() else { continue };
                        let (issuers, shutdown) = (self.clone(), shutdown.clone());
                        tokio::spawn(async move {
                            let refreshed = shutdown.run_until_cancelled(issuers.refresh(&id)).await;
                            if let Some(Err(error @ IssuersError::Store(_))) = refreshed {
                                tracing::error!(%error, "what an issuer answered is not kept");
                            }
                            drop(slot);
                        });
                    }
                }
                Err(error) => tracing::error!(%error, "cannot look for issuers that are due"),
            }
        }
    }
}

impl Shared {
    fn is_under_way(&self, id: &str) -> bool {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

/// The right to fetch one issuer; given back when dropped.
struct Turn<'a> {
    shared: &'a Shared,
    id: String,
}

impl<'a> Turn<'a> {
    fn take(shared: &'a Shared, id: &str) -> Option<Self> {
        let mut under_way = shared.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.insert(id.to_owned()).then(|| Self { shared, id: id.to_owned() })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

fn source(settings: &IssuerSettings) -> Source {
    Source {
        issuer: settings.issuer.clone(),
        jwks_uri: settings.jwks_uri.clone(),
        algorithms: settings.algorithms.iter().filter_map(|name| name.parse().ok()).collect(),
        allow_private_addresses: settings.allow_private_addresses,
        ca_certificate: settings.ca_certificate.clone(),
    }
}

/// The algorithms that are named, or every mistake in the settings.
fn check(settings: &IssuerSettings, own_issuer: &str) -> Result<Vec<Algorithm>, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut refuse =
        |field: &str, message: String| errors.push(FieldError { field: field.to_owned(), message });
    let is_text =
        |text: &str| !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    if !is_text(&settings.issuer) {
        refuse(
            "issuer",
            format!("must be 1 to {MAX_TEXT} bytes without control characters, exactly as in the tokens"),
        );
    } else if settings.issuer == own_issuer || realms::name_in(own_issuer, &settings.issuer).is_some() {
        refuse("issuer", "is our own; its keys are never somebody else's".into());
    }
    for (field, url) in
        [("jwks_uri", settings.jwks_uri.as_deref()), ("issuer", Some(settings.issuer.as_str()))]
    {
        let fetched = field == "jwks_uri" || (settings.jwks_uri.is_none() && settings.jwks.is_none());
        let Some(url) = url.filter(|url| fetched && is_text(url)) else { continue };
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        let http = scheme == Some("http") && settings.allow_private_addresses;
        if scheme != Some("https") && !http {
            refuse(field, "must be an https URL; http is for issuers with allow_private_addresses".into());
        }
    }
    if settings.jwks.is_some() && settings.jwks_uri.is_some() {
        refuse("jwks", "is given beside jwks_uri; keep one of them".into());
    }
    if settings.jwks.as_ref().is_some_and(|jwks| jwks.to_string().len() > MAX_INLINE) {
        refuse("jwks", format!("must be at most {MAX_INLINE} bytes"));
    }
    if settings
        .ca_certificate
        .as_ref()
        .is_some_and(|pem| pem.len() > MAX_INLINE || !pem.contains("BEGIN CERTIFICATE"))
    {
        refuse("ca_certificate", "must be certificates in PEM".into());
    }
    if settings.token_types.len() > MAX_TYPES {
        refuse("token_types", format!("must be at most {MAX_TYPES}"));
    }
    for (at, typ) in settings.token_types.iter().enumerate() {
        let in_alphabet = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+/".contains(&byte);
        if typ.is_empty() || typ.len() > 127 || !typ.bytes().all(in_alphabet) {
            refuse(
                &format!("token_types[{at}]"),
                format!("must be a media type such as at+jwt or JWT, or `{NO_TOKEN_TYPE}`"),
            );
        }
    }
    let mut algorithms = Vec::new();
    for (at, name) in settings.algorithms.iter().enumerate() {
        match name.parse() {
            Ok(algorithm) => algorithms.push(algorithm),
            Err(error) => refuse(&format!("algorithms[{at}]"), format!("{error}")),
        }
    }
    if errors.is_empty() { Ok(algorithms) } else { Err(errors) }
}

#[cfg(test)]
mod tests;
