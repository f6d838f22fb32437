//! Segments as files, named by the SHA-256 of what they hold.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use atm_proto::snapshot::MAX_SEGMENT_BYTES;

use super::SnapshotError;

/// The SHA-256 of a segment.
pub type SegmentName = [u8; 32];

/// A directory of segments.
#[derive(Debug, Clone)]
pub(in crate::feed) struct SegmentFiles(PathBuf);

impl SegmentFiles {
    pub(in crate::feed) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn path(&self, name: &SegmentName) -> PathBuf {
        self.0.join(hex::encode(name))
    }

    /// Whether there is a file of that name and size. Whether it is whole, its reader finds out.
    pub(super) fn holds(&self, name: &SegmentName, size: u64) -> bool {
        std::fs::metadata(self.path(name)).is_ok_and(|found| found.len() == size)
    }

    /// Writes a segment; it is there whole or not at all, after a power cut too.
    pub(super) fn put(&self, name: &SegmentName, bytes: &[u8]) -> Result<(), SnapshotError> {
        let path = self.path(name);
        let write = || {
            std::fs::create_dir_all(&self.0)?;
            let beside = path.with_extension("part");
            let mut file = std::fs::File::create(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)
        };
        write().map_err(|source| SnapshotError::File { path: path.clone(), source })
    }

    /// The bytes of a segment; none where there is no such file.
    pub(in crate::feed) fn get(&self, name: &SegmentName) -> Result<Option<Vec<u8>>, SnapshotError> {
        let path = self.path(name);
        match std::fs::metadata(&path) {
            Ok(found) if found.len() <= MAX_SEGMENT_BYTES as u64 => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SnapshotError::File { path, source }),
        }
        std::fs::read(&path).map(Some).map_err(|source| SnapshotError::File { path, source })
    }

    /// Removes every segment that is not `named`.
    pub(super) fn retain(&self, named: &HashSet<SegmentName>) -> Result<(), SnapshotError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| SnapshotError::File { path, source }
        };
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()), // another process builds
            Err(source) => return Err(failed(&self.0)(source)),
        };
        for entry in entries {
            let path = entry.map_err(failed(&self.0))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let mut bytes = SegmentName::default();
            // What is no segment of ours is left alone.
            let ours = hex::decode_to_slice(name.trim_end_matches(".part"), &mut bytes).is_ok();
            if ours && (name.len() > 64 || !named.contains(&bytes)) {
                std::fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
        Ok(())
    }
}
