//! Files of revocations, part by part. A part is one transaction; one that comes again, because its answer was lost or its
//! sender was stopped, changes nothing and gets the same answer.

use serde::Serialize;

use super::schedule::invalid;
use super::{Applied, Order, RevocationError, Revocations, Revoked};
use crate::store::revocation_jobs::{self, Part};
use crate::store::{StoreError, transact};

/// Selectors of one part: one change of the feed.
pub const MAX_PART: usize = 20_000;
/// Parts of one file.
const MAX_PARTS: u64 = 1_000_000;

/// How far a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BatchProgress {
    /// Parts in force.
    pub parts: u64,
    /// Values in them.
    pub revoked: u64,
    /// The first part that is missing, from 0.
    pub next: u64,
    /// The highest revision so far; none before the first part.
    pub revision: Option<u64>,
}

/// When a part was put in force.
enum Outcome {
    /// By an earlier call.
    Before(Part),
    /// By this one.
    Now(Applied),
}

impl Revocations {
    /// Puts a part of the file `batch` in force. `batch` is 1 to 64 letters, digits, `-` or `_`: best a hash of the file.
    pub async fn revoke_part(
        &self,
        batch: &str,
        part: u64,
        order: Order<'_>,
    ) -> Result<Revoked, RevocationError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !(1..=64).contains(&batch.len()) || !batch.bytes().all(fits) {
            return Err(invalid("batch", "must be 1 to 64 letters, digits, - or _"));
        }
        if part >= MAX_PARTS {
            return Err(invalid("part", "must be below 1000000"));
        }
        self.check(&order)?;
        if order.selectors.len() > MAX_PART {
            return Err(invalid("tokens", "of one part must be at most 20000"));
        }
        let number = order.selectors.len() as u64;
        // Looked at before anything is done, and again in the transaction.
        let before = transact!(self.store, |transaction| -> Result<Option<Part>, StoreError> {
            revocation_jobs::part(transaction, batch, part).await
        })?;
        if let Some(before) = before {
            let revision = self.revision_of(batch, part, before).await?;
            return Ok(Revoked { revision, revoked: order.selectors.len() });
        }
        let prepared = self.prepare(&order).await?.recorded_as(batch);
        let outcome = transact!(self.store, |transaction| -> Result<Outcome, RevocationError> {
            if let Some(done) = revocation_jobs::part(transaction, batch, part).await? {
                return Ok(Outcome::Before(done));
            }
            let applied = self.apply(transaction, &order, &prepared).await?;
            let (ticket, now) = (&applied.ticket, self.clock.wall());
            revocation_jobs::add_part(transaction, batch, part, number, ticket, now).await?;
            Ok(Outcome::Now(applied))
        })?;
        let revision = match outcome {
            Outcome::Before(before) => self.revision_of(batch, part, before).await?,
            Outcome::Now(applied) => {
                let revision = self.concluded(&order, &prepared, &applied, None).await?.revision;
                revocation_jobs::part_sequenced(&self.store, batch, part, revision).await?;
                revision
            }
        };
        Ok(Revoked { revision, revoked: order.selectors.len() })
    }

    /// The revision of a part that is in force.
    async fn revision_of(&self, batch: &str, part: u64, before: Part) -> Result<u64, RevocationError> {
        if let Some(revision) = before.revision {
            return Ok(revision);
        }
        // It was committed by a call that did not live to see its revision.
        let revision = self.feed.sequenced(&before.ticket).await?;
        revocation_jobs::part_sequenced(&self.store, batch, part, revision).await?;
        Ok(revision)
    }

    /// How far the file `batch` is.
    pub async fn batch(&self, batch: &str) -> Result<BatchProgress, StoreError> {
        let (parts, revoked, next, revision) = revocation_jobs::batch(&self.store, batch).await?;
        Ok(BatchProgress { parts, revoked, next, revision })
    }
}
