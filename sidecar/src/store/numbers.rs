//! What the store can say of itself in numbers.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use rocksdb::{Cache, DB, properties};

use super::FAMILIES;
use super::confirmed::Counts;

/// Numbers of the store at one moment; counts are since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreNumbers {
    /// Hits of filters that were looked up on disk.
    pub confirmations: u64,
    /// Those of them that were not there.
    pub false_positives: u64,
    /// Those of them that could not be looked up, and were refused.
    pub confirmation_errors: u64,
    /// Whether the last one could not.
    pub confirmations_failing: bool,
    /// Bytes in RocksDB's memtables.
    pub memtable_bytes: u64,
    /// Bytes in its block cache.
    pub block_cache_bytes: u64,
    /// Bytes that its block cache may have.
    pub block_cache_capacity_bytes: u64,
    /// Bytes of index blocks outside of the block cache, estimated.
    pub table_reader_bytes: u64,
    /// Bytes of table files on disk.
    pub disk_bytes: u64,
    /// Bytes that compaction has still to rewrite, estimated.
    pub pending_compaction_bytes: u64,
    /// Compactions under way.
    pub running_compactions: u64,
    /// Memtables that are being written as table files.
    pub running_flushes: u64,
    /// Bytes a second that writes are slowed down to; 0 when they are not.
    pub delayed_write_bytes_per_second: u64,
    /// Errors of its background threads; after one of these writes may be refused.
    pub background_errors: u64,
    /// Whether writes wait for compactions.
    pub write_stopped: bool,
}

/// Reads the store's numbers; outlives the store, whose own numbers are then zero.
#[derive(Clone)]
pub struct StoreGauge {
    pub(super) db: Weak<DB>,
    pub(super) cache: Cache,
    pub(super) counts: Arc<Counts>,
}

impl std::fmt::Debug for StoreGauge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreGauge").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl StoreGauge {
    /// Whether the last hit of a filter could not be looked up.
    pub fn confirmations_failing(&self) -> bool {
        self.counts.failing.load(Ordering::Relaxed)
    }

    /// The numbers now. Takes no lock that a decision takes, and reads nothing from the disk.
    pub fn read(&self) -> StoreNumbers {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let mut numbers = StoreNumbers {
            confirmations: count(&self.counts.confirmations),
            false_positives: count(&self.counts.false_positives),
            confirmation_errors: count(&self.counts.errors),
            confirmations_failing: self.confirmations_failing(),
            ..StoreNumbers::default()
        };
        let Some(db) = self.db.upgrade() else { return numbers };
        let total = |property: &rocksdb::properties::PropName| {
            let families = FAMILIES.iter().filter_map(|name| db.cf_handle(name));
            families
                .filter_map(|family| db.property_int_value_cf(family, property).ok().flatten())
                .sum::<u64>()
        };
        numbers.memtable_bytes = total(properties::SIZE_ALL_MEM_TABLES);
        numbers.table_reader_bytes = total(properties::ESTIMATE_TABLE_READERS_MEM);
        numbers.disk_bytes = total(properties::TOTAL_SST_FILES_SIZE);
        numbers.pending_compaction_bytes = total(properties::ESTIMATE_PENDING_COMPACTION_BYTES);
        numbers.block_cache_bytes = self.cache.get_usage() as u64;
        // One cache serves all families; any of them tells its bound.
        let family = FAMILIES.iter().find_map(|name| db.cf_handle(name));
        let capacity = family.and_then(|family| {
            db.property_int_value_cf(family, properties::BLOCK_CACHE_CAPACITY).ok().flatten()
        });
        numbers.block_cache_capacity_bytes = capacity.unwrap_or_default();
        let whole = |property| db.property_int_value(property).ok().flatten().unwrap_or(0);
        numbers.running_compactions = whole(properties::NUM_RUNNING_COMPACTIONS);
        numbers.running_flushes = whole(properties::NUM_RUNNING_FLUSHES);
        numbers.delayed_write_bytes_per_second = whole(properties::ACTUAL_DELAYED_WRITE_RATE);
        numbers.background_errors = whole(properties::BACKGROUND_ERRORS);
        numbers.write_stopped = whole(properties::IS_WRITE_STOPPED) > 0;
        numbers
    }
}
