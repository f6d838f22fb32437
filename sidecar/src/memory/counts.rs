//! What a cache counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Lifecycle;

/// What came of a cache's entries and look-ups since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCounts {
    /// Look-ups that found their entry.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Entries that made room for others, or were too large to be kept at all.
    pub evictions: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: Arc<AtomicU64>,
}

impl Counters {
    pub(super) fn looked_up(&self, found: bool) {
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What tells a cache to count its evictions here.
    pub(super) fn evictions(&self) -> CountEvictions {
        CountEvictions(Arc::clone(&self.evictions))
    }

    pub(super) fn read(&self) -> CacheCounts {
        CacheCounts {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
        }
    }
}

/// Counts what leaves a cache, and drops it when the cache's lock is given back.
#[derive(Debug, Clone)]
pub(super) struct CountEvictions(Arc<AtomicU64>);

impl<K, V> Lifecycle<K, V> for CountEvictions {
    type RequestState = Option<(K, V)>;

    fn on_evict(&self, last: &mut Option<(K, V)>, key: K, value: V) {
        self.0.fetch_add(1, Ordering::Relaxed);
        *last = Some((key, value));
    }
}
