//! Keeps the store small and the issue clock ahead.

use std::sync::Arc;
use std::time::Duration;

use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use tokio::time::{MissedTickBehavior, interval};

use super::Shared;
use crate::store::{StoreError, enforcement, opaque_tokens, outbox, single_use};

/// How often the issue clock is looked after.
const PERIOD: Duration = Duration::from_secs(1);
/// Periods between two purges.
const PURGE_EVERY: u32 = 60;
/// Rows of one purging transaction, so that none holds the write lock for long.
const ROWS: u32 = 2_000;
/// Buckets are purged so long after they are over: another process, whose clock is behind, still counts them in its heartbeats.
const PURGE_BEHIND_MS: i64 = 2 * 60 * 1000;
/// How long a sequenced outbox row is kept for whoever waits for its revision.
const OUTBOX_KEPT_MS: i64 = 10 * 60 * 1000;

/// How long an opaque token is kept after its end: some sidecar may forgive so much difference between clocks.
const OPAQUE_KEPT_MS: i64 = 10 * 60 * 1000;

pub(super) async fn run(shared: Arc<Shared>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut purge_in = 0;
    loop {
        ticks.tick().await;
        if let Err(error) = shared.clock.keep_ahead().await {
            tracing::error!(%error, "the issue clock is not kept ahead; who needs an instant waits for the store");
        }
        if purge_in > 0 {
            purge_in -= 1;
            continue;
        }
        match purge(&shared).await {
            Ok(true) => {} // more of it in the next period
            Ok(false) => purge_in = PURGE_EVERY,
            Err(error) => {
                tracing::error!(%error, "expired rows stay");
                purge_in = PURGE_EVERY;
            }
        }
    }
}

/// One batch of each. Returns whether there may be more.
async fn purge(shared: &Shared) -> Result<bool, StoreError> {
    let now = shared.clock.wall();
    let rows = outbox::purge(&shared.store, UnixMillis(now.0 - OUTBOX_KEPT_MS), ROWS).await?;
    let oldest = Bucket::oldest_alive(UnixMillis(now.0 - PURGE_BEHIND_MS));
    let tokens = enforcement::purge_tokens(&shared.store, oldest, ROWS).await?;
    enforcement::purge_ended_scopes(&shared.store).await?;
    let used = single_use::purge(&shared.store, now, ROWS).await?;
    let opaque = opaque_tokens::purge(&shared.store, UnixMillis(now.0 - OPAQUE_KEPT_MS), ROWS).await?;
    Ok([rows, tokens, used, opaque].contains(&u64::from(ROWS)))
}
