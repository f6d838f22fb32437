//! Gives committed changes their revisions. Any process may do it: the row lock decides, and nobody leads.

use std::sync::Arc;
use std::time::Duration;

use atm_proto::change::{ChangeSet, Digest};
use atm_proto::signature::Domain;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::packing::{Pack, pack};
use super::{Shared, count};
use crate::store::log::{self, Head, StoredChangeSet};
use crate::store::{StoreError, Transaction, outbox, transact};

/// Outbox rows of one transaction.
const ROWS: u32 = 512;
/// A full batch: there may be more.
const ROWS_FULL: usize = ROWS as usize;
/// How often the outbox is looked at without being asked: what a crash left there.
const PERIOD: Duration = Duration::from_secs(1);

pub(super) async fn run(shared: Arc<Shared>) {
    let mut last = Instant::now();
    loop {
        match sequence(&shared).await {
            Ok(ROWS_FULL) => last = Instant::now(),
            Ok(number) => {
                if number > 0 {
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

/// Sequences what is there, up to [`ROWS`]. Returns how many rows that were.
pub(super) async fn sequence(shared: &Shared) -> Result<usize, StoreError> {
    // The lock first: what is committed by then is seen by the statements after it, whoever held the lock before.
    let (number, before, head) = transact!(RowLocks: shared.store, |transaction| -> Result<(usize, u64, Head), StoreError> {
        let mut head = log::locked_head(transaction).await?;
        let before = head.revision;
        let rows = outbox::unsequenced(transaction, ROWS).await?;
        let number = rows.len();
        for pack in pack(rows) {
            head = append(shared, transaction, head, pack).await?;
        }
        Ok((number, before, head))
    })?;
    for _ in before..head.revision {
        count(&shared.counters.change_sets_sequenced);
    }
    // Without rows too: another replica may have sequenced what somebody here waits for.
    shared.advance(head);
    Ok(number)
}

async fn append(
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
    outbox::mark_sequenced(transaction, &pack.ids, set.epoch, set.revision).await?;
    Ok(Head { epoch: set.epoch, revision: set.revision, digest: stored.digest })
}
