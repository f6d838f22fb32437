//! The rotation task: activates a pending key when the fleet holds it, retires a key when its last token has ended, makes a key
//! where a revocation left none.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{KeyRecord, Keys, KeysError, SigningKeyState, is_lost, publish};
use crate::audit::Action;
use crate::clock::wall_now;
use crate::feed::Receipt;
use crate::store::outbox::Ticket;
use crate::store::signing_keys::{self, StoredKey};
use crate::store::{StoreError, transact};

/// How long one look waits for JetStream to take a published key, and for the fleet to report it.
const LOOK: Duration = Duration::from_secs(2);
/// How often retiring keys are looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// Between two looks at a key that waits for the fleet.
const WAITING_PERIOD: Duration = Duration::from_millis(250);
/// Added to the longest token life before a key retires: the most skew that a policy may allow.
const SKEW: Duration = Duration::from_mins(5);

/// A pending key that JetStream has. The fleet's time to report it begins then: before, no sidecar could have it.
#[derive(Debug)]
struct Awaited {
    kid: String,
    /// Carries the key.
    revision: u64,
    since: Instant,
}

impl Keys {
    /// Runs rotations until `shutdown`; takes up one that a restart interrupted.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut changed = self.0.store.versions_changed();
        let mut awaited = None;
        loop {
            let step = async {
                self.step(&mut awaited).await;
                let period = if awaited.is_some() { WAITING_PERIOD } else { PERIOD };
                // Any is enough: a new rotation, another replica's change, or time.
                tokio::select! {
                    () = self.0.wake.notified() => {}
                    _ = changed.changed() => {}
                    () = tokio::time::sleep(period) => {}
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = step => {}
            }
        }
    }

    /// Everything that is due now. What fails is tried again at the next look.
    async fn step(&self, awaited: &mut Option<Awaited>) {
        if let Err(error) = self.refresh().await {
            tracing::error!(%error, "what another replica changed of the keys is not taken over; trying again");
        }
        if let Err(error) = self.make_up_for_lost().await {
            tracing::error!(%error, "no key signs, and none could be made; trying again");
        }
        if let Err(error) = self.rotate_when_due().await {
            tracing::error!(%error, "the scheduled rotation of the signing key did not begin; trying again");
        }
        if let Err(error) = self.activate_pending(awaited).await {
            tracing::error!(%error, "the pending signing key could not be activated; trying again");
        }
        if let Err(error) = self.retire_old().await {
            tracing::error!(%error, "old signing keys could not be retired; trying again");
        }
    }

    /// Begins a rotation when the active key has signed for as long as it is to.
    async fn rotate_when_due(&self) -> Result<(), KeysError> {
        let Some(every) = self.0.settings.rotate_every else { return Ok(()) };
        let every = i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
        let keys = signing_keys::list(&self.0.store, &self.0.settings.issuer).await?;
        let is_due = |record: &KeyRecord| {
            record.state == SigningKeyState::Active
                && record.activated_at.is_some_and(|at| at.saturating_add(every) <= wall_now().0)
        };
        let under_way = keys.iter().any(|key| key.record.state == SigningKeyState::Pending);
        if under_way || !keys.iter().any(|key| is_due(&key.record)) {
            return Ok(());
        }
        match self.rotate().await {
            // Another replica was faster.
            Ok(_) | Err(KeysError::RotationUnderWay { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One look at the pending key: activates it when every live sidecar has reported it, or when they have had long enough.
    async fn activate_pending(&self, awaited: &mut Option<Awaited>) -> Result<(), KeysError> {
        let keys = signing_keys::list(&self.0.store, &self.0.settings.issuer).await?;
        let Some(pending) = keys.iter().find(|key| key.record.state == SigningKeyState::Pending) else {
            *awaited = None;
            return Ok(());
        };
        let kid = &pending.record.kid;
        let known = awaited.take().filter(|awaited| awaited.kid == *kid);
        let Some(known) = (match known {
            Some(known) => Some(known),
            None => self.published(kid).await?,
        }) else {
            return Ok(());
        };
        let (revision, since) = (known.revision, known.since);
        *awaited = Some(known);
        let receipt = self.0.feed.wait_applied(revision, 1.0, LOOK).await;
        let confirmed = receipt.complete && self.0.feed.fleet_in_sight();
        if !confirmed && since.elapsed() < self.0.settings.fleet_wait {
            return Ok(());
        }
        // A key that its provider does not sign with must not become the only one.
        self.0.custody.open(pending)?.check().await?;
        *awaited = None;
        if self.activate(kid).await? {
            self.record_activation(&pending.record, &receipt, confirmed);
        }
        Ok(())
    }

    /// The pending key `kid`, as soon as JetStream has it. Without NATS no sidecar can get it: the old one goes on signing for as
    /// long as that takes.
    async fn published(&self, kid: &str) -> Result<Option<Awaited>, KeysError> {
        let revision = self.0.feed.settled().await?;
        if self.0.feed.wait_published(revision, LOOK).await {
            return Ok(Some(Awaited { kid: kid.to_owned(), revision, since: Instant::now() }));
        }
        tracing::warn!(kid, "the pending key is not published yet; the active one goes on");
        Ok(None)
    }

    fn record_activation(&self, record: &KeyRecord, receipt: &Receipt, confirmed: bool) {
        if confirmed {
            return self
                .record(Action::KeyActivated, record, |event| event.detail("sidecars", receipt.applied));
        }
        tracing::warn!(
            kid = record.kid,
            live = receipt.live,
            applied = receipt.applied,
            "a key was activated that some sidecars have not reported in time"
        );
        self.record(Action::KeyActivatedUnconfirmed, record, |event| {
            event
                .detail("live", receipt.live)
                .detail("applied", receipt.applied)
                .detail("missing", receipt.missing.clone())
                .detail("revision", receipt.revision)
        });
    }

    /// Makes a key that signs at once where a revocation left none, because its provider did not answer at the time.
    async fn make_up_for_lost(&self) -> Result<(), KeysError> {
        let keys = signing_keys::list(&self.0.store, &self.0.settings.issuer).await?;
        if !is_lost(&keys) {
            return Ok(());
        }
        let fresh = self.generate().await?;
        if self.insert_first(&fresh).await? {
            tracing::warn!(kid = fresh.kid(), "a signing key was made where there was none");
            self.refresh().await?;
            self.0.feed.sequence_soon();
        }
        Ok(())
    }

    /// Whether this process activated it.
    async fn activate(&self, kid: &str) -> Result<bool, KeysError> {
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
        let Some(ticket) = ticket else { return Ok(false) };
        self.refresh().await?;
        inner.feed.sequenced(&ticket).await?;
        tracing::info!(kid, "signing key activated");
        Ok(true)
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
        let retired =
            transact!(inner.store, |transaction| -> Result<Option<(Ticket, Vec<StoredKey>)>, StoreError> {
                let mut keys = signing_keys::locked(transaction, &inner.settings.issuer).await?;
                let mut retired = Vec::new();
                for key in keys.iter_mut().filter(|key| is_due(key)) {
                    retired.push(key.clone());
                    key.record.state = SigningKeyState::Retired;
                    key.record.retired_at = Some(now);
                    key.wrapped.clear();
                    signing_keys::update(transaction, key).await?;
                }
                if retired.is_empty() {
                    return Ok(None); // another replica has done it
                }
                let ticket = publish(transaction, &inner.settings.issuer, &keys).await?;
                Ok(Some((ticket, retired)))
            })?;
        if let Some((ticket, retired)) = retired {
            self.refresh().await?;
            inner.feed.sequenced(&ticket).await?;
            for key in retired {
                tracing::info!(kid = key.record.kid, "signing key retired");
                self.record(Action::KeyRetired, &key.record, |event| event);
                self.remove_from_provider(&key.record.kid, &key.record.provider, &key.wrapped).await;
            }
        }
        Ok(())
    }

    /// Has the provider remove a key that is of no use any more. What it keeps all the same is used by nobody.
    pub(super) async fn remove_from_provider(&self, kid: &str, provider: &str, reference: &[u8]) {
        // What was retired before has left nothing to be named by.
        if reference.is_empty() {
            return;
        }
        if let Err(error) = self.0.custody.destroy(provider, reference).await {
            tracing::warn!(%error, kid, "the provider keeps a key that is not used any more");
        }
    }
}
