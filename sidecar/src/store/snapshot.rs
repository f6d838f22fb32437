//! Takes a whole snapshot in, or single segments to repair what diverged.
//!
//! A snapshot becomes a generation of its own beside the one in force: table files are written from the sorted ids and taken
//! in at once, and the filters are built on the way. Until it is all there and verified, nothing in force changes; then the
//! view is published, and one write batch makes it the generation of the next start. The old one is deleted when no view
//! looks at it any more.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use atm_core::id::Id;
use atm_core::revocation::{Bucket, FilterBuilder, RevocationIndex, Settled};
use atm_core::view::View;
use atm_proto::change::{self, Change};
use rocksdb::{IngestExternalFileOptions, Options, SstFileWriter, WriteBatch};

use super::confirmed::ConfirmedByDisk;
use super::keys::{Generation, revoked_key, watermark_key};
use super::settle::{SettleError, stopped};
use super::staging::{Segment, Staging, StagingError};
use super::{
    GENERATION, ISSUERS, META, POLICIES, POSITION, REVOKED, Store, StoreError, WATERMARKS, encode_position,
    family_options,
};
use crate::state::{Position, State};

/// Bytes of a table file, about.
const TABLE_BYTES: u64 = 64 << 20;
/// Ids between two looks at the size of a table file and at whether to stop.
const STRIDE: u32 = 16_384;

/// A snapshot whose segments are all staged.
#[derive(Debug)]
pub struct Snapshot {
    /// Holds the segments.
    pub staging: Staging,
    /// Every segment of the manifest, in any order.
    pub segments: Vec<Segment>,
    /// Where the log goes on behind it.
    pub position: Position,
    /// Everything but single tokens, whole: issuers, watermarks and policies.
    pub changes: Vec<Change>,
}

/// Why a staged snapshot was not taken. What is in force stays.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A segment is not what it was when it was verified; it is to be fetched again.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The database refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The segments' ids cannot be put in order: the manifest is wrong.
    #[error("snapshot: segments of bucket {} overlap", .0.0)]
    Overlap(Bucket),
    /// The sidecar is being stopped.
    #[error("stopping")]
    Stopped,
}

impl From<SettleError> for InstallError {
    fn from(error: SettleError) -> Self {
        match error {
            SettleError::Store(error) => Self::Store(error),
            SettleError::Stopped => Self::Stopped,
        }
    }
}

/// A snapshot that is on disk beside the generation in force.
#[derive(Debug)]
pub struct PreparedSnapshot {
    /// Where the log goes on behind it.
    pub position: Position,
    pub(super) confirmed: Arc<ConfirmedByDisk>,
    pub(super) changes: Vec<Change>,
    buckets: Vec<(Bucket, Settled)>,
    staging: Staging,
}

impl PreparedSnapshot {
    /// The state that the snapshot is, in the place of `current`. Policies that do not compile here leave those in force.
    pub fn state(&self, current: &State) -> State {
        let mut revocations = RevocationIndex::beginning_at(current.view.revocations.next_run());
        for (bucket, settled) in &self.buckets {
            revocations.join(*bucket, settled.clone());
        }
        let view = View { revocations, key_generation: current.view.key_generation + 1, ..View::default() };
        let mut next = State { view, position: self.position, verified: true, ..State::default() };
        for change in &self.changes {
            match change::apply(change, &mut next.view) {
                Ok(()) => {
                    if let Change::Policies { version, .. } = change {
                        next.policy_version = *version;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "keeping the policies in force");
                    next.view.policies = Arc::clone(&current.view.policies);
                    next.policy_version = current.policy_version;
                    next.policy_fault = Some(error.to_string().into());
                }
            }
        }
        next
    }

    /// What is left to be written once the state is in force.
    pub(super) fn into_commit(self, policies: bool) -> Commit {
        let Self { confirmed, position, changes, staging, .. } = self;
        Commit { confirmed, position, changes, policies, staging }
    }
}

/// Makes a prepared generation the one of the next start.
#[derive(Debug)]
pub(super) struct Commit {
    confirmed: Arc<ConfirmedByDisk>,
    pub(super) position: Position,
    changes: Vec<Change>,
    /// Whether the snapshot's policies are in force, and so to be saved.
    policies: bool,
    pub(super) staging: Staging,
}

impl Store {
    /// Brings a snapshot's tokens to the disk as a new generation, with their filters.
    pub(super) fn prepare(
        &self,
        snapshot: Snapshot,
        stop: &AtomicBool,
    ) -> Result<PreparedSnapshot, InstallError> {
        let Snapshot { staging, mut segments, position, changes } = snapshot;
        let generation = self.generation().next();
        self.forget_generations_after(self.generation())?;
        segments.sort_unstable_by_key(|segment| (segment.bucket, segment.part));
        let confirmed = Arc::new(self.confirming(generation));
        let options = family_options(REVOKED, &self.gauge.cache);
        let mut tables = Tables::new(self, &options, &staging, generation);
        let mut buckets = Vec::new();
        for segments in segments.chunk_by(|a, b| a.bucket == b.bucket) {
            let bucket = segments[0].bucket;
            let mut builder = FilterBuilder::default();
            for segment in segments {
                staging.read(segment, |id| {
                    builder.push(&id).map_err(|_| InstallError::Overlap(bucket))?;
                    tables.put(bucket, &id, stop)
                })?;
            }
            let (filter, digest) = builder.finish();
            let settled = Settled { filter: Arc::new(filter), ids: Arc::clone(&confirmed) as _, digest };
            self.save_filter(generation, bucket, &settled)?;
            buckets.push((bucket, settled));
        }
        tables.ingest()?;
        Ok(PreparedSnapshot { position, confirmed, changes, buckets, staging })
    }

    /// Joins the ids of single segments to the generation in force; gives the buckets' new filters.
    pub(super) fn repair(
        &self,
        staging: Staging,
        mut segments: Vec<Segment>,
        stop: &AtomicBool,
    ) -> Result<Vec<(Bucket, Settled)>, InstallError> {
        let generation = self.generation();
        segments.sort_unstable_by_key(|segment| (segment.bucket, segment.part));
        let options = family_options(REVOKED, &self.gauge.cache);
        let mut tables = Tables::new(self, &options, &staging, generation);
        for segment in &segments {
            staging.read(segment, |id| tables.put(segment.bucket, &id, stop))?;
        }
        tables.ingest()?;
        segments.dedup_by_key(|segment| segment.bucket);
        let mut buckets = Vec::new();
        for Segment { bucket, .. } in segments {
            let settled = self.build_filter(generation, bucket, stop)?;
            self.save_filter(generation, bucket, &settled)?;
            buckets.push((bucket, settled));
        }
        staging.discard();
        Ok(buckets)
    }

    /// In one write batch: the generation, and everything else that the snapshot says. Gives what confirmed the generation
    /// before.
    pub(super) fn commit(&self, commit: &Commit) -> Result<Arc<ConfirmedByDisk>, StoreError> {
        let generation = commit.confirmed.generation;
        let mut batch = WriteBatch::default();
        let (issuers, watermarks) = (self.family(ISSUERS)?, self.family(WATERMARKS)?);
        // No issuer's name and no kind begins with this byte.
        batch.delete_range_cf(issuers, &[][..], &[0xff][..]);
        batch.delete_range_cf(watermarks, &[][..], &[0xff][..]);
        for change in &commit.changes {
            match change {
                Change::IssuerKeys { issuer, keys, .. } => {
                    if !keys.is_empty() {
                        batch.put_cf(issuers, issuer, change.encode());
                    }
                }
                Change::Watermarks { kind, entries } => {
                    for (id, instant) in entries {
                        batch.put_cf(watermarks, watermark_key(*kind, id), instant.0.to_be_bytes());
                    }
                }
                Change::Policies { .. } if commit.policies => {
                    batch.put_cf(self.family(META)?, POLICIES, change.encode());
                }
                Change::RevokedTokens { .. } | Change::Policies { .. } => {}
            }
        }
        let meta = self.family(META)?;
        batch.put_cf(meta, POSITION, encode_position(&commit.position));
        batch.put_cf(meta, GENERATION, generation.0.to_be_bytes());
        self.write(batch)?;
        Ok(self.begin_generation(Arc::clone(&commit.confirmed)))
    }
}

/// Writes table files from ids that ascend by bucket and id, and takes them in.
struct Tables<'o> {
    store: &'o Store,
    options: &'o Options,
    directory: PathBuf,
    generation: Generation,
    written: Vec<PathBuf>,
    current: Option<SstFileWriter<'o>>,
    since_look: u32,
}

impl<'o> Tables<'o> {
    fn new(store: &'o Store, options: &'o Options, staging: &Staging, generation: Generation) -> Self {
        let directory = staging.directory().to_owned();
        Self { store, options, directory, generation, written: Vec::new(), current: None, since_look: 0 }
    }

    fn put(&mut self, bucket: Bucket, id: &Id, stop: &AtomicBool) -> Result<(), InstallError> {
        self.since_look += 1;
        if self.since_look >= STRIDE {
            self.since_look = 0;
            stopped(stop)?;
            if self.current.as_ref().is_some_and(|table| table.file_size() >= TABLE_BYTES) {
                self.close()?;
            }
        }
        let key = revoked_key(self.generation, bucket, id);
        let refused = |error: rocksdb::Error| match error.kind() {
            rocksdb::ErrorKind::InvalidArgument => InstallError::Overlap(bucket),
            _ => self.store.system(&error).into(),
        };
        if let Some(table) = &mut self.current {
            return table.put(key, []).map_err(refused);
        }
        let path = self.directory.join(format!("{:05}.sst", self.written.len()));
        let mut table = SstFileWriter::create(self.options);
        table.open(&path).map_err(refused)?;
        table.put(key, []).map_err(refused)?;
        self.written.push(path);
        self.current = Some(table);
        Ok(())
    }

    fn close(&mut self) -> Result<(), StoreError> {
        match self.current.take() {
            Some(mut table) => table.finish().map_err(|error| self.store.system(&error)),
            None => Ok(()),
        }
    }

    /// All files or none.
    fn ingest(mut self) -> Result<(), StoreError> {
        self.close()?;
        if self.written.is_empty() {
            return Ok(());
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let family = self.store.family(REVOKED)?;
        let taken = self.store.db.ingest_external_file_cf_opts(family, &options, self.written);
        taken.map_err(|error| self.store.system(&error))
    }
}
