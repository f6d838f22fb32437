//! What ten million revocations cost a sidecar: taking a snapshot in, starting again, looking up, and a million more at once;
//! in time, and in resident memory of a process that does nothing else. And what stays of days on end, played fast, in which
//! every hour's revocations expire and as many come.
//!
//! Each step is a child process over the same directory. `ATM_BENCH_STORE_IDS` (10000000) and `ATM_BENCH_STORE_BURST`
//! (1000000) set the sizes, `ATM_BENCH_STORE_HOURS` (24) how long it goes on, `ATM_BENCH_STORE_CACHE_MIB` (64) the block cache.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a benchmark that cannot go on stops

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use atm_core::id::Id;
use atm_core::revocation::{Bucket, SetDigest};
use atm_core::time::UnixMillis;
use atm_proto::change::{Change, Digest, Epoch};
use atm_sidecar::state::{self, Position, State, StatePublisher, StateReader};
use atm_sidecar::store::{
    Saved, Segment, Settlement, Snapshot, SnapshotName, Staging, Store, Writer, start_writer,
};
use aws_lc_rs::digest::{SHA256, digest};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BUCKETS: u64 = 24;
const FIRST_BUCKET: u32 = 480_000;
const EPOCH: Epoch = Epoch::from_bytes([1; 16]);
/// Ids of one change set.
const IDS_A_SET: u64 = 4_096;
const LOOK_UPS: u64 = 2_000_000;
/// Look-ups between two looks at the clock.
const STRIDE: u64 = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match arguments.iter().position(|argument| argument == "--step") {
        Some(at) => {
            let (step, directory) = (&arguments[at + 1], Path::new(&arguments[at + 2]));
            runtime.block_on(async {
                match &**step {
                    "install" => install(directory).await,
                    "restart" => restart(directory),
                    "burst" => burst(directory).await,
                    "churn" => churn(directory).await,
                    other => panic!("no step {other}"),
                }
            });
        }
        None => parent(),
    }
}

fn parent() {
    let directory = tempfile::tempdir().unwrap();
    eprintln!("writing segments of {} ids", ids());
    write_segments(directory.path());
    for step in ["install", "restart", "burst", "restart", "churn"] {
        let own = std::env::current_exe().unwrap();
        let status = Command::new(own).args(["--step", step]).arg(directory.path()).status().unwrap();
        assert!(status.success(), "{step} failed");
    }
}

fn size(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a whole number")))
}

fn ids() -> u64 {
    size("ATM_BENCH_STORE_IDS", 10_000_000)
}

fn row(name: &str, value: f64, unit: &str) {
    println!("{name:<64} {value:>10.2} {unit}");
}

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

fn bucket_of(number: u64) -> Bucket {
    Bucket(FIRST_BUCKET + u32::try_from(number % BUCKETS).unwrap())
}

fn segment_file(directory: &Path, bucket: u64) -> PathBuf {
    directory.join(format!("segment-{bucket}"))
}

fn write_segments(directory: &Path) {
    for bucket in 0..BUCKETS {
        let mut members: Vec<_> =
            (bucket..ids()).step_by(usize::try_from(BUCKETS).unwrap()).map(spread).collect();
        members.sort_unstable();
        let bytes: Vec<u8> = members.iter().flat_map(|id| *id.as_bytes()).collect();
        std::fs::write(segment_file(directory, bucket), bytes).unwrap();
    }
}

/// Processor time of this process so far, in seconds, of all its threads.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime are fields 14 and 15 of all, in hundredths of a second.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// `VmRSS` or `VmHWM` of this process, in MiB.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
}

/// A sidecar's state and store, without anything else of it.
struct Running {
    publisher: StatePublisher,
    reader: StateReader,
    writer: Writer,
    thread: std::thread::JoinHandle<()>,
}

impl Running {
    fn start(directory: &Path) -> Self {
        let cache = usize::try_from(size("ATM_BENCH_STORE_CACHE_MIB", 64)).unwrap() << 20;
        let store = Store::open(&directory.join("db"), cache).unwrap();
        let loaded = store.load().unwrap();
        let (publisher, reader) = state::channel(loaded.state, None, UnixMillis(0));
        let (writer, thread) = start_writer(store, reader.clone()).unwrap();
        Self { publisher, reader, writer, thread }
    }

    fn state(&self) -> State {
        State::clone(&self.reader.load())
    }

    /// Applies one change set and has settled what is due, as the feed does.
    fn revoke(&mut self, bucket: Bucket, ids: Vec<Id>) {
        let mut state = self.state();
        state.view.revocations.revoke_tokens(bucket, &ids);
        state.position.revision += 1;
        let position = state.position;
        self.publisher.publish(state);
        self.writer.save(Saved {
            changes: vec![Change::RevokedTokens { bucket, ids }],
            position,
            policies: true,
        });
        self.settle_due();
    }

    fn settle_due(&mut self) {
        let mut state = self.state();
        for bucket in state.view.revocations.due() {
            if self.writer.settles()
                && let Some(run) = state.view.revocations.seal(bucket)
            {
                self.writer.settle(bucket, run);
            }
        }
        self.publisher.publish(state);
    }

    fn take(&mut self, settlement: Settlement) {
        match settlement {
            Settlement::Index(settlement) => {
                let mut state = self.state();
                settlement.apply(&mut state.view.revocations);
                self.publisher.publish(state);
                self.settle_due();
            }
            Settlement::Snapshot(snapshot) => {
                self.publisher.publish(snapshot.state(&self.state()));
                self.writer.commit(*snapshot, true);
            }
            Settlement::Failed(error) => panic!("{error}"),
            Settlement::Scrubbed(_) | Settlement::ScrubFailed(_) => unreachable!("nobody asked for it"),
        }
    }

    /// The time of the buckets before `oldest` has passed.
    fn forget_before(&mut self, oldest: Bucket) {
        let mut state = self.state();
        state.view.revocations.drop_buckets_before(oldest);
        self.publisher.publish(state);
        self.writer.forget_before(oldest);
    }

    fn stop(self) {
        drop(self.writer);
        self.thread.join().unwrap();
    }
}

/// From raw segments to a set in force, and on disk for the next start.
async fn install(directory: &Path) {
    let mut running = Running::start(directory);
    row("resident, empty", memory("VmRSS"), "MiB");
    let segments: Vec<_> = (0..BUCKETS).map(|bucket| describe(directory, bucket)).collect();
    let name = SnapshotName { epoch: EPOCH, revision: 1, manifest: Digest::of(b"manifest") };
    let (started, spent) = (Instant::now(), processor());
    let staging = Staging::open(running.writer.staging_path(), &name).unwrap();
    for (bucket, segment) in segments.iter().enumerate() {
        let mut writing = staging.begin(segment).unwrap();
        let bytes = std::fs::read(segment_file(directory, bucket as u64)).unwrap();
        for chunk in bytes.chunks(128 << 10) {
            writing.write(chunk).unwrap();
        }
        writing.finish().unwrap();
    }
    row("snapshot: segments staged and verified", started.elapsed().as_secs_f64(), "s");
    let position = Position { epoch: Some(EPOCH), revision: 1, digest: Digest::ZERO };
    assert!(running.writer.install(Snapshot { staging, segments, position, changes: Vec::new() }));
    let settlement = running.writer.settled().await;
    running.take(settlement);
    row("snapshot: local bytes to in force", started.elapsed().as_secs_f64(), "s");
    row("snapshot: processor time of that", processor() - spent, "s");
    let mut kept = running.writer.kept();
    kept.wait_for(|kept| kept.revision == 1).await.unwrap();
    row("snapshot: local bytes to kept for the next start", started.elapsed().as_secs_f64(), "s");
    row("snapshot: resident behind it", memory("VmRSS"), "MiB");
    row("snapshot: resident at most", memory("VmHWM"), "MiB");
    running.stop();
}

fn describe(directory: &Path, bucket: u64) -> Segment {
    let bytes = std::fs::read(segment_file(directory, bucket)).unwrap();
    let members: Vec<_> = bytes.as_chunks::<16>().0.iter().map(|id| Id::from_bytes(*id)).collect();
    let sha256 = digest(&SHA256, &bytes).as_ref().try_into().unwrap();
    Segment { bucket: bucket_of(bucket), part: 0, digest: SetDigest::of_tokens(&members), sha256 }
}

fn restart(directory: &Path) {
    let started = Instant::now();
    let mut running = Running::start(directory);
    row("restart: until the set is in force", started.elapsed().as_secs_f64(), "s");
    row("restart: processor time of that", processor(), "s");
    row("restart: resident", memory("VmRSS"), "MiB");
    let sizes = running.reader.load().view.revocations.sizes();
    let held = sizes.front_ids + sizes.settled_ids;
    #[expect(clippy::cast_precision_loss, reason = "a figure with two digits")]
    let bytes = (sizes.filter_bytes + sizes.front_bytes) as f64 / held as f64;
    row(&format!("index: {held} ids"), bytes, "bytes an id");

    let before = running.reader.store_numbers().unwrap();
    let (median, p99) = misses(&running.reader, LOOK_UPS, &AtomicBool::new(true));
    let after = running.reader.store_numbers().unwrap();
    row("look-up of what is not revoked: median", median, "ns");
    row("look-up of what is not revoked: p99", p99, "ns");
    let asked = after.confirmations - before.confirmations;
    row(&format!("the disk was asked, of {LOOK_UPS}"), f64::from(u32::try_from(asked).unwrap()), "times");

    let started = Instant::now();
    let hits = 200_000;
    for number in 0..hits {
        let number = number * 7_919 % ids();
        let state = running.reader.borrow();
        assert!(state.view.revocations.is_token_revoked(bucket_of(number), &spread(number)).unwrap());
    }
    let each = started.elapsed() / u32::try_from(hits).unwrap();
    row("look-up of what is revoked: mean", each.as_secs_f64() * 1e6, "µs");
    row("resident behind the look-ups", memory("VmRSS"), "MiB");

    let mut applied = Vec::new();
    for number in 0..1_000 {
        let number = u64::MAX / 8 + number;
        let started = Instant::now();
        running.revoke(bucket_of(number), vec![spread(number)]);
        assert!(
            running
                .reader
                .load()
                .view
                .revocations
                .is_token_revoked(bucket_of(number), &spread(number))
                .unwrap()
        );
        applied.push(started.elapsed());
    }
    applied.sort_unstable();
    row("one revocation applied and published: median", applied[500].as_secs_f64() * 1e6, "µs");
    row("one revocation applied and published: p99", applied[990].as_secs_f64() * 1e6, "µs");
    running.stop();
}

/// A million more, in sets of 4,096, while another thread goes on looking up.
async fn burst(directory: &Path) {
    let mut running = Running::start(directory);
    let count = size("ATM_BENCH_STORE_BURST", 1_000_000);
    let (median, p99) = misses(&running.reader, LOOK_UPS / 4, &AtomicBool::new(true));
    row("burst: look-ups before it: median", median, "ns");
    row("burst: look-ups before it: p99", p99, "ns");
    let going = std::sync::Arc::new(AtomicBool::new(true));
    let looking = {
        let (reader, going) = (running.reader.clone(), std::sync::Arc::clone(&going));
        std::thread::spawn(move || misses(&reader, u64::MAX, &going))
    };
    let first = u64::MAX / 16;
    let mut sets: Vec<Vec<Id>> = (0..count.div_ceil(IDS_A_SET))
        .map(|set| {
            let mut members: Vec<_> = (0..IDS_A_SET).map(|n| spread(first + (set * IDS_A_SET + n))).collect();
            members.sort_unstable();
            members
        })
        .collect();
    let last = sets.len() as u64;
    let started = Instant::now();
    for (set, members) in sets.drain(..).enumerate() {
        running.revoke(bucket_of(set as u64), members);
        while let Some(settlement) = running.writer.try_settled() {
            running.take(settlement);
        }
    }
    row(&format!("burst: {count} applied and in force"), started.elapsed().as_secs_f64(), "s");
    row("burst: resident right behind it", memory("VmRSS"), "MiB");
    let revision = running.reader.load().position.revision;
    let mut kept = running.writer.kept();
    kept.wait_for(|kept| kept.revision == revision).await.unwrap();
    row("burst: on disk", started.elapsed().as_secs_f64(), "s");
    while let Ok(settlement) = tokio::time::timeout(Duration::from_secs(5), running.writer.settled()).await {
        running.take(settlement);
    }
    row("burst: settled, and five quiet seconds", started.elapsed().as_secs_f64(), "s");
    going.store(false, Ordering::Relaxed);
    let (median, p99) = looking.join().unwrap();
    row("burst: look-ups meanwhile: median", median, "ns");
    row("burst: look-ups meanwhile: p99", p99, "ns");
    row("burst: resident once settled", memory("VmRSS"), "MiB");
    row("burst: resident at most", memory("VmHWM"), "MiB");
    let sizes = running.reader.load().view.revocations.sizes();
    eprintln!("{sizes:?}, {:?}", running.reader.store_numbers().unwrap());
    for set in 0..last {
        let number = first + set * IDS_A_SET;
        assert!(
            running.reader.load().view.revocations.is_token_revoked(bucket_of(set), &spread(number)).unwrap()
        );
    }
    running.stop();
}

/// Hour after hour the oldest bucket's time has passed, and a new bucket gets as many: all that is held is replaced each day.
async fn churn(directory: &Path) {
    let mut running = Running::start(directory);
    let (hours, an_hour) = (size("ATM_BENCH_STORE_HOURS", 24), ids() / BUCKETS);
    let first = u64::MAX / 32;
    row("churn: resident before it", memory("VmRSS"), "MiB");
    row("churn: on disk before it", on_disk(&directory.join("db")), "MiB");
    let (started, mut most) = (Instant::now(), memory("VmRSS"));
    let bucket_of_hour = |hour: u64| Bucket(FIRST_BUCKET + u32::try_from(BUCKETS + hour).unwrap());
    for hour in 0..hours {
        let bucket = bucket_of_hour(hour);
        running.forget_before(Bucket(FIRST_BUCKET + u32::try_from(hour + 1).unwrap()));
        let numbers: Vec<u64> = (first + hour * an_hour..first + (hour + 1) * an_hour).collect();
        for set in numbers.chunks(usize::try_from(IDS_A_SET).unwrap()) {
            let mut members: Vec<_> = set.iter().copied().map(spread).collect();
            members.sort_unstable();
            running.revoke(bucket, members);
            while let Some(settlement) = running.writer.try_settled() {
                running.take(settlement);
            }
            most = most.max(memory("VmRSS"));
        }
        let revision = running.reader.load().position.revision;
        running.writer.kept().wait_for(|kept| kept.revision == revision).await.unwrap();
        // An hour has time for what is due: then less than a sixteenth lies in front of the filters.
        while running.reader.load().view.revocations.sizes().front_ids * 16 > ids() {
            let settlement = tokio::time::timeout(Duration::from_secs(30), running.writer.settled()).await;
            running.take(settlement.expect("what is due is settled"));
        }
        if (hour + 1) % 24 == 0 || hour + 1 == hours {
            let at = format!("churn: {} hours, {} replaced:", hour + 1, (hour + 1) * an_hour);
            row(&format!("{at} resident"), memory("VmRSS"), "MiB");
            row(&format!("{at} on disk"), on_disk(&directory.join("db")), "MiB");
            let sizes = running.reader.load().view.revocations.sizes();
            eprintln!("{sizes:?}, {:?}", running.reader.store_numbers().unwrap());
        }
    }
    row("churn: resident at most", most, "MiB");
    row("churn: taken", started.elapsed().as_secs_f64(), "s");
    let held = running.reader.load();
    let is_revoked =
        |hour, number| held.view.revocations.is_token_revoked(bucket_of_hour(hour), &spread(number)).unwrap();
    assert!(is_revoked(hours - 1, first + hours * an_hour - 1), "the last of the last hour");
    assert!(hours <= BUCKETS || !is_revoked(0, first), "what has expired is forgotten");
    drop(held);
    running.stop();
}

/// What the files of the directory take, in MiB.
fn on_disk(directory: &Path) -> f64 {
    let entries = std::fs::read_dir(directory).unwrap().filter_map(Result::ok);
    let bytes: u64 = entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a figure with two digits")]
    let mib = bytes as f64 / 1_048_576.0;
    mib
}

/// Median and 99th percentile of looking up ids that are not revoked, in nanoseconds each: of the means over 64 at a time.
fn misses(reader: &StateReader, count: u64, going: &AtomicBool) -> (f64, f64) {
    let mut means = Vec::new();
    let mut number = u64::MAX / 2;
    while number - u64::MAX / 2 < count && going.load(Ordering::Relaxed) {
        let probes: Vec<_> =
            (number..number + STRIDE).map(|number| (bucket_of(number), spread(number))).collect();
        number += STRIDE;
        let started = Instant::now();
        for (bucket, id) in &probes {
            let state = reader.borrow();
            black_box(state.view.revocations.is_token_revoked(*bucket, id).unwrap());
        }
        #[expect(clippy::cast_precision_loss, reason = "64")]
        means.push(started.elapsed().as_secs_f64() * 1e9 / STRIDE as f64);
    }
    means.sort_unstable_by(f64::total_cmp);
    (means[means.len() / 2], means[means.len() * 99 / 100])
}
