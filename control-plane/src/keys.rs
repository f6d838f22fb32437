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
use tokio::sync::Notify;

use crate::clock::wall_now;
use crate::feed::{FeedError, FeedHandle};
use crate::secret::{SecretError, Wrapper};
use crate::store::outbox::{self, Ticket};
use crate::store::signing_keys::{self, StoredKey};
use crate::store::{Store, StoreError, Transaction};

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
    signer: ArcSwap<Signer>,
    issuers: ArcSwap<Issuers>,
    /// Wakes the rotation task.
    wake: Notify,
}

/// What the revocation of keys changed.
pub(crate) struct Compromised {
    pub(crate) ticket: Ticket,
    /// The key that signs from the commit on, where the one before was revoked.
    pub(crate) signer: Option<Signer>,
}

impl Keys {
    /// Opens the stored keys, or makes the first one, which is active at once: nobody waits for it yet.
    pub async fn load_or_create(
        store: Store,
        feed: FeedHandle,
        wrapper: Wrapper,
        settings: KeySettings,
    ) -> Result<Self, KeysError> {
        let mut transaction = store.begin().await?;
        let mut keys = signing_keys::locked(&mut transaction, &settings.issuer).await?;
        let active = keys.iter().find(|key| key.record.state == SigningKeyState::Active);
        let signer = if let Some(key) = active {
            Signer::unwrap(&wrapper, &key.record.kid, key.record.algorithm, &key.wrapped)?
        } else {
            // Under the write lock, so that of several processes that start together one makes the key.
            let fresh = generate(settings.algorithm).await?;
            let key = stored(&fresh, &wrapper, &settings, SigningKeyState::Active)?;
            signing_keys::insert(&mut transaction, &key).await?;
            keys.push(key);
            let change = published(&settings.issuer, &keys)?;
            outbox::enqueue(&mut transaction, &change, wall_now()).await?;
            fresh
        };
        withdraw_other_issuers(&mut transaction, &settings.issuer).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        feed.sequence_soon();
        let issuers = ArcSwap::from_pointee(issuers_of(&settings, &keys)?);
        let signer = ArcSwap::from_pointee(signer);
        Ok(Self(Arc::new(Inner { store, feed, wrapper, settings, signer, issuers, wake: Notify::new() })))
    }

    /// The key that signs now.
    pub fn active_signer(&self) -> Arc<Signer> {
        self.0.signer.load_full()
    }

    /// A compact JWS (RFC 7515 §7.1) over `claims`, with header `alg`, `kid` and `typ`.
    pub fn sign_jwt<C: Serialize>(&self, typ: &str, claims: &C) -> Result<String, KeysError> {
        let signer = self.0.signer.load();
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
        Issuers::clone(&self.0.issuers.load())
    }

    /// The JWK set (RFC 7517 §5) of all keys that verify, pending ones among them.
    pub fn jwks(&self) -> serde_json::Value {
        let issuers = self.0.issuers.load();
        let keys: Vec<serde_json::Value> = issuers
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
        let mut transaction = inner.store.begin().await?;
        let mut keys = signing_keys::locked(&mut transaction, &inner.settings.issuer).await?;
        if let Some(pending) = keys.iter().find(|key| key.record.state == SigningKeyState::Pending) {
            return Err(KeysError::RotationUnderWay { pending: pending.record.kid.clone() });
        }
        let key = stored(&fresh, &inner.wrapper, &inner.settings, SigningKeyState::Pending)?;
        signing_keys::insert(&mut transaction, &key).await?;
        keys.push(key);
        let revision = self.publish(transaction, &keys, None).await?;
        inner.wake.notify_one();
        Ok(Rotation {
            pending: fresh.kid().to_owned(),
            active: self.active_signer().kid().to_owned(),
            revision,
        })
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
        kids: Vec<&str>,
        replacement: Signer,
    ) -> Result<Option<Compromised>, KeysError> {
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
        let mut signer = None;
        if !keys.iter().any(|key| key.record.state == SigningKeyState::Active) {
            if let Some(key) = keys.iter_mut().find(|key| key.record.state == SigningKeyState::Pending) {
                key.record.state = SigningKeyState::Active;
                key.record.activated_at = Some(now.0);
                signing_keys::update(transaction, key).await?;
                let record = &key.record;
                signer = Some(Signer::unwrap(&inner.wrapper, &record.kid, record.algorithm, &key.wrapped)?);
            } else {
                let key = stored(&replacement, &inner.wrapper, &inner.settings, SigningKeyState::Active)?;
                signing_keys::insert(transaction, &key).await?;
                keys.push(key);
                signer = Some(replacement);
            }
        }
        let change = published(&inner.settings.issuer, &keys)?;
        let ticket = outbox::enqueue(transaction, &change, now).await?;
        Ok(Some(Compromised { ticket, signer }))
    }

    /// Signs with `signer` from now on.
    pub(crate) fn install(&self, signer: Signer) {
        self.0.signer.store(Arc::new(signer));
    }

    /// Reads the key set that verifies anew.
    pub(crate) async fn refresh(&self) -> Result<(), KeysError> {
        let keys = signing_keys::list(&self.0.store, &self.0.settings.issuer).await?;
        self.0.issuers.store(Arc::new(issuers_of(&self.0.settings, &keys)?));
        Ok(())
    }

    /// Commits `transaction` with the key set in the log, signs with `signer` from then on, and waits for the revision.
    async fn publish(
        &self,
        mut transaction: Transaction,
        keys: &[StoredKey],
        signer: Option<Signer>,
    ) -> Result<u64, KeysError> {
        let change = published(&self.0.settings.issuer, keys)?;
        let ticket = outbox::enqueue(&mut transaction, &change, wall_now()).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        if let Some(signer) = signer {
            self.install(signer);
        }
        self.0.issuers.store(Arc::new(issuers_of(&self.0.settings, keys)?));
        Ok(self.0.feed.sequenced(&ticket).await?)
    }
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
