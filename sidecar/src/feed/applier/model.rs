//! The protocol as a state machine under test: a log with one author, a carrier that does what it wants, and a sidecar that
//! crashes at any step. Whatever happens, the sidecar holds a prefix of the log and what snapshots added early, it never
//! loses what it reported, and it can always be brought level.

use std::collections::BTreeSet;
use std::path::Path;

use atm_proto::snapshot::{Content, Manifest, Rows, Segment};
use proptest::prelude::*;

use super::tests::{Joined, id, revoked, signer};
use super::*;
use crate::feed::trust::FeedTrust;
use crate::state::{self, StateReader};
use crate::store::{self, Store};

/// What happens next.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The log grows by one revision.
    Author,
    /// Some revision reaches the sidecar: in order, late, again, or damaged.
    Deliver { at: usize, damage: bool },
    /// A heartbeat of now.
    Heartbeat,
    /// The sidecar asks, and is answered up to so many revisions.
    CatchUp { at_most: usize },
    /// A snapshot of some revision is loaded, and breaks off after so many segments.
    Snapshot { at: usize, segments: usize },
    /// It is killed and started again; the disk has what the last save wrote.
    Crash,
    /// It is told that its copy differs: back to a snapshot, and once more from there.
    GoBack { at: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Author),
        6 => (0..64_usize, prop::bool::weighted(0.1)).prop_map(|(at, damage)| Step::Deliver { at, damage }),
        2 => Just(Step::Heartbeat),
        2 => (0..8_usize).prop_map(|at_most| Step::CatchUp { at_most }),
        1 => (0..64_usize, 0..4_usize).prop_map(|(at, segments)| Step::Snapshot { at, segments }),
        1 => Just(Step::Crash),
        1 => (0..64_usize).prop_map(|at| Step::GoBack { at }),
    ]
}

/// The log: revision n revokes token n, and every third one token of an earlier revision again.
#[derive(Default)]
struct Author {
    sets: Vec<Vec<u8>>,
    digests: Vec<Digest>,
    ids: Vec<Vec<Id>>,
    beats: i64,
}

const EPOCH: Epoch = Epoch::from_bytes([9; 16]);
const BUCKET: Bucket = Bucket(7);

use atm_core::id::Id;

impl Author {
    fn digest(&self, revision: usize) -> Digest {
        if revision == 0 { Digest::ZERO } else { self.digests[revision - 1] }
    }

    fn write(&mut self) {
        let revision = self.sets.len() as u64 + 1;
        let mut ids = vec![id(revision)];
        if revision.is_multiple_of(3) {
            ids.push(id(revision / 2));
        }
        ids.sort_unstable();
        let payload = ChangeSet {
            realm_group: "default".into(),
            epoch: EPOCH,
            revision,
            previous_digest: self.digest(self.sets.len()),
            time: UnixMillis(0),
            changes: vec![Change::RevokedTokens { bucket: BUCKET, ids: ids.clone() }],
        }
        .encode();
        self.digests.push(Digest::of(&payload));
        self.sets.push(signer(1).sign(Domain::ChangeSet, &payload));
        self.ids.push(ids);
    }

    fn heartbeat(&mut self) -> Vec<u8> {
        self.beats += 1;
        let heartbeat = Heartbeat {
            realm_group: "default".into(),
            epoch: EPOCH,
            revision: self.sets.len() as u64,
            oldest_revision: 1,
            time: UnixMillis(self.beats),
            digest: self.digest(self.sets.len()),
            snapshot_revision: 0,
            state: None,
            report_pause_ms: 5,
            rotation: 0,
        };
        signer(1).sign(Domain::Heartbeat, &heartbeat.encode())
    }

    /// The state after `revision`, two ids a segment.
    fn snapshot(&self, revision: usize) -> (Manifest, Vec<Vec<u8>>) {
        let ids: BTreeSet<Id> = self.ids[..revision].iter().flatten().copied().collect();
        let ids: Vec<Id> = ids.into_iter().collect();
        let bytes: Vec<Vec<u8>> =
            ids.chunks(2).map(|ids| ids.iter().flat_map(|id| *id.as_bytes()).collect()).collect();
        let segments = ids
            .chunks(2)
            .zip(&bytes)
            .map(|(ids, bytes)| {
                let digest = atm_core::revocation::SetDigest::of_tokens(ids);
                Segment::of(Content::Tokens(BUCKET), bytes, ids.len() as u64, digest)
            })
            .collect();
        let mut manifest = Manifest {
            realm_group: "default".into(),
            epoch: EPOCH,
            revision: revision as u64,
            digest: self.digest(revision),
            time: UnixMillis(0),
            oldest_bucket: Bucket(0),
            state_digest: [0; 32],
            segments,
        };
        manifest.state_digest = manifest.digests().root(Bucket(0));
        (manifest, bytes)
    }
}

/// The sidecar; dropped in the order in which a process ends.
struct Running {
    applier: Applier,
    reader: StateReader,
    _thread: Joined,
}

fn start(directory: &Path) -> Running {
    let store = Store::open(directory, 1 << 20).unwrap();
    let loaded = store.load().unwrap();
    let (publisher, reader) = state::channel(loaded.state, loaded.last_fresh, UnixMillis(0));
    let (writer, thread) = store::start_writer(store, reader.clone()).unwrap();
    let trusted = atm_proto::signature::TrustedFeedKeys::new(vec![*signer(1).public_key()]);
    let trust = FeedTrust::open("default", trusted, None);
    Running {
        applier: Applier::new("default".into(), trust, publisher, writer),
        reader,
        _thread: Joined(Some(thread)),
    }
}

/// Everything up to the position is enforced, and nothing that the log does not hold.
fn check(author: &Author, running: &Running) -> Result<(), TestCaseError> {
    let position = running.applier.position();
    let reached = usize::try_from(position.revision).unwrap();
    prop_assert!(reached <= author.sets.len());
    prop_assert_eq!(position.digest, author.digest(reached));
    for revision in 1..=reached as u64 {
        prop_assert!(revoked(&running.reader, revision), "revision {} of {}", revision, reached);
    }
    for beyond in author.sets.len() as u64 + 1..author.sets.len() as u64 + 5 {
        prop_assert!(!revoked(&running.reader, beyond));
    }
    Ok(())
}

fn take(step: Step, author: &mut Author, running: &mut Running) {
    let pick = |at: usize, of: usize| (of > 0).then(|| at % of);
    match step {
        Step::Author => author.write(),
        Step::Deliver { at, damage } => {
            if let Some(at) = pick(at, author.sets.len()) {
                let mut bytes = author.sets[at].clone();
                if damage {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 0x20;
                }
                running.applier.change_set(&bytes);
            }
        }
        Step::Heartbeat => {
            running.applier.heartbeat(&author.heartbeat());
        }
        Step::CatchUp { at_most } => {
            let from = usize::try_from(running.applier.position().revision).unwrap();
            for set in author.sets.iter().skip(from).take(at_most) {
                running.applier.change_set(set);
            }
        }
        Step::Snapshot { at, segments } => {
            let (manifest, bytes) = author.snapshot(at % (author.sets.len() + 1));
            if manifest.revision > 0 && load(&manifest, &bytes, segments, running) {
                running.applier.complete(&manifest, vec![]);
            }
        }
        Step::GoBack { at } => {
            let (manifest, bytes) = author.snapshot(at % (author.sets.len() + 1));
            if manifest.revision > 0 && load(&manifest, &bytes, usize::MAX, running) {
                running.applier.go_back_to(&manifest);
            }
        }
        Step::Crash => unreachable!("the caller restarts"),
    }
}

/// Whether all segments are in.
fn load(manifest: &Manifest, bytes: &[Vec<u8>], at_most: usize, running: &mut Running) -> bool {
    for (segment, bytes) in manifest.segments.iter().zip(bytes).take(at_most) {
        let rows: Rows = segment.open(bytes).unwrap();
        running.applier.add_rows(segment.content, rows);
    }
    at_most >= manifest.segments.len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn loss_duplication_reordering_snapshots_and_crashes_leave_a_prefix_and_lose_nothing(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut author = Author::default();
        let mut running = start(directory.path());
        for step in steps {
            if matches!(step, Step::Crash) {
                let promised = running.applier.position();
                drop(running);
                running = start(directory.path());
                // What a clean end has handed to the store is there again; what a report has promised is part of it.
                prop_assert_eq!(running.applier.position(), promised);
            } else {
                take(step, &mut author, &mut running);
            }
            check(&author, &running)?;
        }
        for set in author.sets.clone() {
            running.applier.change_set(&set);
        }
        prop_assert_eq!(running.applier.position().revision, author.sets.len() as u64);
        let beat = author.heartbeat();
        prop_assert_eq!(running.applier.heartbeat(&beat), Heard::Level);
        check(&author, &running)?;
    }
}
