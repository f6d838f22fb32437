//! Snapshots and repairs through the store's threads.

use aws_lc_rs::digest::SHA256;

use super::*;
use crate::state::{StatePublisher, StateReader, channel};

/// The store's threads, and what the feed's task does with what they finish.
struct Running {
    publisher: StatePublisher,
    reader: StateReader,
    writer: Option<Writer>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(directory: &tempfile::TempDir) -> Self {
        let store = Store::open(directory.path(), 1 << 20).unwrap();
        let state = store.load().unwrap().state;
        let (publisher, reader) = channel(state, None, UnixMillis(0));
        let (writer, thread) = start_writer(store, reader.clone()).unwrap();
        Self { publisher, reader, writer: Some(writer), thread: Some(thread) }
    }

    fn writer(&mut self) -> &mut Writer {
        self.writer.as_mut().unwrap()
    }

    /// Applies tokens as a change set would.
    fn revoke(&mut self, revision: u64, bucket: u32, numbers: std::ops::Range<u64>) {
        let mut state = State::clone(&self.reader.load());
        state.view.revocations.revoke_tokens(Bucket(bucket), &sorted(numbers.clone()));
        state.position = position(revision);
        self.publisher.publish(state);
        self.writer().save(saved(revision, vec![tokens(bucket, numbers)]));
    }

    fn settle_front(&mut self, bucket: u32) {
        let mut state = State::clone(&self.reader.load());
        let run = state.view.revocations.seal(Bucket(bucket)).unwrap();
        self.publisher.publish(state);
        self.writer().settle(Bucket(bucket), run);
    }

    /// Takes the next thing that the store finished.
    async fn take(&mut self) -> Result<(), InstallError> {
        let settlement = self.writer().settled().await;
        let mut state = State::clone(&self.reader.load());
        match settlement {
            Settlement::Index(settlement) => settlement.apply(&mut state.view.revocations),
            Settlement::Snapshot(snapshot) => {
                state = snapshot.state(&state);
                self.publisher.publish(state);
                self.writer().commit(*snapshot, true);
                return Ok(());
            }
            Settlement::Failed(error) => return Err(error),
            Settlement::Scrubbed(_) | Settlement::ScrubFailed(_) => unreachable!("nobody asked for it"),
        }
        self.publisher.publish(state);
        Ok(())
    }

    fn stop(&mut self) {
        self.writer = None;
        self.thread.take().unwrap().join().unwrap();
    }

    fn revoked(&self, bucket: u32, number: u64) -> bool {
        revoked(&self.reader.load().view.revocations, bucket, &id(number))
    }
}

fn name(revision: u64) -> SnapshotName {
    SnapshotName { epoch: Epoch::from_bytes([9; 16]), revision, manifest: Digest::of(b"manifest") }
}

/// Stages a segment; its ids in the manifest.
fn stage(staging: &Staging, bucket: u32, part: u32, ids: &[Id]) -> Segment {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(aws_lc_rs::digest::digest(&SHA256, &bytes).as_ref());
    let segment = Segment { bucket: Bucket(bucket), part, digest: SetDigest::of_tokens(ids), sha256 };
    let mut writing = staging.begin(&segment).unwrap();
    writing.write(&bytes).unwrap();
    writing.finish().unwrap();
    segment
}

fn new_position(revision: u64) -> Position {
    Position { epoch: Some(Epoch::from_bytes([9; 16])), ..position(revision) }
}

#[tokio::test]
async fn a_snapshot_replaces_the_set_and_outlasts_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut running = Running::start(&directory);
    running.revoke(1, 5, 0..1_000);
    running.settle_front(5);
    running.take().await.unwrap();
    running.revoke(2, 5, 1_000..1_010);
    let watermark =
        |number| Change::Watermarks { kind: IdKind::Client, entries: vec![(id(number), UnixMillis(50))] };
    running.writer().save(saved(3, vec![watermark(1)]));

    let staging = Staging::open(running.writer().staging_path(), &name(40)).unwrap();
    let ids = sorted(500..3_000);
    let segments = vec![
        stage(&staging, 6, 0, &sorted(7_000..7_100)),
        stage(&staging, 5, 1, &ids[1_000..]),
        stage(&staging, 5, 0, &ids[..1_000]),
    ];
    let changes = vec![watermark(2)];
    let snapshot = Snapshot { staging, segments, position: new_position(40), changes };
    assert!(running.writer().install(snapshot));
    let looked_at = running.reader.load();
    running.take().await.unwrap();
    assert!((500..3_000).all(|number| running.revoked(5, number)));
    assert!((7_000..7_100).all(|number| running.revoked(6, number)));
    assert!(!(0..500).any(|number| running.revoked(5, number)), "of an epoch that has ended");
    // What was loaded before is still whole.
    assert!((0..1_010).all(|number| revoked(&looked_at.view.revocations, 5, &id(number))));
    drop(looked_at);
    running.revoke(41, 5, 9_000..9_010);
    running.settle_front(5);
    running.take().await.unwrap();
    running.stop();

    let store = Store::open(directory.path(), 1 << 20).unwrap();
    let state = store.load().unwrap().state;
    let index = &state.view.revocations;
    assert_eq!((state.position, index.len()), (position(41), 2_610));
    assert_eq!(index.watermark(IdKind::Client, &id(1)), None);
    assert_eq!(index.watermark(IdKind::Client, &id(2)), Some(UnixMillis(50)));
    let held: Vec<_> = (500..3_000).chain(9_000..9_010).collect();
    assert!(held.iter().all(|number| revoked(index, 5, &id(*number))));
    let digest = SetDigest::of_tokens(&held.iter().map(|number| id(*number)).collect::<Vec<_>>());
    assert_eq!(index.digest(Part::Tokens(Bucket(5))), Some(digest));
    assert_eq!(std::fs::read_dir(store.staging_path()).unwrap().count(), 0, "segments were deleted");
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_used_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut running = Running::start(&directory);
    running.revoke(1, 5, 0..1_000);
    running.settle_front(5);
    running.take().await.unwrap();
    let staging_path = running.writer().staging_path().to_owned();

    // Two segments that were verified, each by itself, and overlap.
    let staging = Staging::open(&staging_path, &name(40)).unwrap();
    let ids = sorted(0..100);
    let segments = vec![stage(&staging, 5, 0, &ids), stage(&staging, 5, 1, &ids[..50])];
    let position = new_position(40);
    running.writer().install(Snapshot { staging, segments, position, changes: Vec::new() });
    assert!(matches!(running.take().await, Err(InstallError::Overlap(Bucket(5)))));

    // One that is gone by the time it is used.
    let staging = Staging::open(&staging_path, &name(41)).unwrap();
    let segments = vec![stage(&staging, 5, 0, &ids)];
    std::fs::remove_dir_all(&staging_path).unwrap();
    running.writer().install(Snapshot { staging, segments, position, changes: Vec::new() });
    assert!(matches!(running.take().await, Err(InstallError::Staging(_))));

    assert!((0..1_000).all(|number| running.revoked(5, number)));
    running.stop();
    let index = Store::open(directory.path(), 1 << 20).unwrap().load().unwrap().state.view.revocations;
    assert_eq!(index.len(), 1_000);
}

#[tokio::test]
async fn a_snapshot_that_was_prepared_and_never_put_in_force_leaves_the_old_set() {
    let directory = tempfile::tempdir().unwrap();
    let mut running = Running::start(&directory);
    running.revoke(1, 5, 0..1_000);
    let staging = Staging::open(running.writer().staging_path(), &name(40)).unwrap();
    let segments = vec![stage(&staging, 5, 0, &sorted(5_000..6_000))];
    let snapshot = Snapshot { staging, segments, position: new_position(40), changes: Vec::new() };
    running.writer().install(snapshot);
    assert!(matches!(running.writer().settled().await, Settlement::Snapshot(_)));
    running.stop();
    let store = Store::open(directory.path(), 1 << 20).unwrap();
    let state = store.load().unwrap().state;
    assert_eq!((state.position, state.view.revocations.len()), (position(1), 1_000));
    let left = store.settled_buckets(super::super::keys::Generation(1)).unwrap();
    assert!(left.is_empty(), "what was left behind is deleted");
}

#[tokio::test]
async fn a_repair_joins_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let mut running = Running::start(&directory);
    running.revoke(1, 5, 0..1_000);
    running.settle_front(5);
    running.take().await.unwrap();
    running.revoke(2, 5, 1_000..1_200);
    let staging = Staging::open(running.writer().staging_path(), &name(2)).unwrap();
    // Some are settled here, some came lately, some are new.
    let segments = vec![stage(&staging, 5, 0, &sorted(900..1_500)), stage(&staging, 8, 0, &sorted(0..10))];
    assert!(running.writer().repair(staging, segments));
    running.take().await.unwrap();
    assert!((0..1_500).all(|number| running.revoked(5, number)));
    let doubtful = running.reader.load().view.revocations.doubtful(usize::MAX);
    for (bucket, ids) in doubtful {
        running.writer().look_up(bucket, ids);
        running.take().await.unwrap();
    }
    let index = &running.reader.load().view.revocations;
    assert_eq!(index.digest(Part::Tokens(Bucket(5))), Some(SetDigest::of_tokens(&sorted(0..1_500))));
    assert_eq!(index.len(), 1_510);
    running.stop();
    let store = Store::open(directory.path(), 1 << 20).unwrap();
    let index = store.load().unwrap().state.view.revocations;
    assert!((0..1_500).all(|number| revoked(&index, 5, &id(number))));
    assert!((0..10).all(|number| revoked(&index, 8, &id(number))));
}
