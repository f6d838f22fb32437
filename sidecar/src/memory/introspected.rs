//! What opaque credentials stand for, as the control plane said, bounded in bytes and in time. The key is the digest of the
//! credential, so that no credential lies in memory or on disk.

use std::sync::Arc;

use atm_core::decision::{CredentialDigest, Known};
use atm_core::time::UnixMillis;
use atm_core::token::AuthenticToken;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::counts::{CacheCounts, CountEvictions, Counters};

/// Bytes of an entry beside the claims, which are held typed and as JSON.
const OVERHEAD: u64 = 768;

/// An answer of the control plane.
#[derive(Debug, Clone)]
pub struct Introspected {
    /// The token; none: the credential is not active.
    pub token: Option<Arc<AuthenticToken>>,
    /// When the answer came, by the own clock.
    pub received: UnixMillis,
    /// Until when it may be kept.
    pub until: UnixMillis,
    /// Bytes of the claims.
    pub bytes: usize,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<CredentialDigest, Introspected> for ByBytes {
    fn weight(&self, _: &CredentialDigest, entry: &Introspected) -> u64 {
        3 * entry.bytes as u64 + OVERHEAD
    }
}

/// The cache. Positive and negative answers share its bound; a flood of unknown credentials displaces what is used least.
#[derive(Debug)]
pub struct IntrospectionCache {
    cache: Cache<CredentialDigest, Introspected, ByBytes, foldhash::quality::RandomState, CountEvictions>,
    counters: Counters,
}

impl IntrospectionCache {
    /// A cache of about `bytes`.
    pub fn new(bytes: u64) -> Self {
        let entries = usize::try_from(bytes / 2_000).unwrap_or(usize::MAX).max(1);
        let counters = Counters::default();
        let hasher = foldhash::quality::RandomState::default();
        let cache = Cache::with(entries, bytes, ByBytes, hasher, counters.evictions());
        Self { cache, counters }
    }

    /// What is known of the credential now.
    pub fn get(&self, digest: &CredentialDigest, now: UnixMillis) -> Known {
        // A clock that was stepped back must not keep an answer for longer.
        let found = self.cache.get(digest).filter(|entry| entry.received <= now && now < entry.until);
        self.counters.looked_up(found.is_some());
        match found {
            None => Known::Unknown,
            Some(Introspected { token: None, .. }) => Known::Inactive,
            Some(Introspected { token: Some(token), received, .. }) => Known::Active(token, received),
        }
    }

    /// Whether the credential was active by the newest answer, however long ago that came. Counts as no look-up.
    pub fn holds_active(&self, digest: &CredentialDigest) -> bool {
        self.cache.peek(digest).is_some_and(|entry| entry.token.is_some())
    }

    /// Keeps an answer.
    pub fn insert(&self, digest: CredentialDigest, entry: Introspected) {
        self.cache.insert(digest, entry);
    }

    /// Look-ups and evictions since the start.
    pub fn counts(&self) -> CacheCounts {
        self.counters.read()
    }

    /// Bytes that the entries are taken to have.
    pub fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// Entries now.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(received: i64, until: i64) -> Introspected {
        Introspected { token: None, received: UnixMillis(received), until: UnixMillis(until), bytes: 0 }
    }

    #[test]
    fn an_answer_counts_from_when_it_came_until_it_ends() {
        let cache = IntrospectionCache::new(1 << 20);
        cache.insert([1; 32], entry(1_000, 2_000));
        for (now, known) in [(999, false), (1_000, true), (1_999, true), (2_000, false)] {
            let found = cache.get(&[1; 32], UnixMillis(now));
            assert_eq!(matches!(found, Known::Inactive), known, "{now}");
        }
        assert!(matches!(cache.get(&[2; 32], UnixMillis(1_000)), Known::Unknown));
    }

    #[test]
    fn a_flood_stays_within_the_bound() {
        let cache = IntrospectionCache::new(1 << 20);
        for number in 0..100_000_u32 {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&number.to_be_bytes());
            cache.insert(digest, entry(0, 1_000));
        }
        assert!(cache.bytes() <= 1 << 20, "{}", cache.bytes());
    }
}
