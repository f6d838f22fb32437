//! What survives a restart, in RocksDB: revocations, watermarks, issuers, policies, and the position they belong to.
//!
//! A change set and its position go in one write batch, with the write-ahead log and without fsync: a power cut loses ids
//! and position together, and the feed repairs both. The disk is never on a decision's way.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use atm_core::id::{Id, IdKind};
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_core::view::View;
use atm_proto::change::{self, Change, Digest, Epoch};
use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, IteratorMode, Options, WriteBatch};

use crate::state::{Position, State};

mod writer;

pub use writer::{Saved, Writer, start_writer};

/// `bucket (4, big endian) ‖ id (16)` → nothing.
const TOKENS: &str = "tokens";
/// `kind (1) ‖ id (16)` → milliseconds (8, big endian).
const WATERMARKS: &str = "watermarks";
/// Issuer → its key set as a feed change.
const ISSUERS: &str = "issuers";
/// Single values by name.
const META: &str = "meta";

const POSITION: &[u8] = b"position";
const POLICIES: &[u8] = b"policies";
const FRESH: &[u8] = b"fresh";
const SIDECAR_ID: &[u8] = b"sidecar-id";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("store.path: {} is in use by another process; stop it or give this sidecar a directory of its own", .0.display())]
    InUse(PathBuf),
    /// What it holds cannot be read.
    #[error("store.path: {} is corrupt: {problem}; move it away and start again, the feed restores it", path.display())]
    Corrupt {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The system refuses: permissions, a full disk.
    #[error("store.path: {}: {problem}; check permissions and free space", path.display())]
    System {
        /// The directory.
        path: PathBuf,
        /// What RocksDB says.
        problem: String,
    },
}

/// What the store held when it was opened.
#[derive(Debug)]
pub struct Loaded {
    /// The state to begin with.
    pub state: State,
    /// When the feed was last fresh, by this machine's wall clock.
    pub last_fresh: Option<UnixMillis>,
    /// The name this sidecar gave itself.
    pub sidecar_id: Option<String>,
}

/// The open database.
#[derive(Debug)]
pub struct Store {
    db: DB,
    path: PathBuf,
}

impl Store {
    /// Opens or makes the database at `path`, with a block cache of `block_cache` bytes.
    pub fn open(path: &Path, block_cache: usize) -> Result<Self, StoreError> {
        let cache = Cache::new_lru_cache(block_cache);
        let families = [TOKENS, WATERMARKS, ISSUERS, META]
            .map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache)));
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_open_files(256);
        options.set_keep_log_file_num(4);
        options.set_max_total_wal_size(64 << 20);
        options.set_db_write_buffer_size(32 << 20);
        let db = DB::open_cf_descriptors(&options, path, families).map_err(|error| opening(path, &error))?;
        Ok(Self { db, path: path.to_owned() })
    }

    /// Opens the database; one that is corrupt is moved aside, to be examined, and an empty one is begun. Says where it was
    /// moved to.
    pub fn open_or_rebuild(
        path: &Path,
        block_cache: usize,
    ) -> Result<(Self, Loaded, Option<PathBuf>), StoreError> {
        let problem = match Self::open(path, block_cache)
            .and_then(|store| store.load().map(|loaded| (store, loaded)))
        {
            Ok((store, loaded)) => return Ok((store, loaded, None)),
            Err(error @ StoreError::Corrupt { .. }) => error,
            Err(error) => return Err(error),
        };
        let aside = path.with_extension(format!("corrupt-{}", crate::feed::now().0));
        std::fs::rename(path, &aside)
            .map_err(|error| StoreError::System { path: path.to_owned(), problem: error.to_string() })?;
        tracing::error!(%problem, aside = %aside.display(), "the store is corrupt: moved aside, and rebuilt from the feed");
        let store = Self::open(path, block_cache)?;
        let loaded = store.load()?;
        Ok((store, loaded, Some(aside)))
    }

    /// Reads everything into a state.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let mut view = View::default();
        self.load_issuers(&mut view)?;
        self.load_watermarks(&mut view)?;
        self.load_tokens(&mut view)?;
        let position = self.load_position()?;
        let mut state = State { view, position, verified: position.revision > 0, ..State::default() };
        self.load_policies(&mut state)?;
        let last_fresh = self.meta(FRESH)?.and_then(|value| value.try_into().ok()).map(i64::from_be_bytes);
        let sidecar_id = self.meta(SIDECAR_ID)?.and_then(|value| String::from_utf8(value).ok());
        Ok(Loaded { state, last_fresh: last_fresh.map(UnixMillis), sidecar_id })
    }

    /// Remembers the name that this sidecar gave itself.
    pub fn save_sidecar_id(&self, id: &str) -> Result<(), StoreError> {
        let meta = self.family(META)?;
        self.db.put_cf(meta, SIDECAR_ID, id).map_err(|error| self.system(&error))
    }

    /// Writes change sets and the position after the last of them, all or none.
    fn save(&self, sets: &[Saved]) -> Result<(), StoreError> {
        let Some(last) = sets.last() else { return Ok(()) };
        let mut batch = WriteBatch::default();
        let mut raised = HashMap::new();
        for set in sets {
            for change in &set.changes {
                self.add_change(&mut batch, &mut raised, change, set.policies)?;
            }
        }
        batch.put_cf(self.family(META)?, POSITION, encode_position(&last.position));
        self.db.write(batch).map_err(|error| self.system(&error))
    }

    /// Deletes the single tokens of every bucket before `oldest`, but those of unknown expiry: whole files first, then the rest.
    fn forget_before(&self, oldest: Bucket) -> Result<(), StoreError> {
        let (from, to) = (Bucket(1).0.to_be_bytes(), oldest.0.to_be_bytes());
        if from >= to {
            return Ok(());
        }
        let family = self.family(TOKENS)?;
        self.db.delete_file_in_range_cf(family, from, to).map_err(|error| self.system(&error))?;
        self.db.delete_range_cf(family, from, to).map_err(|error| self.system(&error))
    }

    fn save_fresh(&self, instant: UnixMillis) -> Result<(), StoreError> {
        let meta = self.family(META)?;
        self.db.put_cf(meta, FRESH, instant.0.to_be_bytes()).map_err(|error| self.system(&error))
    }

    /// `raised` are the registers that this batch writes: what the database holds does not know of them yet, and a lower
    /// instant behind a higher one must not undo it.
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
            Change::RevokedTokens { bucket, ids } => {
                let family = self.family(TOKENS)?;
                for id in ids {
                    batch.put_cf(family, token_key(*bucket, id), []);
                }
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
            Change::Policies { .. } => {}
        }
        Ok(())
    }

    fn stored_watermark(&self, key: &[u8; 17]) -> Result<Option<i64>, StoreError> {
        let stored = self.db.get_cf(self.family(WATERMARKS)?, key).map_err(|error| self.system(&error))?;
        Ok(stored.and_then(|value| value.try_into().ok()).map(i64::from_be_bytes))
    }

    fn load_issuers(&self, view: &mut View) -> Result<(), StoreError> {
        for entry in self.db.iterator_cf(self.family(ISSUERS)?, IteratorMode::Start) {
            let (_, value) = entry.map_err(|error| self.corrupt(error.to_string()))?;
            let change = Change::decode(&value).map_err(|error| self.corrupt(error.to_string()))?;
            change::apply(&change, view).map_err(|error| self.corrupt(error.to_string()))?;
        }
        Ok(())
    }

    fn load_watermarks(&self, view: &mut View) -> Result<(), StoreError> {
        for entry in self.db.iterator_cf(self.family(WATERMARKS)?, IteratorMode::Start) {
            let (key, value) = entry.map_err(|error| self.corrupt(error.to_string()))?;
            let (kind, id) =
                parse_watermark_key(&key).ok_or_else(|| self.corrupt("a watermark's key".into()))?;
            let instant = value[..].try_into().map_err(|_| self.corrupt("a watermark's instant".into()))?;
            view.revocations.raise_watermark(kind, id, UnixMillis(i64::from_be_bytes(instant)));
        }
        Ok(())
    }

    /// Ids come in the order of their buckets, each bucket's ascending: as the index wants them.
    fn load_tokens(&self, view: &mut View) -> Result<(), StoreError> {
        let mut current = None;
        let mut ids = Vec::new();
        for entry in self.db.iterator_cf(self.family(TOKENS)?, IteratorMode::Start) {
            let (key, _) = entry.map_err(|error| self.corrupt(error.to_string()))?;
            let (bucket, id) =
                parse_token_key(&key).ok_or_else(|| self.corrupt("a revoked token's key".into()))?;
            if current != Some(bucket) {
                if let Some(bucket) = current {
                    view.revocations.revoke_tokens(Bucket(bucket), &ids);
                }
                ids.clear();
                current = Some(bucket);
            }
            ids.push(id);
        }
        if let Some(bucket) = current {
            view.revocations.revoke_tokens(Bucket(bucket), &ids);
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
            (Err(error), _) => state.policy_fault = Some(error.to_string().into()),
        }
        Ok(())
    }

    fn load_position(&self) -> Result<Position, StoreError> {
        match self.meta(POSITION)? {
            None => Ok(Position::START),
            Some(value) => parse_position(&value).ok_or_else(|| self.corrupt("the position".into())),
        }
    }

    fn meta(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(self.family(META)?, name).map_err(|error| self.corrupt(error.to_string()))
    }

    fn family(&self, name: &str) -> Result<&rocksdb::ColumnFamily, StoreError> {
        self.db.cf_handle(name).ok_or_else(|| self.corrupt(format!("column family {name} is missing")))
    }

    fn corrupt(&self, problem: String) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), problem }
    }

    fn system(&self, error: &rocksdb::Error) -> StoreError {
        StoreError::System { path: self.path.clone(), problem: error.to_string() }
    }
}

fn family_options(cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(rocksdb::DBCompressionType::None); // ids are random
    options
}

fn opening(path: &Path, error: &rocksdb::Error) -> StoreError {
    use rocksdb::ErrorKind;
    let text = error.to_string();
    if text.contains("While lock file") || text.contains("lock hold by current process") {
        return StoreError::InUse(path.to_owned());
    }
    // A file of the database that is missing or holds something else is reported under several kinds.
    let corrupt = matches!(error.kind(), ErrorKind::Corruption)
        || text.contains("Corruption")
        || text.contains("No such file or directory") && path.join("CURRENT").exists();
    if corrupt {
        return StoreError::Corrupt { path: path.to_owned(), problem: text };
    }
    StoreError::System { path: path.to_owned(), problem: text }
}

fn token_key(bucket: Bucket, id: &Id) -> [u8; 20] {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&bucket.0.to_be_bytes());
    key[4..].copy_from_slice(id.as_bytes());
    key
}

fn parse_token_key(key: &[u8]) -> Option<(u32, Id)> {
    let (bucket, id) = key.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*bucket), Id::from_bytes(id.try_into().ok()?)))
}

fn watermark_key(kind: IdKind, id: &Id) -> [u8; 17] {
    let mut key = [0; 17];
    key[0] = kind as u8;
    key[1..].copy_from_slice(id.as_bytes());
    key
}

fn parse_watermark_key(key: &[u8]) -> Option<(IdKind, Id)> {
    let (kind, id) = key.split_first()?;
    Some((IdKind::from_number(*kind)?, Id::from_bytes(id.try_into().ok()?)))
}

fn encode_position(position: &Position) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(56);
    bytes.extend_from_slice(position.epoch.map_or([0; 16], |epoch| *epoch.as_bytes()).as_slice());
    bytes.extend_from_slice(&position.revision.to_be_bytes());
    bytes.extend_from_slice(position.digest.as_bytes());
    bytes
}

fn parse_position(bytes: &[u8]) -> Option<Position> {
    let (epoch, rest) = bytes.split_first_chunk::<16>()?;
    let (revision, digest) = rest.split_first_chunk::<8>()?;
    Some(Position {
        epoch: Some(Epoch::from_bytes(*epoch)),
        revision: u64::from_be_bytes(*revision),
        digest: Digest::from_bytes(digest.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests;
