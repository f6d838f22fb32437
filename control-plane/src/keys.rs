//! Signing keys: made here, wrapped at rest, published before their first use, kept until their last token ends.
//!
//! A key is `pending` (published, not used), `active` (signs), `retiring` (verifies what it signed), `retired`. A rotation
//! publishes a pending key and activates it once the live fleet has said that it holds it; nobody waits by the clock for
//! caches. A `compromised` key is dead at once, with whatever it signed.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use atm_core::key::{Algorithm, Issuers, KeyState};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Serialize, Serializer};
use tokio::sync::{Mutex, Notify};

use crate::audit::{Action, Actor, Audit, Event};
use crate::clock::wall_now;
use crate::feed::{FeedError, FeedHandle};
use crate::secret::SecretError;
use crate::store::outbox::{self, Ticket};
use crate::store::signing_keys::{self, StoredKey};
use crate::store::versions::{self, Topic};
use crate::store::{Store, StoreError, Transaction, transact};

mod custody;
mod emergency;
mod outage;
pub mod provider;
mod publication;
pub mod root;
mod rotation;
mod signer;
#[cfg(test)]
pub(crate) mod tests;

pub use custody::{Custody, LOCAL};
pub(crate) use emergency::Compromised;
use outage::{Outage, Turn};
use provider::ProviderError;
pub(crate) use publication::published;
use publication::{issuers_of, withdraw_other_issuers};
pub use signer::Signer;

/// Where a signing key is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SigningKeyState {
    /// Published, not used yet.
    Pending,
    /// Signs.
    Active,
    /// Signs no more; verifies until its last token has ended.
    Retiring,
    /// Gone from the key set.
    Retired,
    /// Revoked: gone, and whatever it signed with it.
    Compromised,
}

impl SigningKeyState {
    /// The name in the store and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Retired => "retired",
            Self::Compromised => "compromised",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Active, Self::Retiring, Self::Retired, Self::Compromised]
            .into_iter()
            .find(|state| state.as_str() == text)
    }

    /// The state that verifiers see; none for a key that verifies nothing.
    fn published(self) -> Option<KeyState> {
        match self {
            Self::Pending => Some(KeyState::Pending),
            Self::Active => Some(KeyState::Active),
            Self::Retiring => Some(KeyState::Retiring),
            Self::Retired | Self::Compromised => None,
        }
    }
}

/// What is known of a signing key, without the key. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyRecord {
    /// Key id.
    pub kid: String,
    /// Whose tokens it signs.
    pub issuer: String,
    /// JWA name (RFC 7518).
    #[serde(serialize_with = "as_text")]
    pub algorithm: Algorithm,
    /// Who keeps its private half: `local`, `pkcs11`, `vault`, `awsKms`.
    pub provider: String,
    /// Where it is in its life.
    pub state: SigningKeyState,
    /// When it was made.
    pub created_at: i64,
    /// When it began to sign.
    pub activated_at: Option<i64>,
    /// When it ceased to sign.
    pub retiring_at: Option<i64>,
    /// When it left the key set.
    pub retired_at: Option<i64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn as_text<S: Serializer>(algorithm: &Algorithm, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(algorithm)
}

/// A rotation that has begun; the key list shows how it goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rotation {
    /// The new key's id.
    pub pending: String,
    /// The key that signs until the fleet holds the new one; none where the last one was revoked.
    pub active: Option<String>,
    /// The feed's revision that publishes the new key.
    pub revision: u64,
}

/// Why a key operation failed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// One rotation at a time.
    #[error("a rotation is under way: key {pending} waits for the fleet")]
    RotationUnderWay {
        /// The pending key's id.
        pending: String,
    },
    /// The stored key does not open.
    #[error("signing key {kid}: {source}")]
    Wrapped {
        /// Its id.
        kid: String,
        /// Why.
        source: SecretError,
    },
    /// The key's provider does not do what it is asked.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// A key of a provider that is not configured any more.
    #[error(
        "signing key {kid} is kept by {provider}, which is not configured; configure it, or revoke the key"
    )]
    NoProvider {
        /// Its id.
        kid: String,
        /// Who keeps it.
        provider: String,
    },
    /// The last key was revoked, and its successor is not made yet.
    #[error("no key signs: the last one was revoked, and its successor could not be made yet; trying again")]
    NoActiveKey,
    /// The library refused to make or use a key.
    #[error("the cryptographic library failed")]
    Library,
    /// The claims do not serialise.
    #[error("the token's claims cannot be written as JSON: {0}")]
    Claims(#[from] serde_json::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Committed, not sequenced yet.
    #[error(transparent)]
    Feed(#[from] FeedError),
}

impl From<aws_lc_rs::error::Unspecified> for KeysError {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self::Library
    }
}

/// Whose keys, and of which kind.
#[derive(Debug, Clone)]
pub struct KeySettings {
    /// The tokens' `iss`.
    pub issuer: String,
    /// The realm that owns the issuer.
    pub realm: String,
    /// Of new keys; a change takes effect with the next rotation.
    pub algorithm: Algorithm,
    /// The longest life of a token: so long a retired key still verifies.
    pub max_token_lifetime: Duration,
    /// How long a key signs before another one is made; none: until somebody rotates.
    pub rotate_every: Option<Duration>,
    /// How long a published key waits for live sidecars that do not report it. Then it is activated without them, and the audit
    /// chain says so.
    pub fleet_wait: Duration,
}

/// The signing keys of one issuer; clones share everything.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    feed: FeedHandle,
    custody: Custody,
    audit: Audit,
    settings: KeySettings,
    outage: Outage,
    loaded: ArcSwap<Loaded>,
    /// One load at a time.
    loading: Mutex<()>,
    /// Wakes the rotation task.
    wake: Notify,
}

/// A copy of the stored keys.
#[derive(Debug)]
struct Loaded {
    /// Of the keys in the store, as it was known before they were read.
    version: u64,
    /// None: the last key was revoked, and its provider did not make another one yet.
    signer: Option<Arc<Signer>>,
    issuers: Issuers,
}

impl Keys {
    /// Opens the stored keys, or makes the first one, which is active at once: nobody waits for it yet. Fails where the very first
    /// one cannot be made.
    pub async fn load_or_create(
        store: Store,
        feed: FeedHandle,
        custody: Custody,
        audit: Audit,
        settings: KeySettings,
    ) -> Result<Self, KeysError> {
        transact!(store, |transaction| -> Result<(), StoreError> {
            withdraw_other_issuers(transaction, &settings).await
        })?;
        let loaded = ArcSwap::from_pointee(load(&store, &custody, &settings, None).await?);
        let (loading, wake, outage) = (Mutex::default(), Notify::new(), Outage::default());
        let keys =
            Self(Arc::new(Inner { store, feed, custody, audit, settings, outage, loaded, loading, wake }));
        let stored = signing_keys::list(&keys.0.store, &keys.0.settings.issuer).await?;
        if is_lost(&stored) {
            match keys.generate().await {
                Ok(fresh) => {
                    keys.insert_first(&fresh).await?;
                    keys.refresh().await?;
                }
                // The feed and its revocations do not wait for a provider; the rotation task tries again.
                Err(error) if !stored.is_empty() => tracing::error!(%error, "no key signs yet"),
                Err(error) => return Err(error),
            }
        }
        keys.0.feed.sequence_soon();
        Ok(keys)
    }

    /// The realm of the issuer.
    pub(crate) fn realm(&self) -> &str {
        &self.0.settings.realm
    }

    /// Puts `fresh` in force at once where no key signs or is about to: nobody waits for it. Of several processes that do so
    /// together one does it.
    async fn insert_first(&self, fresh: &Signer) -> Result<bool, KeysError> {
        let inner = &*self.0;
        let key = stored(fresh, &inner.custody, &inner.settings, SigningKeyState::Active)?;
        let made = transact!(inner.store, |transaction| -> Result<bool, StoreError> {
            let mut keys = signing_keys::locked(transaction, &inner.settings.issuer).await?;
            if !is_lost(&keys) {
                return Ok(false);
            }
            signing_keys::insert(transaction, &key).await?;
            keys.push(key.clone());
            publish(transaction, &inner.settings.issuer, &keys).await?;
            Ok(true)
        })?;
        if made {
            self.record(Action::KeyActivated, &key.record, |event| {
                event.by(Actor::system()).detail("at_once", true)
            });
        } else {
            self.discard(fresh).await;
        }
        Ok(made)
    }

    /// The key that signs now, as far as this process knows; none where the last one was revoked and has no successor yet.
    pub fn active_kid(&self) -> Option<String> {
        self.0.loaded.load().signer.as_ref().map(|signer| signer.kid().to_owned())
    }

    /// What tokens are signed with: by the active key, or by the next one.
    pub fn algorithm(&self) -> Algorithm {
        let loaded = self.0.loaded.load();
        loaded.signer.as_ref().map_or(self.0.settings.algorithm, |signer| signer.algorithm())
    }

    /// A compact JWS (RFC 7515 §7.1) over `claims`, with header `alg`, `kid` and `typ`, by the key that is active in every
    /// version of the key set that this process knows of: see [`crate::store::versions`].
    pub async fn sign_jwt<C: Serialize>(&self, typ: &str, claims: &C) -> Result<String, KeysError> {
        let loaded = self.current().await?;
        let signer = loaded.signer.as_ref().ok_or(KeysError::NoActiveKey)?;
        let header = serde_json::json!({
            "alg": signer.algorithm().to_string(),
            "kid": signer.kid(),
            "typ": typ,
        });
        let mut token = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header)?);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims)?, &mut token);
        let signature = self.signed(signer, token.as_bytes()).await?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    /// The signature, with what its success or failure says of the provider. There is no other key to fall back to: a key that
    /// the fleet does not know would be refused everywhere, and one of another provider may be what an operator left on purpose.
    async fn signed(&self, signer: &Signer, message: &[u8]) -> Result<Vec<u8>, KeysError> {
        let outcome = signer.sign(message).await;
        let problem = outcome.as_ref().err().map(|error| error as &dyn std::fmt::Display);
        let turn = self.0.outage.note(problem);
        if let Some(turn) = turn {
            let event = Event::of(Action::SigningOutage).by(Actor::system()).key(signer.kid());
            let event = event.issuer(&self.0.settings.issuer);
            if let (Turn::Began, Err(error)) = (&turn, &outcome) {
                tracing::error!(%error, kid = signer.kid(), "tokens cannot be signed");
                self.0.audit.record(event.failed(error.to_string()));
            } else {
                tracing::info!(kid = signer.kid(), "tokens are signed again");
                self.0.audit.record(event.detail("recovered", true));
            }
        }
        outcome
    }

    /// Why tokens are not signed now; none where they are, as far as the last attempt showed.
    pub fn outage(&self) -> Option<String> {
        let lost = self.0.loaded.load().signer.is_none().then(|| KeysError::NoActiveKey.to_string());
        lost.or_else(|| self.0.outage.problem())
    }

    /// Signatures that failed since the start.
    pub fn signing_failures(&self) -> u64 {
        self.0.outage.failures()
    }

    /// The name of the provider that makes new keys.
    pub fn provider(&self) -> &'static str {
        self.0.custody.of_new_keys()
    }

    /// Every key that ever was, the oldest first.
    pub async fn list(&self) -> Result<Vec<KeyRecord>, KeysError> {
        let keys = signing_keys::list(&self.0.store, &self.0.settings.issuer).await?;
        Ok(keys.into_iter().map(|key| key.record).collect())
    }

    /// The longest life of a token.
    pub(crate) fn max_token_lifetime(&self) -> Duration {
        self.0.settings.max_token_lifetime
    }

    /// The issuer's keys that verify now, as `core` wants them.
    pub fn issuers(&self) -> Issuers {
        self.0.loaded.load().issuers.clone()
    }

    /// The JWK set (RFC 7517 §5) of all keys that verify, pending ones among them.
    pub fn jwks(&self) -> serde_json::Value {
        let loaded = self.0.loaded.load();
        let keys: Vec<serde_json::Value> = loaded
            .issuers
            .get(&self.0.settings.issuer)
            .into_iter()
            .flat_map(|issuer| issuer.keys())
            // Each was read from its SPKI, so none is left out.
            .filter_map(|key| atm_core::jwk::jwk_from_spki(key.kid(), key.algorithm(), key.spki()))
            .collect();
        serde_json::json!({ "keys": keys })
    }

    /// Begins a rotation: publishes a pending key, which the task of [`Keys::run`] activates.
    pub async fn rotate(&self) -> Result<Rotation, KeysError> {
        let inner = &*self.0;
        // Looked at before a key is made that a provider would keep, and again under the lock.
        let under_way = |keys: &[StoredKey]| {
            let pending = keys.iter().find(|key| key.record.state == SigningKeyState::Pending)?;
            Some(KeysError::RotationUnderWay { pending: pending.record.kid.clone() })
        };
        if let Some(error) = under_way(&signing_keys::list(&inner.store, &inner.settings.issuer).await?) {
            return Err(error);
        }
        let fresh = self.generate().await?;
        let key = stored(&fresh, &inner.custody, &inner.settings, SigningKeyState::Pending)?;
        let outcome = transact!(inner.store, |transaction| -> Result<Ticket, KeysError> {
            let mut keys = signing_keys::locked(transaction, &inner.settings.issuer).await?;
            if let Some(error) = under_way(&keys) {
                return Err(error);
            }
            signing_keys::insert(transaction, &key).await?;
            keys.push(key.clone());
            Ok(publish(transaction, &inner.settings.issuer, &keys).await?)
        });
        if let Err(KeysError::RotationUnderWay { .. }) = &outcome {
            self.discard(&fresh).await;
        }
        let ticket = outcome?;
        self.refresh().await?;
        let revision = inner.feed.sequenced(&ticket).await?;
        inner.wake.notify_one();
        self.record(Action::KeyPublished, &key.record, |event| event.detail("revision", revision));
        Ok(Rotation { pending: key.record.kid, active: self.active_kid(), revision })
    }

    /// A key of the configured algorithm; made before a write lock is taken.
    async fn generate(&self) -> Result<Signer, KeysError> {
        self.0.custody.generate(self.0.settings.algorithm).await
    }

    /// Has its provider remove a key that was made for nothing.
    async fn discard(&self, signer: &Signer) {
        if let Some((provider, reference)) = signer.reference() {
            self.remove_from_provider(signer.kid(), provider, reference).await;
        }
    }

    /// Records what happened to a key.
    fn record(&self, action: Action, record: &KeyRecord, describe: impl FnOnce(Event) -> Event) {
        let event = Event::of(action).key(&record.kid).issuer(&record.issuer).realm(&self.0.settings.realm);
        let event = event.detail("algorithm", record.algorithm.to_string());
        self.0.audit.record(describe(event.detail("provider", record.provider.as_str())));
    }

    /// Takes over what has changed in the store, here or in another process.
    pub(crate) async fn refresh(&self) -> Result<(), KeysError> {
        self.current().await.map(drop)
    }

    /// The keys as of the newest version that is known.
    async fn current(&self) -> Result<Arc<Loaded>, KeysError> {
        let inner = &*self.0;
        let is_current = |loaded: &Loaded| loaded.version >= inner.store.version(Topic::SigningKeys);
        let loaded = inner.loaded.load_full();
        if is_current(&loaded) {
            return Ok(loaded);
        }
        let _one_at_a_time = inner.loading.lock().await;
        let before = inner.loaded.load_full();
        if is_current(&before) {
            return Ok(before);
        }
        let loaded = Arc::new(load(&inner.store, &inner.custody, &inner.settings, Some(&before)).await?);
        inner.loaded.store(Arc::clone(&loaded));
        Ok(loaded)
    }
}

/// Reads the keys of the issuer. The signer of `before` is kept where it is still the active one.
async fn load(
    store: &Store,
    custody: &Custody,
    settings: &KeySettings,
    before: Option<&Loaded>,
) -> Result<Loaded, KeysError> {
    let version = store.version(Topic::SigningKeys);
    let keys = signing_keys::list(store, &settings.issuer).await?;
    let issuers = issuers_of(settings, &keys)?;
    let active = keys.iter().find(|key| key.record.state == SigningKeyState::Active);
    let before = before.and_then(|before| before.signer.as_ref());
    let signer = match (active, before) {
        (None, _) => None,
        (Some(active), Some(before)) if before.kid() == active.record.kid => Some(Arc::clone(before)),
        (Some(active), _) => Some(Arc::new(custody.open(active)?)),
    };
    Ok(Loaded { version, signer, issuers })
}

/// Whether no key signs, and none is about to.
fn is_lost(keys: &[StoredKey]) -> bool {
    !keys.iter().any(|key| matches!(key.record.state, SigningKeyState::Active | SigningKeyState::Pending))
}

/// Gives the feed `keys` as the issuer's whole key set, and tells the copies in memory.
async fn publish(
    transaction: &mut Transaction,
    issuer: &str,
    keys: &[StoredKey],
) -> Result<Ticket, StoreError> {
    versions::bump(transaction, Topic::SigningKeys).await?;
    outbox::enqueue(transaction, &published(issuer, keys)?, wall_now()).await
}

fn stored(
    signer: &Signer,
    custody: &Custody,
    settings: &KeySettings,
    state: SigningKeyState,
) -> Result<StoredKey, KeysError> {
    let now = wall_now().0;
    let (provider, wrapped) = custody.kept(signer)?;
    Ok(StoredKey {
        record: KeyRecord {
            kid: signer.kid().to_owned(),
            issuer: settings.issuer.clone(),
            algorithm: signer.algorithm(),
            provider: provider.to_owned(),
            state,
            created_at: now,
            activated_at: (state == SigningKeyState::Active).then_some(now),
            retiring_at: None,
            retired_at: None,
        },
        realm: settings.realm.clone(),
        spki: signer.spki().to_vec(),
        wrapped,
    })
}
