//! What the sidecar decides from: published whole by one writer, loaded by readers once a request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use atm_core::time::UnixMillis;
use atm_core::view::View;
use atm_proto::change::{Digest, Epoch};
use atm_proto::report::SidecarCondition;
use parking::Text;

use crate::store::{StoreGauge, StoreNumbers};

mod parking;

/// How far into the log the state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The log's life; none before the first change set ever applied.
    pub epoch: Option<Epoch>,
    /// The newest applied revision; 0 before the first.
    pub revision: u64,
    /// Digest of the newest applied change set.
    pub digest: Digest,
}

impl Position {
    /// Before the first change set.
    pub const START: Self = Self { epoch: None, revision: 0, digest: Digest::ZERO };
}

/// One published state.
#[derive(Debug, Clone)]
pub struct State {
    /// What decisions are made from.
    pub view: View,
    /// The revision that `view` is of.
    pub position: Position,
    /// Whether anything signed was ever applied: the state of an ended epoch is still one to decide from.
    pub verified: bool,
    /// Version of the policies in force; 0 for none.
    pub policy_version: u64,
    /// Why the newest policy set is not in force, if it is not.
    pub policy_fault: Option<Arc<str>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            view: View::default(),
            position: Position::START,
            verified: false,
            policy_version: 0,
            policy_fault: None,
        }
    }
}

/// Facts beside the state, each an atomic: written by the feed's tasks, read by metrics, reports and readiness.
#[derive(Debug, Default)]
pub struct FeedStatus {
    /// Whether NATS is connected.
    pub connected: AtomicBool,
    /// Whether the state has caught up with the feed once since the start, or the wait for a feed is over.
    pub settled: AtomicBool,
    /// Whether a snapshot is being loaded.
    pub loading: AtomicBool,
    /// Whether a believed heartbeat tells of more than there is here.
    pub behind: AtomicBool,
    /// Whether the next revision can be neither verified nor understood.
    pub refusing: AtomicBool,
    /// Whether the copy differs from the control plane's.
    pub diverged: AtomicBool,
    /// Times that the copy was found to differ.
    pub divergences: AtomicU64,
    /// Times that it was repaired from a snapshot.
    pub repairs: AtomicU64,
    /// Snapshots that were put in force.
    pub snapshots_loaded: AtomicU64,
    /// Attempts to load one that failed.
    pub snapshots_failed: AtomicU64,
    /// The newest comparison that the control plane asked for and that was done.
    pub scrub_done: AtomicU64,
    /// Milliseconds that the control plane asks to leave between reports.
    pub report_pause_ms: AtomicU64,
    /// Milliseconds without a heartbeat from which on the feed is no longer called fresh.
    pub fresh_for_ms: AtomicU64,
    /// Whether writes to the store fail.
    pub store_failing: AtomicBool,
    /// Whether saving was given up until the next start.
    pub store_abandoned: AtomicBool,
    /// Reads the store's numbers, once its threads run.
    pub store: OnceLock<StoreGauge>,
    /// Change sets applied since the start.
    pub applied: AtomicU64,
    /// Milliseconds from sequencing to application of the newest change set, by both clocks.
    pub applied_delay_ms: AtomicU64,
    /// Refused messages, by [`crate::feed::Cause`].
    pub refused: [AtomicU64; crate::feed::Cause::ALL.len()],
    /// Set by whoever wants the ids on disk added up and compared with the index; done at the next heartbeat.
    pub scrub_wanted: AtomicBool,
    /// Times that this was done since the start.
    pub scrubs: AtomicU64,
    scrub_fault: Text,
    fault: Text,
}

impl FeedStatus {
    /// Says what a scrub has found; `None` when the disk is what the index is.
    pub fn scrubbed(&self, fault: Option<String>) {
        self.scrub_fault.set(fault);
        self.scrubs.fetch_add(1, Ordering::Release);
    }

    /// What the newest scrub has found.
    pub fn scrub_fault(&self) -> Option<String> {
        self.scrub_fault.get()
    }

    /// Counts a refused message.
    pub fn refuse(&self, cause: crate::feed::Cause) {
        self.refused[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Refused messages since the start, of one cause.
    pub fn refusals(&self, cause: crate::feed::Cause) -> u64 {
        self.refused[cause as usize].load(Ordering::Relaxed)
    }

    /// Refused messages since the start, of all causes.
    pub fn all_refusals(&self) -> u64 {
        self.refused.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Says why the feed does not advance; `None` when it does.
    pub fn set_fault(&self, fault: Option<String>) {
        self.fault.set(fault);
    }

    /// Why the feed does not advance.
    pub fn fault(&self) -> Option<String> {
        self.fault.get()
    }
}

#[derive(Debug)]
struct Shared {
    state: ArcSwap<State>,
    status: FeedStatus,
    started: Instant,
    /// Milliseconds after `started` at which the newest heartbeat was caught up with; [`NEVER`] before the first.
    caught_up: AtomicU64,
    /// The feed's age when the process started, by what the store remembers; [`NEVER`] when it remembers nothing.
    age_at_start: u64,
}

const NEVER: u64 = u64::MAX;

/// Loads states. Cheap to clone and to load.
#[derive(Debug, Clone)]
pub struct StateReader(Arc<Shared>);

/// The one writer. Not `Clone`: whoever has it is the only one that changes the state.
#[derive(Debug)]
pub struct StatePublisher(Arc<Shared>);

/// A state cell with `initial`, whose feed was last fresh at `last_fresh` (own wall clock), now being `now`. A time in the
/// future says that a clock was stepped: the age is then unknown, which counts as stale.
pub fn channel(
    initial: State,
    last_fresh: Option<UnixMillis>,
    now: UnixMillis,
) -> (StatePublisher, StateReader) {
    let age_at_start = last_fresh.and_then(|instant| u64::try_from(now.0 - instant.0).ok()).unwrap_or(NEVER);
    let shared = Arc::new(Shared {
        state: ArcSwap::from_pointee(initial),
        status: FeedStatus::default(),
        started: Instant::now(),
        caught_up: AtomicU64::new(NEVER),
        age_at_start,
    });
    (StatePublisher(Arc::clone(&shared)), StateReader(shared))
}

impl StateReader {
    /// The newest published state.
    pub fn load(&self) -> Arc<State> {
        self.0.state.load_full()
    }

    /// The newest published state without a reference count, for the time of one decision.
    pub fn borrow(&self) -> arc_swap::Guard<Arc<State>> {
        self.0.state.load()
    }

    /// Milliseconds since the newest heartbeat that the state has caught up with, by the monotonic clock. Before the first
    /// one: by what the store remembers, and `u64::MAX` when it remembers nothing.
    pub fn feed_age_ms(&self) -> u64 {
        let elapsed = millis(self.0.started.elapsed());
        match self.0.caught_up.load(Ordering::Acquire) {
            NEVER => self.0.age_at_start.saturating_add(elapsed),
            caught_up => elapsed.saturating_sub(caught_up),
        }
    }

    /// The store's numbers; `None` before its threads run.
    pub fn store_numbers(&self) -> Option<StoreNumbers> {
        self.0.status.store.get().map(StoreGauge::read)
    }

    /// The facts beside the state.
    pub fn status(&self) -> &FeedStatus {
        &self.0.status
    }

    /// Whether decisions may be made: there is a state, and either it has caught up with the feed since the start or the
    /// wait for a feed is over.
    pub fn ready(&self) -> bool {
        self.0.status.settled.load(Ordering::Acquire) && self.0.state.load().verified
    }

    /// How the copy stands to the log, in one word.
    pub fn condition(&self) -> SidecarCondition {
        let status = self.status();
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        if is(&status.diverged) {
            SidecarCondition::Diverged
        } else if is(&status.refusing) {
            SidecarCondition::Refusing
        } else if is(&status.loading) {
            SidecarCondition::Loading
        } else if self.feed_age_ms() > status.fresh_for_ms.load(Ordering::Relaxed).max(1) {
            SidecarCondition::Stale
        } else if is(&status.behind) {
            SidecarCondition::Behind
        } else {
            SidecarCondition::Level
        }
    }

    /// What an operator should know though decisions are made; `None` when all is well.
    pub fn degraded(&self) -> Option<String> {
        let status = self.status();
        if let Some(fault) = self.0.state.load().policy_fault.as_deref() {
            return Some(fault.to_owned());
        }
        if let Some(fault) = status.fault() {
            return Some(fault);
        }
        if let Some(fault) = status.scrub_fault() {
            return Some(fault);
        }
        if status.store_abandoned.load(Ordering::Relaxed) {
            return Some(
                "store write failed: the store did not keep up; restart this sidecar to fetch what it missed"
                    .into(),
            );
        }
        if status.store.get().is_some_and(StoreGauge::confirmations_failing) {
            return Some(
                "store read failed: tokens that may be revoked are refused until it can be read".into(),
            );
        }
        if status.store_failing.load(Ordering::Relaxed) {
            return Some(
                "store write failed: what comes in is enforced, and fetched again after a restart".into(),
            );
        }
        if !status.connected.load(Ordering::Relaxed) {
            return Some("nats unreachable".into());
        }
        None
    }
}

impl StatePublisher {
    /// A reader of the same cell.
    pub fn reader(&self) -> StateReader {
        StateReader(Arc::clone(&self.0))
    }

    /// Publishes `next`: every decision that begins from now on sees it.
    pub fn publish(&self, next: State) {
        self.0.state.store(Arc::new(next));
    }

    /// Notes that the state is level with a heartbeat that came at `heard`.
    pub fn caught_up(&self, heard: Instant) {
        let elapsed = millis(heard.saturating_duration_since(self.0.started));
        self.0.caught_up.store(elapsed, Ordering::Release);
        self.0.status.settled.store(true, Ordering::Release);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_never_was_fresh_is_infinitely_old() {
        let (_publisher, reader) = channel(State::default(), None, UnixMillis(0));
        assert_eq!(reader.feed_age_ms(), u64::MAX);
    }

    #[test]
    fn the_age_goes_on_from_what_the_store_remembers_until_a_heartbeat_comes() {
        let (publisher, reader) = channel(State::default(), Some(UnixMillis(1_000)), UnixMillis(61_000));
        assert!((60_000..70_000).contains(&reader.feed_age_ms()));
        publisher.caught_up(Instant::now());
        assert!(reader.feed_age_ms() < 10_000);
    }

    #[test]
    fn a_clock_stepped_back_over_a_restart_counts_as_stale() {
        let (_publisher, reader) = channel(State::default(), Some(UnixMillis(61_000)), UnixMillis(1_000));
        assert_eq!(reader.feed_age_ms(), u64::MAX);
    }
}
