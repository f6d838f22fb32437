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

use crate::clock::wall_now;
use crate::feed::{FeedError, FeedHandle};
use crate::secret::{SecretError, Wrapper};
use crate::store::outbox::{self, Ticket};
use crate::store::signing_keys::{self, StoredKey};
use crate::store::versions::{self, Topic};
use crate::store::{Store, StoreError, Transaction, corrupt, transact};

mod publication;
mod rotation;
mod signer;
#[cfg(test)]
pub(crate) mod tests;

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
    /// The key that signs until the fleet holds the new one.
    pub active: String,
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
}

/// The signing keys of one issuer; clones share everything.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    feed: FeedHandle,
    wrapper: Wrapper,
    settings: KeySettings,
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
    signer: Arc<Signer>,
    issuers: Issuers,
}

impl Keys {
    /// Opens the stored keys, or makes the first one, which is active at once: nobody waits for it yet.
    pub async fn load_or_create(
        store: Store,
        feed: FeedHandle,
        wrapper: Wrapper,
        settings: KeySettings,
    ) -> Result<Self, KeysError> {
        let is_active = |key: &StoredKey| key.record.state == SigningKeyState::Active;
        let fresh = if signing_keys::list(&store, &settings.issuer).await?.iter().any(is_active) {
            None
        } else {
            let fresh = generate(settings.algorithm).await?;
            Some(stored(&fresh, &wrapper, &settings, SigningKeyState::Active)?)
        };
        transact!(store, |transaction| -> Result<(), StoreError> {
            let mut keys = signing_keys::locked(transaction, &settings.issuer).await?;
            // Of several processes that start together one makes the key.
            if let Some(fresh) = &fresh
                && !keys.iter().any(is_active)
            {
                signing_keys::insert(transaction, fresh).await?;
                keys.push(fresh.clone());
                publish(transaction, &settings.issuer, &keys).await?;
            }
            withdraw_other_issuers(transaction, &settings).await
        })?;
        feed.sequence_soon();
        let loaded = ArcSwap::from_pointee(load(&store, &wrapper, &settings, None).await?);
        let (loading, wake) = (Mutex::default(), Notify::new());
        Ok(Self(Arc::new(Inner { store, feed, wrapper, settings, loaded, loading, wake })))
    }

    /// The realm of the issuer.
    pub(crate) fn realm(&self) -> &str {
        &self.0.settings.realm
    }

    /// The key that signs now, as far as this process knows.
    pub fn active_signer(&self) -> Arc<Signer> {
        Arc::clone(&self.0.loaded.load().signer)
    }

    /// A compact JWS (RFC 7515 §7.1) over `claims`, with header `alg`, `kid` and `typ`, by the key that is active in every
    /// version of the key set that this process knows of: see [`crate::store::versions`].
    pub async fn sign_jwt<C: Serialize>(&self, typ: &str, claims: &C) -> Result<String, KeysError> {
        let loaded = self.current().await?;
        let signer = &loaded.signer;
        let header = serde_json::json!({
            "alg": signer.algorithm().to_string(),
            "kid": signer.kid(),
            "typ": typ,
        });
        let mut token = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header)?);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims)?, &mut token);
        let signature = signer.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    /// Every key that ever was, the oldest first.
    pub async fn list(&self) -> Result<Vec<KeyRecord>, KeysError> {
        let keys = signing_keys::list(&self.0.store, &self.0.settings.issuer).await?;
        Ok(keys.into_iter().map(|key| key.record).collect())
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
        let fresh = self.generate().await?;
        let key = stored(&fresh, &inner.wrapper, &inner.settings, SigningKeyState::Pending)?;
        let ticket = transact!(inner.store, |transaction| -> Result<Ticket, KeysError> {
            let mut keys = signing_keys::locked(transaction, &inner.settings.issuer).await?;
            if let Some(pending) = keys.iter().find(|key| key.record.state == SigningKeyState::Pending) {
                return Err(KeysError::RotationUnderWay { pending: pending.record.kid.clone() });
            }
            signing_keys::insert(transaction, &key).await?;
            keys.push(key.clone());
            Ok(publish(transaction, &inner.settings.issuer, &keys).await?)
        })?;
        self.refresh().await?;
        let revision = inner.feed.sequenced(&ticket).await?;
        inner.wake.notify_one();
        let active = self.active_signer().kid().to_owned();
        Ok(Rotation { pending: key.record.kid, active, revision })
    }

    /// A key of the configured algorithm, for [`Self::compromise`]: made before the write lock is taken.
    pub(crate) async fn generate(&self) -> Result<Signer, KeysError> {
        generate(self.0.settings.algorithm).await
    }

    /// Marks our keys among `kids` as compromised. If the active one is among them, a pending one or `replacement` takes
    /// over at once: waiting for the fleet would mean to go on with a stolen key. None of ours: nothing is done.
    pub(crate) async fn compromise(
        &self,
        transaction: &mut Transaction,
        kids: &[&str],
        replacement: &Signer,
    ) -> Result<Option<Ticket>, KeysError> {
        let inner = &*self.0;
        let now = wall_now();
        let mut keys = signing_keys::locked(transaction, &inner.settings.issuer).await?;
        let mut found = false;
        for key in keys.iter_mut().filter(|key| kids.contains(&key.record.kid.as_str())) {
            found = true;
            key.record.state = SigningKeyState::Compromised;
            key.record.retired_at = key.record.retired_at.or(Some(now.0));
            key.wrapped.clear();
            signing_keys::update(transaction, key).await?;
        }
        if !found {
            return Ok(None);
        }
        if !keys.iter().any(|key| key.record.state == SigningKeyState::Active) {
            if let Some(key) = keys.iter_mut().find(|key| key.record.state == SigningKeyState::Pending) {
                key.record.state = SigningKeyState::Active;
                key.record.activated_at = Some(now.0);
                signing_keys::update(transaction, key).await?;
            } else {
                let key = stored(replacement, &inner.wrapper, &inner.settings, SigningKeyState::Active)?;
                signing_keys::insert(transaction, &key).await?;
                keys.push(key);
            }
        }
        Ok(Some(publish(transaction, &inner.settings.issuer, &keys).await?))
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
        let loaded = Arc::new(load(&inner.store, &inner.wrapper, &inner.settings, Some(&before)).await?);
        inner.loaded.store(Arc::clone(&loaded));
        Ok(loaded)
    }
}

/// Reads the keys of the issuer. The signer of `before` is kept where it is still the active one.
async fn load(
    store: &Store,
    wrapper: &Wrapper,
    settings: &KeySettings,
    before: Option<&Loaded>,
) -> Result<Loaded, KeysError> {
    let version = store.version(Topic::SigningKeys);
    let keys = signing_keys::list(store, &settings.issuer).await?;
    let issuers = issuers_of(settings, &keys)?;
    let active = keys
        .iter()
        .find(|key| key.record.state == SigningKeyState::Active)
        .ok_or_else(|| corrupt("key set", "has no active key"))?;
    let record = &active.record;
    let signer = if let Some(before) = before.filter(|before| before.signer.kid() == record.kid) {
        Arc::clone(&before.signer)
    } else {
        Arc::new(Signer::unwrap(wrapper, &record.kid, record.algorithm, &active.wrapped)?)
    };
    Ok(Loaded { version, signer, issuers })
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

async fn generate(algorithm: Algorithm) -> Result<Signer, KeysError> {
    // RSA takes long enough to hold up a runtime thread.
    tokio::task::spawn_blocking(move || Signer::generate(algorithm)).await.map_err(|_| KeysError::Library)?
}

fn stored(
    signer: &Signer,
    wrapper: &Wrapper,
    settings: &KeySettings,
    state: SigningKeyState,
) -> Result<StoredKey, KeysError> {
    let now = wall_now().0;
    Ok(StoredKey {
        record: KeyRecord {
            kid: signer.kid().to_owned(),
            issuer: settings.issuer.clone(),
            algorithm: signer.algorithm(),
            state,
            created_at: now,
            activated_at: (state == SigningKeyState::Active).then_some(now),
            retiring_at: None,
            retired_at: None,
        },
        realm: settings.realm.clone(),
        spki: signer.spki().to_vec(),
        wrapped: signer.wrap(wrapper)?,
    })
}
