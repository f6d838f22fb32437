//! The feed: turns committed changes into signed, contiguous change sets and gets them to every sidecar.
//!
//! The tasks share nothing but the store and a few watched values: the [`sequencer`] gives revisions, the [`relay`] sees to
//! it that JetStream holds what the store holds, the [`heartbeat`] says how far the log is, [`resync`] answers those who
//! miss something, and the [`fleet`] listens to what sidecars report. Without NATS, changes are still committed and
//! sequenced; they are published when it is back.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atm_core::time::UnixMillis;
use atm_nats::NatsAccess;
use atm_proto::change::{Digest, Epoch};
use atm_proto::signature::{Domain, FeedPublicKey, FeedSigner};
use atm_proto::subject::{InvalidToken, Subjects};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::clock::IssueClock;
use crate::secret::random_id;
use crate::store::outbox::{self, Ticket};
use crate::store::{Store, StoreError, feed_state, log};

mod connection;
mod digests;
mod epoch;
mod fleet;
mod heartbeat;
mod introspect;
mod packing;
mod relay;
mod resync;
mod rotation;
mod sequencer;
mod snapshots;
#[cfg(test)]
pub(crate) mod tests;
mod upkeep;

pub use connection::Carrier;
pub use fleet::{FleetQuery, FleetView, Quantiles, Receipt, SidecarState, SidecarView};
pub use rotation::{FeedKeys, RotationError};
pub use snapshots::{SegmentName, SnapshotError, SnapshotSettings};

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
    /// Copies that JetStream keeps of its streams: 1, or 3 or 5 in a cluster.
    pub replicas: usize,
    /// Snapshots.
    pub snapshots: SnapshotSettings,
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
    /// The key would sign what sidecars were told not to believe.
    #[error(
        "feed.signingKeyFile: sidecars are not told to trust {0}; add it with a control plane that has the old key \
         (POST /admin/v1/feed/keys), then start with this one"
    )]
    UntrustedKey(FeedPublicKey),
    /// Committed, and sequenced as soon as the store lets it.
    #[error("the change is committed, but the feed has not taken it up in time; it will")]
    NotSequenced,
    /// A new epoch begins with a snapshot, and there is none.
    #[error("the log cannot begin a new epoch: {0}")]
    Epoch(#[from] SnapshotError),
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
    /// Snapshots made here.
    pub snapshots_built: u64,
    /// Snapshots put into JetStream here, again where it had lost them.
    pub snapshots_published: u64,
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
    snapshots_built: AtomicU64,
    snapshots_published: AtomicU64,
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
    /// The oldest change set that the store still holds, as far as this process has pruned it; 0 where it has not.
    pruned: AtomicU64,
    /// Revision of the newest snapshot; 0 for none.
    snapshot: AtomicU64,
    /// Revision of the newest one that JetStream holds.
    snapshot_published: AtomicU64,
    /// The feed keys that sidecars are told to trust.
    keys: Mutex<FeedKeys>,
    /// Segments of snapshots.
    segments: snapshots::SegmentFiles,
    /// The newest instant that a heartbeat or a command had, in milliseconds.
    beat: AtomicI64,
    /// This process, where it holds leases.
    holder: String,
    carrier: watch::Sender<Carrier>,
    fleet: fleet::Fleet,
    counters: Counters,
    /// Wakes the sequencer.
    committed: Notify,
    /// Wakes the relay.
    sequenced: Notify,
}

impl Shared {
    /// An instant that is strictly later than every one before, also where the wall clock was stepped back, over restarts too:
    /// sidecars take an earlier heartbeat for one that is sent again.
    async fn instant(&self) -> Result<UnixMillis, StoreError> {
        let now = self.clock.issue().await?.0;
        let before = self.beat.fetch_max(now, Ordering::SeqCst);
        if before < now {
            return Ok(UnixMillis(now));
        }
        Ok(UnixMillis(self.beat.fetch_add(1, Ordering::SeqCst) + 1))
    }

    fn sign(&self, domain: Domain, payload: &[u8]) -> Vec<u8> {
        self.signer.sign(domain, payload)
    }

    /// Takes over the head that this or another process has written.
    fn advance(&self, head: log::Head) {
        let position = Position { epoch: head.epoch, revision: head.revision, digest: head.digest };
        let moved = self.position.send_if_modified(|current| {
            let begun = current.epoch != position.epoch;
            if begun {
                // Revisions of the epoch before.
                self.pruned.store(0, Ordering::Relaxed);
                self.snapshot.store(0, Ordering::Relaxed);
                self.snapshot_published.store(0, Ordering::Relaxed);
            }
            let newer = begun || current.revision < position.revision;
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
        let oldest = log::oldest(&store, head.epoch).await?;
        let position = Position { epoch: head.epoch, revision: head.revision, digest: head.digest };
        let shared = Arc::new(Shared {
            store,
            clock,
            signer,
            subjects,
            position: watch::Sender::new(position),
            published: watch::Sender::new(0),
            oldest: AtomicU64::new(1),
            pruned: AtomicU64::new(oldest.unwrap_or(0)),
            snapshot: AtomicU64::new(0),
            snapshot_published: AtomicU64::new(0),
            keys: Mutex::default(),
            segments: snapshots::SegmentFiles::new(settings.snapshots.directory.clone()),
            beat: AtomicI64::new(0),
            holder: random_id().map_err(StoreError::from)?,
            carrier: watch::Sender::new(Carrier::Connecting),
            fleet: fleet::Fleet::default(),
            counters: Counters::default(),
            committed: Notify::new(),
            sequenced: Notify::new(),
            settings,
        });
        epoch::begin_if_restored(&shared).await?;
        shared.refresh_keys().await?;
        shared.check_own_key()?;
        let client = connection::connect(&shared).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(until(shutdown.clone(), sequencer::run(Arc::clone(&shared))));
        tasks.spawn(until(shutdown.clone(), relay::run(Arc::clone(&shared), client.clone())));
        tasks.spawn(until(shutdown.clone(), heartbeat::run(Arc::clone(&shared), client.clone())));
        tasks.spawn(until(shutdown.clone(), resync::run(Arc::clone(&shared), client.clone())));
        tasks.spawn(until(shutdown.clone(), fleet::run(Arc::clone(&shared), client.clone())));
        tasks.spawn(until(shutdown.clone(), digests::run(Arc::clone(&shared), client.clone())));
        tasks.spawn(until(shutdown.clone(), snapshots::run(Arc::clone(&shared), client.clone())));
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

    /// Revision of the newest snapshot; 0 for none.
    pub fn snapshot(&self) -> u64 {
        self.0.snapshot.load(Ordering::Relaxed)
    }

    /// Revision of the newest snapshot that this process has seen in JetStream; 0 for none.
    pub fn snapshot_published(&self) -> u64 {
        self.0.snapshot_published.load(Ordering::Relaxed)
    }

    /// The signed manifest of the newest snapshot; none while there is none.
    pub async fn snapshot_manifest(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let stored = feed_state::snapshots(&self.0.store, self.position().epoch).await?;
        Ok(stored.into_iter().next().map(|snapshot| snapshot.manifest))
    }

    /// The bytes of a segment; none where this process does not have it.
    pub fn snapshot_segment(&self, name: &SegmentName) -> Result<Option<Vec<u8>>, SnapshotError> {
        self.0.segments.get(name)
    }

    /// Whether segments are served over HTTP.
    pub fn serves_snapshots(&self) -> bool {
        self.0.settings.snapshots.serve
    }

    /// Whether JetStream holds `revision` within `limit`.
    pub async fn wait_published(&self, revision: u64, limit: Duration) -> bool {
        let mut published = self.0.published.subscribe();
        timeout(limit, published.wait_for(|at| *at >= revision)).await.is_ok_and(|outcome| outcome.is_ok())
    }

    /// What is known of the sidecars now.
    pub fn fleet(&self, query: FleetQuery) -> FleetView {
        self.0.fleet.view(self.position(), query)
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
                let pause = Duration::from_micros(receipt.live.max(1_000) as u64);
                tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
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
            snapshots_built: read(&counters.snapshots_built),
            snapshots_published: read(&counters.snapshots_published),
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
