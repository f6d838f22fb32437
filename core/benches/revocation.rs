//! What a look into the revocations costs: ids in full and behind filters, one bucket and many.

#![allow(clippy::expect_used)] // a benchmark that cannot go on stops

use std::hint::black_box;
use std::sync::Arc;

use atm_core::id::{Id, IdKind};
use atm_core::revocation::{Bucket, FilterBuilder, RevocationIndex, Settled, SettledIds, Unconfirmed};
use atm_core::time::UnixMillis;
use atm_core::token::TokenIds;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};

const FIRST_BUCKET: u32 = 480_000;

/// Well mixed, as hashes are, and cheap.
fn spread(number: u64) -> Id {
    let mix = |number: u64| {
        let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ number >> 31
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&mix(number.wrapping_add(0x9e37_79b9_7f4a_7c15)).to_be_bytes());
    bytes[8..].copy_from_slice(&mix(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes());
    Id::from_bytes(bytes)
}

fn bucket_of(number: u64, buckets: u64) -> Bucket {
    Bucket(FIRST_BUCKET + u32::try_from(number % buckets).unwrap_or(0))
}

/// A database that answers from memory.
#[derive(Debug)]
struct Sorted(Vec<Id>);

impl SettledIds for Sorted {
    fn contains(&self, _bucket: Bucket, id: &Id) -> Result<bool, Unconfirmed> {
        Ok(self.0.binary_search(id).is_ok())
    }
}

/// `count` ids in `buckets` buckets, all of them settled, and 500 a bucket in front.
fn settled(count: u64, buckets: u64) -> RevocationIndex {
    let mut index = RevocationIndex::default();
    for bucket in 0..buckets {
        let mut ids: Vec<_> =
            (bucket..count).step_by(usize::try_from(buckets).unwrap_or(1)).map(spread).collect();
        ids.sort_unstable();
        let mut builder = FilterBuilder::default();
        for id in &ids {
            builder.push(id).expect("sorted");
        }
        let (filter, digest) = builder.finish();
        let settled = Settled { filter: Arc::new(filter), ids: Arc::new(Sorted(ids)), digest };
        index.join(bucket_of(bucket, buckets), settled);
    }
    for number in count..count + 500 * buckets {
        index.revoke_tokens(bucket_of(number, buckets), &[spread(number)]);
    }
    index
}

fn counter() -> impl FnMut() -> u64 {
    let mut number = 0;
    move || {
        number += 1;
        number
    }
}

fn look(group: &mut BenchmarkGroup<'_, WallTime>, index: &RevocationIndex, count: u64, buckets: u64) {
    let mut next = counter();
    group.bench_function("miss", |b| {
        b.iter(|| {
            let number = u64::MAX / 2 + next();
            black_box(index.is_token_revoked(bucket_of(number, buckets), &spread(number)))
        });
    });
    let mut next = counter();
    group.bench_function("hit_settled", |b| {
        b.iter(|| {
            let number = next().wrapping_mul(7_919) % count;
            black_box(index.is_token_revoked(bucket_of(number, buckets), &spread(number)))
        });
    });
    let mut next = counter();
    group.bench_function("hit_in_front", |b| {
        b.iter(|| {
            let number = count + next() % (500 * buckets);
            black_box(index.is_token_revoked(bucket_of(number, buckets), &spread(number)))
        });
    });
    let mut next = counter();
    group.bench_function("check_whole_token", |b| {
        b.iter(|| {
            let number = u64::MAX / 2 + next();
            let ids = TokenIds {
                bucket: bucket_of(number, buckets),
                token: Some(spread(number)),
                ancestors: Vec::new(),
                session: vec![spread(number + 1)],
                subjects: Vec::new(),
                client: vec![spread(2)],
                realm: Some(spread(3)),
                issuer: spread(4),
                key: Some(spread(5)),
            };
            black_box(index.check(&ids, UnixMillis(0)).is_ok())
        });
    });
}

fn change(group: &mut BenchmarkGroup<'_, WallTime>, index: &RevocationIndex, buckets: u64) {
    let mut next = counter();
    group.bench_function("clone_add_publish", |b| {
        let mut current = index.clone();
        b.iter(|| {
            let number = u64::MAX / 4 + next();
            let mut changed = current.clone();
            changed.revoke_tokens(bucket_of(number, buckets), &[spread(number)]);
            current = changed;
        });
    });
    let mut next = counter();
    group.bench_function("raise_watermark", |b| {
        b.iter_batched(
            || index.clone(),
            |mut index| index.raise_watermark(IdKind::Subject, spread(next()), UnixMillis(1)),
            BatchSize::SmallInput,
        );
    });
}

fn revocations(criterion: &mut Criterion) {
    for (count, buckets) in
        [(1_000_000, 1), (1_000_000, 24), (10_000_000, 1), (10_000_000, 24), (10_000_000, 720)]
    {
        let index = settled(count, buckets);
        let sizes = index.sizes();
        #[expect(clippy::cast_precision_loss, reason = "a figure with two digits")]
        let bytes = (sizes.filter_bytes + sizes.front_bytes) as f64 / count as f64;
        eprintln!("{count} ids in {buckets} buckets: {bytes:.2} bytes an id ({sizes:?})");
        let mut group = criterion.benchmark_group(format!("revocations/{count}_in_{buckets}"));
        look(&mut group, &index, count, buckets);
        change(&mut group, &index, buckets);
        group.finish();
    }
    let mut full = RevocationIndex::default();
    for chunk in 0..1_000 {
        full.revoke_tokens(
            Bucket(FIRST_BUCKET),
            &(chunk * 1_000..(chunk + 1) * 1_000).map(spread).collect::<Vec<_>>(),
        );
    }
    let mut group = criterion.benchmark_group("revocations/1000000_in_full");
    look(&mut group, &full, 900_000, 1);
    group.finish();
}

fn building(criterion: &mut Criterion) {
    let mut ids: Vec<_> = (0..400_000).map(spread).collect();
    ids.sort_unstable();
    criterion.bench_function("filter/build_400000", |b| {
        b.iter(|| {
            let mut builder = FilterBuilder::default();
            for id in &ids {
                builder.push(id).expect("sorted");
            }
            builder.finish()
        });
    });
}

criterion_group!(benches, revocations, building);
criterion_main!(benches);
