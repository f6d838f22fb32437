//! Tokens whose signature was verified before, bounded in bytes. A hit saves the signature and nothing else: times,
//! revocation, binding and policy are judged again.

use std::sync::Arc;

use atm_core::token::AuthenticToken;
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

use super::counts::{CacheCounts, CountEvictions, Counters};

/// The whole token is the key, compared in full: a hash alone would let one token answer for another.
type Key = (u64, Box<str>);

#[derive(Hash, PartialEq, Eq)]
struct Borrowed<'a>(u64, &'a str);

impl Equivalent<Key> for Borrowed<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.0 == key.0 && *self.1 == *key.1
    }
}

/// Bytes that an entry takes beside the token's text: claims hold about as much again, ids and pointers the rest.
const OVERHEAD: u64 = 512;

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<AuthenticToken>> for ByBytes {
    fn weight(&self, key: &Key, _: &Arc<AuthenticToken>) -> u64 {
        3 * key.1.len() as u64 + OVERHEAD
    }
}

/// The cache. Its hash is keyed at random for each process, so that nobody can choose tokens that collide.
#[derive(Debug)]
pub struct VerifiedTokenCache {
    cache: Cache<Key, Arc<AuthenticToken>, ByBytes, foldhash::quality::RandomState, CountEvictions>,
    counters: Counters,
}

impl VerifiedTokenCache {
    /// A cache of about `bytes`; 0 keeps nothing.
    pub fn new(bytes: u64) -> Self {
        let entries = usize::try_from(bytes / 3_000).unwrap_or(usize::MAX).max(1);
        let counters = Counters::default();
        let cache = Cache::with(
            entries,
            bytes,
            ByBytes,
            foldhash::quality::RandomState::default(),
            counters.evictions(),
        );
        Self { cache, counters }
    }

    /// The verified form of exactly this token, if it was verified at this key generation.
    pub fn get(&self, token: &str, key_generation: u64) -> Option<Arc<AuthenticToken>> {
        let found = self.cache.get(&Borrowed(key_generation, token));
        self.counters.looked_up(found.is_some());
        found
    }

    /// Keeps a verified token.
    pub fn insert(&self, token: &str, key_generation: u64, verified: Arc<AuthenticToken>) {
        self.cache.insert((key_generation, token.into()), verified);
    }

    /// Bytes that the entries are taken to have.
    pub fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// Look-ups and evictions since the start.
    pub fn counts(&self) -> CacheCounts {
        self.counters.read()
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
