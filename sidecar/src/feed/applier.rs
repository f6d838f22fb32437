//! Judges each message of the feed and applies what is signed, understood and next. Nothing else ever changes the state.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use atm_core::revocation::{Bucket, Part, SetDigest};
use atm_core::time::UnixMillis;
use atm_proto::change::{self, Change, ChangeSet, Digest, Epoch, Heartbeat};
use atm_proto::signature::{Domain, SignatureError};

use super::trust::FeedTrust;

pub(super) use divergence::Compared;
use divergence::Surplus;
pub use judgement::Cause;
pub(super) use judgement::Heard;
use judgement::{Judgement, judge};
pub(super) use settling::Arrival;

use crate::state::{FeedStatus, Position, State, StatePublisher};
use crate::store::{Saved, Writer};

/// Revisions whose digests are remembered: heartbeats and change sets travel on different ways and overtake each other.
const RECENT: usize = 1024;

/// How far ahead of our own clock a heartbeat's time may be and still make earlier ones count as sent again. A clock that was
/// stepped ahead at the control plane and back again silences nobody for longer.
const MAX_AHEAD_MS: i64 = 5_000;

/// Applies the feed to the published state and hands it to the store.
#[derive(Debug)]
pub(super) struct Applier {
    realm_group: String,
    trust: FeedTrust,
    publisher: StatePublisher,
    writer: Writer,
    state: State,
    /// The newest heartbeat that was believed, and when it came.
    head: Option<(Heartbeat, Instant)>,
    /// Revision and digest of what was applied last, the newest at the back.
    recent: VecDeque<(u64, Digest)>,
    /// Heartbeats up to this time are sent again.
    floor: UnixMillis,
    /// Epochs that ended; none comes back.
    ended: Vec<Epoch>,
    /// Revisions up to this one are applied once more, to repair the copy; their key sets and policies are in force already.
    again_to: u64,
    /// The oldest revision that the control plane said it keeps.
    pruned: u64,
    /// Whether something came that a key signed which is not trusted here: trust may have been handed over.
    strangers: bool,
    /// The next revision that could not be verified or understood, if there is one.
    blocked: Option<u64>,
    /// Whether the copy differs from the log.
    diverged: bool,
    /// Whether it was repaired since that was found.
    repaired: bool,
    /// What is here beyond the log, and stays.
    surplus: Surplus,
    /// Single tokens of buckets before this one are forgotten.
    oldest: Bucket,
    /// What the index held when a scrub was asked for that is under way.
    scrubbing: Option<Vec<(Part, Option<SetDigest>)>>,
    /// What has become of the snapshot that was given to the store.
    arrival: Option<Arrival>,
}

impl Applier {
    /// Continues from what `publisher` has published.
    pub(super) fn new(
        realm_group: String,
        trust: FeedTrust,
        publisher: StatePublisher,
        writer: Writer,
    ) -> Self {
        let state = State::clone(&publisher.reader().load());
        Self {
            realm_group,
            trust,
            publisher,
            writer,
            state,
            head: None,
            recent: VecDeque::new(),
            floor: UnixMillis(0),
            ended: Vec::new(),
            again_to: 0,
            pruned: 0,
            strangers: false,
            blocked: None,
            diverged: false,
            repaired: false,
            surplus: Surplus::new(),
            oldest: Bucket::UNKNOWN,
            scrubbing: None,
            arrival: None,
        }
    }

    /// How far the state is.
    pub(super) fn position(&self) -> Position {
        self.state.position
    }

    /// The facts beside the state.
    pub(super) fn status(&self) -> FeedStatusRef {
        FeedStatusRef(self.publisher.reader())
    }

    /// Whether a believed heartbeat is ahead of the state.
    pub(super) fn knows_of_more(&self) -> bool {
        self.head.as_ref().is_some_and(|(head, _)| {
            self.state.position.epoch.is_some_and(|epoch| epoch != head.epoch)
                || head.revision > self.state.position.revision
        })
    }

    /// The newest heartbeat that was believed.
    pub(super) fn head(&self) -> Option<&Heartbeat> {
        self.head.as_ref().map(|(head, _)| head)
    }

    /// The keys that are believed.
    pub(super) fn trust(&self) -> &FeedTrust {
        &self.trust
    }

    /// The realms that share the log.
    pub(super) fn realm_group(&self) -> &str {
        &self.realm_group
    }

    /// The revision that comes next, if what was sent as such can be neither verified nor understood here.
    pub(super) fn blocked(&self) -> Option<u64> {
        self.blocked.filter(|revision| *revision == self.state.position.revision + 1)
    }

    /// Notes that the control plane has pruned the revisions that come next.
    pub(super) fn pruned_to(&mut self, oldest: u64) {
        self.pruned = oldest;
    }

    /// Whether the revisions that come next can be had from a snapshot alone.
    pub(super) fn was_pruned(&self) -> bool {
        self.pruned > self.state.position.revision + 1
    }

    /// Notes why a snapshot that is needed did not come.
    pub(super) fn snapshot_failed(&self, problem: &str) {
        if self.knows_of_more() {
            let at = self.state.position.revision;
            self.status().set_fault(Some(format!(
                "the snapshot that revision {at} needs cannot be loaded: {problem}"
            )));
        }
    }

    /// Whether the trust in feed keys may have been handed over since it was looked at last. Says so once.
    pub(super) fn may_have_rotated(&mut self) -> bool {
        let told = self.head().is_some_and(|head| head.rotation > self.trust.number());
        std::mem::take(&mut self.strangers) || told
    }

    /// Notes that the next revision cannot be verified or understood, wherever it comes from.
    pub(super) fn block(&mut self) {
        self.blocked = Some(self.state.position.revision + 1);
    }

    /// Takes a signed change set: applies it if it is next, counts and logs it otherwise.
    pub(super) fn change_set(&mut self, bytes: &[u8]) -> Heard {
        let payload = match self.trust.verify(Domain::ChangeSet, bytes) {
            Ok(payload) => payload,
            Err(error) => {
                self.strangers |= matches!(error, SignatureError::UnknownKey(_));
                return self.refuse(Cause::Signature, None, &error.to_string());
            }
        };
        let set = match ChangeSet::decode(&payload) {
            Ok(set) if set.realm_group == self.realm_group => set,
            Ok(set) => {
                let problem =
                    format!("is of realm group {:?}, not of {:?}", set.realm_group, self.realm_group);
                return self.refuse(Cause::Conflict, Some(set.revision), &problem);
            }
            // A decoded part would tell the revision, but nothing of an undecodable message is believed.
            Err(error) => return self.refuse_undecodable(&error.to_string()),
        };
        let digest = Digest::of(&payload);
        match judge(&self.state.position, &set, &digest) {
            Judgement::Next => {
                self.apply(set, digest);
                self.meet_head()
            }
            Judgement::Same => Heard::Level,
            Judgement::Refuse(Cause::Gap) => {
                self.refuse(Cause::Gap, Some(set.revision), "leaves out revisions; asking for them");
                Heard::Missing
            }
            Judgement::Refuse(Cause::Replay) => {
                self.refuse(Cause::Replay, Some(set.revision), "was applied before")
            }
            Judgement::Refuse(cause) => {
                self.refuse(cause, Some(set.revision), "does not continue the log that was applied here")
            }
        }
    }

    /// Takes a signed heartbeat: freshness if the state is level with it.
    pub(super) fn heartbeat(&mut self, bytes: &[u8]) -> Heard {
        let payload = match self.trust.verify(Domain::Heartbeat, bytes) {
            Ok(payload) => payload,
            Err(error) => {
                self.strangers |= matches!(error, SignatureError::UnknownKey(_));
                // Once a heartbeat was believed, a forged one is only noise.
                if self.head.is_none() {
                    self.status()
                        .set_fault(Some(format!("heartbeats are not believed: {error}; check feedKeys")));
                }
                return self.refuse(Cause::Signature, None, &error.to_string());
            }
        };
        let heartbeat = match Heartbeat::decode(&payload) {
            Ok(heartbeat) if heartbeat.realm_group == self.realm_group => heartbeat,
            Ok(_) => return self.refuse(Cause::Conflict, None, "a heartbeat of another realm group"),
            Err(error) => return self.refuse(Cause::Decode, None, &error.to_string()),
        };
        if let Some((head, _)) = &self.head {
            let backwards = heartbeat.epoch == head.epoch && heartbeat.revision < head.revision;
            if backwards {
                return Heard::Refused;
            }
        }
        // Replicas send beats side by side; an older one, or one sent again, tells nothing and proves no freshness.
        if heartbeat.time <= self.floor {
            return Heard::Refused;
        }
        if self.ended.contains(&heartbeat.epoch) {
            return self.refuse(
                Cause::Conflict,
                Some(heartbeat.revision),
                "a heartbeat of an epoch that has ended",
            );
        }
        self.judge_level(heartbeat)
    }

    fn judge_level(&mut self, heartbeat: Heartbeat) -> Heard {
        self.floor = self.floor.max(heartbeat.time.min(UnixMillis(super::now().0 + MAX_AHEAD_MS)));
        if let Some(epoch) = self.state.position.epoch.filter(|epoch| *epoch != heartbeat.epoch) {
            self.begin_epoch(epoch, heartbeat.epoch);
        }
        self.status().report_pause_ms.store(heartbeat.report_pause_ms.into(), Ordering::Relaxed);
        let (revision, digest) = (heartbeat.revision, heartbeat.digest);
        self.head = Some((heartbeat, Instant::now()));
        if revision > self.state.position.revision {
            return Heard::Missing;
        }
        match self.digest_at(revision) {
            // The same epoch went back further than messages overtake each other: an old copy is being served somewhere.
            None => self.refuse(Cause::Replay, Some(revision), "a heartbeat behind what was applied here"),
            Some(applied) if applied != digest => self.refuse_other_history(revision),
            Some(_) => {
                let heard = self.level();
                self.compare_with_head();
                heard
            }
        }
    }

    /// Digest of `revision`, as far as it is remembered.
    fn digest_at(&self, revision: u64) -> Option<Digest> {
        let position = &self.state.position;
        if revision == position.revision {
            return Some(position.digest);
        }
        self.recent.iter().rev().find(|(applied, _)| *applied == revision).map(|(_, digest)| *digest)
    }

    /// The state has caught up with the newest heartbeat: it is as fresh as that one.
    fn level(&mut self) -> Heard {
        if let Some((head, heard)) = &self.head {
            // By the later of two clocks a token may still be taken: the earlier one counts.
            let oldest = Bucket::oldest_alive(head.time.min(super::now()));
            self.publisher.caught_up(*heard);
            let age = i64::try_from(heard.elapsed().as_millis()).unwrap_or(i64::MAX);
            self.writer.fresh(UnixMillis(super::now().0.saturating_sub(age)));
            self.forget_before(oldest);
            self.look_up_doubtful();
            self.settle_due();
            self.scrub_if_wanted();
        }
        self.status().set_fault(None);
        Heard::Level
    }

    /// Forgets single tokens that have all expired, once an hour.
    fn forget_before(&mut self, oldest: Bucket) {
        if oldest <= self.oldest {
            return;
        }
        self.oldest = oldest;
        let before = self.state.view.revocations.len();
        self.state.view.revocations.drop_buckets_before(oldest);
        if self.state.view.revocations.len() != before {
            self.publisher.publish(self.state.clone());
        }
        self.writer.forget_before(oldest);
    }

    /// Catching up ends by the change set that the newest heartbeat told of; the next heartbeat may tell of more already.
    fn meet_head(&mut self) -> Heard {
        let Position { epoch, revision, digest } = self.state.position;
        match &self.head {
            Some((head, _)) if Some(head.epoch) != epoch || head.revision > revision => Heard::Missing,
            Some((head, _)) if head.revision == revision && head.digest == digest => self.level(),
            Some((head, _)) if head.revision == revision => self.refuse_other_history(revision),
            _ => Heard::Level,
        }
    }

    fn refuse_other_history(&self, revision: u64) -> Heard {
        self.status().set_fault(Some(format!(
            "heartbeats tell another history of revision {revision}: is another control plane publishing?"
        )));
        self.refuse(Cause::Conflict, Some(revision), "a heartbeat with another history at this revision")
    }

    /// A new life of the log: what is enforced stays enforced, and the new log is applied on top from its first revision.
    fn begin_epoch(&mut self, old: Epoch, new: Epoch) {
        tracing::warn!(%old, %new, "the feed began a new epoch; keeping all revocations and replaying it");
        if self.ended.len() == 64 {
            self.ended.remove(0);
        }
        self.ended.push(old);
        self.recent.clear();
        (self.again_to, self.pruned, self.blocked) = (0, 0, None);
        self.state.position = Position { epoch: Some(new), ..Position::START };
        self.publisher.publish(self.state.clone());
    }

    fn apply(&mut self, mut set: ChangeSet, digest: Digest) {
        if set.revision <= self.again_to {
            set.changes.retain(adds_up);
        }
        let mut next = self.state.clone();
        let policies_saved = put_in_force(&mut next, &set.changes);
        self.blocked = None;
        next.position = Position { epoch: Some(set.epoch), revision: set.revision, digest };
        next.verified = true;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((set.revision, digest));
        self.publisher.publish(next.clone());
        self.state = next;
        let delay = super::now().0.saturating_sub(set.time.0);
        let status = self.status();
        status.applied.fetch_add(1, Ordering::Relaxed);
        status.applied_delay_ms.store(u64::try_from(delay).unwrap_or(0), Ordering::Relaxed);
        tracing::debug!(revision = set.revision, changes = set.changes.len(), delay_ms = delay, "applied");
        self.writer.save(Saved {
            changes: set.changes,
            position: self.state.position,
            policies: policies_saved,
        });
        self.settle_due();
    }

    fn refuse_undecodable(&mut self, problem: &str) -> Heard {
        self.blocked = Some(self.state.position.revision + 1);
        self.status().set_fault(Some(format!(
            "a signed change set after revision {} cannot be read: {problem}",
            self.state.position.revision
        )));
        self.refuse(Cause::Decode, None, problem)
    }

    fn refuse(&self, cause: Cause, revision: Option<u64>, problem: &str) -> Heard {
        self.status().refuse(cause);
        let applied = self.state.position.revision;
        tracing::warn!(cause = cause.as_str(), revision, applied, problem, "refused a message of the feed");
        Heard::Refused
    }
}

/// Puts changes in force, in order. A policy set that does not compile leaves the one before in force: false.
fn put_in_force(state: &mut State, changes: &[Change]) -> bool {
    let mut policies_in_force = true;
    for change in changes {
        match change::apply(change, &mut state.view) {
            Ok(()) => {
                if let Change::Policies { version, .. } = change {
                    state.policy_version = *version;
                    state.policy_fault = None;
                }
            }
            Err(error) => {
                tracing::error!(%error, "keeping the policies in force");
                state.policy_fault = Some(error.to_string().into());
                policies_in_force = false;
            }
        }
    }
    policies_in_force
}

/// Whether a change only ever adds, so that it may be applied again at any time.
fn adds_up(change: &Change) -> bool {
    matches!(change, Change::RevokedTokens { .. } | Change::Watermarks { .. })
}

/// Borrow of the status through a reader, so that it can be written while the applier is borrowed.
#[derive(Debug)]
pub(super) struct FeedStatusRef(crate::state::StateReader);

impl std::ops::Deref for FeedStatusRef {
    type Target = FeedStatus;

    fn deref(&self) -> &FeedStatus {
        self.0.status()
    }
}

mod divergence;
mod judgement;
#[cfg(test)]
mod model;
mod settling;
mod snapshot;
#[cfg(test)]
mod tests;
