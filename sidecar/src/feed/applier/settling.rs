//! What the store finishes in the background: filters in the place of ids, snapshots, comparisons with the disk.

use std::sync::atomic::Ordering;
use std::time::Duration;

use atm_core::revocation::{Bucket, Part, SetDigest};

use super::Applier;
use crate::store::{PreparedSnapshot, Settlement};

/// Ids of a bucket that are looked up at once.
const LOOK_UP: usize = 1024;
/// Ids in full, 18 bytes each, past which whoever has more at hand waits for filters.
const FRONT_IDS: usize = 1 << 20;
/// How long it waits for one.
const ROOM_WAIT: Duration = Duration::from_secs(2);

/// What has become of a snapshot that was given to the store.
#[derive(Debug)]
pub(in crate::feed) enum Arrival {
    /// It is in force, whole.
    Installed,
    /// Its ids joined those that were in force.
    Joined,
    /// It was not taken; what is in force stays.
    Failed(String),
}

impl Applier {
    /// Waits for the store to be ready for more, within a bound.
    pub(in crate::feed) async fn room(&mut self) {
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
    pub(in crate::feed) async fn settled(&mut self) -> Settlement {
        self.writer.settled().await
    }

    /// Takes what the store has finished: filters in the place of ids, or a whole snapshot.
    pub(in crate::feed) fn settle(&mut self, settlement: Settlement) {
        match settlement {
            // Decisions are the same before and after.
            Settlement::Index(settlement) => {
                let joins = settlement.is_join();
                settlement.apply(&mut self.state.view.revocations);
                self.publisher.publish(self.state.clone());
                if joins {
                    self.arrival = Some(Arrival::Joined);
                }
            }
            Settlement::Snapshot(snapshot) => self.arrival = Some(self.install(*snapshot)),
            Settlement::Failed(error) => self.arrival = Some(Arrival::Failed(error.to_string())),
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
    pub(super) fn scrub_if_wanted(&mut self) {
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
    fn install(&mut self, snapshot: PreparedSnapshot) -> Arrival {
        let (position, newer) = (&self.state.position, snapshot.position);
        let ended = self.head.as_ref().is_some_and(|(head, _)| Some(head.epoch) != newer.epoch);
        if ended || (position.epoch == newer.epoch && position.revision > newer.revision) {
            return Arrival::Failed(format!(
                "the log went on past revision {} of the snapshot",
                newer.revision
            ));
        }
        self.state = snapshot.state(&self.state);
        self.state.view.revocations.drop_buckets_before(self.oldest);
        self.recent.clear();
        self.recent.push_back((newer.revision, newer.digest));
        self.blocked = None;
        self.publisher.publish(self.state.clone());
        tracing::info!(
            revision = newer.revision,
            revocations = self.state.view.revocations.len(),
            "the snapshot is in force"
        );
        self.writer.commit(snapshot, self.state.policy_fault.is_none());
        self.meet_head();
        Arrival::Installed
    }

    /// What has become of the snapshot that was given to the store, once.
    pub(in crate::feed) fn arrival(&mut self) -> Option<Arrival> {
        self.arrival.take()
    }

    /// Has filters built for buckets to which enough came since the last one.
    pub(super) fn settle_due(&mut self) {
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
    pub(super) fn look_up_doubtful(&mut self) {
        for (bucket, ids) in self.state.view.revocations.doubtful(LOOK_UP) {
            self.writer.look_up(bucket, ids);
        }
    }
}
