//! The rotation task: activates a pending key when the fleet holds it, retires a key when its last token has ended.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{KeyRecord, Keys, KeysError, SigningKeyState, publish};
use crate::clock::wall_now;
use crate::store::outbox::Ticket;
use crate::store::signing_keys::{self, StoredKey};
use crate::store::{StoreError, transact};

/// How long a published key waits for sidecars that do not answer; they are reported, and are behind anyway.
const FLEET_WAIT: Duration = Duration::from_secs(30);
/// How often retiring keys are looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// Added to the longest token life before a key retires: the most skew that a policy may allow.
const SKEW: Duration = Duration::from_mins(5);

impl Keys {
    /// Runs rotations until `shutdown`; takes up one that a restart interrupted.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut changed = self.0.store.versions_changed();
        loop {
            let step = async {
                if let Err(error) = self.refresh().await {
                    tracing::error!(%error, "what another replica changed of the keys is not taken over; trying again");
                }
                if let Err(error) = self.activate_pending().await {
                    tracing::error!(%error, "the pending signing key could not be activated; trying again");
                }
                if let Err(error) = self.retire_old().await {
                    tracing::error!(%error, "old signing keys could not be retired; trying again");
                }
                // Any is enough: a new rotation, another replica's change, or time.
                tokio::select! {
                    () = self.0.wake.notified() => {}
                    _ = changed.changed() => {}
                    () = tokio::time::sleep(PERIOD) => {}
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = step => {}
            }
        }
    }

    async fn activate_pending(&self) -> Result<(), KeysError> {
        let keys = signing_keys::list(&self.0.store, &self.0.settings.issuer).await?;
        let Some(pending) = keys.iter().find(|key| key.record.state == SigningKeyState::Pending) else {
            return Ok(());
        };
        // After a restart the publishing revision is not known; the newest one covers it.
        let revision = self.0.feed.position().revision;
        // Without NATS no sidecar can get the key: the old one goes on signing for as long as it takes.
        while !self.0.feed.wait_published(revision, FLEET_WAIT).await {
            tracing::warn!(
                kid = pending.record.kid,
                "the pending key is not published yet; the active one goes on"
            );
        }
        let receipt = self.0.feed.wait_applied(revision, 1.0, FLEET_WAIT).await;
        if !receipt.complete {
            tracing::warn!(
                kid = pending.record.kid,
                live = receipt.live,
                applied = receipt.applied,
                "activating a key that some sidecars have not reported in time"
            );
        }
        self.activate(&pending.record.kid).await
    }

    async fn activate(&self, kid: &str) -> Result<(), KeysError> {
        let inner = &*self.0;
        let now = wall_now().0;
        let ticket = transact!(inner.store, |transaction| -> Result<Option<Ticket>, StoreError> {
            let mut keys = signing_keys::locked(transaction, &inner.settings.issuer).await?;
            // Meanwhile it may have been revoked, have replaced one that was, or have been activated elsewhere.
            let is_pending =
                |record: &KeyRecord| record.kid == kid && record.state == SigningKeyState::Pending;
            if !keys.iter().any(|key| is_pending(&key.record)) {
                return Ok(None);
            }
            for key in &mut keys {
                if is_pending(&key.record) {
                    key.record.state = SigningKeyState::Active;
                    key.record.activated_at = Some(now);
                } else if key.record.state == SigningKeyState::Active {
                    key.record.state = SigningKeyState::Retiring;
                    key.record.retiring_at = Some(now);
                } else {
                    continue;
                }
                signing_keys::update(transaction, key).await?;
            }
            publish(transaction, &inner.settings.issuer, &keys).await.map(Some)
        })?;
        if let Some(ticket) = ticket {
            self.refresh().await?;
            inner.feed.sequenced(&ticket).await?;
            tracing::info!(kid, "signing key activated");
        }
        Ok(())
    }

    async fn retire_old(&self) -> Result<(), KeysError> {
        let inner = &*self.0;
        let now = wall_now().0;
        let kept = inner.settings.max_token_lifetime + SKEW;
        let kept = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
        let is_due = |key: &StoredKey| {
            key.record.state == SigningKeyState::Retiring
                && key.record.retiring_at.is_some_and(|at| at.saturating_add(kept) < now)
        };
        if !signing_keys::list(&inner.store, &inner.settings.issuer).await?.iter().any(is_due) {
            return Ok(());
        }
        let ticket = transact!(inner.store, |transaction| -> Result<Option<Ticket>, StoreError> {
            let mut keys = signing_keys::locked(transaction, &inner.settings.issuer).await?;
            let mut retired = false;
            for key in keys.iter_mut().filter(|key| is_due(key)) {
                key.record.state = SigningKeyState::Retired;
                key.record.retired_at = Some(now);
                key.wrapped.clear();
                signing_keys::update(transaction, key).await?;
                retired = true;
            }
            if !retired {
                return Ok(None); // another replica has done it
            }
            publish(transaction, &inner.settings.issuer, &keys).await.map(Some)
        })?;
        if let Some(ticket) = ticket {
            self.refresh().await?;
            inner.feed.sequenced(&ticket).await?;
            tracing::info!("signing keys retired");
        }
        Ok(())
    }
}
