//! The embedded engine: SQLite with a write-ahead log and `synchronous = FULL`, so that what a call has acknowledged
//! survives a power cut. One connection writes, in transactions that begin with the write lock, so that a transaction never
//! fails half-way because another one wrote, and what waits for it shares a commit ([`group`]); several connections read. What
//! is in the log is written back beside the writer ([`write_back`]).

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqlitePool};

pub(super) mod group;
mod write_back;

use write_back::WriteBack;

/// Readers beside the one writer.
const READERS: u32 = 4;
/// How long a call waits for the writer before it gives up; above it the disk is stuck.
const WRITER_WAIT: Duration = Duration::from_secs(10);

/// The open file.
#[derive(Debug)]
pub(super) struct Sqlite {
    pub(super) writer: group::Writer,
    /// The writer's connection, for the migrations before it begins.
    pub(super) migrating: SqlitePool,
    pub(super) readers: SqlitePool,
    write_back: WriteBack,
    /// Locked while this process has the store.
    owned: File,
}

impl Sqlite {
    /// Opens or creates the file. Readers connect lazily: the schema may not be there yet.
    pub(super) async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let owned = own(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(WRITER_WAIT)
            .optimize_on_close(true, None);
        let writing = options
            .clone()
            .pragma("wal_autocheckpoint", write_back::AT_COMMIT)
            .pragma("journal_size_limit", write_back::FILE_KEPT);
        let migrating = pool()
            .max_connections(1)
            .acquire_timeout(WRITER_WAIT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(writing)
            .await?;
        let write_back = WriteBack::start(options.clone());
        let readers = pool()
            .max_connections(READERS)
            .acquire_timeout(WRITER_WAIT)
            .connect_lazy_with(options.pragma("query_only", "ON"));
        let writer = group::Writer::start(migrating.clone());
        Ok(Self { writer, migrating, readers, write_back, owned })
    }

    /// Returns once much can be written without holding up others, or after a while.
    pub(super) async fn room(&self) {
        self.write_back.room().await;
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.write_back.close().await;
        self.writer.close().await;
        // Fails for a lock that is not held, which is as good.
        let _ = self.owned.unlock();
    }
}

/// Connections that are given back with a transaction open are closed. SQLite undoes a transaction by itself where the disk is
/// full or fails; the driver's own ROLLBACK fails then, and it would take the connection for one within a transaction for ever.
fn pool() -> SqlitePoolOptions {
    SqlitePoolOptions::new().after_release(|connection, _| {
        Box::pin(async move {
            connection.ping().await?; // behind the ROLLBACK that a dropped transaction has asked for
            Ok(!connection.is_in_transaction())
        })
    })
}

/// Takes the store's lock: its clock and its copies in memory are those of one process.
fn own(path: &Path) -> Result<File, sqlx::Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::create(&name).map_err(sqlx::Error::Io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let problem = "it is in use by another process; end that one, or share a PostgreSQL by store.url";
            Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::ResourceBusy, problem)))
        }
        Err(TryLockError::Error(error)) => Err(sqlx::Error::Io(error)),
    }
}
