//! Takes snapshots in: when one is wanted, and what becomes of its pieces.
//!
//! A small one is applied row by row. The ids of a large one are staged on disk and taken into the store as table files: by a
//! sidecar that holds nothing yet as a whole, and otherwise beside what is there, which stays in force all the time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use atm_proto::change::{Change, Heartbeat};
use atm_proto::snapshot::Manifest;
use tokio::time::Instant;

use super::applier::Arrival;
use super::snapshot::{LoadError, Loaded, Loader, Staged, Wanted};
use super::{Follower, MAX_PAUSE, TICK, fraction};

/// A snapshot is loaded rather than so many revisions replayed.
const SNAPSHOT_DISTANCE: u64 = 2_048;

/// How long the store may take for a snapshot: a disk that stands still must not keep revocations from memory.
const STORE_WAIT: Duration = Duration::from_mins(5);

/// What a snapshot is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To come nearer to the head.
    Advance,
    /// To repair a copy that differs.
    Repair,
}

/// The load under way, if there is one.
#[derive(Debug, Default)]
pub(super) struct Loading {
    stage: Option<Stage>,
    /// The disk did not take staged segments: the next attempt does without, and so without a limit of what memory holds.
    unstaged: bool,
    /// The last attempt failed: where the log leads on, it is tried before the next one.
    in_vain: bool,
    /// When the store was given a snapshot last.
    given: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    /// Pieces are coming.
    Fetching(Loader, Purpose),
    /// The store takes a whole snapshot in.
    Installing,
    /// The store takes ids in beside those that are there; then the rest follows.
    Joining(Box<Manifest>, Vec<Change>, Purpose),
}

impl Loading {
    /// Whether a snapshot is being loaded.
    pub(super) fn is_under_way(&self) -> bool {
        self.stage.is_some()
    }

    /// The state is level: what failed before says nothing of the next time.
    pub(super) fn set_level(&mut self) {
        self.in_vain = false;
    }

    /// The next piece; none while none is being fetched.
    pub(super) async fn next(&mut self) -> Loaded {
        match &mut self.stage {
            Some(Stage::Fetching(loader, _)) => loader.next().await,
            _ => std::future::pending().await,
        }
    }
}

impl Follower {
    /// Whether a snapshot serves better than the revisions that are missing, or is the only way on.
    pub(super) fn wanted_snapshot(&self) -> Option<Wanted> {
        let head = self.applier.head()?;
        let position = self.applier.position();
        let here = if position.epoch == Some(head.epoch) { position.revision } else { 0 };
        let ahead = head.snapshot_revision.saturating_sub(here);
        let is_the_only_way =
            (self.applier.blocked().is_some() && !self.pause.is_zero()) || self.applier.was_pruned();
        let is_shorter = (here == 0 || ahead >= SNAPSHOT_DISTANCE) && !self.loading.in_vain;
        let behind = ahead > 0 && (is_the_only_way || is_shorter);
        behind.then(|| self.wanted(head))
    }

    /// The newest snapshot, without the parts that are the same here.
    pub(super) fn wanted(&self, head: &Heartbeat) -> Wanted {
        Wanted {
            realm_group: self.applier.realm_group().to_owned(),
            epoch: head.epoch,
            revision: head.snapshot_revision,
            local: self.applier.local_digests().unwrap_or_default(),
            whole: self.applier.holds_nothing(),
            staging: self.applier.staging_path().filter(|_| !self.loading.unstaged),
        }
    }

    pub(super) fn load(&mut self, wanted: Wanted, purpose: Purpose) {
        let luck = fraction(&self.applier.position());
        self.applier.status().loading.store(true, Ordering::Relaxed);
        let loader = Loader::begin(self.source.clone(), self.applier.trust().clone(), wanted, luck);
        self.loading.stage = Some(Stage::Fetching(loader, purpose));
    }

    /// Takes the next piece of the load under way.
    pub(super) async fn loaded(&mut self, loaded: Loaded) {
        match loaded {
            Loaded::Rows(content, rows) => {
                self.applier.add_rows(content, rows);
                self.applier.room().await;
            }
            Loaded::Complete(complete) => {
                let Some(Stage::Fetching(_, purpose)) = self.loading.stage.take() else { return };
                let (manifest, values) = (complete.manifest, complete.values);
                match complete.staged {
                    Some(staged) => self.take_in(manifest, values, staged, purpose),
                    None => self.complete(&manifest, values, purpose),
                }
            }
            Loaded::Failed(error) => {
                self.loading.unstaged = matches!(error, LoadError::Disk(_));
                self.load_failed(&error.to_string());
            }
        }
    }

    /// All segments of ids are on disk, verified: the store takes them in.
    fn take_in(&mut self, manifest: Box<Manifest>, values: Vec<Change>, staged: Staged, purpose: Purpose) {
        let taken = if staged.whole {
            self.loading.stage = Some(Stage::Installing);
            self.applier.install_staged(&manifest, values, staged)
        } else {
            self.loading.stage = Some(Stage::Joining(manifest, values, purpose));
            self.applier.join_staged(staged)
        };
        self.loading.given = Some(Instant::now());
        if !taken {
            self.loading.unstaged = true;
            self.load_failed("the store takes nothing at the moment");
        }
    }

    /// A store that has ended or stands still is waited for no longer.
    pub(super) fn give_up_waiting_for_the_store(&mut self) {
        let late = self.loading.given.is_some_and(|given| given.elapsed() >= STORE_WAIT);
        let ended = self.applier.status().store_abandoned.load(Ordering::Relaxed);
        let waits = matches!(self.loading.stage, Some(Stage::Installing | Stage::Joining(..)));
        if waits && (late || ended) {
            self.loading.unstaged = true;
            self.load_failed("the store does not take it in");
        }
    }

    /// The store has finished with what was staged, one way or the other.
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        match (arrival, self.loading.stage.take()) {
            (Arrival::Installed, Some(Stage::Installing)) => self.load_succeeded(),
            (Arrival::Joined, Some(Stage::Joining(manifest, values, purpose))) => {
                self.complete(&manifest, values, purpose);
            }
            (Arrival::Failed(problem), Some(_)) => {
                self.loading.unstaged = true;
                self.load_failed(&problem);
            }
            (_, stage) => self.loading.stage = stage, // of nothing that is waited for
        }
    }

    /// All ids and watermarks are in; the rest follows.
    fn complete(&mut self, manifest: &Manifest, values: Vec<Change>, purpose: Purpose) {
        if !self.applier.complete(manifest, values) {
            return self.load_failed("the feed has begun a new epoch meanwhile");
        }
        if purpose == Purpose::Repair {
            // What the revisions behind the snapshot say is taken once more, too.
            self.applier.go_back_to(manifest);
            self.applier.set_repaired();
        }
        self.load_succeeded();
    }

    fn load_succeeded(&mut self) {
        self.applier.status().snapshots_loaded.fetch_add(1, Ordering::Relaxed);
        self.pause = Duration::ZERO;
        (self.loading.unstaged, self.loading.in_vain) = (false, false);
        self.load_ended();
        self.ask_now();
    }

    fn load_failed(&mut self, problem: &str) {
        tracing::warn!(problem, "the snapshot cannot be loaded; trying again");
        self.applier.status().snapshots_failed.fetch_add(1, Ordering::Relaxed);
        self.applier.snapshot_failed(problem);
        self.loading.in_vain = true;
        self.load_ended();
        self.wait_before_asking();
    }

    fn load_ended(&mut self) {
        self.loading.stage = None;
        self.applier.status().loading.store(false, Ordering::Relaxed);
    }

    /// Asked in vain: the next attempt waits longer, and not as long as its neighbours'.
    pub(super) fn wait_before_asking(&mut self) {
        self.pause = (self.pause * 2).clamp(TICK, MAX_PAUSE);
        let jitter = self.pause.mul_f64(fraction(&self.applier.position()));
        self.ask_again_at = Some(tokio::time::Instant::now() + self.pause + jitter);
    }
}
