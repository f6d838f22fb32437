//! The feed over a real store. Tests with NATS run where the project's nats-server is installed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use atm_core::id::{Id, IdKind};
use atm_core::revocation::{Bucket, Part, SetDigest};
use atm_core::time::UnixMillis;
use atm_proto::change::{Change, ChangeSet};
use atm_proto::report::ResyncRequest;
use atm_proto::signature::{Domain, TrustedFeedKeys};
use tempfile::TempDir;

use super::*;

/// A running feed; without a NATS of its own it never connects.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
    pub(crate) clock: Arc<IssueClock>,
    pub(crate) feed: FeedHandle,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), "nats://127.0.0.1:1").await
    }

    /// As [`Self::start`], with other settings of snapshots.
    async fn start_with(change: impl FnOnce(&mut SnapshotSettings)) -> Self {
        Self::start_changed(tempfile::tempdir().unwrap(), "nats://127.0.0.1:1", change).await
    }

    async fn start_in(dir: TempDir, url: &str) -> Self {
        Self::start_changed(dir, url, |_| {}).await
    }

    async fn start_changed(dir: TempDir, url: &str, change: impl FnOnce(&mut SnapshotSettings)) -> Self {
        let store = Store::open_embedded(&dir.path().join("atm.db")).await.unwrap();
        let clock = Arc::new(IssueClock::start(store.clone()).await.unwrap());
        let mut settings = settings(dir.path(), url);
        change(&mut settings.snapshots);
        let shutdown = CancellationToken::new();
        let signer = FeedSigner::from_seed(&[7; 32]).unwrap();
        let (feed, tasks) =
            Feed::start(store.clone(), Arc::clone(&clock), signer, settings, shutdown.clone()).await.unwrap();
        Self { dir, store, clock, feed, shutdown, tasks }
    }

    /// Another sequencer over the same store, with the same key.
    async fn beside(&self) -> (FeedHandle, JoinSet<()>) {
        self.start_signer(FeedSigner::from_seed(&[7; 32]).unwrap()).await.unwrap()
    }

    /// Another process over the same store, with another key.
    async fn start_signer(&self, signer: FeedSigner) -> Result<(FeedHandle, JoinSet<()>), FeedError> {
        let settings = settings(self.dir.path(), "nats://127.0.0.1:1");
        Feed::start(self.store.clone(), Arc::clone(&self.clock), signer, settings, self.shutdown.clone())
            .await
    }

    /// Stops everything and keeps the directory.
    async fn stop(mut self) -> TempDir {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.store.close().await;
        self.dir
    }

    async fn commit(&self, change: &Change) -> Ticket {
        let mut transaction = self.store.begin().await.unwrap();
        let ticket = outbox::enqueue(&mut transaction, change, self.clock.wall()).await.unwrap();
        transaction.commit().await.unwrap();
        ticket
    }

    async fn change(&self, byte: u8) -> u64 {
        self.feed.sequenced(&self.commit(&tokens(byte)).await).await.unwrap()
    }

    pub(crate) async fn sets(&self) -> Vec<ChangeSet> {
        let trusted = TrustedFeedKeys::new(vec![self.feed.public_key()]);
        log::sets_from(&self.store, self.feed.position().epoch, 1, 1_000)
            .await
            .unwrap()
            .iter()
            .map(|set| ChangeSet::decode(&trusted.verify(Domain::ChangeSet, &set.signed).unwrap()).unwrap())
            .collect()
    }
}

fn settings(directory: &Path, url: &str) -> FeedSettings {
    FeedSettings {
        realm_group: "test".into(),
        nats_url: url.into(),
        nats_access: atm_nats::NatsAccess::default(),
        linger: Duration::from_millis(5),
        heartbeat: Duration::from_millis(100),
        replicas: 1,
        snapshots: SnapshotSettings {
            directory: directory.join("snapshots"),
            revisions: 1_000,
            bytes: 1 << 30,
            interval: Duration::from_hours(1),
            keep: Duration::from_hours(1),
            serve: false,
        },
    }
}

fn tokens(byte: u8) -> Change {
    Change::RevokedTokens { bucket: Bucket(9), ids: vec![Id::from_bytes([byte; 16])] }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_changes_get_contiguous_chained_revisions() {
    let fixture = Fixture::start().await;
    for byte in 1..=5 {
        assert_eq!(fixture.change(byte).await, u64::from(byte));
    }
    let mut before = Digest::ZERO;
    for (set, revision) in fixture.sets().await.iter().zip(1..) {
        assert_eq!((set.revision, set.previous_digest), (revision, before));
        before = Digest::of(&set.encode());
    }
    let position = fixture.feed.position();
    assert_eq!((position.revision, position.digest), (5, before));
    assert_eq!(fixture.feed.published(), 0);
    assert_eq!(*fixture.feed.carrier().borrow(), Carrier::Connecting);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_in_the_outbox_is_sequenced_at_the_start() {
    let fixture = Fixture::start().await;
    fixture.change(1).await;
    let dir = fixture.stop().await;
    let store = Store::open_embedded(&dir.path().join("atm.db")).await.unwrap();
    let mut transaction = store.begin().await.unwrap();
    let ticket = outbox::enqueue(&mut transaction, &tokens(2), UnixMillis(1)).await.unwrap();
    transaction.commit().await.unwrap();
    store.close().await;
    let fixture = Fixture::start_in(dir, "nats://127.0.0.1:1").await;
    assert_eq!(fixture.feed.sequenced(&ticket).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_changes_share_change_sets() {
    let fixture = Arc::new(Fixture::start().await);
    let mut calls = JoinSet::new();
    for byte in 0..100 {
        let fixture = Arc::clone(&fixture);
        calls.spawn(async move { fixture.change(byte).await });
    }
    let revisions = calls.join_all().await;
    let sets = fixture.sets().await;
    assert!(sets.len() < 100, "{} sets", sets.len());
    assert_eq!(revisions.iter().max().copied(), Some(sets.len() as u64));
    let ids: usize = sets
        .iter()
        .flat_map(|set| &set.changes)
        .map(|change| match change {
            Change::RevokedTokens { ids, .. } => ids.len(),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(ids, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_reply_is_bounded_and_starts_anew_in_another_epoch() {
    let fixture = Fixture::start().await;
    let ids: Vec<Id> = (0..20_000u32)
        .map(|number| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            Id::from_bytes(bytes)
        })
        .collect();
    for bucket in 1..=3 {
        let change = Change::RevokedTokens { bucket: Bucket(bucket), ids: ids.clone() };
        let ticket = fixture.commit(&change).await;
        fixture.feed.sequenced(&ticket).await.unwrap();
    }
    let epoch = fixture.feed.position().epoch.as_bytes().to_vec();
    let asked = ResyncRequest { epoch, from_revision: 2 };
    let reply = resync::reply(&fixture.feed.0, &asked).await.unwrap();
    assert_eq!((reply.head, reply.signed_change_sets.len()), (3, 1));
    let asked = ResyncRequest { epoch: vec![1; 16], from_revision: 3 };
    let reply = resync::reply(&fixture.feed.0, &asked).await.unwrap();
    let first = log::sets_from(&fixture.store, fixture.feed.position().epoch, 1, 1).await.unwrap();
    assert_eq!(reply.signed_change_sets[0], first[0].signed);
}

/// A bucket that is not over.
const LATER: Bucket = Bucket(2_000_000);

#[tokio::test(flavor = "multi_thread")]
async fn a_new_epoch_holds_everything_that_is_in_force() {
    let fixture = Fixture::start().await;
    let before = fixture.feed.position().epoch;
    let mut transaction = fixture.store.begin().await.unwrap();
    let id = Id::from_bytes([1; 16]);
    let marks = [(id, UnixMillis(5))];
    let state = [
        Change::RevokedTokens { bucket: LATER, ids: vec![id] },
        Change::Watermarks { kind: IdKind::Client, entries: marks.to_vec() },
    ];
    feed_state::apply(&mut transaction, &state).await.unwrap();
    transaction.commit().await.unwrap();
    epoch::begin(&fixture.feed.0, before).await.unwrap();
    let position = fixture.feed.position();
    assert_ne!(position.epoch, before);
    // Revision 1 is the snapshot alone: whoever has the log alone has nothing.
    assert_eq!(log::oldest(&fixture.store, position.epoch).await.unwrap(), Some(2));
    let stored = feed_state::snapshots(&fixture.store, position.epoch).await.unwrap();
    let trusted = TrustedFeedKeys::new(vec![fixture.feed.public_key()]);
    let payload = trusted.verify(Domain::SnapshotManifest, &stored[0].manifest).unwrap();
    let manifest = atm_proto::snapshot::Manifest::decode(&payload).unwrap();
    assert_eq!((stored.len(), manifest.epoch, manifest.revision), (1, position.epoch, 1));
    let mut digests = atm_proto::digests::StateDigests::default();
    let mut mark = SetDigest::EMPTY;
    mark.add_watermark(&id, UnixMillis(5));
    digests.join(Part::Tokens(LATER), SetDigest::of_tokens([&id]));
    digests.join(Part::Watermarks(IdKind::Client), mark);
    assert_eq!(manifest.state_digest, digests.root(manifest.oldest_bucket));
    // The next one goes on from it.
    assert_eq!(fixture.change(7).await, position.revision + 1);
    assert_eq!(fixture.sets().await[0].previous_digest, manifest.digest);
}

mod state;
mod with_nats;
