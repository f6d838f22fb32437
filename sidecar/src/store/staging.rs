//! Brings the segments of one snapshot together on disk and verifies each, before any of it is used.
//!
//! A snapshot is announced by a signed manifest, which names its segments: sorted ids of one bucket, 16 raw bytes each,
//! nothing between them. They may come in any order and from anywhere. What a restart interrupts goes on where it was:
//!
//! ```text
//! let staging = Staging::open(&writer.staging_path(), &snapshot)?;   // discards what is of another snapshot
//! for segment in manifest.segments() {
//!     if staging.has(segment) { continue; }
//!     let mut writing = staging.begin(segment)?;                      // bytes of an interrupted attempt are kept:
//!     fetch(segment, from = writing.offset(), |bytes| writing.write(bytes))?;
//!     writing.finish()?;                                              // count, order, SHA-256 and digest, or all of it is discarded
//! }
//! writer.install(Snapshot { staging, segments, position, changes });  // and then what `Writer::settled` gives
//! ```
//!
//! Everything here blocks on the disk: call it from a thread that may.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use atm_core::id::Id;
use atm_core::revocation::{Bucket, SetDigest};
use atm_proto::change::{Digest, Epoch};
use aws_lc_rs::digest::{Context, SHA256};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 18;
const ID_BYTES: usize = 16;

/// Which snapshot segments are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotName {
    /// The log's life.
    pub epoch: Epoch,
    /// The revision that the snapshot is of.
    pub revision: u64,
    /// Over the manifest's bytes.
    pub manifest: Digest,
}

/// A run of ids of one bucket, as the manifest describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Whose tokens they are.
    pub bucket: Bucket,
    /// Its place among the segments of its bucket, from 0; the ids of a later one are above those of an earlier one.
    pub part: u32,
    /// Of the ids, and how many there are.
    pub digest: SetDigest,
    /// Over the raw bytes.
    pub sha256: [u8; 32],
}

impl Segment {
    /// Length of the raw ids.
    pub fn bytes(&self) -> u64 {
        self.digest.count() * ID_BYTES as u64
    }
}

/// Why a segment was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The disk refuses; the attempt may be repeated.
    #[error("snapshot: {}: {source}; check permissions and free space", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The bytes are not the segment that the manifest names. They were discarded: fetch them again, from elsewhere.
    #[error("snapshot: segment {part} of bucket {}: {problem}; discarded", bucket.0)]
    Wrong {
        /// The segment's bucket.
        bucket: Bucket,
        /// Its place in the bucket.
        part: u32,
        /// What is wrong.
        problem: &'static str,
    },
}

/// The verified segments of one snapshot, as far as they are here.
#[derive(Debug)]
pub struct Staging {
    directory: PathBuf,
}

impl Staging {
    /// The segments of `snapshot` under `path`. Those of other snapshots are deleted.
    pub fn open(path: &Path, snapshot: &SnapshotName) -> Result<Self, StagingError> {
        let own = format!(
            "{}-{}-{}",
            snapshot.epoch,
            snapshot.revision,
            hex::encode(&snapshot.manifest.as_bytes()[..8])
        );
        let directory = path.join(&own);
        fs::create_dir_all(&directory).map_err(|source| disk(&directory, source))?;
        for entry in fs::read_dir(path).map_err(|source| disk(path, source))? {
            let entry = entry.map_err(|source| disk(path, source))?;
            if entry.file_name().to_str() != Some(&own) {
                fs::remove_dir_all(entry.path()).map_err(|source| disk(&entry.path(), source))?;
            }
        }
        Ok(Self { directory })
    }

    /// Whether the segment is here and was verified.
    pub fn has(&self, segment: &Segment) -> bool {
        fs::metadata(self.verified(segment)).is_ok_and(|found| found.len() == segment.bytes())
    }

    /// Begins the segment, or goes on with it: what [`SegmentWriter::offset`] says is wanted next.
    pub fn begin(&self, segment: &Segment) -> Result<SegmentWriter, StagingError> {
        let path = self.verified(segment).with_extension("part");
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let file = opened.map_err(|source| disk(&path, source))?;
        let mut offset = file.metadata().map_err(|source| disk(&path, source))?.len();
        if offset > segment.bytes() {
            file.set_len(0).map_err(|source| disk(&path, source))?;
            offset = 0;
        }
        Ok(SegmentWriter { segment: *segment, path, verified: self.verified(segment), file, offset })
    }

    /// Deletes everything.
    pub fn discard(self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "a snapshot's segments stay on disk");
        }
    }

    /// Where the segments lie.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Shows the segment's ids to `visit`, in order, and verifies them once more: the disk may have changed them.
    pub(super) fn read<E: From<StagingError>>(
        &self,
        segment: &Segment,
        visit: impl FnMut(Id) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = self.verified(segment);
        let result = read(&path, segment, visit);
        if result.is_err() {
            let _ = fs::remove_file(&path);
        }
        result
    }

    /// The name carries the hash: a verified file is of exactly the segment that is asked for.
    fn verified(&self, segment: &Segment) -> PathBuf {
        let hash = hex::encode(&segment.sha256[..8]);
        self.directory.join(format!("{:010}-{:05}-{hash}.ids", segment.bucket.0, segment.part))
    }
}

/// Takes the bytes of one segment.
#[derive(Debug)]
pub struct SegmentWriter {
    segment: Segment,
    path: PathBuf,
    verified: PathBuf,
    file: File,
    offset: u64,
}

impl SegmentWriter {
    /// How many bytes of the segment are here.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Adds the bytes that follow. More than the segment has are refused.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StagingError> {
        if self.offset + bytes.len() as u64 > self.segment.bytes() {
            let _ = fs::remove_file(&self.path);
            return Err(wrong(&self.segment, "is longer than its manifest says"));
        }
        self.file.write_all(bytes).map_err(|source| disk(&self.path, source))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Verifies the whole segment. What is not exactly the manifest's is deleted; a segment that is only incomplete is kept, to
    /// be gone on with.
    pub fn finish(self) -> Result<(), StagingError> {
        if self.offset < self.segment.bytes() {
            return Err(wrong(&self.segment, "is incomplete"));
        }
        self.file.sync_data().map_err(|source| disk(&self.path, source))?;
        if let Err(error) = read(&self.path, &self.segment, |_| Ok::<_, StagingError>(())) {
            let _ = fs::remove_file(&self.path);
            return Err(error);
        }
        fs::rename(&self.path, &self.verified).map_err(|source| disk(&self.verified, source))
    }
}

fn read<E: From<StagingError>>(
    path: &Path,
    segment: &Segment,
    mut visit: impl FnMut(Id) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |source| disk(path, source);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut digest, mut last) = (Context::new(&SHA256), SetDigest::EMPTY, None);
    let mut left = segment.bytes();
    let mut buffer = vec![0; CHUNK];
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let chunk = &mut buffer[..wanted];
        file.read_exact(chunk).map_err(failed)?;
        left -= wanted as u64;
        hash.update(chunk);
        for id in chunk.as_chunks::<ID_BYTES>().0 {
            let id = Id::from_bytes(*id);
            if last.is_some_and(|last| last >= id) {
                return Err(wrong(segment, "does not ascend").into());
            }
            last = Some(id);
            digest.add_token(&id);
            visit(id)?;
        }
    }
    if hash.finish().as_ref() != segment.sha256 {
        return Err(wrong(segment, "is not of the manifest's SHA-256").into());
    }
    if digest != segment.digest {
        return Err(wrong(segment, "is not of the manifest's digest").into());
    }
    Ok(())
}

fn disk(path: &Path, source: io::Error) -> StagingError {
    StagingError::Disk { path: path.to_owned(), source }
}

fn wrong(segment: &Segment, problem: &'static str) -> StagingError {
    StagingError::Wrong { bucket: segment.bucket, part: segment.part, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: std::ops::Range<u64>) -> Vec<u8> {
        numbers.flat_map(|number| [[0; 8], number.to_be_bytes()].concat()).collect()
    }

    fn segment(bytes: &[u8]) -> Segment {
        let ids: Vec<_> = bytes.as_chunks::<16>().0.iter().map(|id| Id::from_bytes(*id)).collect();
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(aws_lc_rs::digest::digest(&SHA256, bytes).as_ref());
        Segment { bucket: Bucket(3), part: 0, digest: SetDigest::of_tokens(&ids), sha256 }
    }

    fn name(revision: u64) -> SnapshotName {
        SnapshotName { epoch: Epoch::from_bytes([1; 16]), revision, manifest: Digest::of(b"manifest") }
    }

    #[test]
    fn a_segment_is_there_once_it_is_whole_and_verified() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = ids(0..1_000);
        let segment = segment(&bytes);
        {
            let staging = Staging::open(directory.path(), &name(7)).unwrap();
            let mut writing = staging.begin(&segment).unwrap();
            writing.write(&bytes[..5_003]).unwrap();
            assert!(matches!(writing.finish(), Err(StagingError::Wrong { problem: "is incomplete", .. })));
            assert!(!staging.has(&segment));
        }
        // As after a restart: it goes on where it was.
        let staging = Staging::open(directory.path(), &name(7)).unwrap();
        let mut writing = staging.begin(&segment).unwrap();
        assert_eq!(writing.offset(), 5_003);
        writing.write(&bytes[5_003..]).unwrap();
        writing.finish().unwrap();
        assert!(staging.has(&segment));
        let mut read: Vec<u8> = Vec::new();
        staging
            .read(&segment, |id| {
                read.extend(id.as_bytes());
                Ok::<_, StagingError>(())
            })
            .unwrap();
        assert_eq!(read, bytes);
        let other = Staging::open(directory.path(), &name(8)).unwrap();
        assert!(!other.has(&segment), "another snapshot begins empty");
        assert!(!staging.has(&segment), "and the one before is gone");
    }

    #[test]
    fn wrong_bytes_are_discarded_and_can_be_fetched_again() {
        let directory = tempfile::tempdir().unwrap();
        let staging = Staging::open(directory.path(), &name(7)).unwrap();
        let bytes = ids(0..100);
        let good = segment(&bytes);
        let mut swapped = bytes.clone();
        swapped[..32].rotate_left(16);
        let mut flipped = bytes.clone();
        flipped[15] ^= 1;
        for wrong in [swapped, flipped] {
            let mut writing = staging.begin(&good).unwrap();
            assert_eq!(writing.offset(), 0);
            writing.write(&wrong).unwrap();
            assert!(matches!(writing.finish(), Err(StagingError::Wrong { .. })));
            assert!(!staging.has(&good));
        }
        let mut digest_of_others = good;
        digest_of_others.digest = segment(&ids(1..101)).digest;
        let mut writing = staging.begin(&digest_of_others).unwrap();
        writing.write(&bytes).unwrap();
        assert!(matches!(writing.finish(), Err(StagingError::Wrong { .. })));
        let mut writing = staging.begin(&good).unwrap();
        assert!(matches!(writing.write(&ids(0..101)), Err(StagingError::Wrong { .. })));
        let mut writing = staging.begin(&good).unwrap();
        writing.write(&bytes).unwrap();
        writing.finish().unwrap();
        // The disk changes it later: found when it is used.
        let file = staging.verified(&good);
        let mut damaged = fs::read(&file).unwrap();
        damaged[99] ^= 1;
        fs::write(&file, damaged).unwrap();
        assert!(staging.read(&good, |_| Ok::<_, StagingError>(())).is_err());
        assert!(!staging.has(&good));
    }
}
