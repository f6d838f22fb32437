//! What is revoked: single tokens in buckets by expiry, and watermarks over everything of a scope.
//!
//! The index is a value: a clone shares all its entries, so that one writer clones, applies and publishes while readers
//! keep what they hold. Within an epoch it only grows, and a merge is a union or a maximum, so replay changes nothing.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::id::{Id, IdKind};
use crate::reason::Reason;
use crate::time::UnixMillis;
use crate::token::TokenIds;

mod layers;
#[cfg(test)]
mod tests;

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

/// The set of revocations.
///
/// Entries lie in immutable sorted layers that merge geometrically, under a small front for the newest. At a million ids a
/// clone copies a few pointers, adding one id copies at most the front (4 KiB) and now and then merges layers.
#[derive(Debug, Clone, Default)]
pub struct RevocationIndex {
    tokens: Arc<HashMap<Bucket, Arc<Layers<Id>>>>,
    watermarks: Arc<[Arc<Layers<Watermark>>; IdKind::ALL.len()]>,
}

impl RevocationIndex {
    /// Revokes single tokens whose expiry lies in `bucket`. Ids may come in any order and repeatedly.
    pub fn revoke_tokens(&mut self, bucket: Bucket, ids: &[Id]) {
        if ids.is_empty() {
            return;
        }
        let layers = Arc::make_mut(&mut self.tokens).entry(bucket).or_default();
        Arc::make_mut(layers).extend(ids.iter().copied());
    }

    /// Raises the register of `(kind, id)` to `instant`; a lower or equal instant changes nothing.
    pub fn raise_watermark(&mut self, kind: IdKind, id: Id, instant: UnixMillis) {
        let layers = &mut Arc::make_mut(&mut self.watermarks)[kind as usize];
        if layers.get(&id).is_none_or(|known| known.instant < instant) {
            Arc::make_mut(layers).extend([Watermark { id, instant }]);
        }
    }

    /// Whether the token `id` is revoked in its own bucket or in [`Bucket::UNKNOWN`].
    pub fn is_token_revoked(&self, bucket: Bucket, id: &Id) -> bool {
        let revoked_in = |bucket: &Bucket| self.tokens.get(bucket).is_some_and(|ids| ids.get(id).is_some());
        revoked_in(&Bucket::UNKNOWN) || (bucket != Bucket::UNKNOWN && revoked_in(&bucket))
    }

    /// The newest instant up to which everything of `(kind, id)` is revoked.
    pub fn watermark(&self, kind: IdKind, id: &Id) -> Option<UnixMillis> {
        self.watermarks[kind as usize].get(id).map(|found| found.instant)
    }

    /// Judges one token by all that can revoke it: itself and each of its scopes. The watermarks combine as their maximum,
    /// because any one of them suffices. `issued_at` is the token's own.
    pub fn check(&self, ids: &TokenIds, issued_at: UnixMillis) -> Result<NotRevoked, Reason> {
        if ids.token.is_some_and(|id| self.is_token_revoked(ids.bucket, &id)) {
            return Err(Reason::RevokedToken);
        }
        // A revoked key may have signed anything, with any `iat`: for it the instant does not count.
        if ids.key.is_some_and(|key| self.watermark(IdKind::Key, &key).is_some()) {
            return Err(Reason::RevokedKey);
        }
        if ids.ancestors.iter().any(|(bucket, id)| self.is_token_revoked(*bucket, id)) {
            return Err(Reason::RevokedAncestor);
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

    /// How many single tokens are revoked.
    pub fn len(&self) -> usize {
        self.tokens.values().map(|ids| ids.len()).sum()
    }

    /// Whether no single token is revoked; there may be watermarks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many watermarks are set, over all kinds.
    pub fn watermark_count(&self) -> usize {
        self.watermarks.iter().map(|layers| layers.len()).sum()
    }
}

/// Evidence that a token was judged against a revocation index and lives; only [`RevocationIndex::check`] makes it.
#[derive(Debug)]
pub struct NotRevoked(());
