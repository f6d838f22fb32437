//! Gives committed changes their revisions. Any process may do it: the row lock decides, and nobody leads.

use std::sync::Arc;
use std::time::Duration;

use atm_proto::change::{ChangeSet, Digest};
use atm_proto::signature::Domain;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::packing::{Pack, pack};
use super::{Shared, count};
use crate::store::log::{self, Head, StoredChangeSet};
use crate::store::{StoreError, Transaction, feed_state, outbox, transact};

/// Outbox rows of one transaction.
const ROWS: u32 = 512;
/// Bytes of changes in one transaction, about: what it holds in memory.
const BYTES: usize = 8 << 20;
/// How often the outbox is looked at without being asked: what a crash left there.
const PERIOD: Duration = Duration::from_secs(1);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut last = Instant::now();
    loop {
        match sequence(&shared).await {
            Ok(Sequenced { more: true, .. }) => last = Instant::now(),
            Ok(Sequenced { rows, .. }) => {
                if rows > 0 {
                    last = Instant::now();
                }
                // Time is as good a reason to look as a commit.
                let _ = timeout(PERIOD, shared.committed.notified()).await;
                // Idle: no wait. Under load: changes of one linger travel together.
                sleep_until(last + shared.settings.linger).await;
            }
            Err(error) => {
                tracing::error!(%error, "changes wait in the outbox; trying again");
                sleep(PERIOD).await;
            }
        }
    }
}

/// What one transaction has sequenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sequenced {
    /// Outbox rows.
    pub(super) rows: usize,
    /// Whether there may be more of them.
    pub(super) more: bool,
}

/// Sequences what is there, up to [`ROWS`] and [`BYTES`].
pub(super) async fn sequence(shared: &Shared) -> Result<Sequenced, StoreError> {
    // The lock first: what is committed by then is seen by the statements after it, whoever held the lock before.
    let (done, before, head) = transact!(RowLocks: shared.store, |transaction| -> Result<(Sequenced, u64, Head), StoreError> {
        let mut head = log::locked_head(transaction).await?;
        let before = head.revision;
        let waiting = outbox::unsequenced(transaction, ROWS, BYTES).await?;
        let done = Sequenced { rows: waiting.rows.len(), more: waiting.more };
        for pack in pack(waiting.rows) {
            head = append(shared, transaction, head, pack).await?;
        }
        Ok((done, before, head))
    })?;
    for _ in before..head.revision {
        count(&shared.counters.change_sets_sequenced);
    }
    // Without rows too: another replica may have sequenced what somebody here waits for.
    shared.advance(head);
    Ok(done)
}

/// Writes a change set behind `head`, whose lock the caller holds, and puts it in force. Gives the new head.
pub(super) async fn append(
    shared: &Shared,
    transaction: &mut Transaction,
    head: Head,
    pack: Pack,
) -> Result<Head, StoreError> {
    let now = shared.clock.wall();
    let set = ChangeSet {
        realm_group: shared.settings.realm_group.clone(),
        epoch: head.epoch,
        revision: head.revision + 1,
        previous_digest: head.digest,
        time: now,
        changes: pack.changes,
    };
    let payload = set.encode();
    let stored = StoredChangeSet {
        epoch: set.epoch,
        revision: set.revision,
        digest: Digest::of(&payload),
        signed: shared.signer.sign(Domain::ChangeSet, &payload),
    };
    log::append(transaction, &stored, now).await?;
    feed_state::apply(transaction, &set.changes).await?;
    outbox::mark_sequenced(transaction, &pack.ids, set.epoch, set.revision).await?;
    Ok(Head { epoch: set.epoch, revision: set.revision, digest: stored.digest })
}
