//! Snapshots of the state, so that whoever is new or far behind need not replay the log, and the log can be pruned.
//!
//! One process at a time builds, under a lease in the store: it reads the state at the head in one transaction, a page at a
//! time, into files named by their content, and signs a manifest of them. The files go to a JetStream stream, a message a
//! chunk, where readers take them by Direct Get without a consumer; the same files are served over HTTP.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Client;
use atm_core::time::UnixMillis;
use atm_proto::change::Epoch;
use atm_proto::signature::{Domain, TrustedFeedKeys};
use atm_proto::snapshot::Manifest;
use atm_proto::wire::Signed;
use prost::Message;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::connection::is_connected;
use super::{Shared, count};
use crate::store::feed_state::{self, StoredSnapshot};
use crate::store::{StoreError, log};

mod build;
mod files;
mod publish;

pub(super) use build::collect;
pub(super) use files::SegmentFiles;
pub use files::SegmentName;

/// How often it is looked whether there is something to do.
const PERIOD: Duration = Duration::from_secs(1);
/// How long after its end another process takes over.
const LEASE_MS: i64 = 8_000;
/// How often a process that works says that it lives.
const RENEWED: Duration = Duration::from_secs(2);
const LEASE: &str = "snapshot";
/// Snapshots whose segments are kept: whoever has begun to load the last but one may finish.
const KEPT: usize = 2;
/// Change sets pruned in one transaction.
const PRUNED: u32 = 2_000;

/// When snapshots are made, and how long what they replace is kept.
#[derive(Debug, Clone)]
pub struct SnapshotSettings {
    /// Directory of the segments.
    pub directory: PathBuf,
    /// A new one after so many revisions, ...
    pub revisions: u64,
    /// ... after so many bytes of change sets, ...
    pub bytes: u64,
    /// ... and after so long if anything has changed.
    pub interval: Duration,
    /// Change sets are kept for at least so long, and always those after the last snapshot but one.
    pub keep: Duration,
    /// Whether segments are served over HTTP.
    pub serve: bool,
}

/// Why there is no new snapshot. The one before stays in use, and the log stays unpruned.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Segments cannot be written or read.
    #[error("feed.snapshots.directory: {}: {source}; check permissions and free space", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What the store holds is not what the log came to.
    #[error(
        "the store's revocations differ from what was sequenced ({part}): a disk or a hand has changed them; no snapshot is \
         made of it, restore the store from a backup"
    )]
    Diverged {
        /// Which part of the state.
        part: String,
    },
    /// A stored manifest that this process's key did not sign, or that cannot be read.
    #[error("a stored manifest cannot be used: {0}")]
    Manifest(String),
    /// Another process has made it and does not publish it.
    #[error("segment {0} is not in this process's feed.snapshots.directory")]
    Elsewhere(String),
    /// JetStream does not take it.
    #[error("jetstream: {0}")]
    JetStream(String),
}

/// Builds, publishes and prunes for as long as it is polled.
pub(super) async fn run(shared: Arc<Shared>, client: Client) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut work =
        Work { shared, client, complained: None, published: None, taken: None, seen: publish::Seen::new() };
    loop {
        ticks.tick().await;
        let problem = work.step().await.err().map(|error| error.to_string());
        if problem != work.complained {
            if let Some(problem) = &problem {
                tracing::error!(%problem, "snapshots");
            }
            work.complained = problem;
        }
    }
}

/// Builds at once, whether it is due or not.
#[cfg(test)]
pub(super) async fn build_now(shared: &Shared) -> Result<(), SnapshotError> {
    build::build(shared, None).await
}

struct Work {
    shared: Arc<Shared>,
    client: Client,
    /// The problem that was logged last.
    complained: Option<String>,
    /// The snapshot that JetStream is known to hold, and when that was looked at last.
    published: Option<(Epoch, u64, tokio::time::Instant)>,
    /// The snapshot whose segments are all here.
    taken: Option<(Epoch, u64)>,
    /// Segments that JetStream was seen to hold.
    seen: publish::Seen,
}

impl Work {
    async fn step(&mut self) -> Result<(), SnapshotError> {
        let shared = Arc::clone(&self.shared);
        shared.refresh_keys().await?;
        let head = log::head(&shared.store).await?;
        let mut stored = feed_state::snapshots(&shared.store, head.epoch).await?;
        if self.is_due(&head, stored.first()).await? && self.take_lease().await? {
            self.build(stored.first()).await?;
            stored = feed_state::snapshots(&shared.store, head.epoch).await?;
        }
        let Some(newest) = stored.first() else { return Ok(()) };
        shared.snapshot.store(newest.revision, Ordering::Relaxed);
        if is_connected(&self.client) {
            match self.publish(head.epoch, &stored).await {
                // Who made it had the lease for as long as it lived: it is made here once more.
                Err(SnapshotError::Elsewhere(segment)) => {
                    tracing::warn!(segment, "the snapshot's maker is gone; making it again");
                    self.build(stored.first()).await?;
                }
                outcome => outcome?,
            }
            self.take(head.epoch, newest).await?;
        }
        self.prune(head.epoch, &stored).await
    }

    async fn is_due(&self, head: &log::Head, newest: Option<&StoredSnapshot>) -> Result<bool, SnapshotError> {
        let settings = &self.shared.settings.snapshots;
        let Some(newest) = newest else { return Ok(head.revision > 0) };
        if !is_believed(&self.shared, newest) {
            return Ok(true); // its key was retired
        }
        let revisions = head.revision.saturating_sub(newest.revision);
        if revisions == 0 {
            return Ok(false);
        }
        let age = self.shared.clock.wall().0.saturating_sub(newest.created_at.0);
        let old = u64::try_from(age).is_ok_and(|age| u128::from(age) >= settings.interval.as_millis());
        Ok(revisions >= settings.revisions
            || old
            || log::bytes_after(&self.shared.store, head.epoch, newest.revision).await? >= settings.bytes)
    }

    /// Builds with the lease in hand. What JetStream holds is looked at again behind it.
    async fn build(&mut self, before: Option<&StoredSnapshot>) -> Result<(), SnapshotError> {
        self.published = None;
        let building = build::build(&self.shared, before);
        tokio::pin!(building);
        loop {
            tokio::select! {
                built = &mut building => return built,
                () = sleep(RENEWED) => { self.take_lease().await?; },
            }
        }
    }

    async fn take_lease(&self) -> Result<bool, StoreError> {
        let now = self.shared.clock.wall();
        let until = UnixMillis(now.0 + LEASE_MS);
        feed_state::take_lease(&self.shared.store, LEASE, &self.shared.holder, now, until).await
    }

    async fn publish(&mut self, epoch: Epoch, stored: &[StoredSnapshot]) -> Result<(), SnapshotError> {
        let newest = &stored[0]; // the caller has seen that there is one
        let looked_at = self.published.is_some_and(|(of, revision, at)| {
            of == epoch && revision == newest.revision && at.elapsed() < publish::LOOK_EVERY
        });
        if looked_at || !self.take_lease().await? {
            return Ok(());
        }
        let manifests = manifests(stored)?;
        let done = publish::publish(&self.shared, &self.client, &manifests, newest, &mut self.seen).await?;
        super::rotation::publish(&self.shared, &self.client).await.map_err(SnapshotError::JetStream)?;
        if done {
            count(&self.shared.counters.snapshots_published);
        }
        self.shared.snapshot_published.store(newest.revision, Ordering::Relaxed);
        self.published = Some((epoch, newest.revision, tokio::time::Instant::now()));
        Ok(())
    }

    /// Has what it serves over HTTP, whoever has made it.
    async fn take(&mut self, epoch: Epoch, newest: &StoredSnapshot) -> Result<(), SnapshotError> {
        let wanted = Some((epoch, newest.revision));
        if self.shared.settings.snapshots.serve
            && self.taken != wanted
            && publish::take(&self.shared, &self.client, &open(newest)?).await?
        {
            self.taken = wanted;
        }
        Ok(())
    }

    /// Prunes the log behind the last snapshot but one, old snapshots, and segments that none of those kept names.
    async fn prune(&self, epoch: Epoch, stored: &[StoredSnapshot]) -> Result<(), SnapshotError> {
        let shared = &self.shared;
        let Some(oldest) = stored.get(KEPT - 1) else { return Ok(()) };
        if stored.len() > KEPT {
            feed_state::forget_snapshots(&shared.store, epoch, oldest.revision).await?;
            let named = manifests(&stored[..KEPT])?;
            let named: HashSet<_> = named
                .iter()
                .flat_map(|manifest| manifest.segments.iter().map(|segment| segment.sha256))
                .collect();
            shared.segments.retain(&named)?;
        }
        let keep = i64::try_from(shared.settings.snapshots.keep.as_millis()).unwrap_or(i64::MAX);
        let before = UnixMillis(shared.clock.wall().0.saturating_sub(keep));
        let pruned = log::prune(&shared.store, epoch, oldest.revision, before, PRUNED).await?;
        if pruned > 0
            && let Some(kept) = log::oldest(&shared.store, epoch).await?
        {
            shared.pruned.store(kept, Ordering::Relaxed);
            tracing::info!(pruned, oldest = kept, "pruned change sets that snapshots hold");
        }
        Ok(())
    }
}

fn manifests(stored: &[StoredSnapshot]) -> Result<Vec<Manifest>, SnapshotError> {
    stored.iter().take(KEPT).map(open).collect()
}

/// What this store's own processes signed, whether their keys are trusted still or not.
fn open(stored: &StoredSnapshot) -> Result<Manifest, SnapshotError> {
    let unreadable = |error: String| SnapshotError::Manifest(error);
    let envelope = Signed::decode(&stored.manifest[..]).map_err(|error| unreadable(error.to_string()))?;
    Manifest::decode(&envelope.payload).map_err(|error| unreadable(error.to_string()))
}

/// Whether a key signed it that sidecars trust.
fn is_believed(shared: &Shared, stored: &StoredSnapshot) -> bool {
    let trusted = TrustedFeedKeys::new(shared.feed_keys());
    trusted.verify(Domain::SnapshotManifest, &stored.manifest).is_ok()
}
