//! Finds out whether the copy here is the log's, and what is wrong with it if it is not.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use atm_core::revocation::{Part, SetDigest};
use atm_proto::digests::{Digests, StateDigests, difference, is_kept};

use super::{Applier, Bucket};

/// What a sidecar holds beyond the log, part by part: the rest of an ended epoch. It stays in force, and is left out of
/// comparisons.
pub(super) type Surplus = BTreeMap<Part, SetDigest>;

/// What a comparison of all parts has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::feed) enum Compared {
    /// The digests are of another revision than the one here; to be asked for again.
    OtherRevision,
    /// Nothing differs.
    Same,
    /// So many parts differ; what they lack comes from a snapshot and the revisions behind it.
    Differ(usize),
    /// Nothing is missing any more, and what is here beyond the log stays.
    Surplus(usize),
}

impl Applier {
    /// The digests of what is here, without what is known to be here beyond the log; none while some id is in doubt.
    pub(in crate::feed) fn local_digests(&self) -> Option<StateDigests> {
        self.state
            .view
            .revocations
            .digests()
            .into_iter()
            .map(|(part, digest)| {
                let surplus = self.surplus.get(&part).copied().unwrap_or_default();
                Some((part, difference(digest?, surplus)))
            })
            .collect()
    }

    /// Compares with what the newest heartbeat says of the revision that is applied here.
    pub(super) fn compare_with_head(&mut self) {
        let Some((head, _)) = &self.head else { return };
        let revision = head.revision;
        let Some(state) = head.state.filter(|_| revision == self.state.position.revision) else { return };
        // Ids in doubt are being looked up; a later heartbeat compares.
        let Some(local) = self.local_digests() else { return };
        let same = local.root(state.oldest_bucket) == state.root;
        if same {
            if self.diverged {
                tracing::warn!(revision, "the copy is the log's again");
            }
            (self.diverged, self.repaired) = (false, false);
        } else if !self.diverged {
            tracing::error!(
                revision,
                "the copy here differs from the log; it goes on being enforced, and is repaired"
            );
            self.diverged = true;
            self.status().divergences.fetch_add(1, Ordering::Relaxed);
        }
        self.status().diverged.store(self.diverged, Ordering::Relaxed);
    }

    /// Whether the copy is known to differ.
    pub(in crate::feed) fn has_diverged(&self) -> bool {
        self.diverged
    }

    /// Compares part by part with what the control plane says.
    pub(in crate::feed) fn compare_parts(&mut self, theirs: &Digests) -> Compared {
        let position = self.state.position;
        if Some(theirs.epoch) != position.epoch || theirs.revision != position.revision {
            return Compared::OtherRevision;
        }
        let Some(local) = self.local_digests() else { return Compared::OtherRevision };
        let oldest = self.oldest.max(Bucket::UNKNOWN);
        let parts = local.iter().chain(theirs.parts.iter()).map(|(part, _)| part);
        let differing: Vec<Part> = parts
            .filter(|part| is_kept(*part, oldest) && local.get(*part) != theirs.parts.get(*part))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        if differing.is_empty() {
            return Compared::Same;
        }
        for part in &differing {
            tracing::warn!(
                ?part,
                here = local.get(*part).count(),
                log = theirs.parts.get(*part).count(),
                "differs"
            );
        }
        // After a repair everything of the log is here: what differs still is here beyond it.
        let beyond = |part: &Part| local.get(*part).count() >= theirs.parts.get(*part).count();
        if self.repaired && differing.iter().all(beyond) {
            for part in &differing {
                let more = difference(local.get(*part), theirs.parts.get(*part));
                let known = self.surplus.entry(*part).or_default();
                *known = known.joined(more);
            }
            tracing::warn!(
                parts = differing.len(),
                "more is revoked here than in the log; it stays in force"
            );
            return Compared::Surplus(differing.len());
        }
        self.repaired = false;
        Compared::Differ(differing.len())
    }

    /// Notes that a comparison part by part has found nothing to repair.
    pub(in crate::feed) fn set_level(&mut self) {
        (self.diverged, self.repaired) = (false, false);
        self.status().diverged.store(false, Ordering::Relaxed);
    }

    /// Notes that a snapshot's rows were joined to the copy, and that the revisions behind it were taken once more.
    pub(in crate::feed) fn set_repaired(&mut self) {
        self.repaired = true;
        self.status().repairs.fetch_add(1, Ordering::Relaxed);
    }
}
