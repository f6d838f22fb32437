//! Keys that are revoked: dead at once with whatever they signed, and another one signs instead.

use super::{KeyRecord, Keys, KeysError, Signer, SigningKeyState, is_lost, publish, stored};
use crate::audit::Action;
use crate::clock::wall_now;
use crate::store::Transaction;
use crate::store::outbox::Ticket;
use crate::store::signing_keys::{self, StoredKey};

/// What a revocation of keys did beside its own change.
#[derive(Debug)]
pub(crate) struct Compromised {
    /// Of the new key set.
    pub(crate) ticket: Ticket,
    /// The dead keys, with their providers' references.
    dead: Vec<StoredKey>,
    /// The key that signs instead, where there was need of one.
    successor: Option<KeyRecord>,
}

impl Keys {
    /// A key that takes over where [`Self::compromise`] of `kids` leaves none that signs or is about to. A provider that does not
    /// answer must not keep a stolen key alive: then there is none, and tokens are not issued until the rotation task has one.
    pub(crate) async fn successor_of(&self, kids: &[&str]) -> Result<Option<Signer>, KeysError> {
        let keys = signing_keys::list(&self.0.store, &self.0.settings.issuer).await?;
        let is_named = |key: &StoredKey| kids.contains(&key.record.kid.as_str());
        let left: Vec<StoredKey> = keys.iter().filter(|key| !is_named(key)).cloned().collect();
        if left.len() == keys.len() || !is_lost(&left) {
            return Ok(None);
        }
        match self.generate().await {
            Ok(signer) => Ok(Some(signer)),
            Err(error @ KeysError::Provider(_)) => {
                tracing::error!(%error, "the revoked signing key has no successor yet; trying again");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Marks our keys among `kids` as compromised. If the active one is among them, a pending one or `successor` takes over at
    /// once: waiting for the fleet would mean to go on with a stolen key. None of ours: nothing is done.
    pub(crate) async fn compromise(
        &self,
        transaction: &mut Transaction,
        kids: &[&str],
        successor: Option<&Signer>,
    ) -> Result<Option<Compromised>, KeysError> {
        let inner = &*self.0;
        let now = wall_now();
        let mut keys = signing_keys::locked(transaction, &inner.settings.issuer).await?;
        let mut dead = Vec::new();
        for key in keys.iter_mut().filter(|key| kids.contains(&key.record.kid.as_str())) {
            dead.push(key.clone());
            key.record.state = SigningKeyState::Compromised;
            key.record.retired_at = key.record.retired_at.or(Some(now.0));
            key.wrapped.clear();
            signing_keys::update(transaction, key).await?;
        }
        if dead.is_empty() {
            return Ok(None);
        }
        let mut takes_over = None;
        if !keys.iter().any(|key| key.record.state == SigningKeyState::Active) {
            if let Some(key) = keys.iter_mut().find(|key| key.record.state == SigningKeyState::Pending) {
                key.record.state = SigningKeyState::Active;
                key.record.activated_at = Some(now.0);
                signing_keys::update(transaction, key).await?;
                takes_over = Some(key.record.clone());
            } else if let Some(successor) = successor {
                let key = stored(successor, &inner.custody, &inner.settings, SigningKeyState::Active)?;
                signing_keys::insert(transaction, &key).await?;
                takes_over = Some(key.record.clone());
                keys.push(key);
            }
        }
        let ticket = publish(transaction, &inner.settings.issuer, &keys).await?;
        Ok(Some(Compromised { ticket, dead, successor: takes_over }))
    }

    /// What follows the commit of [`Self::compromise`]: the records, the copy in memory, and what providers still keep.
    /// `prepared` is what [`Self::successor_of`] made.
    pub(crate) async fn concluded(&self, compromised: Option<&Compromised>, prepared: Option<&Signer>) {
        let successor = compromised.and_then(|compromised| compromised.successor.as_ref());
        if let Some(record) = successor {
            self.record(Action::KeyActivated, record, |event| event.detail("at_once", true));
        }
        if let Some(prepared) = prepared
            && successor.is_none_or(|record| record.kid != prepared.kid())
        {
            self.discard(prepared).await;
        }
        let Some(compromised) = compromised else { return };
        if let Err(error) = self.refresh().await {
            tracing::error!(%error, "the new key set is not taken over here; trying again");
        }
        self.0.wake.notify_one();
        for key in &compromised.dead {
            self.remove_from_provider(&key.record.kid, &key.record.provider, &key.wrapped).await;
        }
    }
}
