use std::sync::atomic::{AtomicBool, Ordering};

use atm_core::id::{Id, IdKind};
use atm_core::key::{Algorithm, KeyState, VerificationKey};
use atm_core::revocation::{Bucket, Part, RevocationIndex, Run, SetDigest};
use atm_proto::change::Change;
use atm_proto::signature::FeedSigner;

use super::*;

mod settling;
mod snapshots;

fn id(number: u64) -> Id {
    Id::of(IdKind::Token, "https://issuer", &number.to_string())
}

fn position(revision: u64) -> Position {
    Position {
        epoch: Some(Epoch::from_bytes([3; 16])),
        revision,
        digest: Digest::of(&revision.to_be_bytes()),
    }
}

fn saved(revision: u64, changes: Vec<Change>) -> Saved {
    Saved { changes, position: position(revision), policies: true }
}

/// Saves what came in the first run.
fn save(store: &Store, sets: Vec<Saved>) {
    store.save(&sets.into_iter().map(|set| (Run(0), set)).collect::<Vec<_>>()).unwrap();
}

fn revoked(index: &RevocationIndex, bucket: u32, id: &Id) -> bool {
    index.is_token_revoked(Bucket(bucket), id).unwrap()
}

fn settle(store: &Store, bucket: u32, run: u64) -> atm_core::revocation::Settled {
    store.settle(store.generation(), Bucket(bucket), Run(run), &AtomicBool::new(false)).unwrap()
}

fn tokens(bucket: u32, numbers: std::ops::Range<u64>) -> Change {
    Change::RevokedTokens { bucket: Bucket(bucket), ids: sorted(numbers) }
}

fn sorted(numbers: impl IntoIterator<Item = u64>) -> Vec<Id> {
    let mut ids: Vec<_> = numbers.into_iter().map(id).collect();
    ids.sort_unstable();
    ids
}

/// The public half of an Ed25519 key in DER (RFC 8410 §4): a fixed prefix and the 32 bytes.
fn key() -> VerificationKey {
    let mut spki = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let public = FeedSigner::from_seed(&[9; 32]).unwrap().public_key().to_string();
    spki.extend(atm_core::base64url::decode(&public).unwrap());
    VerificationKey::from_spki("k1", Algorithm::EdDSA, &spki, KeyState::Active).unwrap()
}

#[test]
fn what_was_saved_is_there_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let client = Id::of(IdKind::Client, "https://issuer", "shop");
    {
        let store = Store::open(directory.path(), 1 << 20).unwrap();
        save(
            &store,
            vec![
                saved(
                    1,
                    vec![
                        Change::IssuerKeys {
                            issuer: "https://issuer".into(),
                            realm: Some("default".into()),
                            keys: vec![key()],
                            token_types: vec![],
                        },
                        Change::RevokedTokens { bucket: Bucket(5), ids: sorted(0..100) },
                        Change::Watermarks { kind: IdKind::Client, entries: vec![(client, UnixMillis(50))] },
                    ],
                ),
                saved(
                    2,
                    vec![
                        Change::RevokedTokens { bucket: Bucket(6), ids: sorted(100..200) },
                        // Registers merge by maximum: an older instant changes nothing.
                        Change::Watermarks { kind: IdKind::Client, entries: vec![(client, UnixMillis(40))] },
                    ],
                ),
            ],
        );
        store.save_fresh(UnixMillis(77)).unwrap();
        store.save_sidecar_id("sidecar-1").unwrap();
    }
    let loaded = Store::open(directory.path(), 1 << 20).unwrap().load().unwrap();
    assert_eq!(loaded.state.position, position(2));
    assert_eq!(loaded.last_fresh, Some(UnixMillis(77)));
    assert_eq!(loaded.sidecar_id.as_deref(), Some("sidecar-1"));
    let view = &loaded.state.view;
    assert_eq!(view.revocations.len(), 200);
    assert!((0..100).all(|number| revoked(&view.revocations, 5, &id(number))));
    assert!((100..200).all(|number| revoked(&view.revocations, 6, &id(number))));
    assert_eq!(view.revocations.watermark(IdKind::Client, &client), Some(UnixMillis(50)));
    assert!(view.issuers.get("https://issuer").unwrap().key("k1").is_some());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

    /// However raises fall on batches and changes, the disk has the highest.
    #[test]
    fn a_saved_watermark_is_the_highest_ever_raised(
        batches in proptest::collection::vec(
            proptest::collection::vec(proptest::collection::vec((0..3_u64, 0..100_i64), 1..4), 1..4),
            1..4,
        ),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 1 << 20).unwrap();
        for sets in &batches {
            let saved: Vec<_> = sets
                .iter()
                .map(|raises| {
                    let entries = raises.iter().map(|(number, ms)| (id(*number), UnixMillis(*ms))).collect();
                    saved(1, vec![Change::Watermarks { kind: IdKind::Subject, entries }])
                })
                .collect();
            save(&store, saved);
        }
        let view = store.load().unwrap().state.view;
        for number in 0..3 {
            let raises = batches.iter().flatten().flatten().filter(|(raised, _)| *raised == number);
            let highest = raises.map(|(_, ms)| UnixMillis(*ms)).max();
            proptest::prop_assert_eq!(view.revocations.watermark(IdKind::Subject, &id(number)), highest);
        }
    }
}

#[test]
fn expired_buckets_are_forgotten_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), 1 << 20).unwrap();
    let changes = [0, 5, 6, 7].map(|bucket| Change::RevokedTokens {
        bucket: Bucket(bucket),
        ids: sorted(u64::from(bucket) * 10..u64::from(bucket) * 10 + 3),
    });
    save(&store, vec![saved(1, changes.to_vec())]);
    settle(&store, 6, 0);
    settle(&store, 7, 0);
    store.forget_before(store.generation(), Bucket(7)).unwrap();
    store.forget_before(store.generation(), Bucket::UNKNOWN).unwrap();
    let revocations = store.load().unwrap().state.view.revocations;
    assert_eq!(revocations.len(), 6);
    for id in sorted(70..73) {
        assert!(revoked(&revocations, 7, &id));
    }
    for id in sorted(0..3) {
        assert!(revoked(&revocations, 9, &id), "unknown expiry is kept");
    }
}

#[test]
fn an_issuer_without_keys_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let change =
        |keys| Change::IssuerKeys { issuer: "https://issuer".into(), realm: None, keys, token_types: vec![] };
    let store = Store::open(directory.path(), 1 << 20).unwrap();
    save(&store, vec![saved(1, vec![change(vec![key()])]), saved(2, vec![change(vec![])])]);
    assert!(store.load().unwrap().state.view.issuers.is_empty());
}

#[test]
fn a_second_process_is_told_that_the_store_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Store::open(directory.path(), 1 << 20).unwrap();
    assert!(matches!(Store::open(directory.path(), 1 << 20), Err(StoreError::InUse(_))));
}

#[tokio::test]
async fn the_writer_saves_in_order_and_everything_before_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), 1 << 20).unwrap();
    let (_publisher, reader) = crate::state::channel(State::default(), None, UnixMillis(0));
    let (mut writer, thread) = start_writer(store, reader.clone()).unwrap();
    // More than the queue holds: whoever asks for room loses nothing.
    for revision in 1..=10_000 {
        writer.room().await;
        writer.save(saved(
            revision,
            vec![Change::RevokedTokens { bucket: Bucket(5), ids: vec![id(revision)] }],
        ));
    }
    writer.fresh(UnixMillis(9_000));
    drop(writer);
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
    assert!(!reader.status().store_abandoned.load(Ordering::Relaxed));
    let loaded = Store::open(directory.path(), 1 << 20).unwrap().load().unwrap();
    assert_eq!(loaded.state.position, position(10_000));
    assert_eq!(loaded.state.view.revocations.len(), 10_000);
    assert_eq!(loaded.last_fresh, Some(UnixMillis(9_000)));
}

#[test]
fn a_corrupt_store_is_moved_aside_and_begun_anew() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("db");
    {
        let store = Store::open(&path, 1 << 20).unwrap();
        save(&store, vec![saved(1, vec![Change::RevokedTokens { bucket: Bucket(5), ids: sorted(0..10) }])]);
    }
    std::fs::write(path.join("CURRENT"), b"noise").unwrap();
    assert!(matches!(Store::open(&path, 1 << 20), Err(StoreError::Corrupt { .. })));
    let (_, loaded, aside) = Store::open_or_rebuild(&path, 1 << 20).unwrap();
    assert_eq!(loaded.state.position, Position::START);
    assert!(aside.unwrap().join("CURRENT").exists());
}

#[test]
fn a_store_of_another_version_is_moved_aside_and_begun_anew() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("db");
    {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        drop(DB::open_cf(&options, &path, ["tokens"]).unwrap());
    }
    assert!(matches!(Store::open(&path, 1 << 20), Err(StoreError::Corrupt { .. })));
    let (_, loaded, aside) = Store::open_or_rebuild(&path, 1 << 20).unwrap();
    assert!(aside.is_some() && !loaded.state.verified);
}
