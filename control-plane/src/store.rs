//! The embedded store: the truth from which everything else is rebuilt.
//!
//! SQLite with a write-ahead log and `synchronous = FULL`: what a call has acknowledged survives a power cut. One
//! connection writes, in transactions that begin with the write lock (`BEGIN IMMEDIATE`), so a transaction never fails
//! half-way because another one wrote; several connections read. All SQL lives below this module, and is the part of
//! SQL that PostgreSQL shares.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use atm_core::time::UnixMillis;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool};

use crate::clock::IssueClock;
use crate::secret;

pub(crate) mod api_keys;
pub(crate) mod clients;
pub(crate) mod enforcement;
pub(crate) mod log;
pub(crate) mod outbox;
pub(crate) mod policy_sets;
pub(crate) mod signing_keys;
pub(crate) mod trusted_issuers;

#[cfg(test)]
mod tests;

/// A transaction that holds the write lock from its beginning. Dropped without commit, it rolls back.
pub(crate) type Transaction = sqlx::Transaction<'static, Sqlite>;

/// Readers beside the one writer.
const READERS: u32 = 4;
/// How long a call waits for the writer before it gives up; above it the disk is stuck.
const WRITER_WAIT: Duration = Duration::from_secs(10);

/// Why the store could not do what it was asked. Never holds stored data.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or is no store of ours.
    #[error("cannot open the store {}: {source}", path.display())]
    Open {
        /// The store's file.
        path: PathBuf,
        /// What SQLite says.
        source: sqlx::Error,
    },
    /// The schema is of a later version, or was changed by hand.
    #[error("cannot migrate the store {}: {source}", path.display())]
    Migrate {
        /// The store's file.
        path: PathBuf,
        /// What the migration says.
        source: sqlx::migrate::MigrateError,
    },
    /// A row with that key is there already.
    #[error("exists already")]
    Exists,
    /// A stored value that this version cannot read.
    #[error("the store holds a {what} that cannot be read: {problem}")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Disk full, disk broken, locked by another program.
    #[error("the store failed: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// No randomness for an identifier.
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) if database.is_unique_violation() => Self::Exists,
            _ => Self::Unavailable(error),
        }
    }
}

pub(crate) fn corrupt(what: &'static str, problem: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { what, problem: problem.to_string() }
}

/// SQL knows signed integers only; our counters stay far below the limit.
pub(crate) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn from_sql(what: &'static str, number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| corrupt(what, format!("{number} is negative")))
}

/// A handle to the open store; clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Store {
    /// Opens or creates the store at `path` and brings its schema up to date. The directory must exist.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(WRITER_WAIT)
            .optimize_on_close(true, None);
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(WRITER_WAIT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await
            .map_err(open)?;
        sqlx::migrate!()
            .run(&writer)
            .await
            .map_err(|source| StoreError::Migrate { path: path.to_owned(), source })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(WRITER_WAIT)
            .connect_with(options.pragma("query_only", "ON"))
            .await
            .map_err(open)?;
        let store = Self { writer, readers };
        log::ensure_head(&store).await?;
        Ok(store)
    }

    /// A clock that starts where the last one ended. Make one a process.
    pub async fn issue_clock(&self) -> Result<Arc<IssueClock>, StoreError> {
        Ok(Arc::new(IssueClock::starting_at(log::issue_floor(self).await?)))
    }

    /// Keeps `floor` for the clock of the next process, if it is newer than what is kept.
    pub async fn keep_issue_floor(&self, floor: UnixMillis) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        log::raise_issue_floor(&mut transaction, floor).await?;
        Ok(transaction.commit().await?)
    }

    /// Whether the store answers; for readiness.
    pub async fn check(&self) -> Result<(), StoreError> {
        log::head(self).await.map(drop)
    }

    /// Waits for what is under way and closes the file. A crash without it loses nothing.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    pub(crate) async fn begin(&self) -> Result<Transaction, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.readers
    }
}
