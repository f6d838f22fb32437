use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Mutex;

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

fn revoked(index: &RevocationIndex, bucket: u32, id: &Id) -> bool {
    index.is_token_revoked(Bucket(bucket), id).unwrap()
}

/// Stands for a database: settled ids that can be out of reach.
#[derive(Debug, Default)]
struct Disk {
    ids: Mutex<BTreeSet<(Bucket, Id)>>,
    broken: Mutex<bool>,
    asked: Mutex<usize>,
}

impl SettledIds for Disk {
    fn contains(&self, bucket: Bucket, id: &Id) -> Result<bool, Unconfirmed> {
        *self.asked.lock().unwrap() += 1;
        if *self.broken.lock().unwrap() {
            return Err(Unconfirmed("broken".into()));
        }
        SettledIds::contains(&*self.ids.lock().unwrap(), bucket, id)
    }
}

impl Disk {
    /// What settling gives once `ids` have joined the bucket on disk.
    fn settle(self: &Arc<Self>, bucket: Bucket, ids: impl IntoIterator<Item = Id>) -> Settled {
        let mut all = self.ids.lock().unwrap();
        all.extend(ids.into_iter().map(|id| (bucket, id)));
        let mut builder = FilterBuilder::default();
        for (_, id) in all.iter().filter(|(of, _)| *of == bucket) {
            builder.push(id).unwrap();
        }
        let (filter, digest) = builder.finish();
        Settled { filter: Arc::new(filter), ids: Arc::clone(self) as _, digest }
    }
}

fn token_ids(bucket: Bucket, id: Id) -> TokenIds {
    TokenIds {
        bucket,
        token: Some(id),
        ancestors: Vec::new(),
        session: Vec::new(),
        subjects: Vec::new(),
        client: Vec::new(),
        realm: None,
        issuer: spread(u64::MAX),
        key: None,
    }
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
    assert!(!revoked(&before, 1, &spread(2)));
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
        assert!((0..10_000).all(|number| revoked(&index, 9, &id(number))));
        assert!(!(10_000..20_000).any(|number| revoked(&index, 9, &id(number))));
    }
}

#[test]
fn dropping_buckets_spares_the_unknown() {
    let mut index = RevocationIndex::default();
    for bucket in [Bucket::UNKNOWN, Bucket(4), Bucket(5)] {
        index.revoke_tokens(bucket, &[spread(u64::from(bucket.0))]);
    }
    index.drop_buckets_before(Bucket(5));
    assert!(revoked(&index, 4, &spread(0)));
    assert!(!revoked(&index, 4, &spread(4)));
    assert!(revoked(&index, 5, &spread(5)));
}

#[test]
fn a_settled_bucket_answers_from_its_filter_and_asks_only_to_confirm() {
    let (disk, mut index) = (Arc::new(Disk::default()), RevocationIndex::default());
    let ids: Vec<_> = (0..5_000).map(spread).collect();
    index.revoke_tokens(Bucket(3), &ids);
    assert_eq!(index.due(), [Bucket(3)]);
    let run = index.seal(Bucket(3)).unwrap();
    assert_eq!(index.seal(Bucket(3)), None, "one at a time");
    assert!(index.is_settling());
    assert!(ids.iter().all(|id| revoked(&index, 3, id)), "what is being settled is in force");
    assert!(index.settle(Bucket(3), run, disk.settle(Bucket(3), ids.iter().copied())));
    assert!(!index.is_settling());
    assert_eq!(*disk.asked.lock().unwrap(), 0);
    assert!(!(5_000..15_000).any(|number| revoked(&index, 3, &spread(number))));
    assert!(
        *disk.asked.lock().unwrap() < 10,
        "a token that is not revoked is hardly ever looked for on disk"
    );
    assert!(ids.iter().all(|id| revoked(&index, 3, id)));
    let sizes = index.sizes();
    assert_eq!((sizes.front_ids, sizes.settled_ids, index.len()), (0, 5_000, 5_000));
    assert_eq!(index.digest(Part::Tokens(Bucket(3))), Some(SetDigest::of_tokens(&ids)));
}

#[test]
fn what_cannot_be_confirmed_is_refused_with_a_reason_of_its_own() {
    let (disk, mut index) = (Arc::new(Disk::default()), RevocationIndex::default());
    index.join(Bucket(3), disk.settle(Bucket(3), [spread(1)]));
    index.revoke_tokens(Bucket(3), &[spread(2)]);
    *disk.broken.lock().unwrap() = true;
    let judge = |index: &RevocationIndex, number| {
        index.check(&token_ids(Bucket(3), spread(number)), UnixMillis(0)).map(drop)
    };
    assert_eq!(judge(&index, 1), Err(Reason::RevocationUnconfirmed));
    assert_eq!(judge(&index, 2), Err(Reason::RevokedToken), "held in full");
    assert_eq!(judge(&index, 3), Ok(()), "the filter is certain");
    let mut heir = token_ids(Bucket(3), spread(3));
    heir.ancestors.push((Bucket(3), spread(1)));
    assert_eq!(index.check(&heir, UnixMillis(0)).map(drop), Err(Reason::RevocationUnconfirmed));
    *disk.broken.lock().unwrap() = false;
    assert_eq!(judge(&index, 1), Err(Reason::RevokedToken));
}

#[test]
fn a_filter_for_a_bucket_that_was_dropped_or_begun_anew_is_not_taken() {
    let (disk, mut index) = (Arc::new(Disk::default()), RevocationIndex::default());
    index.revoke_tokens(Bucket(3), &[spread(1)]);
    let run = index.seal(Bucket(3)).unwrap();
    let settled = disk.settle(Bucket(3), [spread(1)]);
    index.drop_buckets_before(Bucket(4));
    assert!(!index.settle(Bucket(3), run, settled.clone()));
    index.revoke_tokens(Bucket(3), &[spread(2)]);
    let later = index.seal(Bucket(3)).unwrap();
    assert!(!index.settle(Bucket(3), run, settled));
    assert!(later > run && revoked(&index, 3, &spread(2)));
}

#[test]
fn an_id_that_comes_again_is_in_doubt_until_it_is_looked_up() {
    let (disk, mut index) = (Arc::new(Disk::default()), RevocationIndex::default());
    index.join(Bucket(3), disk.settle(Bucket(3), (0..100).map(spread)));
    index.revoke_tokens(Bucket(3), &[spread(5), spread(1_000)]);
    assert_eq!(index.doubtful(10), [(Bucket(3), vec![spread(5)])]);
    assert_eq!(index.digest(Part::Tokens(Bucket(3))), None);
    index.resolve(Bucket(3), &[(spread(5), true)].into_iter().collect());
    let all: Vec<_> = (0..100).chain([1_000]).map(spread).collect();
    assert_eq!(index.digest(Part::Tokens(Bucket(3))), Some(SetDigest::of_tokens(&all)));
    assert_eq!(index.len(), 101);
}

#[derive(Debug, Clone)]
enum Step {
    Revoke(u32, Vec<u64>),
    Raise(usize, u64, i64),
    Drop(u32),
    Seal(u32),
    /// Settles what was sealed, or fails to and is tried again later.
    Settle(u32),
    /// Ids of a snapshot.
    Join(u32, Vec<u64>),
    Resolve,
    /// Everything is read back: filters, and the rest in full.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let bucket = 0..4_u32;
    let ids = || prop::collection::vec(0..800_u64, 0..300);
    prop_oneof![
        6 => (bucket.clone(), ids()).prop_map(|(bucket, ids)| Step::Revoke(bucket, ids)),
        4 => (0..IdKind::ALL.len(), 0..20_u64, -5..50_i64).prop_map(|(kind, id, at)| Step::Raise(kind, id, at)),
        1 => bucket.clone().prop_map(Step::Drop),
        3 => bucket.clone().prop_map(Step::Seal),
        3 => bucket.clone().prop_map(Step::Settle),
        1 => (bucket, ids()).prop_map(|(bucket, ids)| Step::Join(bucket, ids)),
        1 => Just(Step::Resolve),
        1 => Just(Step::Restart),
    ]
}

/// An index as a sidecar runs it, and the plain sets that it stands for.
struct Model {
    id: fn(u64) -> Id,
    index: RevocationIndex,
    disk: Arc<Disk>,
    /// Ids on disk that no filter stands for yet, with the run that they belong to.
    recent: HashMap<u32, Vec<(Run, Id)>>,
    sealed: HashMap<u32, Run>,
    tokens: HashSet<(u32, u64)>,
    watermarks: HashMap<(usize, u64), i64>,
}

impl Model {
    fn ids(&self, numbers: &[u64]) -> Vec<Id> {
        numbers.iter().copied().map(self.id).collect()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Revoke(bucket, numbers) => {
                let ids = self.ids(&numbers);
                self.index.revoke_tokens(Bucket(bucket), &ids);
                let run = self.index.next_run();
                self.recent.entry(bucket).or_default().extend(ids.into_iter().map(|id| (run, id)));
                self.tokens.extend(numbers.into_iter().map(|number| (bucket, number)));
            }
            Step::Raise(kind, number, instant) => {
                self.index.raise_watermark(IdKind::ALL[kind], (self.id)(number), UnixMillis(instant));
                let register = self.watermarks.entry((kind, number)).or_insert(instant);
                *register = instant.max(*register);
            }
            Step::Drop(bucket) => {
                self.index.drop_buckets_before(Bucket(bucket));
                let lives = |known: u32| known >= bucket || known == 0;
                self.tokens.retain(|(known, _)| lives(*known));
                self.recent.retain(|known, _| lives(*known));
                self.disk.ids.lock().unwrap().retain(|(known, _)| lives(known.0));
            }
            Step::Seal(bucket) => {
                if let Some(run) = self.index.seal(Bucket(bucket)) {
                    self.sealed.insert(bucket, run);
                }
            }
            Step::Settle(bucket) => {
                let Some(run) = self.sealed.remove(&bucket) else { return };
                let recent = self.recent.remove(&bucket).unwrap_or_default();
                let (settling, rest): (Vec<_>, Vec<_>) = recent.into_iter().partition(|(of, _)| *of <= run);
                self.recent.insert(bucket, rest);
                let settled = self.disk.settle(Bucket(bucket), settling.into_iter().map(|(_, id)| id));
                self.index.settle(Bucket(bucket), run, settled);
            }
            Step::Join(bucket, numbers) => {
                let settled = self.disk.settle(Bucket(bucket), self.ids(&numbers));
                self.index.join(Bucket(bucket), settled);
                self.tokens.extend(numbers.into_iter().map(|number| (bucket, number)));
            }
            Step::Resolve => {
                for (bucket, ids) in self.index.doubtful(100) {
                    let look_up = |id: Id| (id, SettledIds::contains(&*self.disk, bucket, &id).unwrap());
                    self.index.resolve(bucket, &ids.into_iter().map(look_up).collect());
                }
            }
            Step::Restart => self.restart(),
        }
    }

    fn restart(&mut self) {
        let mut index = RevocationIndex::beginning_at(self.index.next_run());
        let buckets: HashSet<Bucket> =
            self.disk.ids.lock().unwrap().iter().map(|(bucket, _)| *bucket).collect();
        for bucket in buckets {
            let settled = self.disk.settle(bucket, []);
            let filter = IdFilter::decode(&settled.filter.encode()).unwrap();
            index.join(bucket, Settled { filter: Arc::new(filter), ..settled });
        }
        for (bucket, recent) in &self.recent {
            index.revoke_tokens(Bucket(*bucket), &recent.iter().map(|(_, id)| *id).collect::<Vec<_>>());
        }
        for (kind, number) in self.watermarks.keys() {
            let id = (self.id)(*number);
            let instant = self.index.watermark(IdKind::ALL[*kind], &id).unwrap();
            index.raise_watermark(IdKind::ALL[*kind], id, instant);
        }
        self.sealed.clear();
        self.index = index;
    }

    fn is_revoked(&self, bucket: u32, number: u64) -> bool {
        self.tokens.contains(&(bucket, number)) || self.tokens.contains(&(0, number))
    }
}

proptest! {
    #[test]
    fn the_index_is_a_set_and_maximum_registers(steps in prop::collection::vec(step(), 0..40), uneven: bool) {
        let mut model = Model {
            id: if uneven { skewed } else { spread },
            index: RevocationIndex::default(),
            disk: Arc::default(),
            recent: HashMap::new(),
            sealed: HashMap::new(),
            tokens: HashSet::new(),
            watermarks: HashMap::new(),
        };
        for step in steps {
            model.take(step);
        }
        // A broken disk never turns a revoked token into one that lives.
        *model.disk.broken.lock().unwrap() = true;
        for bucket in 0..4 {
            for number in 0..800 {
                let answer = model.index.is_token_revoked(Bucket(bucket), &(model.id)(number));
                let expected = model.is_revoked(bucket, number);
                prop_assert!(answer.is_err() || answer == Ok(expected));
            }
        }
        *model.disk.broken.lock().unwrap() = false;
        for bucket in 0..4 {
            for number in 0..800 {
                let answer = model.index.is_token_revoked(Bucket(bucket), &(model.id)(number));
                prop_assert_eq!(answer, Ok(model.is_revoked(bucket, number)));
            }
        }
        prop_assert!(model.index.len() >= model.tokens.len());
        while model.index.sizes().doubtful_ids > 0 {
            model.take(Step::Resolve);
        }
        prop_assert_eq!(model.index.len(), model.tokens.len());
        for bucket in 0..4 {
            let ids: Vec<_> =
                model.tokens.iter().filter(|(of, _)| *of == bucket).map(|(_, number)| (model.id)(*number)).collect();
            let digest = model.index.digest(Part::Tokens(Bucket(bucket)));
            prop_assert_eq!(digest, Some(SetDigest::of_tokens(&ids)));
        }
        prop_assert_eq!(model.index.watermark_count(), model.watermarks.len());
        for (at, kind) in IdKind::ALL.into_iter().enumerate() {
            let mut digest = SetDigest::EMPTY;
            for number in 0..20 {
                let expected = model.watermarks.get(&(at, number)).copied().map(UnixMillis);
                prop_assert_eq!(model.index.watermark(kind, &(model.id)(number)), expected);
                if let Some(instant) = expected {
                    digest.add_watermark(&(model.id)(number), instant);
                }
            }
            prop_assert_eq!(model.index.digest(Part::Watermarks(kind)), Some(digest));
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
            session: vec![spread(1)],
            subjects: vec![spread(9), spread(2)],
            client: vec![spread(3)],
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
