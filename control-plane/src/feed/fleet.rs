//! What sidecars say of themselves: who lives, what each has applied, and so the receipts of revocations.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Client, Message as NatsMessage};
use atm_proto::change::Epoch;
use atm_proto::report::{SidecarCondition, SidecarReport};
use futures::StreamExt;
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{Position, Shared, count};

/// A sidecar that has not reported for so long is gone.
const LEASE: Duration = Duration::from_secs(10);
/// Sidecars that are gone are shown for so long.
const REMEMBERED: Duration = Duration::from_hours(1);
/// Sidecars reported on at most; NATS permissions say who may report, this bounds what a mistake costs.
const MAX_SIDECARS: usize = 20_000;
/// A sidecar that has not reported a revision this long after it was sequenced is behind.
const BEHIND_AFTER: Duration = Duration::from_secs(1);
/// After a connection every live sidecar has reported within this time; before, an empty fleet means nothing.
const WARM_UP: Duration = Duration::from_secs(6);
const MAX_REPORT_BYTES: usize = 4_096;
const MAX_TEXT: usize = 256;
/// Bytes of a sidecar's name; its own configuration allows no longer one.
const MAX_NAME: usize = 64;
const EPOCH_BYTES: usize = 16;
/// Sequencing instants and reports remembered, for receipts of recent revisions.
const RECENT_REVISIONS: usize = 1_024;
const RECENT_REPORTS: usize = 16;
/// Reports of advances that a fleet may send together; at 10,000 sidecars each then reports twice a second at most.
const REPORTS_A_SECOND: usize = 20_000;
/// Sidecars that a receipt names.
const MAX_MISSING: usize = 100;

/// How a sidecar stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SidecarState {
    /// Reports, and has what there is.
    Live,
    /// Reports, and has not had any of the log so far.
    New,
    /// Reports, and lacks a revision that is older than a second.
    Behind,
    /// Reports that its copy differs from the log, and is repairing it.
    Diverged,
    /// Reports that it can neither verify nor understand what comes next.
    Refusing,
    /// Has not reported for ten seconds. It may be cut off and serve until it calls itself stale.
    Gone,
}

impl SidecarState {
    /// Every state, the best first.
    pub const ALL: [Self; 6] =
        [Self::Live, Self::New, Self::Behind, Self::Diverged, Self::Refusing, Self::Gone];

    /// Its name in answers and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::New => "new",
            Self::Behind => "behind",
            Self::Diverged => "diverged",
            Self::Refusing => "refusing",
            Self::Gone => "gone",
        }
    }
}

/// A sidecar as operators see it.
#[derive(Debug, Clone, Serialize)]
pub struct SidecarView {
    /// Its name in the subjects.
    pub id: String,
    /// Of its program.
    pub version: String,
    /// The revision that it enforces; 0 while it is on another epoch.
    pub applied_revision: u64,
    /// Whether it serves.
    pub ready: bool,
    /// Whether it is loading a snapshot.
    pub loading: bool,
    /// Why it is not as it should be.
    pub degraded: Option<String>,
    /// Milliseconds since its last report.
    pub last_seen_ms: u64,
    /// Milliseconds from the sequencing of `applied_revision` to its application, by the sidecar's clock.
    pub applied_delay_ms: i64,
    /// Milliseconds since the newest heartbeat that it has caught up with, when it reported.
    pub feed_age_ms: u64,
    /// Policy set in force there.
    pub policy_version: u64,
    /// Ids and watermarks that it enforces.
    pub revocations: u64,
    /// Change sets that it refused since its start.
    pub refused_change_sets: u64,
    /// Parts of its copy that differed from the log since its start.
    pub divergences: u64,
    /// The newest comparison asked for (`POST /admin/v1/fleet/scrub`) that it has done.
    pub scrubbed: u64,
    /// How it stands.
    pub state: SidecarState,
}

/// The fleet as operators see it.
#[derive(Debug, Clone, Serialize)]
pub struct FleetView {
    /// The log's life.
    pub epoch: String,
    /// The newest revision.
    pub revision: u64,
    /// Sidecars that report.
    pub live: usize,
    /// Of those, the ones that enforce `revision`.
    pub in_force_on: usize,
    /// How many stand how.
    pub states: BTreeMap<SidecarState, usize>,
    /// Milliseconds from sequencing to application of what live sidecars applied last, by their clocks.
    pub applied_delay_ms: Option<Quantiles>,
    /// By id; those asked for.
    pub sidecars: Vec<SidecarView>,
    /// Sidecars that were asked for and left out because of the limit.
    pub left_out: usize,
}

/// Which sidecars to list.
#[derive(Debug, Clone, Copy)]
pub struct FleetQuery {
    /// Those that stand so; none: all of them.
    pub state: Option<SidecarState>,
    /// At most so many. The ones that stand worst come first into the list.
    pub limit: usize,
}

/// Of a set of times, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    /// Half of them are at or below.
    pub median: u64,
    /// 99 of 100 are at or below.
    pub p99: u64,
    /// All of them are.
    pub max: u64,
}

impl Quantiles {
    /// None of nothing. Sorts `times`.
    fn of(times: &mut [u64]) -> Option<Self> {
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        let at = |share: usize| times[(last * share).div_ceil(100)];
        Some(Self { median: at(50), p99: at(99), max: times[last] })
    }
}

/// Proof that a revision is in force, or what is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The revision asked for.
    pub revision: u64,
    /// Sidecars that report.
    pub live: usize,
    /// Of those, the ones that enforce it. One whose copy differs from the log does not count.
    pub applied: usize,
    /// Sidecars of the last hour that report no more; what they do is not known.
    pub gone: usize,
    /// Milliseconds from the sequencing to the last of these reports, by this process's clock; none where it was sequenced
    /// by another process or too long ago.
    pub slowest_ms: Option<u64>,
    /// The same times over all who enforce it.
    pub reported_ms: Option<Quantiles>,
    /// Live sidecars that have not reported it, at most 100.
    pub missing: Vec<String>,
    /// Whether the share asked for is reached. Never true while NATS, and so the fleet, is out of sight.
    pub complete: bool,
}

#[derive(Debug)]
struct Entry {
    report: SidecarReport,
    epoch: Option<Epoch>,
    seen: Instant,
    /// Revisions of `epoch` and when they were reported first, ascending.
    advances: VecDeque<(u64, Instant)>,
}

impl Entry {
    fn is_live(&self, now: Instant) -> bool {
        now.duration_since(self.seen) < LEASE
    }

    fn applied(&self, epoch: Epoch) -> u64 {
        if self.epoch == Some(epoch) { self.report.applied_revision } else { 0 }
    }

    fn enforces(&self, epoch: Epoch, revision: u64) -> bool {
        self.applied(epoch) >= revision && self.report.condition() != SidecarCondition::Diverged
    }

    fn state(&self, now: Instant, epoch: Epoch, due: u64) -> SidecarState {
        if !self.is_live(now) {
            return SidecarState::Gone;
        }
        match self.report.condition() {
            SidecarCondition::Diverged => SidecarState::Diverged,
            SidecarCondition::Refusing => SidecarState::Refusing,
            _ if self.applied(epoch) >= due => SidecarState::Live,
            _ if self.report.epoch.is_empty() || self.report.applied_revision == 0 => SidecarState::New,
            _ => SidecarState::Behind,
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    sidecars: HashMap<String, Entry>,
    /// Revisions sequenced or seen here, and when, ascending.
    sequenced: VecDeque<(u64, Instant)>,
    /// Since when reports reach us.
    listening: Option<Instant>,
}

/// The tracker. Its lock is held for no longer than one look at the whole fleet takes.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    known: Mutex<Known>,
    changed: watch::Sender<u64>,
}

impl Fleet {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing panics under the lock; if it ever did, reports would still be reports.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Notes when `revision` was sequenced.
    pub(super) fn sequenced(&self, revision: u64) {
        let mut known = self.lock();
        if known.sequenced.back().is_some_and(|(last, _)| *last >= revision) {
            known.sequenced.clear(); // a new epoch
        }
        if known.sequenced.len() == RECENT_REVISIONS {
            known.sequenced.pop_front();
        }
        known.sequenced.push_back((revision, Instant::now()));
    }

    /// Notes that reports reach us from now on, or no more.
    pub(super) fn listening(&self, connected: bool) {
        let mut known = self.lock();
        if connected {
            known.listening.get_or_insert_with(Instant::now);
        } else {
            known.listening = None;
        }
    }

    /// Whether every live sidecar must have reported since we listen.
    pub(super) fn is_in_sight(&self) -> bool {
        self.lock().listening.is_some_and(|since| since.elapsed() >= WARM_UP)
    }

    /// Takes one report. False: refused.
    pub(super) fn report(&self, id: &str, mut report: SidecarReport) -> bool {
        let named = report.sidecar_id == id && id.len() <= MAX_NAME;
        if !named || report.version.len() > MAX_TEXT || ![0, EPOCH_BYTES].contains(&report.epoch.len()) {
            return false;
        }
        truncate(&mut report.degraded);
        let epoch = <[u8; 16]>::try_from(&report.epoch[..]).ok().map(Epoch::from_bytes);
        let now = Instant::now();
        let mut known = self.lock();
        if !known.sidecars.contains_key(id) && known.sidecars.len() >= MAX_SIDECARS {
            known.sidecars.retain(|_, entry| entry.is_live(now));
            if known.sidecars.len() >= MAX_SIDECARS {
                return false;
            }
        }
        let entry = known.sidecars.entry(id.to_owned()).or_insert_with(|| Entry {
            report: SidecarReport::default(),
            epoch,
            seen: now,
            advances: VecDeque::new(),
        });
        // Below what it reported before: restarted from an older copy, so earlier advances count no more.
        if entry.epoch != epoch || report.applied_revision < entry.report.applied_revision {
            entry.advances.clear();
        }
        if entry.advances.back().is_none_or(|(last, _)| *last < report.applied_revision) {
            if entry.advances.len() == RECENT_REPORTS {
                entry.advances.pop_front();
            }
            entry.advances.push_back((report.applied_revision, now));
        }
        (entry.epoch, entry.seen, entry.report) = (epoch, now, report);
        drop(known);
        self.changed.send_modify(|version| *version = version.wrapping_add(1));
        true
    }

    /// Forgets who has been gone for an hour.
    pub(super) fn forget_old(&self) {
        let now = Instant::now();
        self.lock().sidecars.retain(|_, entry| now.duration_since(entry.seen) < REMEMBERED);
    }

    pub(super) fn view(&self, position: Position, query: FleetQuery) -> FleetView {
        let now = Instant::now();
        let known = self.lock();
        // What everyone must have by now: the newest revision that is older than a second.
        let due =
            known.sequenced.iter().rev().find(|(_, at)| now.duration_since(*at) >= BEHIND_AFTER).map_or_else(
                || if known.sequenced.is_empty() { position.revision } else { 0 },
                |(due, _)| *due,
            );
        let mut states = BTreeMap::from(SidecarState::ALL.map(|state| (state, 0)));
        let (mut in_force_on, mut delays, mut listed) = (0, Vec::new(), Vec::new());
        for (id, entry) in &known.sidecars {
            let state = entry.state(now, position.epoch, due);
            *states.entry(state).or_default() += 1;
            if state != SidecarState::Gone {
                in_force_on += usize::from(entry.enforces(position.epoch, position.revision));
                delays.extend(u64::try_from(entry.report.applied_delay_ms));
            }
            if query.state.is_none_or(|asked| asked == state) {
                listed.push((std::cmp::Reverse(state), id, entry));
            }
        }
        // The worst first, so that a limit never hides them.
        listed.sort_unstable_by_key(|(state, id, _)| (*state, *id));
        let left_out = listed.len().saturating_sub(query.limit);
        listed.truncate(query.limit);
        let mut sidecars: Vec<SidecarView> =
            listed.iter().map(|(state, id, entry)| entry.view(id, now, position.epoch, state.0)).collect();
        sidecars.sort_by(|a, b| a.id.cmp(&b.id));
        FleetView {
            epoch: position.epoch.to_string(),
            revision: position.revision,
            live: known.sidecars.values().filter(|entry| entry.is_live(now)).count(),
            in_force_on,
            states,
            applied_delay_ms: Quantiles::of(&mut delays),
            sidecars,
            left_out,
        }
    }

    /// Milliseconds that each sidecar is to leave between reports, so that all of them together stay within
    /// [`REPORTS_A_SECOND`].
    pub(super) fn report_pause_ms(&self) -> u32 {
        let now = Instant::now();
        let sidecars = self.lock().sidecars.values().filter(|entry| entry.is_live(now)).count();
        u32::try_from(sidecars * 1_000 / REPORTS_A_SECOND).unwrap_or(u32::MAX).clamp(5, 2_000)
    }

    pub(super) fn receipt(&self, epoch: Epoch, revision: u64, share: f64, connected: bool) -> Receipt {
        let now = Instant::now();
        let known = self.lock();
        let sequenced = known.sequenced.iter().find(|(at, _)| *at >= revision).map(|(_, at)| *at);
        let (mut live, mut applied, mut gone) = (0, 0, 0);
        let (mut times, mut missing) = (Vec::new(), Vec::new());
        for (id, entry) in &known.sidecars {
            if !entry.is_live(now) {
                gone += 1;
                continue;
            }
            live += 1;
            if !entry.enforces(epoch, revision) {
                missing.push(id);
                continue;
            }
            applied += 1;
            let reported = entry.advances.iter().find(|(at, _)| *at >= revision).map(|(_, at)| *at);
            if let (Some(sequenced), Some(reported)) = (sequenced, reported) {
                times.push(millis(reported.saturating_duration_since(sequenced)));
            }
        }
        missing.sort_unstable();
        let missing = missing.into_iter().take(MAX_MISSING).cloned().collect();
        let warm = known.listening.is_some_and(|since| now.duration_since(since) >= WARM_UP);
        let complete = connected && (live > 0 || warm) && reaches(applied, live, share);
        let reported_ms = Quantiles::of(&mut times);
        let slowest_ms = reported_ms.map(|times| times.max);
        Receipt { revision, live, applied, gone, slowest_ms, reported_ms, missing, complete }
    }
}

impl Entry {
    fn view(&self, id: &str, now: Instant, epoch: Epoch, state: SidecarState) -> SidecarView {
        let applied_revision = self.applied(epoch);
        let report = &self.report;
        SidecarView {
            id: id.to_owned(),
            version: report.version.clone(),
            applied_revision,
            ready: report.ready,
            loading: report.condition() == SidecarCondition::Loading,
            degraded: Some(report.degraded.clone()).filter(|why| !why.is_empty()),
            last_seen_ms: millis(now.duration_since(self.seen)),
            applied_delay_ms: report.applied_delay_ms,
            policy_version: report.policy_version,
            revocations: report.revocations,
            refused_change_sets: report.refused_change_sets,
            divergences: report.divergences,
            scrubbed: report.scrubbed,
            feed_age_ms: report.feed_age_ms,
            state,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whether `applied` of `live` is at least `share`. What is no share asks for all.
#[expect(clippy::cast_precision_loss, reason = "a fleet has fewer than 2^52 sidecars")]
fn reaches(applied: usize, live: usize, share: f64) -> bool {
    let share = if (0.0..=1.0).contains(&share) { share } else { 1.0 };
    applied as f64 >= share * live as f64
}

fn truncate(text: &mut String) {
    let end = text.floor_char_boundary(MAX_TEXT);
    text.truncate(end);
}

/// Listens to the fleet.
pub(super) async fn run(shared: Arc<Shared>, client: Client) {
    loop {
        match client.subscribe(shared.subjects.fleet_all()).await {
            Ok(mut reports) => {
                while let Some(message) = reports.next().await {
                    let taken = take(&shared.fleet, &message);
                    count(if taken { &shared.counters.reports } else { &shared.counters.reports_refused });
                }
            }
            Err(error) => tracing::warn!(%error, "cannot subscribe to the fleet's reports; trying again"),
        }
        sleep(Duration::from_secs(1)).await;
    }
}

fn take(fleet: &Fleet, message: &NatsMessage) -> bool {
    if message.payload.len() > MAX_REPORT_BYTES {
        return false;
    }
    let Some((_, id)) = message.subject.rsplit_once('.') else { return false };
    SidecarReport::decode(message.payload.clone()).is_ok_and(|report| fleet.report(id, report))
}

#[cfg(test)]
mod tests;
