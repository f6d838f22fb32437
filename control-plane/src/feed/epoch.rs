//! A new epoch: when the carrier has seen revisions that the store has not, the store was restored from an older copy, and
//! its numbers are spent. The log then starts anew with the whole state; sidecars keep enforcing the old set beside it.

use atm_core::id::{Id, IdKind};
use atm_core::revocation::Bucket;
use atm_proto::change::{Change, Epoch};

use super::Shared;
use crate::keys;
use crate::store::log;
use crate::store::outbox;
use crate::store::signing_keys;
use crate::store::{StoreError, Transaction, enforcement, policy_sets, transact, trusted_issuers};

/// Rows of one read.
const PAGE: u32 = 20_000;
/// Entries of one change.
const WATERMARKS: usize = 10_000;
const WATERMARK_KINDS: [IdKind; 6] =
    [IdKind::Session, IdKind::Subject, IdKind::Client, IdKind::Realm, IdKind::Issuer, IdKind::Key];

/// Ends the epoch `before` and starts a new one with everything that is in force, in one transaction. Another replica may
/// have done it already.
pub(super) async fn begin(shared: &Shared, before: Epoch) -> Result<(), StoreError> {
    let epoch = transact!(shared.store, |transaction| -> Result<Option<Epoch>, StoreError> {
        if log::locked_head(transaction).await?.epoch != before {
            return Ok(None);
        }
        let epoch = log::begin_epoch(transaction).await?;
        log::forget_restored(transaction).await?;
        enqueue_state(shared, transaction).await?;
        Ok(Some(epoch))
    })?;
    shared.advance(log::head(&shared.store).await?);
    shared.published.send_replace(0);
    shared.committed.notify_one();
    if let Some(epoch) = epoch {
        tracing::warn!(%epoch, "the log has begun a new epoch");
    }
    Ok(())
}

/// Starts a new epoch if the store was restored from a backup since it was open last: sidecars have seen revisions that
/// it gives again.
pub(super) async fn begin_if_restored(shared: &Shared) -> Result<(), StoreError> {
    if !log::is_restored(&shared.store).await? {
        return Ok(());
    }
    begin(shared, log::head(&shared.store).await?.epoch).await
}

async fn enqueue_state(shared: &Shared, transaction: &mut Transaction) -> Result<(), StoreError> {
    let now = shared.clock.wall();
    // Before our own: of two changes of one issuer the last one counts, and ours must.
    for change in trusted_issuers::published(transaction).await? {
        outbox::enqueue(transaction, &change, now).await?;
    }
    for issuer in signing_keys::issuers(transaction).await? {
        let stored = signing_keys::locked(transaction, &issuer).await?;
        outbox::enqueue(transaction, &keys::published(&issuer, &stored)?, now).await?;
    }
    if let Some(set) = policy_sets::newest(&mut *transaction).await? {
        let change = Change::Policies { version: set.header.version, documents: set.documents };
        outbox::enqueue(transaction, &change, now).await?;
    }
    for kind in WATERMARK_KINDS {
        for entries in enforcement::watermarks_of(transaction, kind).await?.chunks(WATERMARKS) {
            let change = Change::Watermarks { kind, entries: entries.to_vec() };
            outbox::enqueue(transaction, &change, now).await?;
        }
    }
    let mut after = None;
    loop {
        let page = enforcement::tokens_after(transaction, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(*last);
        for tokens in page.chunk_by(|a, b| a.0 == b.0) {
            let bucket: Bucket = tokens[0].0; // chunks are never empty
            let ids: Vec<Id> = tokens.iter().map(|(_, id)| *id).collect();
            outbox::enqueue(transaction, &Change::RevokedTokens { bucket, ids }, now).await?;
        }
    }
}
