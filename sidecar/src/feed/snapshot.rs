//! Loads a snapshot beside the feed's task: fetches segment by segment, verifies each whole, and hands its rows over.
//!
//! No more than a few segments are ever in memory. Of a large snapshot the ids are staged on disk, where the store takes them
//! in; an interrupted load goes on with what is staged. Of a small one all rows are handed over: that only adds revocations that
//! are in force anyway, so an interrupted load leaves a state that is right, if not complete; the next one passes over the parts
//! that are there.

use std::path::PathBuf;
use std::time::Duration;

use atm_core::revocation::Part;
use atm_proto::change::{Change, Digest, Epoch};
use atm_proto::digests::StateDigests;
use atm_proto::signature::Domain;
use atm_proto::snapshot::{Content, Manifest, Rows, Segment};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::trust::FeedTrust;
use crate::store::{SnapshotName, StagingError};

mod source;
mod staged;

pub(super) use source::{HttpSource, Source};
pub(super) use staged::Staged;

/// Attempts at one segment; the bytes may be damaged on their way.
const ATTEMPTS: u32 = 3;
/// Pause before the second attempt.
const PAUSE: Duration = Duration::from_millis(200);
/// Bytes a second that a whole fleet starting at once should ask of its NATS together with a sidecar's luck in the draw: the
/// larger the snapshot, the wider its readers spread.
const SPREAD_BYTES_A_SECOND: u64 = 64 << 20;
/// Readers spread over this time at most.
const MAX_SPREAD: Duration = Duration::from_secs(5);

/// What the loader has got.
#[derive(Debug)]
pub(super) enum Loaded {
    /// The rows of a verified segment of tokens or watermarks.
    Rows(Content, Rows),
    /// Everything was handed over or staged.
    Complete(Box<Complete>),
    /// It ended early.
    Failed(LoadError),
}

/// The end of a load.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) manifest: Box<Manifest>,
    /// Key sets and policies; of a snapshot that is staged whole the watermarks, too.
    pub(super) values: Vec<Change>,
    /// The ids that were not handed over.
    pub(super) staged: Option<Staged>,
}

/// Why a load ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// No source has what the manifest names, or it is not believed.
    #[error("{0}")]
    Source(String),
    /// The disk does not take what is staged.
    #[error(transparent)]
    Disk(StagingError),
}

impl From<String> for LoadError {
    fn from(problem: String) -> Self {
        Self::Source(problem)
    }
}

/// What is wanted.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) realm_group: String,
    pub(super) epoch: Epoch,
    /// Of this revision or a later one.
    pub(super) revision: u64,
    /// What is there already.
    pub(super) local: StateDigests,
    /// Nothing is there: the store may take a large snapshot in whole.
    pub(super) whole: bool,
    /// Where a large snapshot's ids are staged; none where the disk takes none.
    pub(super) staging: Option<PathBuf>,
}

/// A load under way; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Loader {
    loaded: mpsc::Receiver<Loaded>,
    task: JoinHandle<()>,
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Loader {
    /// Begins; `luck` (0 to 1) spreads the readers of a fleet that starts at once.
    pub(super) fn begin(source: Source, trust: FeedTrust, wanted: Wanted, luck: f64) -> Self {
        let (sender, loaded) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let loaded = load(&source, &trust, &wanted, luck, &sender).await;
            let ended = loaded.map_or_else(Loaded::Failed, |complete| Loaded::Complete(Box::new(complete)));
            let _ = sender.send(ended).await; // who dropped the loader wants nothing more
        });
        Self { loaded, task }
    }

    /// The next piece; after [`Loaded::Complete`] or [`Loaded::Failed`] there is none.
    pub(super) async fn next(&mut self) -> Loaded {
        let ended = || Loaded::Failed(LoadError::Source("the loader ended".into()));
        self.loaded.recv().await.unwrap_or_else(ended)
    }
}

async fn load(
    source: &Source,
    trust: &FeedTrust,
    wanted: &Wanted,
    luck: f64,
    sender: &mpsc::Sender<Loaded>,
) -> Result<Complete, LoadError> {
    let (manifest, name) = manifest(source, trust, wanted).await?;
    let theirs = manifest.digests();
    let lacks = |part: Part| wanted.local.get(part) != theirs.get(part);
    let needed: Vec<&Segment> =
        manifest.segments.iter().filter(|segment| segment.content.part().is_none_or(lacks)).collect();
    let bytes: u64 = needed.iter().map(|segment| segment.size).sum();
    let staged = match &wanted.staging {
        Some(path) if staged::is_large(&needed) => {
            Some(Staged::begin(path.clone(), name, wanted.whole).await?)
        }
        _ => None,
    };
    tracing::info!(
        revision = manifest.revision,
        segments = needed.len(),
        of = manifest.segments.len(),
        bytes,
        staged = staged.is_some(),
        "loading a snapshot"
    );
    let spread = Duration::from_millis(bytes.saturating_mul(1_000) / SPREAD_BYTES_A_SECOND).min(MAX_SPREAD);
    tokio::time::sleep(spread.mul_f64(luck.clamp(0.0, 1.0))).await;
    let is_whole = staged.as_ref().is_some_and(|staged| staged.whole);
    let mut values = Vec::new();
    for segment in &needed {
        if staged.is_some() && matches!(segment.content, Content::Tokens(_)) {
            continue;
        }
        match (segment.content, fetch(source, segment, open).await?) {
            (_, Rows::Values(changes)) => values.extend(changes),
            (Content::Watermarks(kind), Rows::Watermarks(entries)) if is_whole => {
                values.push(Change::Watermarks { kind, entries });
            }
            (content, rows) => {
                if sender.send(Loaded::Rows(content, rows)).await.is_err() {
                    return Err(LoadError::Source("nobody waits for the snapshot any more".into()));
                }
            }
        }
    }
    let staged = match staged {
        Some(staged) => Some(staged.fill(source, &needed).await?),
        None => None,
    };
    Ok(Complete { manifest: Box::new(manifest), values, staged })
}

async fn manifest(
    source: &Source,
    trust: &FeedTrust,
    wanted: &Wanted,
) -> Result<(Manifest, SnapshotName), String> {
    let signed = source.manifest().await?;
    let payload = trust
        .verify(Domain::SnapshotManifest, &signed)
        .map_err(|error| format!("the manifest is not believed: {error}"))?;
    let manifest =
        Manifest::decode(&payload).map_err(|error| format!("the manifest cannot be read: {error}"))?;
    if manifest.realm_group != wanted.realm_group {
        return Err(format!("the manifest is of realm group {:?}", manifest.realm_group));
    }
    if manifest.epoch != wanted.epoch {
        return Err(format!("the manifest is of epoch {}, which is not the feed's", manifest.epoch));
    }
    if manifest.revision < wanted.revision {
        return Err(format!("the manifest is of revision {}, an old one", manifest.revision));
    }
    let (epoch, revision) = (manifest.epoch, manifest.revision);
    Ok((manifest, SnapshotName { epoch, revision, manifest: Digest::of(&payload) }))
}

/// Fetches a segment until `take` takes its bytes, within a few attempts.
async fn fetch<T, F: Future<Output = Result<T, LoadError>>>(
    source: &Source,
    segment: &Segment,
    take: impl Fn(Segment, Vec<u8>) -> F,
) -> Result<T, LoadError> {
    let mut attempt = 1;
    loop {
        let taken = match source.segment(segment).await {
            Ok(bytes) => take(segment.clone(), bytes).await,
            Err(problem) => Err(problem.into()),
        };
        let problem = match taken {
            Ok(taken) => return Ok(taken),
            Err(LoadError::Source(problem)) => problem,
            Err(disk) => return Err(disk),
        };
        tracing::warn!(problem, attempt, segment = segment.name(), "a segment is not usable");
        if attempt == ATTEMPTS {
            return Err(LoadError::Source(problem));
        }
        tokio::time::sleep(PAUSE * attempt).await;
        attempt += 1;
    }
}

async fn open(segment: Segment, bytes: Vec<u8>) -> Result<Rows, LoadError> {
    segment.open(&bytes).map_err(|error| LoadError::Source(error.to_string()))
}
