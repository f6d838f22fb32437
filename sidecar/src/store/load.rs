//! Reads what was saved into a state.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use atm_core::revocation::{Bucket, RevocationIndex, Run, Settled};
use atm_core::time::UnixMillis;
use atm_core::view::View;
use atm_proto::change::{self, Change};
use rocksdb::IteratorMode;

use super::keys::{Generation, bucket_key, parse_watermark_key};
use super::settle::{SettleError, decode_filter};
use super::{
    FILTERS, FRESH, ISSUERS, Loaded, POLICIES, POSITION, SIDECAR_ID, Store, StoreError, WATERMARKS,
    parse_position,
};
use crate::state::{Position, State};

impl Store {
    /// Reads everything into a state: for the settled tokens their filters, which are built where they are missing.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let mut view = View { revocations: self.load_tokens()?, ..View::default() };
        self.load_issuers(&mut view)?;
        self.load_watermarks(&mut view)?;
        let position = self.load_position()?;
        let mut state = State { view, position, verified: position.revision > 0, ..State::default() };
        self.load_policies(&mut state)?;
        let last_fresh = self.meta(FRESH)?.and_then(|value| value.try_into().ok()).map(i64::from_be_bytes);
        let sidecar_id = self.meta(SIDECAR_ID)?.and_then(|value| String::from_utf8(value).ok());
        Ok(Loaded { state, last_fresh: last_fresh.map(UnixMillis), sidecar_id })
    }

    fn load_tokens(&self) -> Result<RevocationIndex, StoreError> {
        let generation = self.generation();
        if let Err(error) = self.forget_generations_but(generation) {
            tracing::warn!(%error, "replaced revocations stay in the store for now");
        }
        let mut recent = Vec::new();
        let newest = self.recent(generation, |bucket, ids| recent.push((bucket, ids.to_vec())))?;
        let mut index = RevocationIndex::beginning_at(newest.map_or(Run(0), Run::next));
        for bucket in self.settled_buckets(generation)? {
            index.join(bucket, self.load_settled(generation, bucket)?);
        }
        for (bucket, ids) in recent {
            index.revoke_tokens(bucket, &ids);
        }
        Ok(index)
    }

    /// The filter that was saved with the bucket. One that cannot be read is built again: the ids are the truth.
    fn load_settled(&self, generation: Generation, bucket: Bucket) -> Result<Settled, StoreError> {
        let saved = self.db.get_cf(self.family(FILTERS)?, bucket_key(generation, bucket));
        let saved = saved.unwrap_or_else(|error| {
            tracing::warn!(%error, "a saved filter cannot be read");
            None
        });
        if let Some(settled) = saved.and_then(|bytes| decode_filter(&bytes, self.confirmed(generation))) {
            return Ok(settled);
        }
        tracing::info!(bucket = bucket.0, "building the filter of a bucket that has none that fits");
        let settled = match self.build_filter(generation, bucket, &AtomicBool::new(false)) {
            Ok(settled) => settled,
            Err(SettleError::Store(error)) => return Err(error),
            Err(SettleError::Stopped) => return Err(self.corrupt("its filters".into())), // nobody stops it here
        };
        if let Err(error) = self.save_filter(generation, bucket, &settled) {
            tracing::warn!(%error, "a filter was built and cannot be saved; the next start builds it again");
        }
        Ok(settled)
    }

    fn load_issuers(&self, view: &mut View) -> Result<(), StoreError> {
        for entry in self.db.iterator_cf(self.family(ISSUERS)?, IteratorMode::Start) {
            let (_, value) = entry.map_err(|error| self.reading(&error))?;
            let change = Change::decode(&value).map_err(|error| self.corrupt(error.to_string()))?;
            change::apply(&change, view).map_err(|error| self.corrupt(error.to_string()))?;
        }
        Ok(())
    }

    fn load_watermarks(&self, view: &mut View) -> Result<(), StoreError> {
        for entry in self.db.iterator_cf(self.family(WATERMARKS)?, IteratorMode::Start) {
            let (key, value) = entry.map_err(|error| self.reading(&error))?;
            let (kind, id) =
                parse_watermark_key(&key).ok_or_else(|| self.corrupt("a watermark's key".into()))?;
            let instant = value[..].try_into().map_err(|_| self.corrupt("a watermark's instant".into()))?;
            view.revocations.raise_watermark(kind, id, UnixMillis(i64::from_be_bytes(instant)));
        }
        Ok(())
    }

    fn load_policies(&self, state: &mut State) -> Result<(), StoreError> {
        let Some(value) = self.meta(POLICIES)? else { return Ok(()) };
        let change = Change::decode(&value).map_err(|error| self.corrupt(error.to_string()))?;
        // They compiled when they were saved; a version of this program that compiles them no more must say so.
        match (change::apply(&change, &mut state.view), change) {
            (Ok(()), Change::Policies { version, .. }) => state.policy_version = version,
            (Ok(()), _) => return Err(self.corrupt("the policies' entry".into())),
            (Err(error), _) => state.policy_fault = Some(Arc::from(error.to_string())),
        }
        Ok(())
    }

    fn load_position(&self) -> Result<Position, StoreError> {
        match self.meta(POSITION)? {
            None => Ok(Position::START),
            Some(value) => parse_position(&value).ok_or_else(|| self.corrupt("the position".into())),
        }
    }
}
