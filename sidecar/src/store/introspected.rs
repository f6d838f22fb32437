//! What opaque credentials stand for, over a restart: a column family of its own, written behind and read once at the start.
//!
//! It is a cache, and kept like one: RocksDB's FIFO compaction drops the oldest file when all are too large or when everything
//! in it has ended, so that nothing is ever compacted or deleted. Keys are digests: nothing in it could be used as a credential.

use std::path::PathBuf;
use std::sync::Arc;

use atm_core::decision::CredentialDigest;
use atm_core::time::UnixMillis;
use atm_proto::change::Epoch;
use atm_proto::introspection::MAX_CACHE_SECONDS;
use rocksdb::{DB, DBCompactionStyle, FifoCompactOptions, IteratorMode, Options, WriteBatch};

use super::StoreError;

/// SHA-256 of the credential (32) → an encoded [`Kept`].
pub(super) const FAMILY: &str = "introspected";

/// Bytes on disk at most.
const MAX_BYTES: u64 = 64 << 20;
/// Bytes in memory before a file is written; a few files make up the bound, so that dropping one drops a part.
const WRITE_BUFFER: usize = 4 << 20;
/// The form of the values; a file of another form is a cache that is empty.
const FORM: u8 = 1;

/// An answer of the control plane, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Which credential.
    pub digest: CredentialDigest,
    /// The log's life in which the answer came; one of another life says nothing.
    pub epoch: Option<Epoch>,
    /// When the answer came, by the own clock.
    pub received: UnixMillis,
    /// Until when it may be kept.
    pub until: UnixMillis,
    /// The control plane's instant of its answer.
    pub learnt_at: UnixMillis,
    /// The claims as JSON; empty where the credential is not active.
    pub claims: String,
}

/// The family in the open database. The database stays open for as long as one of these is held.
#[derive(Debug, Clone)]
pub struct IntrospectedStore {
    pub(super) db: Arc<DB>,
    pub(super) path: PathBuf,
}

pub(super) fn options(mut options: Options) -> Options {
    let mut fifo = FifoCompactOptions::default();
    fifo.set_max_table_files_size(MAX_BYTES);
    options.set_compaction_style(DBCompactionStyle::Fifo);
    options.set_fifo_compaction_options(&fifo);
    options.set_ttl(u64::from(2 * MAX_CACHE_SECONDS));
    options.set_write_buffer_size(WRITE_BUFFER);
    options
}

impl IntrospectedStore {
    /// Gives every answer that still counts at `now` to `take`. What cannot be read is left out.
    pub fn load(
        &self,
        epoch: Option<Epoch>,
        now: UnixMillis,
        mut take: impl FnMut(Kept),
    ) -> Result<(), StoreError> {
        for entry in self.db.iterator_cf(self.family()?, IteratorMode::Start) {
            let (key, value) = entry.map_err(|error| self.refuse(&error))?;
            // A clock that was stepped back must not keep an answer for longer.
            let counts = |kept: &Kept| kept.epoch == epoch && kept.received <= now && now < kept.until;
            if let Some(kept) = decode(&key, &value).filter(counts) {
                take(kept);
            }
        }
        Ok(())
    }

    /// Writes answers, all or none. A later one of the same credential takes the place of an earlier one.
    pub fn save(&self, answers: &[Kept]) -> Result<(), StoreError> {
        let family = self.family()?;
        let mut batch = WriteBatch::default();
        for kept in answers {
            batch.put_cf(family, kept.digest, encode(kept));
        }
        self.db.write(batch).map_err(|error| self.refuse(&error))
    }

    fn family(&self) -> Result<&rocksdb::ColumnFamily, StoreError> {
        self.db.cf_handle(FAMILY).ok_or_else(|| StoreError::Corrupt {
            path: self.path.clone(),
            problem: format!("column family {FAMILY} is missing"),
        })
    }

    fn refuse(&self, error: &rocksdb::Error) -> StoreError {
        StoreError::System { path: self.path.clone(), problem: error.to_string() }
    }
}

fn encode(kept: &Kept) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(41 + kept.claims.len());
    bytes.push(FORM);
    bytes.extend_from_slice(kept.epoch.map_or([0; 16], |epoch| *epoch.as_bytes()).as_slice());
    for instant in [kept.received, kept.until, kept.learnt_at] {
        bytes.extend_from_slice(&instant.0.to_be_bytes());
    }
    bytes.extend_from_slice(kept.claims.as_bytes());
    bytes
}

fn decode(key: &[u8], value: &[u8]) -> Option<Kept> {
    let (form, rest) = value.split_first()?;
    let (epoch, rest) = rest.split_first_chunk::<16>()?;
    let (received, rest) = rest.split_first_chunk()?;
    let (until, rest) = rest.split_first_chunk()?;
    let (learnt_at, claims) = rest.split_first_chunk()?;
    let instant = |bytes: &[u8; 8]| UnixMillis(i64::from_be_bytes(*bytes));
    (*form == FORM).then_some(())?;
    Some(Kept {
        digest: key.try_into().ok()?,
        epoch: (*epoch != [0; 16]).then(|| Epoch::from_bytes(*epoch)),
        received: instant(received),
        until: instant(until),
        learnt_at: instant(learnt_at),
        claims: String::from_utf8(claims.to_vec()).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn kept(number: u8, claims: &str) -> Kept {
        Kept {
            digest: [number; 32],
            epoch: Some(Epoch::from_bytes([7; 16])),
            received: UnixMillis(1_000),
            until: UnixMillis(2_000),
            learnt_at: UnixMillis(900),
            claims: claims.to_owned(),
        }
    }

    fn loaded(store: &IntrospectedStore, epoch: u8, now: i64) -> Vec<Kept> {
        let mut found = Vec::new();
        store.load(Some(Epoch::from_bytes([epoch; 16])), UnixMillis(now), |kept| found.push(kept)).unwrap();
        found
    }

    #[test]
    fn answers_outlive_the_process_until_they_end() {
        let directory = tempfile::tempdir().unwrap();
        let answers = [kept(1, r#"{"sub":"robot"}"#), kept(2, "")];
        {
            let store = Store::open(directory.path(), 1 << 20).unwrap();
            store.introspected().save(&[kept(1, "{}")]).unwrap();
            store.introspected().save(&answers).unwrap();
        }
        let store = Store::open(directory.path(), 1 << 20).unwrap().introspected();
        assert_eq!(loaded(&store, 7, 1_500), answers);
        assert_eq!(loaded(&store, 7, 2_000), [], "they have ended");
        assert_eq!(loaded(&store, 7, 999), [], "the clock was stepped back");
        assert_eq!(loaded(&store, 8, 1_500), [], "another life of the log");
    }

    #[test]
    fn what_was_written_by_another_version_is_left_out() {
        let value = encode(&kept(1, "{}"));
        assert_eq!(decode(&[1; 32], &value), Some(kept(1, "{}")));
        assert_eq!(decode(&[1; 31], &value), None);
        assert_eq!(decode(&[1; 32], &value[..40]), None);
        assert_eq!(decode(&[1; 32], &[&[FORM + 1], &value[1..]].concat()), None);
        assert_eq!(decode(&[1; 32], &[]), None);
    }

    /// Distinct credentials beyond the bound push the oldest out.
    #[test]
    fn a_flood_stays_within_the_bound_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 1 << 20).unwrap().introspected();
        let claims = "x".repeat(64 << 10);
        for number in 0..2_000_u32 {
            let mut answer = kept(0, &claims);
            answer.digest[..4].copy_from_slice(&number.to_be_bytes());
            store.save(&[answer]).unwrap();
        }
        store.db.flush_cf(store.family().unwrap()).unwrap();
        let size = || {
            let size = store
                .db
                .property_int_value_cf(store.family().unwrap(), rocksdb::properties::TOTAL_SST_FILES_SIZE);
            size.unwrap().unwrap()
        };
        let begun = std::time::Instant::now();
        while size() > MAX_BYTES && begun.elapsed().as_secs() < 30 {
            std::thread::yield_now();
        }
        assert!(size() <= MAX_BYTES, "{} bytes of 128 MB written", size());
        assert!(size() > MAX_BYTES / 4, "{} bytes: what is new was dropped, too", size());
    }
}
