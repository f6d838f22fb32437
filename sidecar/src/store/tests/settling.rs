//! Settled tokens, their filters, and what comes of both over restarts, crashes and a disk that fails.

use std::collections::HashSet;

use atm_core::reason::Reason;
use atm_core::token::TokenIds;
use proptest::prelude::*;

use super::super::keys::{Generation, bucket_key, revoked_key};
use super::*;

fn opened(directory: &tempfile::TempDir) -> Store {
    Store::open(directory.path(), 1 << 20).unwrap()
}

fn loaded(store: &Store) -> RevocationIndex {
    store.load().unwrap().state.view.revocations
}

fn assert_holds(index: &RevocationIndex, bucket: u32, numbers: std::ops::Range<u64>) {
    assert!(numbers.clone().all(|number| revoked(index, bucket, &id(number))));
    assert!(!(numbers.end..numbers.end + 1_000).any(|number| revoked(index, bucket, &id(number))));
    let digest = SetDigest::of_tokens(&sorted(numbers));
    assert_eq!(index.digest(Part::Tokens(Bucket(bucket))), Some(digest));
}

#[test]
fn a_restart_reads_filters_and_what_came_lately() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = opened(&directory);
        save(&store, vec![saved(1, vec![tokens(5, 0..2_000)])]);
        settle(&store, 5, 0);
        store.save(&[(Run(1), saved(2, vec![tokens(5, 2_000..2_010)]))]).unwrap();
    }
    let store = opened(&directory);
    let index = loaded(&store);
    let sizes = index.sizes();
    assert_eq!((sizes.settled_ids, sizes.front_ids, index.next_run()), (2_000, 10, Run(2)));
    assert_holds(&index, 5, 0..2_010);
    let confirmed = store.gauge().read().confirmations;
    assert!((2_000..2_100).contains(&confirmed), "{confirmed} of 3,010 look-ups went to the disk");
}

#[test]
fn a_filter_that_is_missing_or_unreadable_is_built_again() {
    let directory = tempfile::tempdir().unwrap();
    let noise: [&[u8]; 3] = [b"", b"noise", &[0; 64]];
    for value in noise.into_iter().map(Some).chain([None]) {
        let store = opened(&directory);
        save(&store, vec![saved(1, vec![tokens(5, 0..1_000)])]);
        settle(&store, 5, 0);
        let family = store.family(FILTERS).unwrap();
        let key = bucket_key(Generation(0), Bucket(5));
        match value {
            Some(value) => store.db.put_cf(family, key, value).unwrap(),
            None => store.db.delete_cf(family, key).unwrap(),
        }
        let index = loaded(&store);
        assert_eq!(index.sizes().settled_ids, 1_000);
        assert_holds(&index, 5, 0..1_000);
        drop(store);
        assert_eq!(loaded(&opened(&directory)).sizes().settled_ids, 1_000, "and was saved");
    }
}

/// A crash between the two steps of settling leaves ids in both places.
#[test]
fn settling_that_was_interrupted_counts_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = opened(&directory);
        save(&store, vec![saved(1, vec![tokens(5, 0..1_000)])]);
        settle(&store, 5, 0);
        store.save(&[(Run(1), saved(2, vec![tokens(5, 1_000..1_500)]))]).unwrap();
        for number in 1_000..1_300 {
            let key = revoked_key(Generation(0), Bucket(5), &id(number));
            store.db.put_cf(store.family(REVOKED).unwrap(), key, []).unwrap();
        }
    }
    let store = opened(&directory);
    let mut index = loaded(&store);
    assert_holds(&index, 5, 0..1_500);
    let run = index.seal(Bucket(5)).unwrap();
    assert!(index.settle(Bucket(5), run, settle(&store, 5, run.0)));
    assert_holds(&index, 5, 0..1_500);
    drop(store);
    let store = opened(&directory);
    let index = loaded(&store);
    assert_eq!(index.sizes().front_ids, 0);
    assert_holds(&index, 5, 0..1_500);
}

#[test]
fn a_scrub_adds_up_what_is_on_disk_once_each() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory);
    save(&store, vec![saved(1, vec![tokens(5, 0..1_000), tokens(6, 0..10)])]);
    settle(&store, 5, 0);
    // Some again, some new.
    store.save(&[(Run(1), saved(2, vec![tokens(5, 900..1_100)]))]).unwrap();
    let scrub = || store.scrub(store.generation(), &AtomicBool::new(false)).unwrap();
    let (five, six) = (SetDigest::of_tokens(&sorted(0..1_100)), SetDigest::of_tokens(&sorted(0..10)));
    assert_eq!(scrub(), [(Bucket(5), five), (Bucket(6), six)]);
    let key = revoked_key(Generation(0), Bucket(5), &id(7));
    store.db.delete_cf(store.family(REVOKED).unwrap(), key).unwrap();
    assert_ne!(scrub()[0].1, five);
}

#[test]
fn what_cannot_be_read_refuses_and_the_rest_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory);
    save(&store, vec![saved(1, vec![tokens(5, 0..1_000)])]);
    settle(&store, 5, 0);
    let (index, gauge) = (loaded(&store), store.gauge());
    let judge = |number| {
        let ids = TokenIds {
            bucket: Bucket(5),
            token: Some(id(number)),
            ancestors: Vec::new(),
            session: Vec::new(),
            subjects: Vec::new(),
            client: Vec::new(),
            realm: None,
            issuer: id(u64::MAX),
            key: None,
        };
        index.check(&ids, UnixMillis(0)).map(drop)
    };
    assert_eq!(judge(7), Err(Reason::RevokedToken));
    drop(store);
    assert_eq!(judge(7), Err(Reason::RevocationUnconfirmed));
    let refused = (1_000..2_000).filter(|number| judge(*number).is_err()).count();
    assert!(refused < 5, "{refused} of 1,000");
    let numbers = gauge.read();
    assert!(numbers.confirmation_errors > 0 && numbers.confirmations_failing);
}

/// A byte of a table file turns while the sidecar is away: found by its checksum, and never taken for «not revoked».
#[test]
fn a_damaged_table_refuses_what_it_cannot_tell() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = opened(&directory);
        save(&store, vec![saved(1, vec![tokens(5, 0..5_000)])]);
        settle(&store, 5, 0);
        store.db.flush_cf(store.family(REVOKED).unwrap()).unwrap();
        let tables = store.db.live_files().unwrap();
        let table = tables.iter().find(|table| table.column_family_name == REVOKED).unwrap();
        let path = directory.path().join(table.name.trim_start_matches('/'));
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
    }
    let store = opened(&directory);
    let index = loaded(&store);
    let answers: Vec<_> = (0..5_000).map(|number| index.is_token_revoked(Bucket(5), &id(number))).collect();
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|revoked| *revoked) || answer.is_err()));
    let unknown = answers.iter().filter(|answer| answer.is_err()).count();
    assert!((1..4_000).contains(&unknown), "{unknown} of 5,000");
    assert!(store.gauge().read().confirmation_errors >= unknown as u64);
    assert!(store.scrub(store.generation(), &AtomicBool::new(false)).is_err(), "a scrub finds it");
}

#[derive(Debug, Clone)]
enum Step {
    Revoke(u32, u64, u64),
    Settle(u32),
    Forget(u32),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..3_u32, 0..900_u64, 1..300_u64).prop_map(|(bucket, first, count)| Step::Revoke(bucket, first, count)),
        3 => (0..3_u32).prop_map(Step::Settle),
        1 => (0..3_u32).prop_map(Step::Forget),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is saved, settled, forgotten and read back: the index is the set.
    #[test]
    fn the_index_over_a_real_store_is_a_set(steps in prop::collection::vec(step(), 1..14)) {
        let directory = tempfile::tempdir().unwrap();
        let mut store = opened(&directory);
        let mut index = loaded(&store);
        let mut expected = HashSet::new();
        for step in steps {
            match step {
                Step::Revoke(bucket, first, count) => {
                    let change = tokens(bucket, first..first + count);
                    index.revoke_tokens(Bucket(bucket), &sorted(first..first + count));
                    store.save(&[(index.next_run(), saved(1, vec![change]))]).unwrap();
                    expected.extend((first..first + count).map(|number| (bucket, number)));
                }
                Step::Settle(bucket) => {
                    if let Some(run) = index.seal(Bucket(bucket)) {
                        prop_assert!(index.settle(Bucket(bucket), run, settle(&store, bucket, run.0)));
                    }
                }
                Step::Forget(bucket) => {
                    index.drop_buckets_before(Bucket(bucket));
                    store.forget_before(store.generation(), Bucket(bucket)).unwrap();
                    expected.retain(|(of, _)| *of >= bucket || *of == 0);
                }
                Step::Reopen => {
                    drop(store);
                    store = opened(&directory);
                    index = loaded(&store);
                }
            }
            for (bucket, ids) in index.doubtful(usize::MAX) {
                index.resolve(bucket, &store.look_up(store.generation(), bucket, ids).into_iter().collect());
            }
            for bucket in 0..3 {
                for number in 0..1_200 {
                    let is_revoked = expected.contains(&(bucket, number)) || expected.contains(&(0, number));
                    prop_assert_eq!(revoked(&index, bucket, &id(number)), is_revoked);
                }
                let ids: Vec<_> =
                    expected.iter().filter(|(of, _)| *of == bucket).map(|(_, number)| id(*number)).collect();
                let digest = index.digest(Part::Tokens(Bucket(bucket)));
                prop_assert_eq!(digest, Some(SetDigest::of_tokens(&ids)));
            }
        }
    }
}
