use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

fn spread(number: u64) -> Id {
    Id::of(IdKind::Token, "https://issuer", &number.to_string())
}

/// Ids that hashes would never give: equal in all but the last bytes, so that the guess of a search is always wrong.
fn skewed(number: u64) -> Id {
    let mut bytes = [0xab; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Id::from_bytes(bytes)
}

#[test]
fn buckets_are_hours_of_expiry() {
    assert_eq!(Bucket::of_expiry(7_199), Bucket(1));
    assert_eq!(Bucket::of_expiry(7_200), Bucket(2));
    assert_eq!(Bucket::of_expiry(-1), Bucket::UNKNOWN);
    assert_eq!(Bucket::of_expiry(i64::MAX), Bucket(u32::MAX));
}

#[test]
fn a_clone_keeps_what_it_was() {
    let mut index = RevocationIndex::default();
    index.revoke_tokens(Bucket(1), &[spread(1)]);
    let before = index.clone();
    index.revoke_tokens(Bucket(1), &[spread(2)]);
    index.raise_watermark(IdKind::Client, spread(3), UnixMillis(1));
    assert!(!before.is_token_revoked(Bucket(1), &spread(2)));
    assert_eq!((before.len(), before.watermark_count()), (1, 0));
    assert_eq!((index.len(), index.watermark_count()), (2, 1));
}

#[test]
fn many_ids_one_at_a_time_are_all_found_and_no_other() {
    for id in [spread, skewed] {
        let mut index = RevocationIndex::default();
        for number in 0..10_000 {
            let mut next = index.clone();
            next.revoke_tokens(Bucket(9), &[id(number)]);
            index = next;
        }
        assert_eq!(index.len(), 10_000);
        assert!((0..10_000).all(|number| index.is_token_revoked(Bucket(9), &id(number))));
        assert!(!(10_000..20_000).any(|number| index.is_token_revoked(Bucket(9), &id(number))));
    }
}

#[test]
fn dropping_buckets_spares_the_unknown() {
    let mut index = RevocationIndex::default();
    for bucket in [Bucket::UNKNOWN, Bucket(4), Bucket(5)] {
        index.revoke_tokens(bucket, &[spread(u64::from(bucket.0))]);
    }
    index.drop_buckets_before(Bucket(5));
    assert!(index.is_token_revoked(Bucket(4), &spread(0)));
    assert!(!index.is_token_revoked(Bucket(4), &spread(4)));
    assert!(index.is_token_revoked(Bucket(5), &spread(5)));
}

#[derive(Debug, Clone)]
enum Step {
    Revoke(u32, Vec<u64>),
    Raise(usize, u64, i64),
    Drop(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u32, prop::collection::vec(0..800_u64, 0..300)).prop_map(|(bucket, ids)| Step::Revoke(bucket, ids)),
        4 => (0..IdKind::ALL.len(), 0..20_u64, -5..50_i64).prop_map(|(kind, id, at)| Step::Raise(kind, id, at)),
        1 => (0..4_u32).prop_map(Step::Drop),
    ]
}

proptest! {
    #[test]
    fn the_index_is_a_set_and_maximum_registers(steps in prop::collection::vec(step(), 0..30), uneven: bool) {
        let id = if uneven { skewed } else { spread };
        let mut index = RevocationIndex::default();
        let mut tokens: HashSet<(u32, u64)> = HashSet::new();
        let mut watermarks: HashMap<(usize, u64), i64> = HashMap::new();
        for step in steps {
            match step {
                Step::Revoke(bucket, numbers) => {
                    index.revoke_tokens(Bucket(bucket), &numbers.iter().copied().map(id).collect::<Vec<_>>());
                    tokens.extend(numbers.into_iter().map(|number| (bucket, number)));
                }
                Step::Raise(kind, number, instant) => {
                    index.raise_watermark(IdKind::ALL[kind], id(number), UnixMillis(instant));
                    let register = watermarks.entry((kind, number)).or_insert(instant);
                    *register = instant.max(*register);
                }
                Step::Drop(bucket) => {
                    index.drop_buckets_before(Bucket(bucket));
                    tokens.retain(|(known, _)| *known >= bucket || *known == 0);
                }
            }
        }
        prop_assert_eq!(index.len(), tokens.len());
        prop_assert_eq!(index.watermark_count(), watermarks.len());
        for bucket in 0..4 {
            for number in 0..800 {
                let expected = tokens.contains(&(bucket, number)) || tokens.contains(&(0, number));
                prop_assert_eq!(index.is_token_revoked(Bucket(bucket), &id(number)), expected);
            }
        }
        for (at, kind) in IdKind::ALL.into_iter().enumerate() {
            for number in 0..20 {
                let expected = watermarks.get(&(at, number)).copied().map(UnixMillis);
                prop_assert_eq!(index.watermark(kind, &id(number)), expected);
            }
        }
    }

    #[test]
    fn any_covering_scope_revokes_whatever_the_others_say(
        marks in prop::collection::vec(prop::option::of(0..100_i64), 6),
        issued_at in 0..100_i64,
    ) {
        // token, session, subject, client, realm, issuer; the key stays out, because its instant does not count.
        let ids = TokenIds {
            bucket: Bucket(1),
            token: Some(spread(0)),
            ancestors: Vec::new(),
            session: Some(spread(1)),
            subjects: vec![spread(9), spread(2)],
            client: Some(spread(3)),
            realm: Some(spread(4)),
            issuer: spread(5),
            key: Some(spread(6)),
        };
        let mut index = RevocationIndex::default();
        for (number, mark) in (0..).zip(&marks) {
            if let Some(instant) = mark {
                let kind = IdKind::ALL[usize::try_from(number).unwrap()];
                index.raise_watermark(kind, spread(number), UnixMillis(*instant));
            }
        }
        let effective = marks.iter().flatten().max();
        let expected = effective.is_some_and(|instant| issued_at <= *instant);
        prop_assert_eq!(index.check(&ids, UnixMillis(issued_at)).is_err(), expected);
        index.raise_watermark(IdKind::Key, spread(6), UnixMillis(0));
        prop_assert!(index.check(&ids, UnixMillis(i64::MAX)).is_err());
    }
}
