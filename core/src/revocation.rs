//! What is revoked: single tokens in buckets by expiry, and watermarks over everything of a scope.
//!
//! The index is a value: a clone shares all its entries, so that one writer clones, applies and publishes while readers
//! keep what they hold. Within an epoch it only grows, and a merge is a union or a maximum, so replay changes nothing.
//!
//! A token's id is held in full when it comes. Whoever has a database may *settle* a bucket: [`RevocationIndex::seal`] sets the
//! full ids aside, a filter over these and the ones settled before is built elsewhere, and [`RevocationIndex::settle`] puts it in
//! their place, together with the [`SettledIds`] that confirm its hits. At every moment between, all ids are found. Without
//! a database nothing is ever settled, and everything works the same.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::id::{Id, IdKind};
use crate::reason::Reason;
use crate::time::UnixMillis;
use crate::token::TokenIds;

mod confirm;
mod digest;
mod entries;
mod filter;
mod layers;
#[cfg(test)]
mod tests;

pub use confirm::{SettledIds, Unconfirmed};
pub use digest::{Part, SetDigest, root_digest};
use entries::Entries;
pub use entries::Settled;
pub use filter::{FilterBuilder, IdFilter, Unsorted};
use layers::{Layers, Watermark};

/// Seconds of expiry that one bucket spans.
const BUCKET_SECONDS: i64 = 3_600;
/// Seconds that a bucket is kept after its hour: twice the most clock skew that a policy allows.
const KEPT_SECONDS: i64 = 600;

/// The hour, counted from the Unix epoch, in which a revoked token itself expires.
///
/// The token names its bucket, so an entry needs no expiry of its own and forgetting is dropping whole buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket(pub u32);

impl Bucket {
    /// The bucket of ids whose expiry is unknown. It is probed for every token and never dropped.
    pub const UNKNOWN: Self = Self(0);

    /// The bucket of a token with this `exp`, in seconds since the Unix epoch. Instants before the epoch count as unknown;
    /// those beyond the last bucket share it.
    pub fn of_expiry(seconds: i64) -> Self {
        Self(u32::try_from(seconds.max(0) / BUCKET_SECONDS).unwrap_or(u32::MAX))
    }

    /// The oldest bucket of which a token may still be taken at `now`, on whatever clock. Those before it are forgotten, at the
    /// control plane and at sidecars alike.
    pub fn oldest_alive(now: UnixMillis) -> Self {
        Self::of_expiry(now.seconds() - BUCKET_SECONDS - KEPT_SECONDS)
    }
}

/// Names one front that was sealed; later ones have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Run(pub u64);

impl Run {
    /// The one after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Where an index has its ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Buckets that hold ids.
    pub buckets: usize,
    /// Ids that are held in full.
    pub front_ids: u64,
    /// Bytes of these.
    pub front_bytes: usize,
    /// Ids that a filter stands for.
    pub settled_ids: u64,
    /// Bytes of the filters.
    pub filter_bytes: usize,
    /// Ids in full of which it is not known whether a filter stands for them, too.
    pub doubtful_ids: u64,
}

/// The set of revocations.
///
/// Ids in full lie in immutable sorted layers that merge geometrically, under a small front for the newest. At a million ids a
/// clone copies a few pointers, adding one id copies at most the front (4 KiB) and now and then merges layers.
#[derive(Debug, Clone, Default)]
pub struct RevocationIndex {
    tokens: Arc<HashMap<Bucket, Arc<Entries>>>,
    watermarks: Arc<[Registers; IdKind::ALL.len()]>,
    next_run: Run,
}

/// The watermarks of one kind.
#[derive(Debug, Clone, Default)]
struct Registers {
    layers: Arc<Layers<Watermark>>,
    digest: SetDigest,
}

impl RevocationIndex {
    /// An index whose first sealed front is of `run`.
    pub fn beginning_at(run: Run) -> Self {
        Self { next_run: run, ..Self::default() }
    }

    /// Revokes single tokens whose expiry lies in `bucket`. Ids may come in any order and repeatedly.
    pub fn revoke_tokens(&mut self, bucket: Bucket, ids: &[Id]) {
        if !ids.is_empty() {
            Arc::make_mut(Arc::make_mut(&mut self.tokens).entry(bucket).or_default()).extend(ids);
        }
    }

    /// Raises the register of `(kind, id)` to `instant`; a lower or equal instant changes nothing.
    pub fn raise_watermark(&mut self, kind: IdKind, id: Id, instant: UnixMillis) {
        let known = self.watermark(kind, &id);
        if known.is_none_or(|known| known < instant) {
            let Registers { layers, digest } = &mut Arc::make_mut(&mut self.watermarks)[kind as usize];
            Arc::make_mut(layers).extend([Watermark { id, instant }]);
            if let Some(known) = known {
                digest.remove_watermark(&id, known);
            }
            digest.add_watermark(&id, instant);
        }
    }

    /// Whether the token `id` is revoked in its own bucket or in [`Bucket::UNKNOWN`]. Fails where a filter says «maybe» and
    /// the settled ids cannot be asked.
    #[inline]
    pub fn is_token_revoked(&self, bucket: Bucket, id: &Id) -> Result<bool, Unconfirmed> {
        let revoked_in = |bucket| self.tokens.get(&bucket).map_or(Ok(false), |ids| ids.contains(bucket, id));
        Ok((bucket != Bucket::UNKNOWN && revoked_in(bucket)?) || revoked_in(Bucket::UNKNOWN)?)
    }

    /// The newest instant up to which everything of `(kind, id)` is revoked.
    pub fn watermark(&self, kind: IdKind, id: &Id) -> Option<UnixMillis> {
        self.watermarks[kind as usize].layers.get(id).map(|found| found.instant)
    }

    /// Judges one token by all that can revoke it: itself and each of its scopes. The watermarks combine as their maximum,
    /// because any one of them suffices. `issued_at` is the token's own. What cannot be looked up refuses, with a reason of its own.
    pub fn check(&self, ids: &TokenIds, issued_at: UnixMillis) -> Result<NotRevoked, Reason> {
        let is_revoked = |bucket, id| {
            self.is_token_revoked(bucket, id).map_err(|Unconfirmed(_)| Reason::RevocationUnconfirmed)
        };
        if let Some(id) = &ids.token
            && is_revoked(ids.bucket, id)?
        {
            return Err(Reason::RevokedToken);
        }
        // A revoked key may have signed anything, with any `iat`: for it the instant does not count.
        if ids.key.is_some_and(|key| self.watermark(IdKind::Key, &key).is_some()) {
            return Err(Reason::RevokedKey);
        }
        for (bucket, id) in &ids.ancestors {
            if is_revoked(*bucket, id)? {
                return Err(Reason::RevokedAncestor);
            }
        }
        let scopes = [
            (IdKind::Token, ids.token.as_slice(), Reason::RevokedToken),
            (IdKind::Session, ids.session.as_slice(), Reason::RevokedSession),
            (IdKind::Subject, ids.subjects.as_slice(), Reason::RevokedSubject),
            (IdKind::Client, ids.client.as_slice(), Reason::RevokedClient),
            (IdKind::Realm, ids.realm.as_slice(), Reason::RevokedRealm),
            (IdKind::Issuer, std::slice::from_ref(&ids.issuer), Reason::RevokedIssuer),
        ];
        for (kind, scope, reason) in scopes {
            let covers = |id| self.watermark(kind, id).is_some_and(|instant| issued_at <= instant);
            if scope.iter().any(covers) {
                return Err(reason);
            }
        }
        Ok(NotRevoked(()))
    }

    /// Whether what was learnt of the opaque token `id` at `learnt_at` has changed since.
    pub fn is_out_of_date(&self, id: &Id, learnt_at: UnixMillis) -> bool {
        self.watermark(IdKind::Introspection, id).is_some_and(|instant| instant >= learnt_at)
    }

    /// Forgets the tokens of every bucket before `bucket`, except those of unknown expiry. Only the writer knows when no
    /// token of a bucket can be alive, with the clock skew that policies allow.
    pub fn drop_buckets_before(&mut self, bucket: Bucket) {
        let outlived = |known: &Bucket| *known < bucket && *known != Bucket::UNKNOWN;
        if self.tokens.keys().any(outlived) {
            Arc::make_mut(&mut self.tokens).retain(|known, _| !outlived(known));
        }
    }

    /// How many single tokens are revoked. One that came again and may be settled already counts twice, until
    /// [`RevocationIndex::resolve`] or the next filter tells.
    pub fn len(&self) -> usize {
        let len = self.tokens.values().map(|ids| ids.len()).sum::<u64>();
        usize::try_from(len).unwrap_or(usize::MAX)
    }

    /// Whether no single token is revoked; there may be watermarks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many watermarks are set, over all kinds.
    pub fn watermark_count(&self) -> usize {
        self.watermarks.iter().map(|registers| registers.layers.len()).sum()
    }
}

/// Settling: filters in the place of ids. The one writer calls these.
impl RevocationIndex {
    /// The buckets in front of whose filters enough ids came for a new one, and for which none is being built.
    pub fn due(&self) -> Vec<Bucket> {
        self.tokens.iter().filter(|(_, ids)| ids.is_due()).map(|(bucket, _)| *bucket).collect()
    }

    /// The number of the next front to be sealed, of whatever bucket.
    pub fn next_run(&self) -> Run {
        self.next_run
    }

    /// Sets aside the full ids of `bucket` to be settled; `None` where there are none or others are being settled.
    pub fn seal(&mut self, bucket: Bucket) -> Option<Run> {
        let run = self.next_run;
        let ids = Arc::make_mut(&mut self.tokens).get_mut(&bucket)?;
        if !Arc::make_mut(ids).seal(run) {
            return None;
        }
        self.next_run = run.next();
        Some(run)
    }

    /// Puts `settled` in force, which stands for all that `bucket`'s filter stood for before and for the front that was sealed as
    /// `run`. Does nothing where no such front waits: the bucket was dropped meanwhile. Whether it did something.
    pub fn settle(&mut self, bucket: Bucket, run: Run, settled: Settled) -> bool {
        if !self.tokens.get(&bucket).is_some_and(|ids| ids.has_sealed(run)) {
            return false;
        }
        if let Some(ids) = Arc::make_mut(&mut self.tokens).get_mut(&bucket) {
            Arc::make_mut(ids).settle(settled);
        }
        true
    }

    /// Puts `settled` in force, which stands for all that `bucket`'s filter stood for before and for ids that did not come by
    /// [`RevocationIndex::revoke_tokens`]. All ids in full stay.
    pub fn join(&mut self, bucket: Bucket, settled: Settled) {
        Arc::make_mut(Arc::make_mut(&mut self.tokens).entry(bucket).or_default()).join(settled);
    }

    /// Buckets with ids in full that their filter may stand for, too, and up to `most` such ids of each; what [`SettledIds`]
    /// say of them is for [`RevocationIndex::resolve`].
    pub fn doubtful(&self, most: usize) -> Vec<(Bucket, Vec<Id>)> {
        let buckets = self.tokens.iter().filter(|(_, ids)| ids.is_doubtful());
        buckets.map(|(bucket, ids)| (*bucket, ids.doubtful().take(most).copied().collect())).collect()
    }

    /// Takes what was found out about doubtful ids of `bucket`: whether each is settled, too. Found out behind every
    /// filter that was put in force before, and before any that is put in force later.
    pub fn resolve(&mut self, bucket: Bucket, verdicts: &HashMap<Id, bool>) {
        if let Some(ids) = Arc::make_mut(&mut self.tokens).get_mut(&bucket) {
            Arc::make_mut(ids).resolve(verdicts);
        }
    }

    /// What stands for the settled ids of `bucket`.
    pub fn settled(&self, bucket: Bucket) -> Option<&Settled> {
        self.tokens.get(&bucket).and_then(|ids| ids.settled())
    }

    /// The digest of one part; `None` while ids of it are in doubt.
    pub fn digest(&self, part: Part) -> Option<SetDigest> {
        match part {
            Part::Tokens(bucket) => {
                self.tokens.get(&bucket).map_or(Some(SetDigest::EMPTY), |ids| ids.digest())
            }
            Part::Watermarks(kind) => Some(self.watermarks[kind as usize].digest),
        }
    }

    /// Every part that is held, in order, and its digest as [`RevocationIndex::digest`] gives it.
    pub fn digests(&self) -> Vec<(Part, Option<SetDigest>)> {
        let mut parts: Vec<_> = self.tokens.keys().map(|bucket| Part::Tokens(*bucket)).collect();
        parts.sort_unstable();
        parts.extend(IdKind::ALL.map(Part::Watermarks));
        parts.into_iter().map(|part| (part, self.digest(part))).collect()
    }

    /// Whether a sealed front waits for its filter.
    pub fn is_settling(&self) -> bool {
        self.tokens.values().any(|ids| ids.is_settling())
    }

    /// How many ids are held in full.
    pub fn front_len(&self) -> usize {
        self.tokens.values().map(|ids| ids.front_len()).sum()
    }

    /// Where the ids are.
    pub fn sizes(&self) -> Sizes {
        let mut sizes = Sizes { buckets: self.tokens.len(), ..Sizes::default() };
        for ids in self.tokens.values() {
            sizes.front_ids += ids.front_len() as u64;
            sizes.front_bytes += ids.front_bytes();
            sizes.doubtful_ids += ids.doubtful().count() as u64;
            if let Some(settled) = ids.settled() {
                sizes.settled_ids += settled.digest.count();
                sizes.filter_bytes += settled.filter.bytes();
            }
        }
        sizes
    }
}

/// Evidence that a token was judged against a revocation index and lives; only [`RevocationIndex::check`] makes it.
#[derive(Debug)]
pub struct NotRevoked(());
