//! The one task that writes this process's chain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atm_core::time::UnixMillis;
use atm_proto::audit::{Checkpoint, Head, Link, Occasion};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::event::{Action, Actor, Event};
use super::segment::{self, Builder};
use super::{AuditError, LINGER, Origin, Queued, Shared};
use crate::clock::wall_now;
use crate::store::audit::{self as rows, StoredCheckpoint, StoredSegment};
use crate::store::{StoreError, Transaction, transact};

/// A checkpoint at the latest behind so many events.
const CHECKPOINT_EVENTS: u64 = 50_000;
/// How often the chain shows that its process lives, where nothing happens.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Between two attempts at a store that does not take anything.
const RETRY: Duration = Duration::from_millis(250);
/// How long the end of the chain may take.
const CLOSE_BOUND: Duration = Duration::from_secs(2);
/// Other chains that a checkpoint names, so that its size does not grow with every restart. An older chain is named by the
/// checkpoints of those that were written beside and soon after it.
const MAX_HEADS: u32 = 100;
/// Chains that the opening names as ended without a word.
const MAX_NAMED: usize = 32;

pub(super) struct Writer {
    shared: Arc<Shared>,
    queued: mpsc::Receiver<Queued>,
    sequence: u64,
    link: Link,
    /// The newest checkpoint, and when.
    checkpointed: (u64, Instant),
    /// The last sign of life.
    lived: Instant,
}

impl Writer {
    /// Writes the first event of a new chain, which says how the ones before it stand.
    pub(super) async fn open(
        shared: Arc<Shared>,
        queued: mpsc::Receiver<Queued>,
    ) -> Result<Self, AuditError> {
        let unclosed = unclosed(&shared).await?;
        let event = Event::of(Action::ChainOpened)
            .by(Actor::system())
            .detail("instance", shared.settings.instance.as_str())
            .detail("version", env!("CARGO_PKG_VERSION"))
            .detail("unclosed", unclosed);
        let link = Link::genesis(&shared.chain);
        let mut builder = Builder::behind(0, link);
        let now = wall_now();
        add(&mut builder, &shared.chain, &event, &Origin::default(), now.0)?;
        let segment = built(builder, &shared.chain)?;
        let (chain, instance) = (&shared.chain, &shared.settings.instance);
        transact!(shared.store, |transaction| -> Result<(), StoreError> {
            rows::open_chain(transaction, chain, instance, now).await?;
            rows::append(transaction, &segment).await
        })?;
        shared.written.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        Ok(Self { shared, queued, sequence: 1, link: segment.link, checkpointed: (0, now), lived: now })
    }

    /// Writes what is queued until `stop`, then what is left, then the end.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut last = Instant::now();
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                received = timeout(SIGN_OF_LIFE, self.queued.recv()) => match received {
                    Ok(Some(queued)) => batch.push(queued),
                    Ok(None) => break,
                    Err(_) => {}
                },
            }
            if !batch.is_empty() {
                // Idle: no wait. Under load: what comes within one linger is written together.
                sleep_until(last + LINGER).await;
                last = Instant::now();
            }
            // A write under way is not cut off: it may be in the store already.
            let written = tokio::select! {
                biased;
                () = self.write_all(&mut batch) => true,
                () = too_late(&stop) => false,
            };
            if !written {
                tracing::error!(
                    "the store did not take the last audit events in time; the chain ends without them"
                );
                return;
            }
        }
        self.finish().await;
    }

    /// Writes `batch` and what is queued by now, however long the store takes.
    async fn write_all(&mut self, batch: &mut Vec<Queued>) {
        loop {
            while batch.len() < segment::MAX_EVENTS
                && let Ok(queued) = self.queued.try_recv()
            {
                batch.push(queued);
            }
            let unsaid = self.shared.unsaid.load(Ordering::Relaxed);
            if batch.is_empty() && unsaid == 0 {
                break;
            }
            match self.group(batch, unsaid) {
                Ok((segment, taken)) => self.write(segment, batch, taken, unsaid).await,
                Err(error) => {
                    // Strings and numbers: it cannot happen, and must not stop the chain.
                    tracing::error!(%error, "an audit event cannot be written down; it is counted as lost");
                    batch.drain(..1.min(batch.len()));
                    self.shared.unsaid.fetch_add(1, Ordering::Relaxed);
                    self.shared.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        if self.checkpoint_is_due() {
            self.checkpoint(Occasion::Periodic).await;
        } else if self.lived.elapsed() >= SIGN_OF_LIFE {
            self.sign_of_life().await;
        }
    }

    /// The next segment out of `batch`, and how many of its events are in it.
    fn group(&self, batch: &[Queued], unsaid: u64) -> Result<(StoredSegment, usize), AuditError> {
        let mut builder = Builder::behind(self.sequence, self.link);
        let mut taken = 0;
        for queued in batch {
            if builder.is_full() {
                break;
            }
            add(&mut builder, &self.shared.chain, &queued.event, &queued.origin, queued.time_ms)?;
            taken += 1;
        }
        if taken == batch.len() && unsaid > 0 {
            let gap = Event::of(Action::Gap).by(Actor::system()).detail("lost", unsaid);
            add(&mut builder, &self.shared.chain, &gap, &Origin::default(), wall_now().0)?;
        }
        Ok((built(builder, &self.shared.chain)?, taken))
    }

    async fn write(&mut self, segment: StoredSegment, batch: &mut Vec<Queued>, taken: usize, unsaid: u64) {
        let with_gap = taken == batch.len() && unsaid > 0;
        self.append(&segment).await;
        self.shared.written.fetch_add(segment.last - self.sequence, Ordering::Relaxed);
        (self.sequence, self.link) = (segment.last, segment.link);
        if with_gap {
            self.shared.unsaid.fetch_sub(unsaid, Ordering::Relaxed);
        }
        for queued in batch.drain(..taken) {
            if let Some(written) = queued.written {
                // Nobody waits any more: that is theirs.
                let _ = written.send(());
            }
        }
        self.shared.appended.notify_waiters();
    }

    /// Until the store takes it. The bytes stay the same, so an attempt that had succeeded unseen is found.
    async fn append(&self, segment: &StoredSegment) {
        loop {
            let outcome = transact!(self.shared.store, |transaction| -> Result<(), StoreError> {
                rows::append(transaction, segment).await
            });
            match outcome {
                Ok(()) => return,
                Err(StoreError::Exists) if self.is_written(segment).await => return,
                Err(error) => {
                    self.shared.write_failures.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%error, "audit events wait for the store; trying again");
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn is_written(&self, segment: &StoredSegment) -> bool {
        let found = rows::segments_from(&self.shared.store, &segment.chain, segment.first, 1).await;
        found.is_ok_and(|found| found.first() == Some(segment))
    }

    fn checkpoint_is_due(&self) -> bool {
        let (sequence, at) = self.checkpointed;
        let behind = self.sequence - sequence;
        behind >= CHECKPOINT_EVENTS || behind > 0 && at.elapsed() >= self.shared.settings.checkpoint_every
    }

    /// Signs what is written so far. A failure is made up for by the next one.
    async fn checkpoint(&mut self, occasion: Occasion) {
        match self.try_checkpoint(occasion).await {
            Ok(()) => {
                self.checkpointed = (self.sequence, Instant::now());
                self.lived = self.checkpointed.1;
            }
            Err(error) => tracing::error!(%error, "an audit checkpoint is not written; trying again later"),
        }
        self.shared.appended.notify_waiters();
    }

    async fn try_checkpoint(&self, occasion: Occasion) -> Result<(), AuditError> {
        let (shared, now) = (&*self.shared, wall_now());
        transact!(shared.store, |transaction| -> Result<(), AuditError> {
            let heads = heads(transaction, &shared.chain).await?;
            let checkpoint = signed(shared, &shared.chain, self.sequence, self.link, occasion, heads, now)?;
            rows::add_checkpoint(transaction, &checkpoint, now).await?;
            rows::touch_chain(transaction, &shared.chain, now, occasion == Occasion::Closed).await?;
            Ok(())
        })
    }

    async fn sign_of_life(&mut self) {
        self.lived = Instant::now();
        let now = wall_now();
        let outcome = transact!(self.shared.store, |transaction| -> Result<(), StoreError> {
            rows::touch_chain(transaction, &self.shared.chain, now, false).await
        });
        if let Err(error) = outcome {
            tracing::debug!(%error, "the audit chain's sign of life is not written");
        }
    }

    /// What is queued, the last event, and a checkpoint over all; within a bound, because a store that is blocked must not
    /// hold up the end. What it did not take is missed: the chain then has no `chain.closed`.
    async fn finish(mut self) {
        self.queued.close();
        let finished = timeout(CLOSE_BOUND, async {
            self.write_all(&mut Vec::new()).await;
            let closed = Event::of(Action::ChainClosed).by(Actor::system());
            let queued =
                Queued { event: closed, origin: Origin::default(), time_ms: wall_now().0, written: None };
            self.write_all(&mut vec![queued]).await;
            self.checkpoint(Occasion::Closed).await;
        })
        .await;
        if finished.is_err() {
            tracing::error!(
                "the store did not take the last audit events in time; the chain ends without them"
            );
        }
    }
}

/// Returns a while after `stop`.
async fn too_late(stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(CLOSE_BOUND).await;
}

/// Links `event` behind what `builder` holds.
fn add(
    builder: &mut Builder,
    chain: &str,
    event: &Event,
    origin: &Origin,
    time_ms: i64,
) -> Result<(), AuditError> {
    let record = event.record(origin, chain, builder.next(), time_ms)?;
    let references = event.references().map(|(name, value)| segment::reference(name, value));
    builder.add(&record, time_ms, references);
    Ok(())
}

fn built(builder: Builder, chain: &str) -> Result<StoredSegment, StoreError> {
    builder.build(chain).ok_or_else(|| crate::store::corrupt("audit segment", "has no events"))
}

/// Chains that ended without a word: their processes were killed, and their last events may be missing.
async fn unclosed(shared: &Shared) -> Result<Value, StoreError> {
    let now = wall_now();
    let alive_for = i64::try_from(3 * SIGN_OF_LIFE.as_millis()).unwrap_or(i64::MAX);
    let chains = rows::chains(&shared.store).await?;
    let unclosed = chains.iter().rev().filter(|chain| {
        // One of the same name cannot be alive beside us; others may be.
        let is_over = chain.instance == shared.settings.instance || chain.alive_at.0 + alive_for < now.0;
        chain.closed_at.is_none() && is_over
    });
    Ok(unclosed
        .take(MAX_NAMED)
        .map(|chain| {
            json!({ "chain": chain.chain, "instance": chain.instance, "last": chain.last, "alive_ms": chain.alive_at.0 })
        })
        .collect())
}

/// The newest checkpoints of the other chains, at most [`MAX_HEADS`].
pub(super) async fn heads(
    transaction: &mut Transaction,
    except: &str,
) -> Result<BTreeMap<String, Head>, StoreError> {
    let checkpoints = rows::newest_checkpoints(transaction, except, MAX_HEADS).await?;
    Ok(checkpoints
        .into_iter()
        .map(|checkpoint| {
            let head = Head { sequence: checkpoint.sequence, link: checkpoint.link.to_string() };
            (checkpoint.chain, head)
        })
        .collect())
}

/// A signed checkpoint of `chain`, which need not be our own: retention bridges those of others.
pub(super) fn signed(
    shared: &Shared,
    chain: &str,
    sequence: u64,
    link: Link,
    occasion: Occasion,
    heads: BTreeMap<String, Head>,
    now: UnixMillis,
) -> Result<StoredCheckpoint, AuditError> {
    let checkpoint = Checkpoint {
        chain: chain.to_owned(),
        instance: shared.settings.instance.clone(),
        sequence,
        link: link.to_string(),
        time_ms: now.0,
        occasion,
        heads,
    };
    Ok(StoredCheckpoint {
        chain: chain.to_owned(),
        sequence,
        link,
        is_bridge: occasion == Occasion::Retention,
        signed: checkpoint.sign(&shared.signer)?,
    })
}
