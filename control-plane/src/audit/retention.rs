//! Removes old events, in batches, and leaves a signed bridge behind, so that what is left can still be verified.

use std::time::Duration;

use atm_proto::audit::Occasion;
use tokio_util::sync::CancellationToken;

use super::event::{Action, Actor, Event};
use super::{Audit, AuditError, writer};
use crate::clock::wall_now;
use crate::store::audit as rows;
use crate::store::transact;

/// Between two looks.
const PERIOD: Duration = Duration::from_mins(1);
/// Segments of one transaction, so that none holds the write lock for long.
const SEGMENTS: u32 = 200;

impl Audit {
    /// Removes what is older than the retention until `stop`. Any replica may: each batch is one transaction.
    pub async fn retain(self, stop: CancellationToken) {
        let Some(retention) = self.0.settings.retention else {
            return stop.cancelled().await;
        };
        let kept = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            let before = wall_now().0.saturating_sub(kept);
            if let Some(Err(error)) = stop.run_until_cancelled(self.remove_before(before)).await {
                tracing::error!(%error, "old audit events stay; trying again");
            }
        }
    }

    /// Removes what is older than `before` (milliseconds since the Unix epoch). A chain loses a prefix, never its middle.
    pub(super) async fn remove_before(&self, before: i64) -> Result<(), AuditError> {
        for chain in rows::chains(&self.0.store).await? {
            while let Some(until) = self.remove_batch(&chain.chain, before).await? {
                let event = Event::of(Action::Retention)
                    .by(Actor::system())
                    .detail("chain", chain.chain.as_str())
                    .detail("until", until);
                self.record(event);
            }
        }
        Ok(())
    }

    /// One batch of one chain. Returns the last event that went.
    async fn remove_batch(&self, chain: &str, before: i64) -> Result<Option<u64>, AuditError> {
        let (shared, now) = (&*self.0, wall_now());
        transact!(shared.store, |transaction| -> Result<Option<u64>, AuditError> {
            let Some((sequence, link)) = rows::expired(transaction, chain, before, SEGMENTS).await? else {
                return Ok(None);
            };
            let heads = writer::heads(transaction, chain).await?;
            let bridge = writer::signed(shared, chain, sequence, link, Occasion::Retention, heads, now)?;
            rows::add_checkpoint(transaction, &bridge, now).await?;
            rows::remove_until(transaction, chain, sequence).await?;
            Ok(Some(sequence))
        })
    }
}
