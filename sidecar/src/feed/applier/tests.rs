use atm_core::id::{Id, IdKind};
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_proto::signature::{FeedSigner, TrustedFeedKeys};
use proptest::prelude::*;

use super::*;
use crate::feed::trust::FeedTrust;
use crate::state::{self, StateReader};
use crate::store::{self, Settlement, Store};

const EPOCH: Epoch = Epoch::from_bytes([1; 16]);

pub(super) fn signer(seed: u8) -> FeedSigner {
    FeedSigner::from_seed(&[seed; 32]).unwrap()
}

/// A log of `count` sets, each revoking one token: its signed bytes, and the digest after each.
fn log(signer: &FeedSigner, epoch: Epoch, count: u64) -> (Vec<Vec<u8>>, Vec<Digest>) {
    let mut digests = vec![Digest::ZERO];
    let mut sets = Vec::new();
    for revision in 1..=count {
        let payload = ChangeSet {
            realm_group: "default".into(),
            epoch,
            revision,
            previous_digest: digests[digests.len() - 1],
            time: UnixMillis(0),
            changes: vec![Change::RevokedTokens { bucket: Bucket(7), ids: vec![id(revision)] }],
        }
        .encode();
        digests.push(Digest::of(&payload));
        sets.push(signer.sign(Domain::ChangeSet, &payload));
    }
    (sets, digests)
}

pub(super) fn id(number: u64) -> Id {
    Id::of(IdKind::Token, "https://issuer", &number.to_string())
}

fn heartbeat(signer: &FeedSigner, epoch: Epoch, revision: u64, digest: Digest, time: i64) -> Vec<u8> {
    let heartbeat = Heartbeat {
        realm_group: "default".into(),
        epoch,
        revision,
        oldest_revision: 1,
        time: UnixMillis(time),
        digest,
        snapshot_revision: 0,
        state: None,
        report_pause_ms: 5,
        rotation: 0,
    };
    signer.sign(Domain::Heartbeat, &heartbeat.encode())
}

/// Fields are dropped in this order: the applier ends the writer, whose thread is waited for, and the directory goes last.
struct Bench {
    applier: Applier,
    reader: StateReader,
    _thread: Joined,
    _directory: tempfile::TempDir,
}

/// Waits for the store's thread: RocksDB must be closed before the process ends.
pub(super) struct Joined(pub(super) Option<std::thread::JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(Err(panic)) = self.0.take().map(std::thread::JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

fn bench() -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), 1 << 20).unwrap();
    let (publisher, reader) = state::channel(State::default(), None, UnixMillis(0));
    let (writer, thread) = store::start_writer(store, reader.clone()).unwrap();
    let trusted = TrustedFeedKeys::new(vec![*signer(1).public_key()]);
    let trust = FeedTrust::open("default", trusted, None);
    let applier = Applier::new("default".into(), trust, publisher, writer);
    Bench { applier, reader, _thread: Joined(Some(thread)), _directory: directory }
}

pub(super) fn revoked(reader: &StateReader, number: u64) -> bool {
    reader.load().view.revocations.is_token_revoked(Bucket(7), &id(number)).unwrap()
}

#[test]
fn the_next_set_is_applied_and_nothing_else() {
    let mut bench = bench();
    let (sets, _) = log(&signer(1), EPOCH, 3);
    assert_eq!(bench.applier.change_set(&sets[1]), Heard::Missing); // a gap
    assert_eq!(bench.applier.position().revision, 0);
    assert_eq!(bench.applier.change_set(&sets[0]), Heard::Level);
    assert_eq!(bench.applier.change_set(&sets[0]), Heard::Level); // the same once more
    assert_eq!(bench.applier.change_set(&sets[1]), Heard::Level);
    assert_eq!(bench.applier.change_set(&sets[0]), Heard::Refused); // replayed
    assert_eq!(bench.applier.position().revision, 2);
    assert!(revoked(&bench.reader, 1) && revoked(&bench.reader, 2) && !revoked(&bench.reader, 3));
    let status = bench.reader.status();
    assert_eq!((status.refusals(Cause::Gap), status.refusals(Cause::Replay)), (1, 1));
}

#[test]
fn another_history_another_signer_and_noise_are_refused() {
    let mut bench = bench();
    let (sets, _) = log(&signer(1), EPOCH, 2);
    let (forged, _) = log(&signer(2), EPOCH, 1);
    let (other_epoch, _) = log(&signer(1), Epoch::from_bytes([2; 16]), 2);
    assert_eq!(bench.applier.change_set(&forged[0]), Heard::Refused);
    assert_eq!(bench.applier.change_set(b"noise"), Heard::Refused);
    assert_eq!(bench.applier.change_set(&signer(1).sign(Domain::ChangeSet, b"\xff")), Heard::Refused);
    bench.applier.change_set(&sets[0]);
    assert_eq!(bench.applier.change_set(&other_epoch[0]), Heard::Refused);
    assert_eq!(bench.applier.change_set(&other_epoch[1]), Heard::Refused);
    assert_eq!(bench.applier.position().revision, 1);
    let status = bench.reader.status();
    assert_eq!(status.refusals(Cause::Signature), 2);
    assert_eq!(status.refusals(Cause::Decode), 1);
    assert_eq!(status.refusals(Cause::Conflict), 2);
}

/// A log of one set that revokes many tokens.
fn many(signer: &FeedSigner, count: u64) -> (Vec<u8>, Digest) {
    let mut ids: Vec<_> = (1..=count).map(id).collect();
    ids.sort_unstable();
    let payload = ChangeSet {
        realm_group: "default".into(),
        epoch: EPOCH,
        revision: 1,
        previous_digest: Digest::ZERO,
        time: UnixMillis(0),
        changes: vec![Change::RevokedTokens { bucket: Bucket(7), ids }],
    }
    .encode();
    (signer.sign(Domain::ChangeSet, &payload), Digest::of(&payload))
}

#[tokio::test]
async fn what_came_is_settled_in_the_background_and_in_force_all_the_while() {
    let mut bench = bench();
    let signer = signer(1);
    let (set, digest) = many(&signer, 2_000);
    bench.applier.change_set(&set);
    let all_revoked = |reader: &StateReader| (1..=2_000).all(|number| revoked(reader, number));
    assert!(all_revoked(&bench.reader));
    assert_eq!(bench.reader.load().view.revocations.sizes().settled_ids, 0);
    let settlement = bench.applier.settled().await;
    bench.applier.settle(settlement);
    let sizes = bench.reader.load().view.revocations.sizes();
    assert_eq!((sizes.settled_ids, sizes.front_ids), (2_000, 0));
    assert!(all_revoked(&bench.reader) && !revoked(&bench.reader, 2_001));

    bench.reader.status().scrub_wanted.store(true, Ordering::Relaxed);
    bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 1, digest, 10));
    let settlement = bench.applier.settled().await;
    bench.applier.settle(settlement);
    let status = bench.reader.status();
    assert_eq!((status.scrubs.load(Ordering::Relaxed), status.scrub_fault()), (1, None));

    // As if the disk had lost the bucket.
    bench.applier.scrubbing = Some(bench.reader.load().view.revocations.digests());
    bench.applier.settle(Settlement::Scrubbed(Vec::new()));
    assert!(status.scrub_fault().unwrap().contains("[7]"));
    // What changed meanwhile is not judged.
    bench.applier.scrubbing = Some(vec![(Part::Tokens(Bucket(7)), Some(SetDigest::EMPTY))]);
    bench.applier.settle(Settlement::Scrubbed(Vec::new()));
    assert_eq!(status.scrub_fault(), None);
}

#[test]
fn single_tokens_are_forgotten_when_both_clocks_say_that_they_have_expired() {
    let mut bench = bench();
    let signer = signer(1);
    let (sets, digests) = log(&signer, EPOCH, 2);
    bench.applier.change_set(&sets[0]);
    // Bucket 7 ends with second 28,800; policies forgive 300 seconds of skew, and twice as much is kept.
    let end = (8 * 3_600 + 600) * 1_000;
    bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 1, digests[1], end + 3_599_999));
    assert!(revoked(&bench.reader, 1));
    bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 1, digests[1], end + 3_600_000));
    assert!(!revoked(&bench.reader, 1));
    assert_eq!(bench.reader.load().view.revocations.len(), 0);
    // What comes for a bucket that is over is kept until the next hour: nothing is refused for being late.
    bench.applier.change_set(&sets[1]);
    assert!(revoked(&bench.reader, 2));
}

#[test]
fn only_a_new_heartbeat_that_is_level_makes_fresh() {
    let mut bench = bench();
    let signer = signer(1);
    let (sets, digests) = log(&signer, EPOCH, 2);
    assert_eq!(bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 2, digests[2], 10)), Heard::Missing);
    assert!(!bench.reader.ready());
    bench.applier.change_set(&sets[0]);
    assert_eq!(bench.reader.feed_age_ms(), u64::MAX);
    assert!(!bench.reader.ready());
    // Level with what the heartbeat told of: ready now, not a heartbeat later.
    assert_eq!(bench.applier.change_set(&sets[1]), Heard::Level);
    assert!(bench.reader.ready());
    assert!(bench.reader.feed_age_ms() < 60_000);
    // The same beat again proves nothing; a wrong digest at our revision is another history.
    assert_eq!(bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 2, digests[2], 10)), Heard::Refused);
    assert_eq!(bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 2, digests[1], 11)), Heard::Refused);
    assert_eq!(bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 2, digests[2], 12)), Heard::Level);
    assert!(bench.reader.feed_age_ms() < 60_000);
    assert!(bench.reader.ready());
}

#[test]
fn a_new_epoch_keeps_what_was_revoked_and_an_ended_one_never_returns() {
    let mut bench = bench();
    let signer = signer(1);
    let (sets, digests) = log(&signer, EPOCH, 3);
    for set in &sets {
        bench.applier.change_set(set);
    }
    bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 3, digests[3], 10));
    let next = Epoch::from_bytes([2; 16]);
    let (new_sets, new_digests) = log(&signer, next, 1);
    assert!(bench.reader.ready());
    assert_eq!(bench.applier.heartbeat(&heartbeat(&signer, next, 1, new_digests[1], 20)), Heard::Missing);
    assert!(bench.reader.ready(), "what was in force still is, so decisions go on");
    assert!((1..=3).all(|number| revoked(&bench.reader, number)));
    assert_eq!(bench.applier.change_set(&new_sets[0]), Heard::Level);
    assert_eq!(bench.applier.heartbeat(&heartbeat(&signer, next, 1, new_digests[1], 21)), Heard::Level);
    assert_eq!(bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 3, digests[3], 30)), Heard::Refused);
    assert_eq!(bench.applier.position().epoch, Some(next));
    assert!((1..=3).all(|number| revoked(&bench.reader, number)));
}

#[test]
fn a_heartbeat_that_change_sets_overtook_counts_and_one_from_before_the_start_does_not() {
    let mut bench = bench();
    let signer = signer(1);
    let (sets, digests) = log(&signer, EPOCH, 3);
    for set in &sets {
        bench.applier.change_set(set);
    }
    assert_eq!(bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 0, digests[0], 10)), Heard::Refused);
    assert_eq!(bench.reader.status().refusals(Cause::Replay), 1);
    assert_eq!(bench.reader.feed_age_ms(), u64::MAX);
    assert_eq!(bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 2, digests[2], 11)), Heard::Level);
    assert!(bench.reader.feed_age_ms() < 60_000);
    assert_eq!(bench.reader.status().refusals(Cause::Replay), 1);
    assert_eq!(bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 2, digests[1], 12)), Heard::Refused);
    assert_eq!(bench.reader.status().refusals(Cause::Conflict), 1);
}

#[test]
fn a_set_that_contradicts_the_heartbeat_it_meets_does_not_make_fresh() {
    let mut bench = bench();
    let signer = signer(1);
    let (sets, _) = log(&signer, EPOCH, 1);
    bench.reader.status().connected.store(true, Ordering::Relaxed);
    bench.applier.heartbeat(&heartbeat(&signer, EPOCH, 1, Digest::of(b"another"), 10));
    assert_eq!(bench.applier.change_set(&sets[0]), Heard::Refused);
    assert_eq!(bench.reader.feed_age_ms(), u64::MAX);
    assert!(!bench.reader.ready());
    assert!(bench.reader.degraded().unwrap().contains("another history"));
    assert!(revoked(&bench.reader, 1), "a signed revocation is enforced all the same");
}

#[test]
fn a_wrong_feed_key_is_said_until_a_heartbeat_is_believed() {
    let mut bench = bench();
    bench.reader.status().connected.store(true, Ordering::Relaxed);
    let beat = |seed: u8, time| heartbeat(&signer(seed), EPOCH, 0, Digest::ZERO, time);
    bench.applier.heartbeat(&beat(2, 10));
    assert!(bench.reader.degraded().unwrap().contains("feedKeys"));
    assert_eq!(bench.applier.heartbeat(&beat(1, 11)), Heard::Level);
    bench.applier.heartbeat(&beat(2, 12));
    assert_eq!(bench.reader.degraded(), None);
}

#[test]
fn a_heartbeat_from_the_future_does_not_silence_the_ones_that_follow() {
    let mut bench = bench();
    let signer = signer(1);
    let now = crate::feed::now().0;
    let beat = |time| heartbeat(&signer, EPOCH, 0, Digest::ZERO, time);
    assert_eq!(bench.applier.heartbeat(&beat(now)), Heard::Level);
    // A clock that was stepped an hour ahead, and back again.
    assert_eq!(bench.applier.heartbeat(&beat(now + 3_600_000)), Heard::Level);
    assert_eq!(
        bench.applier.heartbeat(&beat(now + 1_000)),
        Heard::Refused,
        "for some seconds nobody can tell"
    );
    assert_eq!(bench.applier.heartbeat(&beat(now + MAX_AHEAD_MS + 2_000)), Heard::Level);
    // One that is sent again proves nothing, whenever it was made.
    assert_eq!(bench.applier.heartbeat(&beat(now)), Heard::Refused);
}

#[test]
fn issuers_that_a_new_epoch_does_not_know_go_with_its_first_snapshot() {
    use atm_proto::snapshot::Manifest;
    let mut bench = bench();
    let signer = signer(1);
    let keys = |issuer: &str| Change::IssuerKeys {
        issuer: issuer.into(),
        realm: None,
        keys: vec![verification_key()],
        token_types: vec![],
    };
    let first = ChangeSet {
        realm_group: "default".into(),
        epoch: EPOCH,
        revision: 1,
        previous_digest: Digest::ZERO,
        time: UnixMillis(0),
        changes: vec![keys("https://old"), keys("https://kept")],
    };
    bench.applier.change_set(&signer.sign(Domain::ChangeSet, &first.encode()));
    let (next, digest) = (Epoch::from_bytes([2; 16]), Digest::of(b"the snapshot stands for revision 1"));
    bench.applier.heartbeat(&heartbeat(&signer, next, 1, digest, 20));
    let known = |bench: &Bench, issuer: &str| bench.reader.load().view.issuers.get(issuer).is_some();
    assert!(known(&bench, "https://old"), "until it is known that the new epoch does not have it");
    let manifest = Manifest {
        realm_group: "default".into(),
        epoch: next,
        revision: 1,
        digest,
        time: UnixMillis(0),
        oldest_bucket: Bucket(0),
        state_digest: [0; 32],
        segments: vec![],
    };
    assert!(bench.applier.complete(&manifest, vec![keys("https://kept"), keys("https://new")]));
    assert!(!known(&bench, "https://old"));
    assert!(known(&bench, "https://kept") && known(&bench, "https://new"));
    assert_eq!(bench.applier.position().revision, 1);
}

fn verification_key() -> atm_core::key::VerificationKey {
    use atm_core::key::{Algorithm, KeyState, VerificationKey};
    // The header of an Ed25519 SubjectPublicKeyInfo (RFC 8410), and the key of the feed's own tests.
    let mut spki = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    spki.extend_from_slice(signer(4).public_key().as_bytes());
    VerificationKey::from_spki("one", Algorithm::EdDSA, &spki, KeyState::Active).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the carrier does to the messages, the state is always a prefix of the log.
    #[test]
    fn loss_duplication_reordering_and_corruption_leave_a_prefix(
        deliveries in proptest::collection::vec((0..8_usize, any::<bool>(), any::<u16>()), 0..60),
    ) {
        let mut bench = bench();
        let (sets, digests) = log(&signer(1), EPOCH, 8);
        for (at, corrupt, flip) in deliveries {
            let mut bytes = sets[at].clone();
            if corrupt {
                let at = usize::from(flip) % bytes.len();
                bytes[at] ^= 0x40;
            }
            bench.applier.change_set(&bytes);
        }
        let position = bench.applier.position();
        let reached = usize::try_from(position.revision).unwrap();
        prop_assert_eq!(position.digest, digests[reached]);
        for number in 1..=8 {
            prop_assert_eq!(revoked(&bench.reader, number), number <= position.revision);
        }
        // And what is missing can always be brought in.
        for set in &sets {
            bench.applier.change_set(set);
        }
        prop_assert_eq!(bench.applier.position().revision, 8);
    }
}
