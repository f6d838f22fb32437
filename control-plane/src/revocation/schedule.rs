//! Revocations at a time to come. They survive restarts, and exactly one replica carries each out: the one whose transaction
//! marks it as done.

use std::time::Duration;

use atm_core::time::UnixMillis;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Applied, Order, RevocationError, Revocations, Selector};
use crate::audit::{Action, Actor, Event};
use crate::registry::FieldError;
use crate::secret;
use crate::store::{StoreError, revocation_jobs, security_events, transact};

/// How often is looked for what is due.
const PERIOD: Duration = Duration::from_secs(1);
/// How far ahead a revocation may be scheduled: a year, in milliseconds.
const FARTHEST_MS: i64 = 366 * 24 * 60 * 60 * 1_000;
/// Selectors of one scheduled revocation.
pub const MAX_SCHEDULED_SELECTORS: usize = 1_000;
/// How long the parts of files and security events are remembered.
const REMEMBERED_MS: i64 = 30 * 24 * 60 * 60 * 1_000;
/// Those that are due are looked up by so many at a time.
const DUE_AT_ONCE: u32 = 32;
/// Rows of one purge.
const PURGE_ROWS: u32 = 500;
/// Looks between two purges.
const PURGE_EVERY: u32 = 600;

/// Where a scheduled revocation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleStatus {
    /// Its time has not come.
    Pending,
    /// Carried out.
    Done,
    /// Withdrawn.
    Cancelled,
}

impl ScheduleStatus {
    /// The name in the store and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Done, Self::Cancelled].into_iter().find(|status| status.as_str() == text)
    }
}

/// A revocation at a time to come. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Scheduled {
    /// Random.
    pub id: String,
    /// When.
    pub at_ms: i64,
    /// What.
    pub selectors: Vec<Selector>,
    /// What was issued until then; none: until it is carried out.
    pub before_ms: Option<i64>,
    /// As given by the caller.
    pub reason: Option<String>,
    /// Who scheduled it.
    pub actor: String,
    /// Where it is.
    pub status: ScheduleStatus,
    /// When it was scheduled.
    pub created_at: i64,
    /// When it was carried out or withdrawn.
    pub settled_at: Option<i64>,
}

impl Revocations {
    /// Schedules `order` for `at_ms`, a time to come within a year.
    pub async fn schedule(&self, order: Order<'_>, at_ms: i64) -> Result<Scheduled, RevocationError> {
        self.check(&order)?;
        let now = self.clock.wall();
        if at_ms <= now.0 || at_ms > now.0 + FARTHEST_MS {
            return Err(invalid("at_ms", "must be a time to come within a year, in milliseconds since 1970"));
        }
        if order.selectors.len() > MAX_SCHEDULED_SELECTORS {
            return Err(invalid("selectors", "of a scheduled revocation must be at most 1000"));
        }
        let scheduled = Scheduled {
            id: secret::random_id().map_err(StoreError::from)?,
            at_ms,
            selectors: order.selectors.to_vec(),
            before_ms: order.before.map(|before| before.0),
            reason: order.reason.map(ToOwned::to_owned),
            actor: order.actor.to_owned(),
            status: ScheduleStatus::Pending,
            created_at: now.0,
            settled_at: None,
        };
        revocation_jobs::schedule(&self.store, &scheduled).await?;
        let event = Event::of(Action::RevocationScheduled).detail("id", scheduled.id.as_str());
        self.audit.written(event.detail("at_ms", at_ms)).await;
        Ok(scheduled)
    }

    /// Those of `status`, the next first, behind `after` (instant and id).
    pub async fn scheduled(
        &self,
        status: ScheduleStatus,
        after: Option<(i64, &str)>,
        limit: u32,
    ) -> Result<Vec<Scheduled>, StoreError> {
        revocation_jobs::scheduled(&self.store, status, after, limit).await
    }

    /// Withdraws one that is pending. None: there is none of that id which still is.
    pub async fn cancel(&self, id: &str) -> Result<Option<Scheduled>, StoreError> {
        let now = self.clock.wall();
        let cancelled = transact!(self.store, |transaction| -> Result<Option<Scheduled>, StoreError> {
            let Some(mut scheduled) = pending(revocation_jobs::locked(transaction, id).await?) else {
                return Ok(None);
            };
            revocation_jobs::settle(transaction, id, ScheduleStatus::Cancelled, None, now).await?;
            scheduled.status = ScheduleStatus::Cancelled;
            scheduled.settled_at = Some(now.0);
            Ok(Some(scheduled))
        })?;
        if cancelled.is_some() {
            self.audit.written(Event::of(Action::RevocationCancelled).detail("id", id)).await;
        }
        Ok(cancelled)
    }

    /// Carries out what is due until `stop`, and forgets what is long past.
    pub async fn run(self, stop: CancellationToken) {
        let mut looks = 0;
        while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            // Each is one transaction; what was cut off is due again.
            let Some(outcome) = stop.run_until_cancelled(self.carry_out_due()).await else { return };
            if let Err(error) = outcome {
                tracing::error!(%error, "a scheduled revocation was not carried out; trying again");
            }
            looks += 1;
            if looks % PURGE_EVERY == 0
                && let Err(error) = self.forget(self.clock.wall()).await
            {
                tracing::warn!(%error, "records of past revocation jobs stay");
            }
        }
    }

    /// All that is due now. One that fails does not hold up the others; the last failure is told.
    pub(super) async fn carry_out_due(&self) -> Result<(), RevocationError> {
        let (mut after, mut outcome) = (None::<(i64, String)>, Ok(()));
        loop {
            let behind = after.as_ref().map(|(at, id)| (*at, id.as_str()));
            let due = revocation_jobs::due(&self.store, self.clock.wall(), behind, DUE_AT_ONCE).await?;
            let Some(last) = due.last() else { return outcome };
            after = Some((last.at_ms, last.id.clone()));
            for scheduled in &due {
                if let Err(error) = self.carry_out(scheduled).await {
                    outcome = Err(error);
                }
            }
        }
    }

    async fn carry_out(&self, due: &Scheduled) -> Result<(), RevocationError> {
        let order = Order {
            selectors: &due.selectors,
            before: due.before_ms.map(UnixMillis),
            actor: &due.actor,
            reason: due.reason.as_deref(),
        };
        let prepared = self.prepare(&order).await?;
        let applied = transact!(self.store, |transaction| -> Result<Option<Applied>, RevocationError> {
            // Another replica may have been faster, or an operator.
            if pending(revocation_jobs::locked(transaction, &due.id).await?).is_none() {
                return Ok(None);
            }
            let applied = self.apply(transaction, &order, &prepared).await?;
            let (ticket, now) = (Some(&applied.ticket), self.clock.wall());
            revocation_jobs::settle(transaction, &due.id, ScheduleStatus::Done, ticket, now).await?;
            Ok(Some(applied))
        })?;
        if let Some(applied) = applied {
            let revoked = self.concluded(&order, &prepared, &applied, Some(Actor::system())).await?;
            tracing::info!(id = due.id, revision = revoked.revision, "a scheduled revocation is in the feed");
        }
        Ok(())
    }

    async fn forget(&self, now: UnixMillis) -> Result<(), StoreError> {
        let before = UnixMillis(now.0 - REMEMBERED_MS);
        revocation_jobs::purge_parts(&self.store, before, PURGE_ROWS).await?;
        security_events::purge(&self.store, before, PURGE_ROWS).await?;
        Ok(())
    }
}

fn pending(scheduled: Option<Scheduled>) -> Option<Scheduled> {
    scheduled.filter(|scheduled| scheduled.status == ScheduleStatus::Pending)
}

pub(super) fn invalid(field: &str, message: &str) -> RevocationError {
    RevocationError::Invalid(vec![FieldError { field: field.to_owned(), message: message.to_owned() }])
}
