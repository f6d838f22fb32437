//! Realms: any number of tenants, each with its own issuer, keys, clients, subjects, sessions and rules. The default realm is the
//! configured issuer; another one is at `<issuer>/realms/<name>`.
//!
//! A realm costs a row and its public keys at the sidecars. What serves it is made when its first request comes and
//! forgotten after ten minutes without one, or when others are served in its place, so that thousands which nobody uses
//! cost nothing here.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use atm_core::key::Algorithm;
use atm_core::time::UnixMillis;
use axum::Router;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::app::StartError;
use crate::clock::IssueClock;
use crate::registry::FieldError;
use crate::retention;
use crate::revocation::RevocationError;
use crate::store::versions::Topic;
use crate::store::{Store, StoreError, realms as rows, transact};

/// The realm of the configured issuer.
pub const DEFAULT_REALM: &str = "default";
/// Realms that are served out of memory.
const SERVED: usize = 256;
/// How long a realm without a request is kept ready.
const IDLE: Duration = Duration::from_mins(10);
/// How often it is looked for those.
const SWEEP: Duration = Duration::from_mins(1);
/// Characters of a name: what a host name's label may have, too.
const MAX_NAME: usize = 63;
/// Seconds of a token at most.
const MAX_TOKEN_SECONDS: u32 = 86_400;
/// Seconds of a session at most: ten years.
const MAX_SESSION_SECONDS: u32 = 3_653 * 86_400;

/// Whether a realm is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RealmStatus {
    /// It is.
    Active,
    /// Its OAuth endpoints are not there, and what it issued is revoked.
    Disabled,
}

impl RealmStatus {
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

/// What an operator decides about a realm; what is left out is as configured for the default one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RealmSettings {
    /// JWA name (RFC 7518) of its signing keys' algorithm; a change takes effect with the next rotation.
    pub algorithm: Option<String>,
    /// Seconds that its access tokens live.
    pub access_token_lifetime_seconds: Option<u32>,
    /// Seconds without a refresh after which its sessions end.
    pub session_idle_seconds: Option<u32>,
    /// Seconds after which its sessions end in any case.
    pub session_lifetime_seconds: Option<u32>,
    /// Days that its sessions are kept after their end, for those who look for what happened; 0: for ever.
    pub session_retention_days: Option<u32>,
    /// Days that records of its revocations are kept; 0: for ever. What is revoked stays so.
    pub revocation_retention_days: Option<u32>,
    /// Days that its audit events are kept at least; 0: for ever.
    pub audit_retention_days: Option<u32>,
}

/// A realm beside the default one. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Realm {
    /// Part of its issuer.
    pub name: String,
    /// What an operator decided.
    #[serde(flatten)]
    pub settings: RealmSettings,
    /// Whether it is served.
    pub status: RealmStatus,
    /// When it was made.
    pub created_at: i64,
    /// When it was last changed.
    pub updated_at: i64,
}

/// Why there is no realm, or why it is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum RealmError {
    /// Fields that cannot be accepted, all of them.
    #[error("{} fields cannot be accepted", .0.len())]
    Invalid(Vec<FieldError>),
    /// The name is taken.
    #[error("there is a realm of this name already")]
    Exists,
    /// No such realm.
    #[error("there is no realm of this name")]
    NotFound,
    /// Its keys cannot be made or opened.
    #[error("the realm cannot be served: {0}")]
    Start(#[from] Box<StartError>),
    /// Disabled, and its tokens could not be revoked; call again.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What serves one realm.
#[derive(Debug)]
pub struct Served {
    /// Below the realm's issuer; none while it is disabled.
    pub oauth: Option<Router>,
    /// The part of the admin API that is a realm's own, at `/admin/v1`.
    pub admin: Router,
    /// Ends everything of the realm that it issued until now. Returns the feed's revision.
    pub revocations: crate::revocation::Revocations,
    /// Ends its tasks with it.
    pub ends: DropGuard,
}

/// Makes what serves a realm.
pub type Serve =
    dyn Fn(Realm) -> Pin<Box<dyn Future<Output = Result<Served, StartError>> + Send>> + Send + Sync;

/// A realm that is ready.
#[derive(Clone)]
struct Kept {
    /// The version of all realms that it was made at, or found unchanged at.
    version: u64,
    realm: Realm,
    served: Arc<Served>,
    /// When a request last came, in milliseconds.
    used_at: Arc<AtomicI64>,
}

/// The realms beside the default one; clones share everything.
#[derive(Clone)]
pub struct Realms {
    store: Store,
    clock: Arc<IssueClock>,
    serve: Arc<Serve>,
    served: Arc<Cache<String, Kept>>,
    /// One is made at a time.
    making: Arc<Mutex<()>>,
}

impl fmt::Debug for Realms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Realms").finish_non_exhaustive()
    }
}

impl Realms {
    /// The realms in `store`, each served by what `serve` makes.
    pub fn new(store: Store, clock: Arc<IssueClock>, serve: Arc<Serve>) -> Self {
        Self { store, clock, serve, served: Arc::new(Cache::new(SERVED)), making: Arc::default() }
    }

    /// Makes a realm, with its first key.
    pub async fn create(&self, name: &str, settings: RealmSettings) -> Result<Realm, RealmError> {
        check(Some(name), &settings)?;
        let now = self.clock.wall().0;
        let realm = Realm {
            name: name.to_owned(),
            settings,
            status: RealmStatus::Active,
            created_at: now,
            updated_at: now,
        };
        transact!(self.store, |transaction| -> Result<(), StoreError> {
            rows::insert(transaction, &realm).await
        })
        .map_err(|error| match error {
            StoreError::Exists => RealmError::Exists,
            other => other.into(),
        })?;
        self.served(name).await?;
        Ok(realm)
    }

    /// The realm of this name.
    pub async fn get(&self, name: &str) -> Result<Realm, RealmError> {
        rows::get(&self.store, name).await?.ok_or(RealmError::NotFound)
    }

    /// Realms in the order of their names, those after `after`, at most `limit`.
    pub async fn list(&self, after: Option<&str>, limit: u32) -> Result<Vec<Realm>, RealmError> {
        Ok(rows::list(&self.store, after.unwrap_or_default(), limit).await?)
    }

    /// Changes a realm. Disabling it revokes what it issued, and returns once that is in the feed.
    pub async fn change(
        &self,
        name: &str,
        status: Option<RealmStatus>,
        settings: Option<RealmSettings>,
        actor: &str,
    ) -> Result<Realm, RealmError> {
        if let Some(settings) = &settings {
            check(None, settings)?;
        }
        let realm = transact!(self.store, |transaction| -> Result<Realm, RealmError> {
            let mut realm = rows::locked(transaction, name).await?.ok_or(RealmError::NotFound)?;
            realm.status = status.unwrap_or(realm.status);
            realm.settings = settings.clone().unwrap_or(realm.settings);
            realm.updated_at = self.clock.wall().0;
            rows::update(transaction, &realm).await?;
            Ok(realm)
        })?;
        // After the commit: what a request that still saw it as active gets has an instant before this watermark.
        if status == Some(RealmStatus::Disabled) {
            let selector = crate::revocation::Selector::Realm(name.to_owned());
            let served = self.served(name).await?;
            served.revocations.revoke(&[selector], actor, Some("realm disabled")).await?;
        }
        Ok(realm)
    }

    /// What serves the realm, as of now at all replicas.
    pub async fn served(&self, name: &str) -> Result<Arc<Served>, RealmError> {
        // Brings what other replicas have changed: see `crate::store::versions`.
        self.clock.issue().await?;
        let now = self.clock.wall().0;
        if let Some(kept) = self.kept(name) {
            kept.used_at.store(now, Ordering::Relaxed);
            return Ok(kept.served);
        }
        let _one_at_a_time = self.making.lock().await;
        if let Some(kept) = self.kept(name) {
            return Ok(kept.served);
        }
        let version = self.store.version(Topic::Realms);
        let realm = self.get(name).await?;
        // Another realm has changed, not this one.
        let unchanged = self.served.get(name).filter(|kept| kept.realm == realm);
        let served = match unchanged {
            Some(kept) => kept.served,
            None => Arc::new((self.serve)(realm.clone()).await.map_err(Box::new)?),
        };
        let kept =
            Kept { version, realm, served: Arc::clone(&served), used_at: Arc::new(AtomicI64::new(now)) };
        self.served.insert(name.to_owned(), kept);
        Ok(served)
    }

    /// Forgets realms that nobody asks for, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(SWEEP);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            self.forget_idle(self.clock.wall());
        }
    }

    fn forget_idle(&self, now: UnixMillis) {
        let since = now.0.saturating_sub(i64::try_from(IDLE.as_millis()).unwrap_or(i64::MAX));
        self.served.retain(|_, kept| kept.used_at.load(Ordering::Relaxed) >= since);
    }

    /// What is ready and as the newest version that is known has it.
    fn kept(&self, name: &str) -> Option<Kept> {
        self.served.get(name).filter(|kept| kept.version == self.store.version(Topic::Realms))
    }
}

fn check(name: Option<&str>, settings: &RealmSettings) -> Result<(), RealmError> {
    let mut errors = Vec::new();
    let mut refuse = |field: &str, message: String| {
        errors.push(FieldError { field: field.to_owned(), message });
    };
    if let Some(name) = name {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_name = (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(allowed)
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !is_name || name == DEFAULT_REALM {
            refuse(
                "name",
                "must be 1 to 63 of a-z, 0-9 and - (not first or last), and not default".to_owned(),
            );
        }
    }
    if settings.algorithm.as_ref().is_some_and(|name| name.parse::<Algorithm>().is_err()) {
        let known: Vec<&str> = Algorithm::ALL.into_iter().map(Algorithm::as_str).collect();
        refuse("algorithm", format!("must be one of {}", known.join(", ")));
    }
    for (field, value, most) in [
        ("access_token_lifetime_seconds", settings.access_token_lifetime_seconds, MAX_TOKEN_SECONDS),
        ("session_idle_seconds", settings.session_idle_seconds, MAX_SESSION_SECONDS),
        ("session_lifetime_seconds", settings.session_lifetime_seconds, MAX_SESSION_SECONDS),
    ] {
        if value.is_some_and(|value| value == 0 || value > most) {
            refuse(field, format!("must be 1 to {most}"));
        }
    }
    for (field, days) in [
        ("session_retention_days", settings.session_retention_days),
        ("revocation_retention_days", settings.revocation_retention_days),
        ("audit_retention_days", settings.audit_retention_days),
    ] {
        if days.is_some_and(|days| days > retention::MAX_DAYS) {
            refuse(field, format!("must be 0 (for ever) to {}", retention::MAX_DAYS));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(RealmError::Invalid(errors)) }
}

/// The issuer of a realm beside the default one, whose issuer is `default_issuer`.
pub fn issuer_of(default_issuer: &str, name: &str) -> String {
    format!("{default_issuer}/realms/{name}")
}

/// The name in such an issuer, whether there is a realm of it or not.
pub(crate) fn name_in<'a>(default_issuer: &str, issuer: &'a str) -> Option<&'a str> {
    issuer.strip_prefix(default_issuer)?.strip_prefix("/realms/")
}

#[cfg(test)]
mod tests;
