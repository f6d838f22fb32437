//! Makes a snapshot of the state at the head.

use std::collections::HashMap;

use atm_core::id::{Id, IdKind};
use atm_core::revocation::{Bucket, Part, SetDigest};
use atm_core::time::UnixMillis;
use atm_proto::digests::StateDigests;
use atm_proto::signature::Domain;
use atm_proto::snapshot::{
    Content, MAX_SEGMENT_BYTES, Manifest, SEGMENT_TOKENS, Segment, value_row, watermark_row,
};

use super::{Shared, SnapshotError, StoredSnapshot, open};
use crate::feed::count;
use crate::store::log::{self, Head};
use crate::store::{StoreError, Transaction, enforcement, feed_state, transact};

/// Rows of one read.
const PAGE: u32 = 10_000;
/// Leading bits of an id by which segments are cut at most.
const MAX_BITS: u32 = 16;

/// The state at one head, in segments that are on disk.
#[derive(Debug)]
pub(in crate::feed) struct State {
    /// Where the log was.
    pub(in crate::feed) head: Head,
    time: UnixMillis,
    oldest: Bucket,
    root: [u8; 32],
    segments: Vec<Segment>,
}

impl State {
    /// The signed manifest of it, as the snapshot at `position`.
    pub(in crate::feed) fn signed(&self, shared: &Shared, position: &Head) -> Vec<u8> {
        let manifest = Manifest {
            realm_group: shared.settings.realm_group.clone(),
            epoch: position.epoch,
            revision: position.revision,
            digest: position.digest,
            time: self.time,
            oldest_bucket: self.oldest,
            state_digest: self.root,
            segments: self.segments.clone(),
        };
        shared.sign(Domain::SnapshotManifest, &manifest.encode())
    }
}

/// Makes a snapshot at the head, and keeps it. Parts that `before` holds already are not read again.
pub(super) async fn build(shared: &Shared, before: Option<&StoredSnapshot>) -> Result<(), SnapshotError> {
    let state = collect(shared, before).await?;
    let signed = state.signed(shared, &state.head);
    transact!(RowLocks: shared.store, |transaction| -> Result<(), StoreError> {
        feed_state::add_snapshot(transaction, &state.head, &signed, state.time).await
    })?;
    count(&shared.counters.snapshots_built);
    Ok(())
}

/// Writes the state at the head to segments. Parts that `before` holds already are not read again.
pub(in crate::feed) async fn collect(
    shared: &Shared,
    before: Option<&StoredSnapshot>,
) -> Result<State, SnapshotError> {
    let started = std::time::Instant::now();
    let now = shared.clock.wall();
    let oldest = Bucket::oldest_alive(now);
    let mut transaction = shared.store.begin_read().await?;
    let head = log::head(&mut transaction).await?;
    let mut digests = feed_state::digests(&mut transaction).await?;
    digests.drop_buckets_before(oldest);
    let before = before.map(open).transpose()?;
    let known = before.as_ref().map(Known::of).unwrap_or_default();
    let mut segments = values(shared, &mut transaction).await?;
    let mut reused = 0;
    for (part, digest) in digests.iter() {
        if let Some(unchanged) = known.part(shared, part, digest) {
            reused += unchanged.len();
            segments.extend(unchanged);
            continue;
        }
        let made = match part {
            Part::Tokens(bucket) => tokens(shared, &mut transaction, bucket, digest).await?,
            Part::Watermarks(kind) => watermarks(shared, &mut transaction, kind, digest).await?,
        };
        let sum = made.iter().fold(SetDigest::EMPTY, |sum, segment| sum.joined(segment.digest));
        if sum != digest {
            return Err(SnapshotError::Diverged { part: format!("{part:?}") });
        }
        segments.extend(made);
    }
    transaction.commit().await?;
    tracing::info!(
        revision = head.revision,
        segments = segments.len(),
        reused,
        milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "a snapshot was made"
    );
    Ok(State { head, time: now, oldest, root: digests.root(oldest), segments })
}

/// The parts of the snapshot before.
#[derive(Default)]
struct Known<'a> {
    digests: StateDigests,
    segments: HashMap<Part, Vec<&'a Segment>>,
}

impl<'a> Known<'a> {
    fn of(manifest: &'a Manifest) -> Self {
        let mut segments: HashMap<Part, Vec<&Segment>> = HashMap::new();
        for segment in &manifest.segments {
            if let Some(part) = segment.content.part() {
                segments.entry(part).or_default().push(segment);
            }
        }
        Self { digests: manifest.digests(), segments }
    }

    /// The segments of `part` if nothing in it has changed and all of them are at hand.
    fn part(&self, shared: &Shared, part: Part, digest: SetDigest) -> Option<Vec<Segment>> {
        let segments = self.segments.get(&part).filter(|_| self.digests.get(part) == digest)?;
        let at_hand = segments.iter().all(|segment| shared.segments.holds(&segment.sha256, segment.size));
        at_hand.then(|| segments.iter().map(|segment| (*segment).clone()).collect())
    }
}

/// Collects rows of one content into segments, cut where the leading bits of the ids change.
struct Cutter<'a> {
    shared: &'a Shared,
    content: Content,
    bits: u32,
    cell: Option<u32>,
    bytes: Vec<u8>,
    count: u64,
    digest: SetDigest,
    made: Vec<Segment>,
}

impl<'a> Cutter<'a> {
    fn new(shared: &'a Shared, content: Content, rows: u64) -> Self {
        let bits = (rows / SEGMENT_TOKENS).checked_ilog2().map_or(0, |log| log + 1).min(MAX_BITS);
        Self {
            shared,
            content,
            bits,
            cell: None,
            bytes: Vec::new(),
            count: 0,
            digest: SetDigest::EMPTY,
            made: Vec::new(),
        }
    }

    /// Adds a row; `digest` is that of the row alone.
    fn add(&mut self, id: &Id, row: &[u8], digest: SetDigest) -> Result<(), SnapshotError> {
        let [first, second, ..] = *id.as_bytes();
        let cell = (u32::from(first) << 8 | u32::from(second)) >> (16 - self.bits);
        let full = self.bytes.len() + row.len() > MAX_SEGMENT_BYTES;
        if full || self.cell.is_some_and(|current| current != cell) {
            self.cut()?;
        }
        self.cell = Some(cell);
        self.bytes.extend_from_slice(row);
        self.count += 1;
        self.digest = self.digest.joined(digest);
        Ok(())
    }

    fn cut(&mut self) -> Result<(), SnapshotError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let segment = Segment::of(self.content, &self.bytes, self.count, self.digest);
        if !self.shared.segments.holds(&segment.sha256, segment.size) {
            self.shared.segments.put(&segment.sha256, &self.bytes)?;
        }
        self.made.push(segment);
        self.bytes.clear();
        self.count = 0;
        self.digest = SetDigest::EMPTY;
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Segment>, SnapshotError> {
        self.cut()?;
        Ok(self.made)
    }
}

async fn tokens(
    shared: &Shared,
    transaction: &mut Transaction,
    bucket: Bucket,
    digest: SetDigest,
) -> Result<Vec<Segment>, SnapshotError> {
    let mut cutter = Cutter::new(shared, Content::Tokens(bucket), digest.count());
    let mut after = None;
    loop {
        let page = enforcement::bucket_after(transaction, bucket, after, PAGE).await?;
        let Some(last) = page.last() else { return cutter.finish() };
        after = Some(*last);
        for id in &page {
            cutter.add(id, id.as_bytes(), SetDigest::of_tokens([id]))?;
        }
    }
}

async fn watermarks(
    shared: &Shared,
    transaction: &mut Transaction,
    kind: IdKind,
    digest: SetDigest,
) -> Result<Vec<Segment>, SnapshotError> {
    let mut cutter = Cutter::new(shared, Content::Watermarks(kind), digest.count());
    let mut after = None;
    loop {
        let page = enforcement::watermarks_after(transaction, kind, after, PAGE).await?;
        let Some((last, _)) = page.last() else { return cutter.finish() };
        after = Some(*last);
        for (id, instant) in &page {
            let mut one = SetDigest::EMPTY;
            one.add_watermark(id, *instant);
            cutter.add(id, &watermark_row(id, *instant), one)?;
        }
    }
}

/// Key sets and policies, as few segments as they fit.
async fn values(shared: &Shared, transaction: &mut Transaction) -> Result<Vec<Segment>, SnapshotError> {
    let mut cutter = Cutter::new(shared, Content::Values, 0);
    for change in feed_state::values(transaction).await? {
        cutter.add(&Id::from_bytes([0; 16]), &value_row(&change), SetDigest::EMPTY)?;
    }
    cutter.finish()
}
