//! The thread that writes to the store, so that neither decisions nor the feed ever wait for the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_proto::change::Change;
use tokio::sync::{mpsc, watch};

use super::{Store, StoreError};
use crate::state::{Position, StateReader};

/// Change sets that may wait for the disk. Past it nothing more is saved in this life: the position on disk stays where
/// it is, and the feed brings the rest after a restart.
const QUEUE: usize = 4096;
/// Change sets that go in one batch at most.
const BATCH: usize = 256;
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

enum Job {
    Save(Saved),
    Fresh(UnixMillis),
    /// Single tokens of earlier buckets have all expired.
    Forget(Bucket),
}

/// Hands applied change sets to the writer's thread. Never blocks.
#[derive(Debug)]
pub struct Writer {
    sender: Option<mpsc::Sender<Job>>,
    reader: StateReader,
    kept: Arc<watch::Sender<Position>>,
    fresh_noted: UnixMillis,
}

impl Writer {
    /// Saves `set` behind those before it.
    pub fn save(&mut self, set: Saved) {
        let position = set.position;
        let Some(sender) = &self.sender else {
            self.kept.send_replace(position);
            return;
        };
        if sender.try_send(Job::Save(set)).is_err() {
            // A hole must never be followed by a later position.
            tracing::error!("the store does not keep up; nothing more is saved until the next start");
            self.reader.status().store_abandoned.store(true, Ordering::Relaxed);
            self.sender = None;
            self.kept.send_replace(position);
        }
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
        if sender.capacity() >= QUEUE / 2 || self.reader.status().store_failing.load(Ordering::Relaxed) {
            return;
        }
        // The permits go back at once. A closed queue or a disk that stands still is `save`'s to judge.
        let _ = tokio::time::timeout(ROOM_WAIT, sender.reserve_many(QUEUE / 2)).await;
    }

    /// Forgets the single tokens of every bucket before `oldest`. Where the queue is full it is left to the next time.
    pub fn forget_before(&self, oldest: Bucket) {
        if let Some(sender) = &self.sender {
            let _ = sender.try_send(Job::Forget(oldest));
        }
    }

    /// Notes that the feed was fresh at `now`, now and then.
    pub fn fresh(&mut self, now: UnixMillis) {
        let due = (now.0 - self.fresh_noted.0).abs() >= FRESH_EVERY_MS;
        if due && self.sender.as_ref().is_some_and(|sender| sender.try_send(Job::Fresh(now)).is_ok()) {
            self.fresh_noted = now;
        }
    }
}

/// Starts the writer's thread. It ends, with everything saved, when the [`Writer`] is dropped.
pub fn start_writer(store: Store, reader: StateReader) -> std::io::Result<(Writer, JoinHandle<()>)> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let kept = Arc::new(watch::Sender::new(reader.load().position));
    let (status, keeping) = (reader.clone(), Arc::clone(&kept));
    let handle = std::thread::Builder::new()
        .name("atm-store".into())
        .spawn(move || run(&store, receiver, &status, &keeping))?;
    Ok((Writer { sender: Some(sender), reader, kept, fresh_noted: UnixMillis(0) }, handle))
}

fn run(store: &Store, mut jobs: mpsc::Receiver<Job>, reader: &StateReader, kept: &watch::Sender<Position>) {
    let mut batch = Vec::with_capacity(BATCH);
    while jobs.blocking_recv_many(&mut batch, BATCH) > 0 {
        let mut sets = Vec::with_capacity(batch.len());
        let (mut fresh, mut oldest) = (None, None);
        for job in batch.drain(..) {
            match job {
                Job::Save(set) => sets.push(set),
                Job::Fresh(instant) => fresh = Some(instant),
                Job::Forget(bucket) => oldest = Some(bucket),
            }
        }
        let newest = sets.last().map(|set| set.position);
        let keep = || newest.map(|position| kept.send_replace(position));
        while let Err(error) = save(store, &sets, fresh) {
            if !reader.status().store_failing.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, "cannot save; what comes in is enforced all the same, and saving is tried again");
            }
            keep();
            if jobs.is_closed() {
                return; // shutting down; the feed repairs what is not saved
            }
            std::thread::sleep(RETRY);
        }
        reader.status().store_failing.store(false, Ordering::Relaxed);
        keep();
        // What stays on disk for longer costs space, and no decision: the next hour tries again.
        if let Some(Err(error)) = oldest.map(|oldest| store.forget_before(oldest)) {
            tracing::warn!(%error, "expired revocations stay in the store for now");
        }
    }
}

fn save(store: &Store, sets: &[Saved], fresh: Option<UnixMillis>) -> Result<(), StoreError> {
    store.save(sets)?;
    fresh.map_or(Ok(()), |instant| store.save_fresh(instant))
}
