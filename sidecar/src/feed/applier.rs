//! Judges each message of the feed and applies what is signed, understood and next. Nothing else ever changes the state.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use atm_core::revocation::{Bucket, Part, SetDigest};
use atm_core::time::UnixMillis;
use atm_proto::change::{self, Change, ChangeSet, Digest, Epoch, Heartbeat};
use atm_proto::signature::{Domain, TrustedFeedKeys};

use crate::state::{FeedStatus, Position, State, StatePublisher};
use crate::store::{PreparedSnapshot, Saved, Settlement, Writer};

/// Revisions whose digests are remembered: heartbeats and change sets travel on different ways and overtake each other.
const RECENT: usize = 1024;

/// Ids of a bucket that are looked up at once.
const LOOK_UP: usize = 1024;
/// Ids in full, 18 bytes each, past which whoever has more at hand waits for filters.
const FRONT_IDS: usize = 1 << 20;
/// How long it waits for one.
const ROOM_WAIT: Duration = Duration::from_secs(2);

/// Why a message was not applied; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Not signed by a pinned key over exactly these bytes.
    Signature,
    /// Signed, and not understood.
    Decode,
    /// A later revision than the next one.
    Gap,
    /// A revision that was applied before.
    Replay,
    /// The next or the same revision with another history, or of an epoch that no heartbeat has announced.
    Conflict,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 5] = [Self::Signature, Self::Decode, Self::Gap, Self::Replay, Self::Conflict];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Decode => "decode",
            Self::Gap => "gap",
            Self::Replay => "replay",
            Self::Conflict => "conflict",
        }
    }
}

/// What a message means for the follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// The state is level with what the message says.
    Level,
    /// There is more than the state has.
    Missing,
    /// Nothing may be concluded from it.
    Refused,
}

/// What a change set is, seen from a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The next one, with the right history.
    Next,
    /// The newest applied one once more, byte for byte.
    Same,
    /// To be refused.
    Refuse(Cause),
}

/// Where a change set of `epoch`, `revision`, `previous` and `digest` stands to `position`.
pub(super) fn judge(position: &Position, set: &ChangeSet, digest: &Digest) -> Judgement {
    if position.epoch.is_some_and(|epoch| epoch != set.epoch) {
        return Judgement::Refuse(Cause::Conflict);
    }
    if set.revision == position.revision + 1 {
        let continues = set.previous_digest == position.digest;
        return if continues { Judgement::Next } else { Judgement::Refuse(Cause::Conflict) };
    }
    if set.revision > position.revision {
        return Judgement::Refuse(Cause::Gap);
    }
    if set.revision < position.revision {
        return Judgement::Refuse(Cause::Replay);
    }
    if digest == &position.digest { Judgement::Same } else { Judgement::Refuse(Cause::Conflict) }
}

/// Applies the feed to the published state and hands it to the store.
#[derive(Debug)]
pub(super) struct Applier {
    realm_group: String,
    trusted: TrustedFeedKeys,
    publisher: StatePublisher,
    writer: Writer,
    state: State,
    /// The newest heartbeat that was believed, and when it came.
    head: Option<(Heartbeat, Instant)>,
    /// Revision and digest of what was applied last, the newest at the back.
    recent: VecDeque<(u64, Digest)>,
    /// Epochs that ended; none comes back.
    ended: Vec<Epoch>,
    /// Single tokens of buckets before this one are forgotten.
    oldest: Bucket,
    /// What the index held when a scrub was asked for that is under way.
    scrubbing: Option<Vec<(Part, Option<SetDigest>)>>,
}

impl Applier {
    /// Continues from what `publisher` has published.
    pub(super) fn new(
        realm_group: String,
        trusted: TrustedFeedKeys,
        publisher: StatePublisher,
        writer: Writer,
    ) -> Self {
        let state = State::clone(&publisher.reader().load());
        let (head, recent, ended) = (None, VecDeque::new(), Vec::new());
        let oldest = Bucket::UNKNOWN;
        Self { realm_group, trusted, publisher, writer, state, head, recent, ended, oldest, scrubbing: None }
    }

    /// How far the state is.
    pub(super) fn position(&self) -> Position {
        self.state.position
    }

    /// Waits for the store to be ready for more, within a bound.
    pub(super) async fn room(&mut self) {
        self.writer.room().await;
        while let Some(settlement) = self.writer.try_settled() {
            self.settle(settlement);
        }
        // What comes faster than filters are built is held in full meanwhile.
        while self.holds_too_much_in_full() {
            match tokio::time::timeout(ROOM_WAIT, self.writer.settled()).await {
                Ok(settlement) => self.settle(settlement),
                Err(_) => return,
            }
        }
    }

    /// Only where a filter is on its way: on a disk that fails none is, and what comes must be in force.
    fn holds_too_much_in_full(&self) -> bool {
        let revocations = &self.state.view.revocations;
        let settling = revocations.is_settling() && self.writer.settles();
        settling
            && revocations.front_len() > FRONT_IDS
            && !self.status().store_failing.load(Ordering::Relaxed)
    }

    /// The next thing that was settled; to be given to [`Applier::settle`].
    pub(super) async fn settled(&mut self) -> Settlement {
        self.writer.settled().await
    }

    /// Takes what the store has finished: filters in the place of ids, or a whole snapshot.
    pub(super) fn settle(&mut self, settlement: Settlement) {
        match settlement {
            // Decisions are the same before and after.
            Settlement::Index(settlement) => {
                settlement.apply(&mut self.state.view.revocations);
                self.publisher.publish(self.state.clone());
            }
            Settlement::Snapshot(snapshot) => self.install(*snapshot),
            Settlement::Failed(error) => {
                tracing::error!(%error, "a snapshot was not taken; what is in force stays");
                self.status().set_fault(Some(error.to_string()));
            }
            Settlement::Scrubbed(digests) => self.compare(&digests),
            Settlement::ScrubFailed(error) => {
                tracing::error!(%error, "the store cannot be read to its end");
                self.scrubbing = None;
                self.status().scrubbed(Some(format!("store scrub failed: {error}")));
            }
        }
        self.settle_due();
    }

    /// Where it is wanted, has the ids on disk added up, to be compared with what the index holds; one time after the other.
    fn scrub_if_wanted(&mut self) {
        let wanted = self.status().scrub_wanted.load(Ordering::Relaxed);
        if wanted && self.scrubbing.is_none() && self.writer.scrub() {
            self.status().scrub_wanted.store(false, Ordering::Relaxed);
            self.scrubbing = Some(self.state.view.revocations.digests());
        }
    }

    /// Says which buckets are not on disk what they are in memory. Those that changed meanwhile are left to the next time.
    fn compare(&mut self, on_disk: &[(Bucket, SetDigest)]) {
        let Some(before) = self.scrubbing.take() else { return };
        let revocations = &self.state.view.revocations;
        let diverged: Vec<_> = before
            .into_iter()
            .filter_map(|(part, digest)| match part {
                Part::Tokens(bucket) if digest.is_some() && revocations.digest(part) == digest => {
                    let found = on_disk.iter().find(|(of, _)| *of == bucket).map(|(_, found)| *found);
                    (found.unwrap_or_default() != digest.unwrap_or_default()).then_some(bucket.0)
                }
                _ => None,
            })
            .collect();
        let fault = (!diverged.is_empty()).then(|| {
            format!("store diverged: buckets {diverged:?} are not on disk what they are in memory; move store.path away and restart, the feed restores it")
        });
        if let Some(fault) = &fault {
            tracing::error!(fault, "scrubbed the store");
        } else {
            tracing::info!(buckets = on_disk.len(), "scrubbed the store");
        }
        self.status().scrubbed(fault);
    }

    /// Puts a snapshot in force, unless the log has gone on past it meanwhile.
    fn install(&mut self, snapshot: PreparedSnapshot) {
        let (position, newer) = (&self.state.position, snapshot.position);
        if position.epoch == newer.epoch && position.revision > newer.revision {
            tracing::info!(
                snapshot = newer.revision,
                applied = position.revision,
                "a snapshot came too late"
            );
            return;
        }
        self.state = snapshot.state(&self.state);
        self.state.view.revocations.drop_buckets_before(self.oldest);
        self.recent.clear();
        self.publisher.publish(self.state.clone());
        tracing::info!(
            revision = newer.revision,
            revocations = self.state.view.revocations.len(),
            "snapshot in force"
        );
        self.writer.commit(snapshot, self.state.policy_fault.is_none());
    }

    /// Has filters built for buckets to which enough came since the last one.
    fn settle_due(&mut self) {
        let revocations = &mut self.state.view.revocations;
        for bucket in revocations.due() {
            if self.writer.settles()
                && let Some(run) = revocations.seal(bucket)
            {
                self.writer.settle(bucket, run);
            }
        }
    }

    /// Has ids looked up that came again and may be settled.
    fn look_up_doubtful(&mut self) {
        for (bucket, ids) in self.state.view.revocations.doubtful(LOOK_UP) {
            self.writer.look_up(bucket, ids);
        }
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

    /// Takes a signed change set: applies it if it is next, counts and logs it otherwise.
    pub(super) fn change_set(&mut self, bytes: &[u8]) -> Heard {
        let payload = match self.trusted.verify(Domain::ChangeSet, bytes) {
            Ok(payload) => payload,
            Err(error) => return self.refuse(Cause::Signature, None, &error.to_string()),
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
        let payload = match self.trusted.verify(Domain::Heartbeat, bytes) {
            Ok(payload) => payload,
            Err(error) => {
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
            // Replicas send beats side by side; an older one, or one sent again, tells nothing and proves no freshness.
            let replayed = heartbeat.time <= head.time;
            let backwards = heartbeat.epoch == head.epoch && heartbeat.revision < head.revision;
            if replayed || backwards {
                return Heard::Refused;
            }
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
        if let Some(epoch) = self.state.position.epoch.filter(|epoch| *epoch != heartbeat.epoch) {
            self.begin_epoch(epoch, heartbeat.epoch);
        }
        let (revision, digest) = (heartbeat.revision, heartbeat.digest);
        self.head = Some((heartbeat, Instant::now()));
        if revision > self.state.position.revision {
            return Heard::Missing;
        }
        match self.digest_at(revision) {
            // The same epoch went back further than messages overtake each other: an old copy is being served somewhere.
            None => self.refuse(Cause::Replay, Some(revision), "a heartbeat behind what was applied here"),
            Some(applied) if applied != digest => self.refuse_other_history(revision),
            Some(_) => self.level(),
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
        self.state.position = Position { epoch: Some(new), ..Position::START };
        self.publisher.publish(self.state.clone());
    }

    fn apply(&mut self, set: ChangeSet, digest: Digest) {
        let mut next = self.state.clone();
        let mut policies_saved = true;
        for change in &set.changes {
            match change::apply(change, &mut next.view) {
                Ok(()) => {
                    if let Change::Policies { version, .. } = change {
                        next.policy_version = *version;
                        next.policy_fault = None;
                    }
                }
                Err(error) => {
                    tracing::error!(revision = set.revision, %error, "keeping the policies in force");
                    next.policy_fault = Some(error.to_string().into());
                    policies_saved = false;
                }
            }
        }
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

    fn refuse_undecodable(&self, problem: &str) -> Heard {
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

/// Borrow of the status through a reader, so that it can be written while the applier is borrowed.
#[derive(Debug)]
pub(super) struct FeedStatusRef(crate::state::StateReader);

impl std::ops::Deref for FeedStatusRef {
    type Target = FeedStatus;

    fn deref(&self) -> &FeedStatus {
        self.0.status()
    }
}

#[cfg(test)]
mod tests;
