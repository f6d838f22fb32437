//! Writes change sets.

use std::collections::HashMap;

use atm_core::revocation::Run;
use atm_core::time::UnixMillis;
use atm_proto::change::Change;
use rocksdb::WriteBatch;

use super::keys::{Generation, recent_key, watermark_key};
use super::writer::Saved;
use super::{
    FRESH, GENERATION, ISSUERS, META, POLICIES, POSITION, RECENT, Store, StoreError, WATERMARKS,
    encode_position,
};

impl Store {
    /// Writes change sets and the position after the last of them, all or none. Each one's tokens belong to the run beside it.
    pub(super) fn save(&self, sets: &[(Run, Saved)]) -> Result<(), StoreError> {
        let Some((_, last)) = sets.last() else { return Ok(()) };
        let mut batch = WriteBatch::default();
        let mut raised = HashMap::new();
        let generation = self.generation();
        for (run, set) in sets {
            for change in &set.changes {
                if let Change::RevokedTokens { bucket, ids } = change {
                    let family = self.family(RECENT)?;
                    for id in ids {
                        batch.put_cf(family, recent_key(generation, *bucket, *run, id), []);
                    }
                }
                self.add_change(&mut batch, &mut raised, change, set.policies)?;
            }
        }
        batch.put_cf(self.family(META)?, POSITION, encode_position(&last.position));
        self.write(batch)
    }

    pub(super) fn save_fresh(&self, instant: UnixMillis) -> Result<(), StoreError> {
        let meta = self.family(META)?;
        self.db.put_cf(meta, FRESH, instant.0.to_be_bytes()).map_err(|error| self.system(&error))
    }

    pub(super) fn saved_generation(&self) -> Result<Generation, StoreError> {
        match self.meta(GENERATION)? {
            None => Ok(Generation(0)),
            Some(value) => {
                let number = value.try_into().map_err(|_| self.corrupt("the generation".into()))?;
                Ok(Generation(u32::from_be_bytes(number)))
            }
        }
    }

    /// All of a change but single tokens. `raised` are the registers that this batch writes: what the database holds does not
    /// know of them yet, and a lower instant behind a higher one must not undo it.
    fn add_change(
        &self,
        batch: &mut WriteBatch,
        raised: &mut HashMap<[u8; 17], i64>,
        change: &Change,
        policies: bool,
    ) -> Result<(), StoreError> {
        match change {
            Change::IssuerKeys { issuer, keys, .. } if keys.is_empty() => {
                batch.delete_cf(self.family(ISSUERS)?, issuer);
            }
            Change::IssuerKeys { issuer, .. } => {
                batch.put_cf(self.family(ISSUERS)?, issuer, change.encode());
            }
            Change::Watermarks { kind, entries } => {
                let family = self.family(WATERMARKS)?;
                for (id, instant) in entries {
                    let key = watermark_key(*kind, id);
                    let known = match raised.get(&key) {
                        Some(instant) => Some(*instant),
                        None => self.stored_watermark(&key)?,
                    };
                    if known.is_none_or(|known| instant.0 > known) {
                        batch.put_cf(family, key, instant.0.to_be_bytes());
                        raised.insert(key, instant.0);
                    }
                }
            }
            Change::Policies { .. } if policies => {
                batch.put_cf(self.family(META)?, POLICIES, change.encode());
            }
            Change::RevokedTokens { .. } | Change::Policies { .. } => {}
        }
        Ok(())
    }

    fn stored_watermark(&self, key: &[u8; 17]) -> Result<Option<i64>, StoreError> {
        let stored = self.db.get_cf(self.family(WATERMARKS)?, key).map_err(|error| self.system(&error))?;
        Ok(stored.and_then(|value| value.try_into().ok()).map(i64::from_be_bytes))
    }
}
