//! Moves what came lately to the settled ids, and builds the filter over them: in the background, by one thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atm_core::id::Id;
use atm_core::revocation::{Bucket, FilterBuilder, Run, SetDigest, Settled, SettledIds};
use rocksdb::{ReadOptions, WriteBatch};

use super::keys::{
    Generation, bucket_end, bucket_key, parse_bucket_key, parse_id, parse_recent_run, revoked_key, run_key,
};
use super::{FILTERS, RECENT, REVOKED, Store, StoreError};

/// Ids that are written in one batch.
const BATCH: usize = 8_192;

/// Why nothing was settled.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettleError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sidecar is being stopped.
    #[error("stopping")]
    Stopped,
}

impl Store {
    /// Settles everything that came to `bucket` up to and with `run`. On disk the ids are in both places until the filter is
    /// there; the last step puts the filter in and takes them from where they were, at once.
    pub(super) fn settle(
        &self,
        generation: Generation,
        bucket: Bucket,
        run: Run,
        stop: &AtomicBool,
    ) -> Result<Settled, SettleError> {
        let (first, end) = (run_key(generation, bucket, Run(0)), run_key(generation, bucket, run.next()));
        let mut recent = Vec::new();
        self.scan(RECENT, &first, &end, |key, _| {
            recent.push(parse_id(key).ok_or_else(|| self.corrupt("the name of a revoked token".into()))?);
            Ok::<_, StoreError>(())
        })?;
        recent.sort_unstable();
        recent.dedup();
        for ids in recent.chunks(BATCH) {
            stopped(stop)?;
            let mut batch = WriteBatch::default();
            for id in ids {
                batch.put_cf(self.family(REVOKED)?, revoked_key(generation, bucket, id), []);
            }
            self.write(batch)?;
        }
        let settled = self.build_filter(generation, bucket, stop)?;
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(FILTERS)?, bucket_key(generation, bucket), encode_filter(&settled));
        batch.delete_range_cf(self.family(RECENT)?, first, end);
        self.write(batch)?;
        Ok(settled)
    }

    /// A filter over all settled ids of `bucket`, from the ids themselves.
    pub(super) fn build_filter(
        &self,
        generation: Generation,
        bucket: Bucket,
        stop: &AtomicBool,
    ) -> Result<Settled, SettleError> {
        let mut builder = FilterBuilder::default();
        let mut since_look = 0;
        let (first, end) = (bucket_key(generation, bucket), bucket_end(generation, bucket));
        self.scan(REVOKED, &first, &end, |key, _| {
            since_look += 1;
            if since_look == BATCH {
                since_look = 0;
                stopped(stop)?;
            }
            let id = parse_id(key).ok_or_else(|| self.corrupt("the name of a revoked token".into()))?;
            builder.push(&id).map_err(|error| SettleError::Store(self.corrupt(error.to_string())))
        })?;
        let (filter, digest) = builder.finish();
        Ok(Settled { filter: Arc::new(filter), ids: self.confirmed(generation), digest })
    }

    /// The digest of every bucket, from the ids on disk. Each is read to its end, and its checksums with it.
    pub(super) fn scrub(
        &self,
        generation: Generation,
        stop: &AtomicBool,
    ) -> Result<Vec<(Bucket, SetDigest)>, SettleError> {
        let mut recent: BTreeMap<Bucket, Vec<Id>> = BTreeMap::new();
        self.recent(generation, |bucket, ids| recent.entry(bucket).or_default().extend(ids))?;
        for bucket in self.settled_buckets(generation)? {
            recent.entry(bucket).or_default();
        }
        let mut digests = Vec::new();
        for (bucket, mut lately) in recent {
            lately.sort_unstable();
            lately.dedup();
            let settled = self.build_filter(generation, bucket, stop)?;
            let mut digest = settled.digest;
            for id in lately {
                let is_settled = settled.filter.may_contain(&id)
                    && settled.ids.contains(bucket, &id).map_err(|error| self.corrupt(error.to_string()))?;
                if !is_settled {
                    digest.add_token(&id);
                }
            }
            digests.push((bucket, digest));
        }
        Ok(digests)
    }

    /// Writes a filter that was built because there was none that fitted.
    pub(super) fn save_filter(
        &self,
        generation: Generation,
        bucket: Bucket,
        settled: &Settled,
    ) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(FILTERS)?, bucket_key(generation, bucket), encode_filter(settled));
        self.write(batch)
    }

    /// Whether each of `ids` is settled in `bucket`; those that cannot be looked up are left out.
    pub(super) fn look_up(&self, generation: Generation, bucket: Bucket, ids: Vec<Id>) -> Vec<(Id, bool)> {
        let settled = self.confirmed(generation);
        let verdict = |id| settled.contains(bucket, &id).ok().map(|found| (id, found));
        ids.into_iter().filter_map(verdict).collect()
    }

    /// Deletes the single tokens of every bucket before `oldest`, but those of unknown expiry: whole files first, then the rest.
    pub(super) fn forget_before(&self, generation: Generation, oldest: Bucket) -> Result<(), StoreError> {
        self.delete_between(bucket_key(generation, Bucket(1)), bucket_key(generation, oldest))
    }

    /// Deletes every generation but `kept`.
    pub(super) fn forget_generations_but(&self, kept: Generation) -> Result<(), StoreError> {
        self.delete_between(Generation(0).first_key(), kept.first_key())?;
        self.forget_generations_after(kept)
    }

    /// Deletes what an attempt to begin a later generation than `kept` left behind.
    pub(super) fn forget_generations_after(&self, kept: Generation) -> Result<(), StoreError> {
        self.delete_between(kept.end_key(), [0xff; 8])
    }

    /// Deletes one generation, which nobody looks at any more.
    pub(super) fn forget_generation(&self, generation: Generation) -> Result<(), StoreError> {
        self.delete_between(generation.first_key(), generation.end_key())
    }

    fn delete_between(&self, from: [u8; 8], to: [u8; 8]) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        for name in [FILTERS, RECENT, REVOKED] {
            if self.first_key(name, &from, &to)?.is_none() {
                continue;
            }
            let family = self.family(name)?;
            self.db.delete_file_in_range_cf(family, from, to).map_err(|error| self.system(&error))?;
            self.db.delete_range_cf(family, from, to).map_err(|error| self.system(&error))?;
        }
        Ok(())
    }

    /// The first key in `from..to`.
    fn first_key(&self, name: &str, from: &[u8], to: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut iterator = self.db.raw_iterator_cf_opt(self.family(name)?, reading_through(to));
        iterator.seek(from);
        iterator.status().map_err(|error| self.reading(&error))?;
        Ok(iterator.key().map(<[u8]>::to_vec))
    }

    /// Shows every entry in `from..to` to `visit`, in order.
    pub(super) fn scan<E: From<StoreError>>(
        &self,
        name: &str,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut iterator = self.db.raw_iterator_cf_opt(self.family(name)?, reading_through(to));
        iterator.seek(from);
        while let Some((key, value)) = iterator.item() {
            visit(key, value)?;
            iterator.next();
        }
        iterator.status().map_err(|error| self.reading(&error).into())
    }

    /// The buckets of which there are settled ids.
    pub(super) fn settled_buckets(&self, generation: Generation) -> Result<Vec<Bucket>, StoreError> {
        let mut buckets = Vec::new();
        let mut from = generation.first_key();
        while let Some(key) = self.first_key(REVOKED, &from, &generation.end_key())? {
            let bucket =
                parse_bucket_key(&key).ok_or_else(|| self.corrupt("the name of a revoked token".into()))?;
            buckets.push(bucket);
            from = bucket_end(generation, bucket);
        }
        Ok(buckets)
    }

    /// What came lately: each bucket's ids, and the newest run.
    pub(super) fn recent(
        &self,
        generation: Generation,
        mut take: impl FnMut(Bucket, &[Id]),
    ) -> Result<Option<Run>, StoreError> {
        let (mut current, mut ids, mut newest) = (None, Vec::new(), None);
        self.scan(RECENT, &generation.first_key(), &generation.end_key(), |key, _| {
            let named = parse_bucket_key(key).zip(parse_recent_run(key)).zip(parse_id(key));
            let ((bucket, run), id) =
                named.ok_or_else(|| self.corrupt("the name of a revoked token".into()))?;
            newest = newest.max(Some(run));
            if current != Some(bucket) {
                if let Some(bucket) = current {
                    take(bucket, &ids);
                }
                ids.clear();
                current = Some(bucket);
            }
            ids.push(id);
            Ok::<_, StoreError>(())
        })?;
        if let Some(bucket) = current {
            take(bucket, &ids);
        }
        Ok(newest)
    }
}

/// Options for one pass over what need not push other blocks out of the cache.
fn reading_through(to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_readahead_size(256 << 10);
    options.set_iterate_upper_bound(to);
    options
}

pub(super) fn stopped(stop: &AtomicBool) -> Result<(), SettleError> {
    if stop.load(Ordering::Relaxed) { Err(SettleError::Stopped) } else { Ok(()) }
}

/// `digest (24) ‖ filter`
fn encode_filter(settled: &Settled) -> Vec<u8> {
    let mut bytes = settled.digest.to_bytes().to_vec();
    bytes.extend(settled.filter.encode());
    bytes
}

pub(super) fn decode_filter(bytes: &[u8], ids: Arc<dyn SettledIds>) -> Option<Settled> {
    let (digest, filter) = bytes.split_first_chunk::<24>()?;
    let filter = Arc::new(atm_core::revocation::IdFilter::decode(filter)?);
    Some(Settled { filter, ids, digest: SetDigest::from_bytes(digest) })
}
