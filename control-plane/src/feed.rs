//! The feed: turns committed changes into signed, contiguous change sets and gets them to every sidecar.
//!
//! The tasks share nothing but the store and a few watched values: the [`sequencer`] gives revisions, the [`relay`] sees to
//! it that JetStream holds what the store holds, the [`heartbeat`] says how far the log is, [`resync`] answers those who
//! miss something, and the [`fleet`] listens to what sidecars report. Without NATS, changes are still committed and
//! sequenced; they are published when it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atm_nats::NatsAccess;
use atm_proto::change::{Digest, Epoch};
use atm_proto::signature::{FeedPublicKey, FeedSigner};
use atm_proto::subject::{InvalidToken, Subjects};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::clock::IssueClock;
use crate::store::outbox::{self, Ticket};
use crate::store::{Store, StoreError, log};

mod connection;
mod epoch;
mod fleet;
mod heartbeat;
mod introspect;
mod packing;
mod relay;
mod resync;
mod sequencer;
#[cfg(test)]
pub(crate) mod tests;
mod upkeep;

pub use connection::Carrier;
pub use fleet::{FleetView, Receipt, SidecarState, SidecarView};

/// How long a call waits for its change's revision. The change is committed; only the store itself can hold it up.
const SEQUENCE_WAIT: Duration = Duration::from_secs(10);

/// How the feed is run.
#[derive(Debug, Clone)]
pub struct FeedSettings {
    /// The realms that share the log; part of the subjects.
    pub realm_group: String,
    /// `nats://host:port`, or several with commas.
    pub nats_url: String,
    /// Who this process is to NATS.
    pub nats_access: NatsAccess,
    /// Under load, changes of this time travel together. An idle feed waits for nothing.
    pub linger: Duration,
    /// Time between heartbeats.
    pub heartbeat: Duration,
}

/// Why the feed cannot start, or a change has no revision yet.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The realm group cannot be part of a subject.
    #[error("realm group: {0}")]
    RealmGroup(#[from] InvalidToken),
    /// The credentials file or the URL cannot be used.
    #[error("NATS {url}: {problem}")]
    Connection {
        /// As configured.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// Committed, and sequenced as soon as the store lets it.
    #[error("the change is committed, but the feed has not taken it up in time; it will")]
    NotSequenced,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How far the log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The log's life.
    pub epoch: Epoch,
    /// The newest revision, stored and signed; 0 for an empty log.
    pub revision: u64,
    /// The digest of the newest change set.
    pub digest: Digest,
}

/// What the feed has done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeedCounters {
    /// Change sets that got a revision here.
    pub change_sets_sequenced: u64,
    /// Acknowledged by JetStream.
    pub change_sets_published: u64,
    /// Of those, the ones that JetStream had acknowledged before and lost.
    pub change_sets_republished: u64,
    /// Publications that failed and were tried again.
    pub publish_failures: u64,
    /// Heartbeats sent.
    pub heartbeats: u64,
    /// Requests for missing change sets answered.
    pub resync_replies: u64,
    /// Questions about opaque credentials answered.
    pub introspection_replies: u64,
    /// Sidecar reports taken.
    pub reports: u64,
    /// Sidecar reports that were malformed or beyond the bound.
    pub reports_refused: u64,
}

#[derive(Debug, Default)]
struct Counters {
    change_sets_sequenced: AtomicU64,
    change_sets_published: AtomicU64,
    change_sets_republished: AtomicU64,
    publish_failures: AtomicU64,
    heartbeats: AtomicU64,
    resync_replies: AtomicU64,
    introspection_replies: AtomicU64,
    reports: AtomicU64,
    reports_refused: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What the tasks share.
#[derive(Debug)]
struct Shared {
    store: Store,
    clock: Arc<IssueClock>,
    signer: FeedSigner,
    settings: FeedSettings,
    subjects: Subjects,
    position: watch::Sender<Position>,
    /// The highest revision of the current epoch that JetStream holds.
    published: watch::Sender<u64>,
    /// The oldest revision that JetStream still holds.
    oldest: AtomicU64,
    carrier: watch::Sender<Carrier>,
    fleet: fleet::Fleet,
    counters: Counters,
    /// Wakes the sequencer.
    committed: Notify,
    /// Wakes the relay.
    sequenced: Notify,
}

impl Shared {
    /// Takes over the head that this or another process has written.
    fn advance(&self, head: log::Head) {
        let position = Position { epoch: head.epoch, revision: head.revision, digest: head.digest };
        let moved = self.position.send_if_modified(|current| {
            let newer = current.epoch != position.epoch || current.revision < position.revision;
            if newer {
                *current = position;
            }
            newer
        });
        if moved {
            self.fleet.sequenced(position.revision);
            self.sequenced.notify_one();
        }
    }
}

/// Starts the feed.
#[derive(Debug)]
pub struct Feed;

impl Feed {
    /// Starts the feed's tasks, which end when `shutdown` is cancelled. NATS may be away: the tasks connect when it comes,
    /// and the [`Carrier`] says how it stands.
    pub async fn start(
        store: Store,
        clock: Arc<IssueClock>,
        signer: FeedSigner,
        settings: FeedSettings,
        shutdown: CancellationToken,
    ) -> Result<(FeedHandle, JoinSet<()>), FeedError> {
        let subjects = Subjects::new(&settings.realm_group)?;
        let head = log::head(&store).await?;
        let position = Position { epoch: head.epoch, revision: head.revision, digest: head.digest };
        let shared = Arc::new(Shared {
            store,
            clock,
            signer,
            subjects,
            position: watch::Sender::new(position),
            published: watch::Sender::new(0),
            oldest: AtomicU64::new(1),
            carrier: watch::Sender::new(Carrier::Connecting),
            fleet: fleet::Fleet::default(),
            counters: Counters::default(),
            committed: Notify::new(),
            sequenced: Notify::new(),
            settings,
        });
        epoch::begin_if_restored(&shared).await?;
        let client = connection::connect(&shared).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(until(shutdown.clone(), sequencer::run(Arc::clone(&shared))));
        tasks.spawn(until(shutdown.clone(), relay::run(Arc::clone(&shared), client.clone())));
        tasks.spawn(until(shutdown.clone(), heartbeat::run(Arc::clone(&shared), client.clone())));
        tasks.spawn(until(shutdown.clone(), resync::run(Arc::clone(&shared), client.clone())));
        tasks.spawn(until(shutdown.clone(), fleet::run(Arc::clone(&shared), client.clone())));
        tasks.spawn(until(shutdown, upkeep::run(Arc::clone(&shared))));
        Ok((FeedHandle(shared, client), tasks))
    }
}

/// Runs `task` until `shutdown`. Every step of a task that must not be torn is one transaction.
async fn until(shutdown: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = task => {}
    }
}

/// The running feed; clones share it.
#[derive(Debug, Clone)]
pub struct FeedHandle(Arc<Shared>, async_nats::Client);

impl FeedHandle {
    /// How far the log has come.
    pub fn position(&self) -> Position {
        *self.0.position.borrow()
    }

    /// The highest revision of this epoch that JetStream has acknowledged.
    pub fn published(&self) -> u64 {
        *self.0.published.borrow()
    }

    /// How the connection to NATS stands, watched.
    pub fn carrier(&self) -> watch::Receiver<Carrier> {
        self.0.carrier.subscribe()
    }

    /// The key that sidecars pin.
    pub fn public_key(&self) -> FeedPublicKey {
        *self.0.signer.public_key()
    }

    /// The connection, for what else goes over NATS.
    pub(crate) fn client(&self) -> async_nats::Client {
        self.1.clone()
    }

    /// The subjects of the realm group.
    pub(crate) fn subjects(&self) -> &Subjects {
        &self.0.subjects
    }

    /// The realms that share the log.
    pub fn realm_group(&self) -> &str {
        &self.0.settings.realm_group
    }

    /// Whether JetStream holds `revision` within `limit`.
    pub async fn wait_published(&self, revision: u64, limit: Duration) -> bool {
        let mut published = self.0.published.subscribe();
        timeout(limit, published.wait_for(|at| *at >= revision)).await.is_ok_and(|outcome| outcome.is_ok())
    }

    /// What is known of the sidecars now.
    pub fn fleet(&self) -> FleetView {
        self.0.fleet.view(self.position())
    }

    /// Waits until `share` (0 to 1) of the live sidecars have applied `revision`, at most `limit`. With a limit of zero it
    /// says how it stands.
    pub async fn wait_applied(&self, revision: u64, share: f64, limit: Duration) -> Receipt {
        let deadline = Instant::now() + limit;
        let mut reports = self.0.fleet.subscribe();
        loop {
            let connected = matches!(*self.0.carrier.borrow(), Carrier::Connected);
            let receipt = self.0.fleet.receipt(self.position().epoch, revision, share, connected);
            if receipt.complete || Instant::now() >= deadline {
                return receipt;
            }
            // Leases run out without a report, hence the short bound.
            let wake = deadline.min(Instant::now() + Duration::from_millis(250));
            let _ = timeout_at(wake, reports.changed()).await;
            if receipt.live > 64 {
                // Reports of a large fleet come in bursts; each evaluation looks at all of it.
                tokio::time::sleep_until(deadline.min(Instant::now() + Duration::from_millis(1))).await;
            }
        }
    }

    /// What the feed has done since the start.
    pub fn counters(&self) -> FeedCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        FeedCounters {
            change_sets_sequenced: read(&counters.change_sets_sequenced),
            change_sets_published: read(&counters.change_sets_published),
            change_sets_republished: read(&counters.change_sets_republished),
            publish_failures: read(&counters.publish_failures),
            heartbeats: read(&counters.heartbeats),
            resync_replies: read(&counters.resync_replies),
            introspection_replies: read(&counters.introspection_replies),
            reports: read(&counters.reports),
            reports_refused: read(&counters.reports_refused),
        }
    }

    /// Wakes the sequencer after a commit whose revision nobody waits for.
    pub(crate) fn sequence_soon(&self) {
        self.0.committed.notify_one();
    }

    /// A revision that covers every committed key set and policy, whoever sequenced them. [`Self::position`] may lag behind what
    /// another process has sequenced.
    pub(crate) async fn settled(&self) -> Result<u64, FeedError> {
        let deadline = Instant::now() + SEQUENCE_WAIT;
        let mut position = self.0.position.subscribe();
        loop {
            if let Some(revision) = outbox::settled_revision(&self.0.store).await? {
                return Ok(revision);
            }
            if Instant::now() >= deadline {
                return Err(FeedError::NotSequenced);
            }
            self.0.committed.notify_one();
            let wake = deadline.min(Instant::now() + Duration::from_millis(200));
            let _ = timeout_at(wake, position.changed()).await;
        }
    }

    /// Whether reports have reached us for so long that every live sidecar must have sent one. Before, a receipt may be complete
    /// without those that have not reported yet.
    pub(crate) fn fleet_in_sight(&self) -> bool {
        self.0.fleet.is_in_sight()
    }

    /// The revision of a committed change, as soon as it has one.
    pub(crate) async fn sequenced(&self, ticket: &Ticket) -> Result<u64, FeedError> {
        let deadline = Instant::now() + SEQUENCE_WAIT;
        let mut position = self.0.position.subscribe();
        self.0.committed.notify_one();
        loop {
            if let Some(revision) = outbox::revision_of(&self.0.store, ticket).await? {
                return Ok(revision);
            }
            if Instant::now() >= deadline {
                return Err(FeedError::NotSequenced);
            }
            // Another process may have sequenced it, which nothing here announces: hence the bound.
            let wake = deadline.min(Instant::now() + Duration::from_millis(200));
            let _ = timeout_at(wake, position.changed()).await;
        }
    }
}
