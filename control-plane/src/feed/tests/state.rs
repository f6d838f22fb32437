//! What the log has come to, its digests, its snapshots and its pruning, over a real store.

use atm_proto::snapshot::{Content, Manifest, Rows};

use super::*;
use crate::store::enforcement;

fn id(number: u32) -> Id {
    Id::of(IdKind::Token, "https://issuer", &number.to_string())
}

fn many(bucket: u32, numbers: std::ops::Range<u32>) -> Change {
    let mut ids: Vec<Id> = numbers.map(id).collect();
    ids.sort_unstable();
    Change::RevokedTokens { bucket: Bucket(bucket), ids }
}

/// Far enough in the future that no bucket of these tests is over.
const LATER: u32 = 2_000_000;

async fn assert_digests_are_right(store: &Store) {
    let mut transaction = store.begin_read().await.unwrap();
    let kept = feed_state::digests(&mut transaction).await.unwrap();
    let computed = feed_state::computed_digests(&mut transaction).await.unwrap();
    assert_eq!(kept.iter().collect::<Vec<_>>(), computed.iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_follow_what_is_new_and_nothing_else() {
    let fixture = Fixture::start().await;
    let mark =
        |number, at| Change::Watermarks { kind: IdKind::Client, entries: vec![(id(number), UnixMillis(at))] };
    for change in [
        many(LATER, 0..50),
        many(LATER, 25..75),
        many(0, 0..3),
        mark(1, 10),
        mark(1, 5),
        mark(1, 20),
        mark(2, 1),
    ] {
        let ticket = fixture.commit(&change).await;
        fixture.feed.sequenced(&ticket).await.unwrap();
        assert_digests_are_right(&fixture.store).await;
    }
    let mut transaction = fixture.store.begin_read().await.unwrap();
    let digests = feed_state::digests(&mut transaction).await.unwrap();
    assert_eq!(digests.get(Part::Tokens(Bucket(LATER))).count(), 75);
    assert_eq!(digests.get(Part::Watermarks(IdKind::Client)).count(), 2);
    drop(transaction);
    enforcement::purge_tokens(&fixture.store, Bucket(LATER + 1), 10).await.unwrap();
    let mut transaction = fixture.store.begin_read().await.unwrap();
    let digests = feed_state::digests(&mut transaction).await.unwrap();
    assert_eq!(digests.get(Part::Tokens(Bucket(LATER))).count(), 0, "gone as a whole with its first row");
    assert_eq!(digests.get(Part::Tokens(Bucket(0))).count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_sequence_one_contiguous_log() {
    let first = Arc::new(Fixture::start().await);
    let (second, mut tasks) = first.beside().await;
    let mut calls = JoinSet::new();
    for number in 0..120_u32 {
        let feed = if number.is_multiple_of(2) { first.feed.clone() } else { second.clone() };
        let fixture = Arc::clone(&first);
        calls.spawn(async move {
            let ticket = fixture.commit(&many(LATER, number..number + 2)).await;
            feed.sequenced(&ticket).await.unwrap()
        });
    }
    let revisions = calls.join_all().await;
    tasks.shutdown().await;
    let sets = first.sets().await;
    let mut before = Digest::ZERO;
    for (set, revision) in sets.iter().zip(1..) {
        assert_eq!((set.revision, set.previous_digest), (revision, before));
        before = Digest::of(&set.encode());
    }
    assert_eq!(revisions.iter().max().copied(), Some(sets.len() as u64));
    assert_digests_are_right(&first.store).await;
}

async fn snapshots(fixture: &Fixture) -> Vec<Manifest> {
    let stored = feed_state::snapshots(&fixture.store, fixture.feed.position().epoch).await.unwrap();
    let trusted = TrustedFeedKeys::new(vec![fixture.feed.public_key()]);
    let open =
        |manifest: &[u8]| Manifest::decode(&trusted.verify(Domain::SnapshotManifest, manifest).unwrap());
    stored.iter().map(|snapshot| open(&snapshot.manifest).unwrap()).collect()
}

async fn until_snapshot(fixture: &Fixture, revision: u64) -> Manifest {
    for _ in 0..400 {
        if let Some(newest) =
            snapshots(fixture).await.into_iter().next().filter(|newest| newest.revision >= revision)
        {
            return newest;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("no snapshot of revision {revision}");
}

fn open(fixture: &Fixture, manifest: &Manifest) -> (Vec<(Bucket, Id)>, usize) {
    let (mut tokens, mut values) = (Vec::new(), 0);
    for segment in &manifest.segments {
        let bytes = fixture.feed.snapshot_segment(&segment.sha256).unwrap().expect("the segment is a file");
        match (segment.content, segment.open(&bytes).unwrap()) {
            (Content::Tokens(bucket), Rows::Tokens(ids)) => {
                tokens.extend(ids.into_iter().map(|id| (bucket, id)));
            }
            (_, Rows::Values(changes)) => values += changes.len(),
            _ => {}
        }
    }
    (tokens, values)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_holds_the_state_and_an_unchanged_bucket_keeps_its_segments() {
    let fixture = Fixture::start_with(|settings| settings.revisions = 3).await;
    let policies = Change::Policies { version: 1, documents: vec!["x".into()] };
    for change in [many(LATER, 0..1_000), policies.clone()] {
        let ticket = fixture.commit(&change).await;
        fixture.feed.sequenced(&ticket).await.unwrap();
    }
    until_snapshot(&fixture, 1).await;
    for bucket in 1..=6 {
        let ticket = fixture.commit(&many(LATER + bucket, 0..10)).await;
        fixture.feed.sequenced(&ticket).await.unwrap();
    }
    let newest = until_snapshot(&fixture, 5).await;
    let (tokens, values) = open(&fixture, &newest);
    let expected: usize = 1_000 + 10 * usize::try_from(newest.revision - 2).unwrap();
    assert_eq!((tokens.len(), values), (expected, 1));
    let all = snapshots(&fixture).await;
    let of = |manifest: &Manifest| {
        let mut names =
            manifest.segments.iter().filter(|segment| segment.content == Content::Tokens(Bucket(LATER)));
        names.next().map(|segment| segment.sha256)
    };
    assert!(all.len() > 1 && all.iter().all(|manifest| of(manifest) == of(&newest)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_bucket_is_cut_by_leading_bits() {
    let fixture = Fixture::start_with(|settings| settings.revisions = 1).await;
    let ids = 200_000;
    let mut revision = 0;
    for start in (0..ids).step_by(20_000) {
        let ticket = fixture.commit(&many(LATER, start..start + 20_000)).await;
        revision = fixture.feed.sequenced(&ticket).await.unwrap();
    }
    let newest = until_snapshot(&fixture, revision).await;
    assert_eq!(newest.segments.len(), 4, "200,000 ids by the first two bits");
    let (tokens, _) = open(&fixture, &newest);
    assert_eq!(tokens.len(), ids as usize);
    assert!(tokens.is_sorted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_changed_by_hand_yields_no_snapshot() {
    let fixture = Fixture::start_with(|settings| settings.revisions = 1).await;
    let ticket = fixture.commit(&many(LATER, 0..10)).await;
    fixture.feed.sequenced(&ticket).await.unwrap();
    until_snapshot(&fixture, 1).await;
    let mut transaction = fixture.store.begin().await.unwrap();
    enforcement::add_tokens(&mut transaction, Bucket(LATER), &[id(77)]).await.unwrap();
    transaction.commit().await.unwrap();
    let ticket = fixture.commit(&many(LATER, 20..21)).await;
    fixture.feed.sequenced(&ticket).await.unwrap();
    let before = feed_state::snapshots(&fixture.store, fixture.feed.position().epoch).await.unwrap();
    let error = snapshots::build_now(&fixture.feed.0).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Diverged { .. }), "{error}");
    let after = feed_state::snapshots(&fixture.store, fixture.feed.position().epoch).await.unwrap();
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_pruned_behind_the_snapshot_before_the_newest() {
    let fixture = Fixture::start_with(|settings| {
        settings.revisions = 4;
        settings.keep = Duration::ZERO;
    })
    .await;
    let mut last = 0;
    for round in 0..4 {
        for number in 0..5 {
            let ticket = fixture.commit(&many(LATER, round * 10 + number..round * 10 + number + 1)).await;
            last = fixture.feed.sequenced(&ticket).await.unwrap();
        }
        until_snapshot(&fixture, last - 3).await;
    }
    let epoch = fixture.feed.position().epoch;
    for _ in 0..400 {
        let kept = feed_state::snapshots(&fixture.store, epoch).await.unwrap();
        let oldest = log::oldest(&fixture.store, epoch).await.unwrap().unwrap();
        assert!(oldest <= kept.last().unwrap().revision + 1, "what a kept snapshot needs behind it stays");
        if kept.len() == 2 && oldest == kept[1].revision + 1 {
            let asked = ResyncRequest { epoch: epoch.as_bytes().to_vec(), from_revision: 1 };
            let reply = resync::reply(&fixture.feed.0, &asked).await.unwrap();
            assert_eq!((reply.oldest, reply.head), (oldest, last));
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the log was not pruned");
}

#[tokio::test(flavor = "multi_thread")]
async fn feed_keys_are_handed_over_and_an_unknown_one_does_not_sign() {
    let fixture = Fixture::start().await;
    let (old, next) = (fixture.feed.public_key(), *FeedSigner::from_seed(&[8; 32]).unwrap().public_key());
    assert!(matches!(fixture.feed.retire_feed_key(old).await, Err(RotationError::Refused(_))));
    let keys = fixture.feed.add_feed_key(next).await.unwrap();
    assert_eq!((keys.rotation, &keys.trusted[..]), (1, &[old, next][..]));
    assert!(matches!(fixture.feed.add_feed_key(next).await, Err(RotationError::Refused(_))));
    let (_, signed) = feed_state::rotations(&fixture.store).await.unwrap().pop().unwrap();
    let trusted = TrustedFeedKeys::new(vec![old]);
    let rotation =
        atm_proto::rotation::Rotation::decode(&trusted.verify(Domain::Rotation, &signed).unwrap()).unwrap();
    assert_eq!(rotation.trusted, [old, next]);
    // A process with a key that nobody was told of does not start.
    let stranger = FeedSigner::from_seed(&[9; 32]).unwrap();
    let refused = fixture.start_signer(stranger).await.unwrap_err();
    assert!(matches!(refused, FeedError::UntrustedKey(_)), "{refused}");
    let (second, mut tasks) = fixture.start_signer(FeedSigner::from_seed(&[8; 32]).unwrap()).await.unwrap();
    let keys = second.retire_feed_key(old).await.unwrap();
    assert_eq!((keys.rotation, &keys.trusted[..]), (2, &[next][..]));
    tasks.shutdown().await;
}
