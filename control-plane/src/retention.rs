//! Forgets ended sessions and records of revocations, each realm's when that realm keeps them no longer. What is enforced does not
//! hang on them: a revoked token stays revoked, an ended session is refused whether it is remembered or not. Audit events go by
//! [`crate::audit`], whose chains must stay verifiable.

use std::sync::Arc;
use std::time::Duration;

use atm_core::time::UnixMillis;
use tokio_util::sync::CancellationToken;

use crate::clock::IssueClock;
use crate::store::retention::{Kept, purge};
use crate::store::{Store, StoreError};

/// Days that anything is kept at most, unless it is kept for ever: a hundred years.
pub const MAX_DAYS: u32 = 36_500;
/// Between two looks where nothing is left to forget.
const PERIOD: Duration = Duration::from_mins(1);
/// Between two batches.
const PAUSE: Duration = Duration::from_secs(1);
/// Rows of one batch, so that none holds the write lock for long.
const ROWS: u32 = 2_000;

/// For how many days things are kept in realms that say nothing of it; 0: for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionSettings {
    /// Sessions, after their end.
    pub session_days: u32,
    /// Records of revocations.
    pub revocation_days: u32,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self { session_days: 7, revocation_days: 400 }
    }
}

/// Forgets what is kept no longer until `stop`. Any replica may: each batch is one transaction.
pub async fn run(store: Store, clock: Arc<IssueClock>, settings: RetentionSettings, stop: CancellationToken) {
    let mut pause = PERIOD;
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let Some(outcome) = stop.run_until_cancelled(batch(&store, settings, clock.wall())).await else {
            return;
        };
        pause = if let Ok(true) = outcome { PAUSE } else { PERIOD };
        if let Err(error) = outcome {
            tracing::error!(%error, "what is kept no longer stays; trying again");
        }
    }
}

/// One batch of each. Returns whether there may be more.
async fn batch(store: &Store, settings: RetentionSettings, now: UnixMillis) -> Result<bool, StoreError> {
    let sessions = purge(store, Kept::Sessions, settings.session_days, now, ROWS).await?;
    let revocations = purge(store, Kept::Revocations, settings.revocation_days, now, ROWS).await?;
    Ok(sessions.max(revocations) >= u64::from(ROWS))
}
