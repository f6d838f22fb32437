//! How entries are named in RocksDB. Numbers are big endian, so that names sort as what they name.

use atm_core::id::{Id, IdKind};
use atm_core::revocation::{Bucket, Run};

/// Names one whole set of revocations; a snapshot of a new epoch begins the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Generation(pub(super) u32);

impl Generation {
    pub(super) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    pub(super) fn first_key(self) -> [u8; 8] {
        bucket_key(self, Bucket(0))
    }

    pub(super) fn end_key(self) -> [u8; 8] {
        bucket_key(self.next(), Bucket(0))
    }
}

/// `generation (4) ‖ bucket (4)`: the name of a filter, and the beginning of all names in its bucket.
pub(super) fn bucket_key(generation: Generation, bucket: Bucket) -> [u8; 8] {
    (u64::from(generation.0) << 32 | u64::from(bucket.0)).to_be_bytes()
}

/// What no name in the bucket reaches.
pub(super) fn bucket_end(generation: Generation, bucket: Bucket) -> [u8; 8] {
    (u64::from(generation.0) << 32 | u64::from(bucket.0)).saturating_add(1).to_be_bytes()
}

pub(super) fn parse_bucket_key(key: &[u8]) -> Option<Bucket> {
    let (_, bucket) = key.get(..8)?.split_first_chunk::<4>()?;
    Some(Bucket(u32::from_be_bytes(bucket.try_into().ok()?)))
}

/// `generation (4) ‖ bucket (4) ‖ id (16)`
pub(super) fn revoked_key(generation: Generation, bucket: Bucket, id: &Id) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&bucket_key(generation, bucket));
    key[8..].copy_from_slice(id.as_bytes());
    key
}

/// `generation (4) ‖ bucket (4) ‖ run (8)`: the beginning of the names of what came in one run.
pub(super) fn run_key(generation: Generation, bucket: Bucket, run: Run) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&bucket_key(generation, bucket));
    key[8..].copy_from_slice(&run.0.to_be_bytes());
    key
}

/// `generation (4) ‖ bucket (4) ‖ run (8) ‖ id (16)`
pub(super) fn recent_key(generation: Generation, bucket: Bucket, run: Run, id: &Id) -> [u8; 32] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&run_key(generation, bucket, run));
    key[16..].copy_from_slice(id.as_bytes());
    key
}

pub(super) fn parse_recent_run(key: &[u8]) -> Option<Run> {
    Some(Run(u64::from_be_bytes(key.get(8..16)?.try_into().ok()?)))
}

/// The id that a name ends with.
pub(super) fn parse_id(key: &[u8]) -> Option<Id> {
    key.last_chunk().map(|id| Id::from_bytes(*id))
}

/// `kind (1) ‖ id (16)`
pub(super) fn watermark_key(kind: IdKind, id: &Id) -> [u8; 17] {
    let mut key = [0; 17];
    key[0] = kind as u8;
    key[1..].copy_from_slice(id.as_bytes());
    key
}

pub(super) fn parse_watermark_key(key: &[u8]) -> Option<(IdKind, Id)> {
    let (kind, id) = key.split_first()?;
    Some((IdKind::from_number(*kind)?, Id::from_bytes(id.try_into().ok()?)))
}
