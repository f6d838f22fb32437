//! The audit pipeline: who did what to which token, client or key, from where, with which result.
//!
//! Whatever happens is told to [`Audit::record`], which never waits: a bounded queue takes the event, one task writes the queue
//! down in groups, each as one row of the store ([`writer`]). Within such a row every event is linked to the one before
//! ([`atm_proto::audit`]), and signed checkpoints vouch for the chain. What follows the store ([`sinks`]: JetStream, files) can
//! be away for as long as it likes. A queue that is full because the store is blocked loses events, counts them, and says so in
//! the chain (`audit.gap`); the service goes on.
//!
//! A crash loses what was not written down: the events of the last [`LINGER`] and the store's commit, or the whole queue if the
//! store was blocked. The chain then ends without `chain.closed`, and the next process says so in its `chain.opened`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atm_proto::signature::{FeedPublicKey, FeedSigner};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::secret::{self, SecretError};
use crate::store::{Store, StoreError};

mod event;
mod reading;
mod retention;
mod scope;
mod segment;
pub mod sinks;
#[cfg(test)]
pub(crate) mod tests;
mod usage;
mod writer;

pub use event::{Action, Actor, ActorKind, Event, Outcome};
pub use reading::{ChainView, ExportPage, Filter, ListPage};
pub use scope::{Origin, scope, scoped_actor, scoped_actor_id};
pub use usage::Top;

/// Events that wait to be written at most. Full: the store has been blocked for a while.
pub const QUEUE: usize = 16_384;
/// Under load, events of this time are written together; an idle pipeline waits for nothing.
pub const LINGER: Duration = Duration::from_millis(25);
/// Refusals recorded one by one in a second; more are recorded as a number.
const REFUSALS_A_SECOND: u32 = 200;
/// How long [`Audit::written`] waits for the store.
const WRITTEN_WAIT: Duration = Duration::from_secs(1);

/// Why the pipeline does not start or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness for the chain's name.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// An event or a checkpoint cannot be written as JSON.
    #[error("an audit record cannot be written as JSON: {0}")]
    Form(#[from] serde_json::Error),
}

/// How the chain is written.
#[derive(Debug, Clone)]
pub struct AuditSettings {
    /// Who writes it, for people; the same over restarts.
    pub instance: String,
    /// Between two checkpoints, where there is something new.
    pub checkpoint_every: Duration,
    /// How long events are kept in the store; none: for ever.
    pub retention: Option<Duration>,
}

/// What the pipeline has done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AuditCounters {
    /// Events written to the store.
    pub written: u64,
    /// Events that found the queue full; the chain says so too.
    pub lost: u64,
    /// Refusals beyond the rate: recorded as a number only.
    pub suppressed: u64,
    /// Attempts of the store to write that failed and were repeated.
    pub write_failures: u64,
    /// Events that wait to be written.
    pub waiting: u64,
}

/// A queued event.
#[derive(Debug)]
struct Queued {
    event: Event,
    origin: Origin,
    time_ms: i64,
    /// Told when it is durable.
    written: Option<oneshot::Sender<()>>,
}

/// Who uses this process most.
#[derive(Debug, Default)]
struct Usage {
    clients: usage::HeavyHitters,
    realms: usage::HeavyHitters,
}

/// Refusals of the current second: anybody can cause them, and they must not crowd out what happened.
#[derive(Debug, Default)]
struct Refusals {
    second: i64,
    recorded: u32,
    unrecorded: u64,
}

/// Takes events; clones share the queue.
#[derive(Debug, Clone)]
pub struct Audit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: mpsc::Sender<Queued>,
    chain: String,
    settings: AuditSettings,
    signer: FeedSigner,
    store: Store,
    /// Lost and not yet said so in the chain.
    unsaid: AtomicU64,
    lost: AtomicU64,
    written: AtomicU64,
    write_failures: AtomicU64,
    suppressed: AtomicU64,
    refusals: Mutex<Refusals>,
    usage: Mutex<Usage>,
    /// Wakes what follows the store.
    appended: Notify,
}

impl Audit {
    /// Opens a new chain in `store`, which says how the chains before it ended. The future writes it until `stop` is cancelled,
    /// then what is queued, then its end.
    pub async fn start(
        store: Store,
        settings: AuditSettings,
        signer: FeedSigner,
        stop: CancellationToken,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), AuditError> {
        let (queue, queued) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            queue,
            chain: secret::random_id()?,
            settings,
            signer,
            store,
            unsaid: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            written: AtomicU64::new(0),
            write_failures: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
            refusals: Mutex::default(),
            usage: Mutex::default(),
            appended: Notify::new(),
        });
        let writer = writer::Writer::open(Arc::clone(&shared), queued).await?;
        Ok((Self(shared), writer.run(stop)))
    }

    /// Takes `event`, with what [`scope`] knows of its origin. Never waits: where the queue is full the event is lost, counted,
    /// and missed in the chain by an `audit.gap`.
    pub fn record(&self, event: Event) {
        self.enqueue(event, None);
    }

    /// As [`Self::record`], and returns when the event is durable: for what an operator changes. Where the store takes longer
    /// than a second it returns too: what was done is done, and the event stays queued.
    pub async fn written(&self, event: Event) {
        let (sender, receiver) = oneshot::channel();
        if self.enqueue(event, Some(sender)) && tokio::time::timeout(WRITTEN_WAIT, receiver).await.is_err() {
            tracing::warn!("an audit event is not durable yet; the store is slow or blocked");
        }
    }

    /// The key that signs checkpoints here.
    pub fn public_key(&self) -> FeedPublicKey {
        *self.0.signer.public_key()
    }

    /// The name of this process's chain.
    pub fn chain(&self) -> &str {
        &self.0.chain
    }

    /// What the pipeline has done since the start.
    pub fn counters(&self) -> AuditCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        AuditCounters {
            written: read(&self.0.written),
            lost: read(&self.0.lost),
            suppressed: read(&self.0.suppressed),
            write_failures: read(&self.0.write_failures),
            waiting: (QUEUE - self.0.queue.capacity()) as u64,
        }
    }

    fn enqueue(&self, mut event: Event, written: Option<oneshot::Sender<()>>) -> bool {
        self.count_usage(&event);
        if event.is_refusal() {
            let Some(unrecorded) = self.admits_refusal() else { return false };
            if unrecorded > 0 {
                event = event.detail("refusals_before_not_recorded", unrecorded);
            }
        }
        let queued = Queued { event, origin: scope::current(), time_ms: crate::clock::wall_now().0, written };
        if self.0.queue.try_send(queued).is_ok() {
            return true;
        }
        self.0.unsaid.fetch_add(1, Ordering::Relaxed);
        self.0.lost.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// The clients and the realms that use this process most, at most `limit` of each.
    pub fn usage(&self, limit: usize) -> (Vec<Top>, Vec<Top>) {
        let usage = self.0.usage.lock().unwrap_or_else(PoisonError::into_inner);
        (usage.clients.top(limit), usage.realms.top(limit))
    }

    /// Whether this process's chain is the oldest of those whose processes live.
    pub(crate) async fn is_oldest_alive(&self) -> Result<bool, StoreError> {
        let alive_for = i64::try_from(3 * writer::SIGN_OF_LIFE.as_millis()).unwrap_or(i64::MAX);
        let now = crate::clock::wall_now().0;
        let chains = crate::store::audit::chains(&self.0.store).await?;
        let oldest = chains
            .iter()
            .find(|chain| chain.closed_at.is_none() && chain.alive_at.0.saturating_add(alive_for) >= now);
        Ok(oldest.is_none_or(|oldest| oldest.chain == self.0.chain))
    }

    fn count_usage(&self, event: &Event) {
        let refused = event.is_refusal();
        if !refused && !event.is_issuance() {
            return;
        }
        let (client, realm) = event.client_and_realm();
        // Nothing panics under the lock, and numbers stay numbers.
        let mut usage = self.0.usage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = client {
            usage.clients.count(client, refused);
        }
        if let Some(realm) = realm {
            usage.realms.count(realm, refused);
        }
    }

    /// Whether one more refusal is recorded now, and how many were not since the last one that was.
    fn admits_refusal(&self) -> Option<u64> {
        let second = crate::clock::wall_now().seconds();
        // Nothing panics under the lock, and numbers stay numbers.
        let mut refusals = self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.second != second {
            (refusals.second, refusals.recorded) = (second, 0);
        }
        if refusals.recorded >= REFUSALS_A_SECOND {
            refusals.unrecorded += 1;
            self.0.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        refusals.recorded += 1;
        Some(std::mem::take(&mut refusals.unrecorded))
    }
}
