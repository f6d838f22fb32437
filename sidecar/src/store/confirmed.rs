//! Confirms what filters say, from RocksDB; and counts how often it had to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use atm_core::id::Id;
use atm_core::revocation::{Bucket, SettledIds, Unconfirmed};
use rocksdb::DB;

use super::REVOKED;
use super::keys::{Generation, revoked_key};

/// How filters and the disk behind them fare; since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) confirmations: AtomicU64,
    pub(super) false_positives: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) failing: AtomicBool,
}

/// The settled ids of one generation. Views hold it for as long as they are looked at; the database belongs to the store's
/// threads, and once they have closed it nothing can be confirmed.
#[derive(Debug)]
pub(super) struct ConfirmedByDisk {
    pub(super) db: Weak<DB>,
    pub(super) generation: Generation,
    pub(super) counts: Arc<Counts>,
}

impl ConfirmedByDisk {
    fn look_up(&self, bucket: Bucket, id: &Id) -> Result<bool, Unconfirmed> {
        let db = self.db.upgrade().ok_or_else(|| Unconfirmed("the store is closed".into()))?;
        let family =
            db.cf_handle(REVOKED).ok_or_else(|| Unconfirmed(format!("no column family {REVOKED}")))?;
        let found = db.get_pinned_cf(family, revoked_key(self.generation, bucket, id));
        found.map(|found| found.is_some()).map_err(|error| Unconfirmed(error.to_string()))
    }
}

impl SettledIds for ConfirmedByDisk {
    fn contains(&self, bucket: Bucket, id: &Id) -> Result<bool, Unconfirmed> {
        let counts = &self.counts;
        counts.confirmations.fetch_add(1, Ordering::Relaxed);
        let answer = self.look_up(bucket, id);
        match &answer {
            Ok(found) => {
                counts.false_positives.fetch_add(u64::from(!found), Ordering::Relaxed);
                counts.failing.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                counts.errors.fetch_add(1, Ordering::Relaxed);
                if !counts.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "the store cannot be read: tokens that may be revoked are refused");
                }
            }
        }
        answer
    }
}
