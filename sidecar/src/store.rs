//! What survives a restart, in RocksDB: revocations, watermarks, issuers, policies, and the position they belong to.
//!
//! A change set and its position go in one write batch, with the write-ahead log and without fsync: a power cut loses ids
//! and position together, and the feed repairs both.
//!
//! Single tokens lie as they do in the index in memory: those that came lately by themselves, the settled ones with a filter
//! a bucket beside them. So a start reads filters and what came lately, and no more. A decision meets the disk only where a
//! filter says that the token may be revoked.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use atm_core::revocation::SettledIds;
use atm_core::time::UnixMillis;
use atm_proto::change::{Digest, Epoch};
use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, Options, WriteBatch};

use crate::state::{Position, State};
use confirmed::{ConfirmedByDisk, Counts};
use keys::Generation;

mod confirmed;
mod introspected;
mod keys;
mod load;
mod numbers;
mod save;
mod settle;
mod settler;
mod snapshot;
mod staging;
mod writer;

pub use introspected::{IntrospectedStore, Kept};
pub use numbers::{StoreGauge, StoreNumbers};
pub use settler::{IndexSettlement, Settlement};
pub use snapshot::{InstallError, PreparedSnapshot, Snapshot};
pub use staging::{Segment, SegmentWriter, SnapshotName, Staging, StagingError};
pub use writer::{Saved, Writer, start_writer};

/// Settled tokens: `generation (4) ‖ bucket (4) ‖ id (16)` → nothing.
const REVOKED: &str = "revoked";
/// Tokens that no filter stands for yet: `generation (4) ‖ bucket (4) ‖ run (8) ‖ id (16)` → nothing.
const RECENT: &str = "recent";
/// `generation (4) ‖ bucket (4)` → digest of the bucket's settled tokens (24), and the filter over them.
const FILTERS: &str = "filters";
/// `kind (1) ‖ id (16)` → milliseconds (8).
const WATERMARKS: &str = "watermarks";
/// Issuer → its key set as a feed change.
const ISSUERS: &str = "issuers";
/// Single values by name.
const META: &str = "meta";
const FAMILIES: [&str; 7] = [REVOKED, RECENT, FILTERS, WATERMARKS, ISSUERS, META, introspected::FAMILY];

const POSITION: &[u8] = b"position";
const POLICIES: &[u8] = b"policies";
const FRESH: &[u8] = b"fresh";
const SIDECAR_ID: &[u8] = b"sidecar-id";
const GENERATION: &[u8] = b"generation";

/// Bytes that wait in memory to be written as table files, at most.
const MEMTABLE_BYTES: usize = 16 << 20;

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
    db: Arc<DB>,
    path: PathBuf,
    /// The generation in force, and what confirms its ids.
    confirmed: RwLock<Arc<ConfirmedByDisk>>,
    gauge: StoreGauge,
}

impl Store {
    /// Opens or makes the database at `path`, with a block cache of `block_cache` bytes.
    pub fn open(path: &Path, block_cache: usize) -> Result<Self, StoreError> {
        let cache = Cache::new_lru_cache(block_cache);
        let families = FAMILIES.map(|name| {
            let options = family_options(name, &cache);
            let options = if name == introspected::FAMILY { introspected::options(options) } else { options };
            ColumnFamilyDescriptor::new(name, options)
        });
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // FIFO compaction asks for it. Files are few: some hundred at the largest sizes that are meant.
        options.set_max_open_files(-1);
        options.set_keep_log_file_num(4);
        options.set_max_total_wal_size(64 << 20);
        options.set_db_write_buffer_size(MEMTABLE_BYTES);
        let db = DB::open_cf_descriptors(&options, path, families).map_err(|error| opening(path, &error))?;
        let (db, counts) = (Arc::new(db), Arc::new(Counts::default()));
        let gauge = StoreGauge { db: Arc::downgrade(&db), cache, counts: Arc::clone(&counts) };
        let confirmed = ConfirmedByDisk { db: Arc::downgrade(&db), generation: Generation(0), counts };
        let store = Self { db, path: path.to_owned(), confirmed: RwLock::new(Arc::new(confirmed)), gauge };
        store.begin_generation(Arc::new(store.confirming(store.saved_generation()?)));
        Ok(store)
    }

    /// What opaque credentials stand for.
    pub fn introspected(&self) -> IntrospectedStore {
        IntrospectedStore { db: Arc::clone(&self.db), path: self.path.clone() }
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

    /// Remembers the name that this sidecar gave itself.
    pub fn save_sidecar_id(&self, id: &str) -> Result<(), StoreError> {
        let meta = self.family(META)?;
        self.db.put_cf(meta, SIDECAR_ID, id).map_err(|error| self.system(&error))
    }

    /// Reads the store's numbers, now and whenever it is asked.
    pub fn gauge(&self) -> StoreGauge {
        self.gauge.clone()
    }

    /// Where segments of snapshots are staged, to be in the database's file system.
    fn staging_path(&self) -> PathBuf {
        self.path.join("snapshot")
    }

    fn generation(&self) -> Generation {
        self.confirmed.read().unwrap_or_else(PoisonError::into_inner).generation
    }

    /// From now on the generation that `confirmed` is of is in force. Gives what confirmed the one before.
    fn begin_generation(&self, confirmed: Arc<ConfirmedByDisk>) -> Arc<ConfirmedByDisk> {
        std::mem::replace(&mut *self.confirmed.write().unwrap_or_else(PoisonError::into_inner), confirmed)
    }

    /// What confirms the ids of `generation`.
    fn confirmed(&self, generation: Generation) -> Arc<dyn SettledIds> {
        let current = self.confirmed.read().unwrap_or_else(PoisonError::into_inner);
        if current.generation == generation {
            return Arc::<ConfirmedByDisk>::clone(&current);
        }
        Arc::new(self.confirming(generation))
    }

    fn confirming(&self, generation: Generation) -> ConfirmedByDisk {
        let counts = Arc::clone(&self.gauge.counts);
        ConfirmedByDisk { db: Arc::downgrade(&self.db), generation, counts }
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.db.write(batch).map_err(|error| self.system(&error))
    }

    fn meta(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(self.family(META)?, name).map_err(|error| self.reading(&error))
    }

    fn family(&self, name: &str) -> Result<&rocksdb::ColumnFamily, StoreError> {
        self.db.cf_handle(name).ok_or_else(|| self.corrupt(format!("column family {name} is missing")))
    }

    fn corrupt(&self, problem: String) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), problem }
    }

    fn reading(&self, error: &rocksdb::Error) -> StoreError {
        self.corrupt(error.to_string())
    }

    fn system(&self, error: &rocksdb::Error) -> StoreError {
        StoreError::System { path: self.path.clone(), problem: error.to_string() }
    }
}

fn family_options(name: &str, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    if name == WATERMARKS {
        // Each new one is looked for first. Revoked tokens have filters of our own, and what those let through is there.
        blocks.set_bloom_filter(10.0, false);
    }
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
    if text.contains("Column families not opened") {
        let problem = "it was made by another version of this program".to_owned();
        return StoreError::Corrupt { path: path.to_owned(), problem };
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
        // Before the first change set there is no epoch; ids that a snapshot added early may be there already.
        epoch: Some(Epoch::from_bytes(*epoch)).filter(|_| *epoch != [0; 16]),
        revision: u64::from_be_bytes(*revision),
        digest: Digest::from_bytes(digest.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests;
