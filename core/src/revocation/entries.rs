//! The revoked tokens of one bucket: lately come ids in full, and a filter over the settled ones.

use std::sync::Arc;

use hashbrown::HashMap;

use super::confirm::{SettledIds, Unconfirmed};
use super::digest::SetDigest;
use super::filter::IdFilter;
use super::layers::Layers;
use super::{Bucket, Run};
use crate::id::Id;

/// Ids in front of a filter of which a filter may be worth making.
const FRONT_MIN: usize = 512;
/// A front of this share of the settled ids is worth a new filter: 16 bytes an id in front are half a byte an id in all.
const FRONT_SHARE: u64 = 32;

/// Ids that a filter stands for, and where they are.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Over all of them.
    pub filter: Arc<IdFilter>,
    /// Confirms what the filter says.
    pub ids: Arc<dyn SettledIds>,
    /// Of all of them.
    pub digest: SetDigest,
}

/// Ids in full.
#[derive(Debug, Clone, Default)]
struct Front {
    ids: Layers<Id>,
    /// Of the ids that are certainly in no other part.
    digest: SetDigest,
    /// The other ones: the settled ids' filter says that they may be among those.
    doubtful: Vec<Id>,
}

impl Front {
    fn bytes(&self) -> usize {
        self.ids.bytes() + self.doubtful.capacity() * size_of::<Id>()
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Entries {
    front: Front,
    /// A front that is being settled, and the number of its run.
    sealed: Option<(Run, Front)>,
    settled: Option<Settled>,
}

impl Entries {
    #[inline]
    pub(super) fn contains(&self, bucket: Bucket, id: &Id) -> Result<bool, Unconfirmed> {
        if self.in_full(id) {
            return Ok(true);
        }
        match &self.settled {
            Some(settled) if settled.filter.may_contain(id) => settled.ids.contains(bucket, id),
            _ => Ok(false),
        }
    }

    #[inline]
    fn in_full(&self, id: &Id) -> bool {
        self.front.ids.get(id).is_some()
            || self.sealed.as_ref().is_some_and(|(_, sealed)| sealed.ids.get(id).is_some())
    }

    /// Adds ids to the front. Where only the disk knows whether one is new, it is taken as new for now.
    pub(super) fn extend(&mut self, ids: &[Id]) {
        let sealed = self.sealed.as_ref();
        let unsealed = |id: &&Id| sealed.is_none_or(|(_, sealed)| sealed.ids.get(id).is_none());
        let fresh = self.front.ids.extend(ids.iter().filter(unsealed).copied());
        for id in fresh {
            match &self.settled {
                Some(settled) if settled.filter.may_contain(&id) => self.front.doubtful.push(id),
                _ => self.front.digest.add_token(&id),
            }
        }
    }

    /// Whether enough ids came for a new filter, and none is being made.
    pub(super) fn is_due(&self) -> bool {
        let share = self.settled.as_ref().map_or(0, |settled| settled.digest.count() / FRONT_SHARE);
        let due = usize::try_from(share).unwrap_or(usize::MAX).max(FRONT_MIN);
        self.sealed.is_none() && self.front.ids.len() >= due
    }

    /// Sets the front aside to be settled as `run`; whether there was one, and no other under way.
    pub(super) fn seal(&mut self, run: Run) -> bool {
        let sealing = self.sealed.is_none() && self.front.ids.len() > 0;
        if sealing {
            self.sealed = Some((run, std::mem::take(&mut self.front)));
        }
        sealing
    }

    pub(super) fn is_settling(&self) -> bool {
        self.sealed.is_some()
    }

    /// Whether the sealed front is of `run`.
    pub(super) fn has_sealed(&self, run: Run) -> bool {
        self.sealed.as_ref().is_some_and(|(sealed, _)| *sealed == run)
    }

    /// Puts a filter in force that stands for what the one before did and for the sealed front, which is let go.
    pub(super) fn settle(&mut self, settled: Settled) {
        self.sealed = None;
        self.settled = Some(settled);
    }

    /// Puts a filter in force that stands for what the one before did and for ids from elsewhere. The front stays.
    pub(super) fn join(&mut self, settled: Settled) {
        let filter = Arc::clone(&settled.filter);
        self.settled = Some(settled);
        let sealed = self.sealed.as_mut().map(|(_, sealed)| sealed);
        for front in std::iter::once(&mut self.front).chain(sealed) {
            (front.digest, front.doubtful) = (SetDigest::EMPTY, Vec::new());
            for id in front.ids.iter() {
                if filter.may_contain(id) {
                    front.doubtful.push(*id);
                } else {
                    front.digest.add_token(id);
                }
            }
        }
    }

    /// Ids of which it is not known whether they are settled, too.
    pub(super) fn doubtful(&self) -> impl Iterator<Item = &Id> {
        let sealed = self.sealed.iter().flat_map(|(_, sealed)| &sealed.doubtful);
        self.front.doubtful.iter().chain(sealed)
    }

    pub(super) fn is_doubtful(&self) -> bool {
        self.doubtful().next().is_some()
    }

    pub(super) fn settled(&self) -> Option<&Settled> {
        self.settled.as_ref()
    }

    /// Takes what was found out about doubtful ids: whether each is settled, too. Those that are stay in front uncounted.
    pub(super) fn resolve(&mut self, verdicts: &HashMap<Id, bool>) {
        let sealed = self.sealed.as_mut().map(|(_, sealed)| sealed);
        for front in std::iter::once(&mut self.front).chain(sealed) {
            let Front { doubtful, digest, .. } = front;
            doubtful.retain(|id| {
                if verdicts.get(id) == Some(&false) {
                    digest.add_token(id);
                }
                !verdicts.contains_key(id)
            });
        }
    }

    /// Of all ids; none while some are in doubt.
    pub(super) fn digest(&self) -> Option<SetDigest> {
        (!self.is_doubtful()).then(|| self.certain())
    }

    fn certain(&self) -> SetDigest {
        let sealed = self.sealed.as_ref().map_or(SetDigest::EMPTY, |(_, sealed)| sealed.digest);
        let settled = self.settled.as_ref().map_or(SetDigest::EMPTY, |settled| settled.digest);
        self.front.digest.joined(sealed).joined(settled)
    }

    /// How many ids there are; those in doubt count as new.
    pub(super) fn len(&self) -> u64 {
        self.certain().count() + self.doubtful().count() as u64
    }

    /// Ids in full.
    pub(super) fn front_len(&self) -> usize {
        self.front.ids.len() + self.sealed.as_ref().map_or(0, |(_, sealed)| sealed.ids.len())
    }

    pub(super) fn front_bytes(&self) -> usize {
        self.front.bytes() + self.sealed.as_ref().map_or(0, |(_, sealed)| sealed.bytes())
    }
}
