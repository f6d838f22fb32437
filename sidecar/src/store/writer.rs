//! The thread that writes to the store, so that neither decisions nor the feed ever wait for the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use atm_core::id::Id;
use atm_core::revocation::{Bucket, Run};
use atm_core::time::UnixMillis;
use atm_proto::change::Change;
use tokio::sync::{Notify, mpsc, watch};

use super::keys::Generation;
use super::settler::{Settlement, Settler, Task};
use super::snapshot::{Commit, PreparedSnapshot, Snapshot};
use super::staging::{Segment, Staging};
use super::{Store, StoreError};
use crate::state::{Position, StateReader};

/// Change sets that may wait for the disk. Past it nothing more is saved in this life: the position on disk stays where
/// it is, and the feed brings the rest after a restart.
const QUEUE: usize = 4096;
/// Ids that may wait for the disk before a caller that has more at hand is asked to wait.
const QUEUED_IDS: usize = 1 << 18;
/// Change sets that go in one batch at most.
const BATCH: usize = 256;
/// Ids that go in one batch, about.
const BATCH_IDS: usize = 1 << 15;
/// Time between notes of the feed's freshness, in milliseconds.
const FRESH_EVERY_MS: i64 = 2_000;
/// How long a caller that has more to save at hand waits for a slow disk.
const ROOM_WAIT: Duration = Duration::from_secs(2);
/// Time between attempts while writes fail.
const RETRY: Duration = Duration::from_secs(1);

/// One applied change set, to be saved.
#[derive(Debug)]
pub struct Saved {
    /// Its changes.
    pub changes: Vec<Change>,
    /// The position after it.
    pub position: Position,
    /// Whether its policies are in force, and so to be saved.
    pub policies: bool,
}

impl Saved {
    fn ids(&self) -> usize {
        let tokens = self.changes.iter().map(|change| match change {
            Change::RevokedTokens { ids, .. } => ids.len(),
            _ => 0,
        });
        tokens.sum()
    }
}

enum Job {
    Save(Saved),
    Fresh(UnixMillis),
    /// Single tokens of earlier buckets have all expired.
    Forget(Bucket),
    /// The ids that came to the bucket so far are set aside in memory as this run.
    Settle(Bucket, Run),
    LookUp(Bucket, Vec<Id>),
    Install(Box<Snapshot>),
    Repair(Staging, Vec<Segment>),
    Scrub,
    /// The snapshot is in force: what follows belongs to its generation.
    Commit(Commit),
}

/// What waits for the disk.
#[derive(Debug, Default)]
struct Backlog {
    ids: AtomicUsize,
    shrunk: Notify,
}

/// Hands applied change sets to the writer's thread, and what is to be settled to the settler's. Never blocks.
#[derive(Debug)]
pub struct Writer {
    sender: Option<mpsc::Sender<Job>>,
    reader: StateReader,
    kept: Arc<watch::Sender<Position>>,
    backlog: Arc<Backlog>,
    settled: mpsc::UnboundedReceiver<Settlement>,
    staging: PathBuf,
    /// The generation that is published: what is settled for another one comes too late.
    generation: Generation,
    fresh_noted: UnixMillis,
}

impl Writer {
    /// Saves `set` behind those before it.
    pub fn save(&mut self, set: Saved) {
        let (position, ids) = (set.position, set.ids());
        let Some(sender) = &self.sender else {
            self.kept.send_replace(position);
            return;
        };
        self.backlog.ids.fetch_add(ids, Ordering::Relaxed);
        if sender.try_send(Job::Save(set)).is_err() {
            self.abandon(position);
        }
    }

    /// A hole must never be followed by a later position.
    fn abandon(&mut self, position: Position) {
        tracing::error!("the store does not keep up; nothing more is saved until the next start");
        self.reader.status().store_abandoned.store(true, Ordering::Relaxed);
        self.sender = None;
        self.kept.send_replace(position);
    }

    /// The newest position that a crash of this process cannot take back, for reports: a receipt promises more than that a
    /// revocation is in memory. A store that fails holds no report up, because what came is in force; that it would not
    /// outlast the process is reported beside it, as degraded.
    pub fn kept(&self) -> watch::Receiver<Position> {
        self.kept.subscribe()
    }

    /// Waits until half the queue is free, or for a bound: who catches up on a long log is faster than a disk.
    pub async fn room(&self) {
        let Some(sender) = &self.sender else { return };
        let roomy = || {
            sender.capacity() >= QUEUE / 2 && self.backlog.ids.load(Ordering::Relaxed) < QUEUED_IDS
                || self.reader.status().store_failing.load(Ordering::Relaxed)
        };
        let wait = async {
            loop {
                let shrunk = self.backlog.shrunk.notified();
                tokio::pin!(shrunk);
                shrunk.as_mut().enable();
                if roomy() {
                    return;
                }
                shrunk.await;
            }
        };
        // A disk that stands still is `save`'s to judge.
        let _ = tokio::time::timeout(ROOM_WAIT, wait).await;
    }

    /// Whether [`Writer::settle`] would be taken: the queue has room, and what is saved reaches the disk.
    pub fn settles(&self) -> bool {
        self.sender.as_ref().is_some_and(|sender| sender.capacity() > 0)
    }

    /// Settles the tokens of `bucket` that the index has sealed as `run`, behind everything saved so far. Only where
    /// [`Writer::settles`]; what comes of it is [`Writer::settled`].
    pub fn settle(&self, bucket: Bucket, run: Run) {
        self.send(Job::Settle(bucket, run));
    }

    /// Looks up whether these ids of `bucket` are settled; what comes of it is [`Writer::settled`].
    pub fn look_up(&self, bucket: Bucket, ids: Vec<Id>) {
        self.send(Job::LookUp(bucket, ids));
    }

    /// Where [`Staging::open`] brings segments together.
    pub fn staging_path(&self) -> &Path {
        &self.staging
    }

    /// Brings a snapshot, whose segments are all staged, to the disk; what comes of it is [`Writer::settled`]. Whether it was
    /// taken: not while the queue is full or saving was given up.
    pub fn install(&self, snapshot: Snapshot) -> bool {
        self.send(Job::Install(Box::new(snapshot)))
    }

    /// Joins the ids of single staged segments to those in force; what comes of it is [`Writer::settled`]. As
    /// [`Writer::install`].
    pub fn repair(&self, staging: Staging, segments: Vec<Segment>) -> bool {
        self.send(Job::Repair(staging, segments))
    }

    /// Computes every bucket's digest from the ids on disk, behind everything saved so far; what comes of it is
    /// [`Writer::settled`]. As [`Writer::install`].
    pub fn scrub(&self) -> bool {
        self.send(Job::Scrub)
    }

    /// Makes a snapshot, whose state has just been published, the one of the next start. `policies` says whether its policies
    /// are in force.
    pub fn commit(&mut self, snapshot: PreparedSnapshot, policies: bool) {
        let (position, generation) = (snapshot.position, snapshot.confirmed.generation);
        self.generation = generation;
        let Some(sender) = &self.sender else {
            self.kept.send_replace(position);
            return;
        };
        if sender.try_send(Job::Commit(snapshot.into_commit(policies))).is_err() {
            self.abandon(position);
        }
    }

    /// The next thing to take in. Pending for ever once the store's threads have ended.
    pub async fn settled(&mut self) -> Settlement {
        loop {
            match self.settled.recv().await {
                Some(settlement) if self.is_late(&settlement) => {}
                Some(settlement) => return settlement,
                None => return std::future::pending().await,
            }
        }
    }

    /// As [`Writer::settled`], if there is something now.
    pub fn try_settled(&mut self) -> Option<Settlement> {
        loop {
            let settlement = self.settled.try_recv().ok()?;
            if !self.is_late(&settlement) {
                return Some(settlement);
            }
        }
    }

    fn is_late(&self, settlement: &Settlement) -> bool {
        matches!(settlement, Settlement::Index(index) if index.generation != self.generation)
    }

    /// Forgets the single tokens of every bucket before `oldest`. Where the queue is full it is left to the next time.
    pub fn forget_before(&self, oldest: Bucket) {
        self.send(Job::Forget(oldest));
    }

    /// Notes that the feed was fresh at `now`, now and then.
    pub fn fresh(&mut self, now: UnixMillis) {
        let due = (now.0 - self.fresh_noted.0).abs() >= FRESH_EVERY_MS;
        if due && self.send(Job::Fresh(now)) {
            self.fresh_noted = now;
        }
    }

    fn send(&self, job: Job) -> bool {
        self.sender.as_ref().is_some_and(|sender| sender.try_send(job).is_ok())
    }
}

/// Starts the writer's thread, and the settler's beside it. They end, with everything saved, when the [`Writer`] is dropped.
pub fn start_writer(store: Store, reader: StateReader) -> std::io::Result<(Writer, JoinHandle<()>)> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (done, settled) = mpsc::unbounded_channel();
    let state = reader.load();
    let kept = Arc::new(watch::Sender::new(state.position));
    let backlog = Arc::new(Backlog::default());
    let _ = reader.status().store.set(store.gauge());
    let (staging, generation) = (store.staging_path(), store.generation());
    let store = Arc::new(store);
    let thread = Thread {
        settler: Settler::start(Arc::clone(&store), done)?,
        store,
        reader: reader.clone(),
        kept: Arc::clone(&kept),
        backlog: Arc::clone(&backlog),
        run: state.view.revocations.next_run(),
    };
    let handle = std::thread::Builder::new().name("atm-store".into()).spawn(move || thread.run(receiver))?;
    let writer = Writer {
        sender: Some(sender),
        reader,
        kept,
        backlog,
        settled,
        staging,
        generation,
        fresh_noted: UnixMillis(0),
    };
    Ok((writer, handle))
}

struct Thread {
    /// Ends before the store is let go.
    settler: Settler,
    store: Arc<Store>,
    reader: StateReader,
    kept: Arc<watch::Sender<Position>>,
    backlog: Arc<Backlog>,
    /// What comes now belongs to this run.
    run: Run,
}

/// What is done in one go: sets are saved first, then the rest follows in its order.
#[derive(Default)]
struct Batch {
    sets: Vec<(Run, Saved)>,
    /// Behind the sets.
    commit: Option<Commit>,
    ids: usize,
    fresh: Option<UnixMillis>,
    tasks: Vec<Task>,
}

impl Thread {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut received = Vec::with_capacity(BATCH);
        while jobs.blocking_recv_many(&mut received, BATCH) > 0 {
            let mut batch = Batch::default();
            for job in received.drain(..) {
                let commits = self.add(&mut batch, job);
                if (commits || batch.ids >= BATCH_IDS) && !self.finish(std::mem::take(&mut batch), &jobs) {
                    return; // shutting down; the feed repairs what is not saved
                }
            }
            if !self.finish(batch, &jobs) {
                return;
            }
        }
    }

    /// Whether the batch must be finished before anything more comes.
    fn add(&mut self, batch: &mut Batch, job: Job) -> bool {
        let generation = self.store.generation();
        match job {
            Job::Save(set) => {
                batch.ids += set.ids();
                batch.sets.push((self.run, set));
            }
            Job::Fresh(instant) => batch.fresh = Some(instant),
            Job::Forget(oldest) => batch.tasks.push(Task::Forget(generation, oldest)),
            Job::LookUp(bucket, ids) => batch.tasks.push(Task::LookUp(generation, bucket, ids)),
            Job::Settle(bucket, run) => {
                self.run = run.next();
                batch.tasks.push(Task::Settle(generation, bucket, run));
            }
            Job::Install(snapshot) => batch.tasks.push(Task::Install(snapshot)),
            Job::Repair(staging, segments) => batch.tasks.push(Task::Repair(staging, segments)),
            Job::Scrub => batch.tasks.push(Task::Scrub(generation)),
            Job::Commit(commit) => batch.commit = Some(commit),
        }
        batch.commit.is_some()
    }

    /// Saves, for as many attempts as it takes, and hands on what waited for it. `false` when it is to stop instead.
    fn finish(&self, mut batch: Batch, jobs: &mpsc::Receiver<Job>) -> bool {
        let committed = batch.commit.as_ref().map(|commit| commit.position);
        let newest = committed.or(batch.sets.last().map(|(_, set)| set.position));
        let keep = || newest.map(|position| self.kept.send_replace(position));
        let failing = &self.reader.status().store_failing;
        while let Err(error) = self.save(&mut batch) {
            if !failing.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, "cannot save; what comes in is enforced all the same, and saving is tried again");
            }
            self.backlog.shrunk.notify_waiters();
            keep();
            if jobs.is_closed() {
                return false;
            }
            std::thread::sleep(RETRY);
        }
        failing.store(false, Ordering::Relaxed);
        keep();
        self.backlog.ids.fetch_sub(batch.ids, Ordering::Relaxed);
        self.backlog.shrunk.notify_waiters();
        for task in batch.tasks {
            self.settler.ask(task);
        }
        true
    }

    /// What is done is taken out of the batch: another attempt goes on behind it.
    fn save(&self, batch: &mut Batch) -> Result<(), StoreError> {
        self.store.save(&batch.sets)?;
        batch.sets.clear();
        if let Some(commit) = &batch.commit {
            let replaced = self.store.commit(commit)?;
            if let Some(commit) = batch.commit.take() {
                commit.staging.discard();
            }
            self.settler.ask(Task::Retire(Arc::downgrade(&replaced), replaced.generation));
        }
        if let Some(instant) = batch.fresh.take() {
            self.store.save_fresh(instant)?;
        }
        Ok(())
    }
}
