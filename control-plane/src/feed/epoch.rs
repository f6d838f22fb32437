//! A new epoch: when the carrier has seen revisions that the store has not, the store was restored from an older copy, and
//! its numbers are spent. The log then begins anew with a snapshot of the whole state, which stands for its revision 1: nobody
//! comes to a later one without it. Sidecars keep enforcing the old set beside it.

use atm_proto::change::{Change, Epoch};

use super::packing::{Pack, pack};
use super::{Shared, SnapshotError, sequencer, snapshots};
use crate::store::log::{self, Head};
use crate::store::outbox::Unsequenced;
use crate::store::{Store, StoreError, feed_state, transact};

/// Change sets of one read.
const PAGE: u32 = 16;

/// Ends the epoch `before` and begins a new one with everything that is in force. Another replica may have done it already.
pub(super) async fn begin(shared: &Shared, before: Epoch) -> Result<(), SnapshotError> {
    let known = feed_state::newest_snapshot(&shared.store).await?;
    let state = snapshots::collect(shared, known.as_ref()).await?;
    let begun = transact!(RowLocks: shared.store, |transaction| -> Result<Option<Epoch>, StoreError> {
        if log::locked_head(transaction).await?.epoch != before || state.head.epoch != before {
            return Ok(None);
        }
        let since = changes_after(&shared.store, &state.head).await?;
        let mut head = log::begin_epoch(transaction).await?;
        log::forget_restored(transaction).await?;
        let signed = state.signed(shared, &head);
        feed_state::add_snapshot(transaction, &head, &signed, shared.clock.wall()).await?;
        // Key sets and policies are in the log, too, and what was sequenced since the state was read.
        let mut changes = feed_state::values(transaction).await?;
        changes.extend(since);
        for changes in packed(changes) {
            head = sequencer::append(shared, transaction, head, Pack { ids: Vec::new(), changes }).await?;
        }
        Ok(Some(head.epoch))
    })?;
    shared.advance(log::head(&shared.store).await?);
    shared.published.send_replace(0);
    shared.committed.notify_one();
    if let Some(epoch) = begun {
        tracing::warn!(%epoch, "the log has begun a new epoch");
    }
    Ok(())
}

/// Starts a new epoch if the store was restored from a backup since it was open last: sidecars have seen revisions that
/// it gives again.
pub(super) async fn begin_if_restored(shared: &Shared) -> Result<(), SnapshotError> {
    if !log::is_restored(&shared.store).await? {
        return Ok(());
    }
    begin(shared, log::head(&shared.store).await?.epoch).await
}

/// What was sequenced behind `head`, whose lock the caller holds.
async fn changes_after(store: &Store, head: &Head) -> Result<Vec<Change>, StoreError> {
    let mut changes = Vec::new();
    let mut next = head.revision + 1;
    loop {
        let page = log::sets_from(store, head.epoch, next, PAGE).await?;
        let Some(last) = page.last() else { return Ok(changes) };
        next = last.revision + 1;
        for set in &page {
            changes.extend(set.changes()?);
        }
    }
}

/// Bounded sets of `changes`, in order; at least one, so that JetStream holds something of every epoch.
fn packed(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let rows = changes.into_iter().map(|change| Unsequenced {
        id: String::new(),
        size: change.encode().len(),
        change,
    });
    let sets: Vec<_> = pack(rows.collect()).into_iter().map(|pack| pack.changes).collect();
    if sets.is_empty() { vec![Vec::new()] } else { sets }
}
