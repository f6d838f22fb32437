//! The thread that settles, so that neither decisions, nor the feed, nor what is saved ever waits for a filter to be built.
//!
//! It alone writes settled tokens and filters. What it finished comes out in the order in which it was done, and must be put
//! in force in that order: each filter stands for all that the ones before it did.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use atm_core::id::Id;
use atm_core::revocation::{Bucket, RevocationIndex, Run, SetDigest, Settled};
use tokio::sync::mpsc as channel;

use super::confirmed::ConfirmedByDisk;
use super::keys::Generation;
use super::settle::SettleError;
use super::snapshot::{InstallError, PreparedSnapshot, Snapshot};
use super::staging::{Segment, Staging};
use super::{Store, StoreError};

/// Time between attempts while the disk fails.
const RETRY: Duration = Duration::from_secs(1);
/// Look-ups that may be queued. They are asked for again.
const LOOK_UPS: usize = 64;
/// The step in which a pause between attempts looks whether to stop.
const STEP: Duration = Duration::from_millis(50);

/// What the settler is asked for.
#[derive(Debug)]
pub(super) enum Task {
    /// Tokens of `bucket` up to `run` are saved: settle them.
    Settle(Generation, Bucket, Run),
    /// Look up whether these are settled.
    LookUp(Generation, Bucket, Vec<Id>),
    /// Tokens of earlier buckets have all expired.
    Forget(Generation, Bucket),
    /// Bring a snapshot to the disk.
    Install(Box<Snapshot>),
    /// Join single segments.
    Repair(Staging, Vec<Segment>),
    /// Compute the digests from the disk.
    Scrub(Generation),
    /// Delete a generation once no view looks at it.
    Retire(Weak<ConfirmedByDisk>, Generation),
}

/// What the settler finished, for the one who publishes. Taken in the order in which it came.
#[derive(Debug)]
pub enum Settlement {
    /// The index answers as before, from less memory.
    Index(IndexSettlement),
    /// A snapshot is on disk: [`PreparedSnapshot::state`] is to be published, and then it goes to
    /// [`super::Writer::commit`]; or it is dropped, because the log has gone on meanwhile.
    Snapshot(Box<PreparedSnapshot>),
    /// A snapshot or a repair was not taken; what is in force stays.
    Failed(InstallError),
    /// What the ids on disk add up to. A bucket whose digest in the index is the same before [`super::Writer::scrub`] and now
    /// must have that one.
    Scrubbed(Vec<(Bucket, SetDigest)>),
    /// The disk could not be read to the end.
    ScrubFailed(StoreError),
}

/// Something that the index takes in: filters for what was sealed or joined, or what was found out about ids in doubt.
#[derive(Debug)]
pub struct IndexSettlement {
    pub(super) generation: Generation,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Filter(Bucket, Run, Settled),
    Joined(Vec<(Bucket, Settled)>),
    Verdicts(Bucket, Vec<(Id, bool)>),
}

impl IndexSettlement {
    /// Whether it is what a repair has joined.
    pub fn is_join(&self) -> bool {
        matches!(self.kind, Kind::Joined(_))
    }

    /// Puts it in force.
    pub fn apply(self, index: &mut RevocationIndex) {
        match self.kind {
            Kind::Filter(bucket, run, settled) => {
                index.settle(bucket, run, settled);
            }
            Kind::Joined(buckets) => {
                for (bucket, settled) in buckets {
                    index.join(bucket, settled);
                }
            }
            Kind::Verdicts(bucket, verdicts) => index.resolve(bucket, &verdicts.into_iter().collect()),
        }
    }
}

/// The settler's thread, as the writer's thread holds it. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Settler {
    tasks: Option<mpsc::Sender<Task>>,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Control {
    stop: AtomicBool,
    look_ups: AtomicUsize,
}

impl Settler {
    /// Starts the thread; what it finishes goes to `done`.
    pub(super) fn start(
        store: Arc<Store>,
        done: channel::UnboundedSender<Settlement>,
    ) -> std::io::Result<Self> {
        let (tasks, queue) = mpsc::channel();
        let control = Arc::new(Control::default());
        let shared = Arc::clone(&control);
        let thread = std::thread::Builder::new()
            .name("atm-settler".into())
            .spawn(move || run(&store, &queue, &done, &shared))?;
        Ok(Self { tasks: Some(tasks), control, thread: Some(thread) })
    }

    /// Queues a task. There is one a bucket at most of the first kind and one an hour of the last, so the queue is bounded.
    pub(super) fn ask(&self, task: Task) {
        let Some(tasks) = &self.tasks else { return };
        if matches!(task, Task::LookUp(..))
            && self.control.look_ups.fetch_add(1, Ordering::Relaxed) >= LOOK_UPS
        {
            self.control.look_ups.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let _ = tasks.send(task); // a thread that ended settles nothing more; the ids stay where they are
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Relaxed);
        self.tasks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the settler's thread panicked");
        }
    }
}

/// What is in the middle of being done.
struct Work<'s> {
    store: &'s Store,
    control: &'s Control,
    /// Generations that views may still look at.
    retired: Vec<(Weak<ConfirmedByDisk>, Generation)>,
}

fn run(
    store: &Store,
    queue: &mpsc::Receiver<Task>,
    done: &channel::UnboundedSender<Settlement>,
    control: &Control,
) {
    let mut work = Work { store, control, retired: Vec::new() };
    loop {
        let task = if work.retired.is_empty() {
            queue.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(RETRY)
        };
        work.delete_retired();
        let settlement = match task {
            Err(mpsc::RecvTimeoutError::Timeout) => continue,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Ok(_) if control.stop.load(Ordering::Relaxed) => return,
            Ok(task) => work.perform(task),
        };
        if settlement.is_some_and(|settlement| done.send(settlement).is_err()) {
            return;
        }
    }
}

impl Work<'_> {
    fn perform(&mut self, task: Task) -> Option<Settlement> {
        let (store, stop) = (self.store, &self.control.stop);
        match task {
            Task::Settle(generation, bucket, run) => {
                let settled = settle(store, generation, bucket, run, stop)?;
                Some(index(generation, Kind::Filter(bucket, run, settled)))
            }
            Task::LookUp(generation, bucket, ids) => {
                self.control.look_ups.fetch_sub(1, Ordering::Relaxed);
                Some(index(generation, Kind::Verdicts(bucket, store.look_up(generation, bucket, ids))))
            }
            Task::Forget(generation, oldest) => {
                // What stays on disk for longer costs space, and no decision: the next hour tries again.
                if let Err(error) = store.forget_before(generation, oldest) {
                    tracing::warn!(%error, "expired revocations stay in the store for now");
                }
                None
            }
            Task::Install(snapshot) => match store.prepare(*snapshot, stop) {
                Ok(prepared) => Some(Settlement::Snapshot(Box::new(prepared))),
                Err(error) => Some(Settlement::Failed(error)),
            },
            Task::Repair(staging, segments) => match store.repair(staging, segments, stop) {
                Ok(buckets) => Some(index(store.generation(), Kind::Joined(buckets))),
                Err(error) => Some(Settlement::Failed(error)),
            },
            Task::Scrub(generation) => match store.scrub(generation, stop) {
                Ok(digests) => Some(Settlement::Scrubbed(digests)),
                Err(SettleError::Store(error)) => Some(Settlement::ScrubFailed(error)),
                Err(SettleError::Stopped) => None,
            },
            Task::Retire(looked_at, generation) => {
                self.retired.push((looked_at, generation));
                None
            }
        }
    }

    fn delete_retired(&mut self) {
        let store = self.store;
        self.retired.retain(|(looked_at, generation)| {
            if looked_at.strong_count() > 0 {
                return true;
            }
            if let Err(error) = store.forget_generation(*generation) {
                tracing::warn!(%error, "replaced revocations stay in the store until the next start");
            }
            false
        });
    }
}

fn index(generation: Generation, kind: Kind) -> Settlement {
    Settlement::Index(IndexSettlement { generation, kind })
}

/// Settles, for as many attempts as it takes: the ids stay in memory until it is done. `None` when it is to stop.
fn settle(
    store: &Store,
    generation: Generation,
    bucket: Bucket,
    run: Run,
    stop: &AtomicBool,
) -> Option<Settled> {
    let mut failed = false;
    loop {
        match store.settle(generation, bucket, run, stop) {
            Ok(settled) => return Some(settled),
            Err(SettleError::Stopped) => return None,
            Err(SettleError::Store(error)) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::error!(%error, "revocations cannot be settled; they stay in memory, and it is tried again");
                }
            }
        }
        for _ in 0..RETRY.as_millis() / STEP.as_millis() {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            std::thread::sleep(STEP);
        }
    }
}
