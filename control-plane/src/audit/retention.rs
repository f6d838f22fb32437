//! Removes old events, in batches, and leaves a signed bridge behind, so that what is left can still be verified.
//!
//! A chain is one of all realms and loses a prefix, never its middle. So an event is kept at least as long as its realm says, and
//! goes when all that is before it in its chain has gone.

use std::collections::HashMap;
use std::time::Duration;

use atm_proto::audit::{Link, Occasion};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::event::{Action, Actor, Event};
use super::{Audit, AuditError, writer};
use crate::clock::wall_now;
use crate::store::audit as rows;
use crate::store::retention::DAY_MS;
use crate::store::{StoreError, Transaction, realms, transact};

/// Between two looks.
const PERIOD: Duration = Duration::from_mins(1);
/// Segments of one transaction, so that none holds the write lock for long.
const SEGMENTS: u32 = 200;
/// Of these, segments whose events are read: those that are over for some realms and not for others.
const READ: u32 = 16;

/// The instants (milliseconds since the Unix epoch) before which events are over, by realm.
#[derive(Debug, Clone)]
pub(super) struct Cutoffs {
    /// Of the default realm, of realms that say nothing, and of what is of no realm.
    configured: i64,
    own: HashMap<String, i64>,
}

/// What of an event tells how long it is kept.
#[derive(Deserialize)]
struct Kept {
    time_ms: i64,
    #[serde(default)]
    realm: Option<String>,
}

impl Cutoffs {
    /// As of `now`. `configured`: how long events are kept; none: for ever. `own`: days by realm; 0: for ever.
    pub(super) fn new(configured: Option<Duration>, own: Vec<(String, u32)>, now: i64) -> Self {
        let before = |kept: Option<i64>| kept.map_or(i64::MIN, |kept| now.saturating_sub(kept));
        let configured = configured.map(|kept| i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
        let days = |days: u32| before((days > 0).then(|| i64::from(days) * DAY_MS));
        Self {
            configured: before(configured),
            own: own.into_iter().map(|(realm, own)| (realm, days(own))).collect(),
        }
    }

    /// What is older is over in every realm.
    fn for_all(&self) -> i64 {
        self.own.values().copied().fold(self.configured, i64::min)
    }

    /// What is younger is over in no realm.
    fn for_some(&self) -> i64 {
        self.own.values().copied().fold(self.configured, i64::max)
    }

    /// Whether every one of the events (JSON, a line each) is. One that cannot be read is kept as configured would have it: never.
    fn are_over(&self, events: &[u8]) -> bool {
        events.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).all(|line| {
            serde_json::from_slice::<Kept>(line).is_ok_and(|Kept { time_ms, realm }| {
                let own = realm.and_then(|realm| self.own.get(&realm).copied());
                time_ms < own.unwrap_or(self.configured)
            })
        })
    }
}

impl Audit {
    /// Removes what its realm keeps no longer until `stop`. Any replica may: each batch is one transaction.
    pub async fn retain(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            if let Some(Err(error)) = stop.run_until_cancelled(self.remove_old()).await {
                tracing::error!(%error, "old audit events stay; trying again");
            }
        }
    }

    async fn remove_old(&self) -> Result<(), AuditError> {
        let own = realms::audit_retentions(&self.0.store).await?;
        self.remove_over(&Cutoffs::new(self.0.settings.retention, own, wall_now().0)).await
    }

    /// Removes what is over.
    pub(super) async fn remove_over(&self, cutoffs: &Cutoffs) -> Result<(), AuditError> {
        if cutoffs.for_some() == i64::MIN {
            return Ok(());
        }
        for chain in rows::chains(&self.0.store).await? {
            while let Some(until) = self.remove_batch(&chain.chain, cutoffs).await? {
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
    async fn remove_batch(&self, chain: &str, cutoffs: &Cutoffs) -> Result<Option<u64>, AuditError> {
        let (shared, now) = (&*self.0, wall_now());
        transact!(shared.store, |transaction| -> Result<Option<u64>, AuditError> {
            let Some((sequence, link)) = over(transaction, chain, cutoffs).await? else {
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

/// How far the oldest segments of `chain` are over: the last event and its link. Events are read only where realms differ.
async fn over(
    transaction: &mut Transaction,
    chain: &str,
    cutoffs: &Cutoffs,
) -> Result<Option<(u64, Link)>, StoreError> {
    let (mut end, mut read) = (None, 0);
    for (last, last_ms, link) in rows::oldest(transaction, chain, SEGMENTS).await? {
        if last_ms >= cutoffs.for_all() {
            // An instant that is too young for every realm, or enough of looking: the rest is for the next batch.
            if last_ms >= cutoffs.for_some() || read == READ {
                break;
            }
            read += 1;
            if !cutoffs.are_over(&rows::events_until(transaction, chain, last).await?) {
                break;
            }
        }
        end = Some((last, link));
    }
    Ok(end)
}
