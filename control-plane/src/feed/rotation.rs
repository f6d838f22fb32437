//! Hands the trust in feed keys over, without a moment in which sidecars believe nobody.
//!
//! First the new key is added: the old one signs that both are trusted. Then control planes are restarted with the new key; both
//! sign side by side meanwhile. Then the old one is retired: the new one signs that it alone is trusted.

use std::sync::PoisonError;

use async_nats::jetstream;
use atm_proto::rotation::Rotation;
use atm_proto::signature::{Domain, FeedPublicKey};
use atm_proto::subject::SNAPSHOT_STREAM;
use atm_proto::wire::Signed;
use prost::Message;

use super::connection::is_connected;
use super::{FeedError, FeedHandle, Shared};
use crate::store::{StoreError, corrupt, feed_state};

/// The feed keys that sidecars are told to trust.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeedKeys {
    /// The last rotation; 0 before the first.
    pub rotation: u64,
    /// All that are trusted; empty before the first rotation: then it is whatever sidecars pin.
    pub trusted: Vec<FeedPublicKey>,
}

/// Why the trust was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The key is trusted already, or there are too many.
    #[error("{0}")]
    Refused(&'static str),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Shared {
    /// The keys whose signatures count: this process's own, and those that are trusted beside it.
    pub(super) fn feed_keys(&self) -> Vec<FeedPublicKey> {
        let own = *self.signer.public_key();
        let known = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let others = known.trusted.iter().filter(|key| **key != own).copied();
        std::iter::once(own).chain(others).collect()
    }

    /// The last rotation; 0 before the first.
    pub(super) fn rotation(&self) -> u64 {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).rotation
    }

    /// Takes over what this or another process has handed over.
    pub(super) async fn refresh_keys(&self) -> Result<(), StoreError> {
        let newest = feed_state::rotations(&self.store).await?.pop();
        let known = newest
            .map(|(_, signed)| read(&signed))
            .transpose()?
            .map(|rotation| FeedKeys { rotation: rotation.number, trusted: rotation.trusted });
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = known.unwrap_or_default();
        Ok(())
    }

    /// A key that sidecars were never told of, or told to distrust, must not sign: they would refuse everything.
    pub(super) fn check_own_key(&self) -> Result<(), FeedError> {
        let known = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if known.trusted.is_empty() || known.trusted.contains(self.signer.public_key()) {
            return Ok(());
        }
        Err(FeedError::UntrustedKey(*self.signer.public_key()))
    }
}

/// What this store's own processes signed.
fn read(signed: &[u8]) -> Result<Rotation, StoreError> {
    let envelope = Signed::decode(signed).map_err(|error| corrupt("rotation of feed keys", error))?;
    Rotation::decode(&envelope.payload).map_err(|error| corrupt("rotation of feed keys", error))
}

/// Puts every rotation where sidecars look for it, those that were away too.
pub(super) async fn publish(shared: &Shared, client: &async_nats::Client) -> Result<(), String> {
    let context = jetstream::new(client.clone());
    let failed = |error: String| format!("jetstream: {error}");
    let stream =
        context.get_stream_no_info(SNAPSHOT_STREAM).await.map_err(|error| failed(error.to_string()))?;
    for (number, signed) in feed_state::rotations(&shared.store).await.map_err(|error| error.to_string())? {
        let subject = shared.subjects.feed_keys(number);
        let held = stream.direct_get_last_for_subject(subject.clone()).await;
        if held.is_ok_and(|message| message.payload == signed) {
            continue;
        }
        let ack = context.publish(subject, signed.into()).await.map_err(|error| failed(error.to_string()))?;
        ack.await.map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

impl FeedHandle {
    /// The keys that sidecars are told to trust.
    pub fn feed_keys(&self) -> FeedKeys {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes `key` trusted beside those that are. Sidecars that are connected know within seconds, the others when they come.
    pub async fn add_feed_key(&self, key: FeedPublicKey) -> Result<FeedKeys, RotationError> {
        let mut trusted = self.0.feed_keys();
        if trusted.contains(&key) {
            return Err(RotationError::Refused("is trusted already"));
        }
        if trusted.len() >= 4 {
            return Err(RotationError::Refused("would be the fifth trusted key; retire others first"));
        }
        trusted.push(key);
        self.rotate(trusted).await
    }

    /// Ends the trust in `key`. Not in the one that this process signs with.
    pub async fn retire_feed_key(&self, key: FeedPublicKey) -> Result<FeedKeys, RotationError> {
        if key == *self.0.signer.public_key() {
            return Err(RotationError::Refused(
                "signs here; add another key, restart every control plane with it, then retire this one",
            ));
        }
        let mut trusted = self.0.feed_keys();
        if !trusted.contains(&key) {
            return Err(RotationError::Refused("is not trusted"));
        }
        trusted.retain(|known| *known != key);
        self.rotate(trusted).await
    }

    async fn rotate(&self, trusted: Vec<FeedPublicKey>) -> Result<FeedKeys, RotationError> {
        let shared = &self.0;
        let now = shared.clock.wall();
        let rotation = Rotation {
            realm_group: shared.settings.realm_group.clone(),
            number: shared.rotation() + 1,
            time: now,
            trusted,
        };
        let signed = shared.sign(Domain::Rotation, &rotation.encode());
        feed_state::add_rotation(&shared.store, rotation.number, &signed, now).await?;
        shared.refresh_keys().await?;
        tracing::warn!(number = rotation.number, trusted = ?rotation.trusted, "the trust in feed keys is handed over");
        if is_connected(&self.1)
            && let Err(problem) = publish(shared, &self.1).await
        {
            tracing::warn!(problem, "the rotation of feed keys is published later");
        }
        Ok(self.feed_keys())
    }
}
