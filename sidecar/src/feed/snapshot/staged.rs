//! The ids of a large snapshot, on disk instead of in memory.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use atm_core::revocation::Bucket;
use atm_proto::snapshot::{Content, Segment};
use futures::{StreamExt, TryStreamExt};

use super::{LoadError, Source, fetch};
use crate::store::{self, SnapshotName, Staging, StagingError};

/// Bytes of ids from which on they are staged on disk rather than applied row by row.
const STAGED_FROM: u64 = 256 << 10;
/// Segments that are staged at once.
const STAGED_AT_ONCE: usize = 2;

/// Segments of ids that lie on disk, each verified.
#[derive(Debug)]
pub(in crate::feed) struct Staged {
    pub(in crate::feed) staging: Staging,
    pub(in crate::feed) segments: Vec<store::Segment>,
    /// Whether they are all of the snapshot.
    pub(in crate::feed) whole: bool,
}

/// Whether the ids of these segments are worth to be staged.
pub(super) fn is_large(segments: &[&Segment]) -> bool {
    tokens(segments).map(|(_, segment)| segment.size).sum::<u64>() >= STAGED_FROM
}

/// The segments of ids, each as the store names it.
fn tokens<'a>(segments: &'a [&'a Segment]) -> impl Iterator<Item = (store::Segment, &'a Segment)> {
    let mut parts: HashMap<Bucket, u32> = HashMap::new();
    segments.iter().filter_map(move |segment| {
        let Content::Tokens(bucket) = segment.content else { return None };
        let part = parts.entry(bucket).or_default();
        let named = store::Segment { bucket, part: *part, digest: segment.digest, sha256: segment.sha256 };
        *part += 1;
        Some((named, *segment))
    })
}

impl Staged {
    pub(super) async fn begin(path: PathBuf, name: SnapshotName, whole: bool) -> Result<Self, LoadError> {
        let staging = blocking(move || Staging::open(&path, &name)).await?.map_err(LoadError::Disk)?;
        Ok(Self { staging, segments: Vec::new(), whole })
    }

    /// Fetches and stages what is not there yet.
    pub(super) async fn fill(self, source: &Source, segments: &[&Segment]) -> Result<Self, LoadError> {
        let staging = Arc::new(self.staging);
        let owned: Vec<_> = tokens(segments).map(|(named, segment)| (named, segment.clone())).collect();
        let named = owned.iter().map(|(named, _)| *named).collect();
        futures::stream::iter(owned)
            .map(|(named, segment)| stage(source, Arc::clone(&staging), named, segment))
            .buffer_unordered(STAGED_AT_ONCE)
            .try_for_each(|()| async { Ok(()) })
            .await?;
        let staging = Arc::into_inner(staging)
            .ok_or_else(|| LoadError::Source("segments are still being staged".into()))?;
        Ok(Self { staging, segments: named, whole: self.whole })
    }
}

async fn stage(
    source: &Source,
    staging: Arc<Staging>,
    named: store::Segment,
    segment: Segment,
) -> Result<(), LoadError> {
    let (there, known) = blocking({
        let staging = Arc::clone(&staging);
        move || (staging.has(&named), named.bytes())
    })
    .await?;
    if there {
        return Ok(());
    }
    if known != segment.size {
        return Err(LoadError::Source("the manifest contradicts itself: a segment's count and size".into()));
    }
    fetch(source, &segment, |_, bytes| {
        let staging = Arc::clone(&staging);
        async move { blocking(move || write(&staging, &named, &bytes)).await? }
    })
    .await
}

/// What an interrupted attempt has left of it is gone on with; the whole is verified.
fn write(staging: &Staging, named: &store::Segment, bytes: &[u8]) -> Result<(), LoadError> {
    let failed = |error| match error {
        error @ StagingError::Disk { .. } => LoadError::Disk(error),
        error @ StagingError::Wrong { .. } => LoadError::Source(error.to_string()),
    };
    let mut writing = staging.begin(named).map_err(failed)?;
    let there = usize::try_from(writing.offset()).unwrap_or(usize::MAX).min(bytes.len());
    writing.write(&bytes[there..]).map_err(failed)?;
    writing.finish().map_err(failed)
}

/// What blocks on the disk, away from the tasks that must not.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, LoadError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| LoadError::Source(format!("a task ended: {error}")))
}
