//! The store: the truth from which everything else is rebuilt, on SQLite (embedded, the default) or on PostgreSQL.
//!
//! # One store, two engines
//!
//! What differs between the engines is below [`Store`], in `sqlite.rs`, `postgres.rs`, `query.rs` and `transaction.rs`. All
//! else is written once, in the SQL that both take:
//!
//! - **A table** is a new file in `migrations/`: BIGINT, TEXT and BYTEA columns, instants in milliseconds, `NOT NULL PRIMARY
//!   KEY`, no serial numbers, no triggers, no database functions. A migration only adds (see `docs/storage.md`): the version
//!   before runs beside it during an upgrade. Never edit a migration that has landed.
//! - **A query** is a function in the module of its table: `query("SELECT .. WHERE id = $1").bind(id)` and then
//!   `.fetch_optional(store)` for a read of its own, or `.fetch_optional(&mut *transaction)` and `.execute(transaction)` inside a
//!   transaction. Rows give columns by name: `row.get("id")?`. Several rows go in by [`query::insert`]. A row that is
//!   read to be changed is read with `.for_update()`.
//! - **A transaction** is [`transact!`]: its block is run again where PostgreSQL says that another transaction came in
//!   between (SQLSTATE 40001, 40P01), so it changes nothing but the store. What the block writes and the change that the feed
//!   carries ([`outbox::enqueue`]) are one transaction. A single statement needs none: `.execute_alone(store)`.
//! - **A copy in memory** of what the store holds goes stale when another replica writes: see [`versions`].
//!
//! Every function over the store has its test in `store/tests/`, which run each contract on both engines.
//!
//! # What holds
//!
//! Transactions are serialisable: on SQLite by its one writer, which commits together what waits for it, on PostgreSQL by
//! `SERIALIZABLE`. Work that begins with the lock of one row (the sequencer) takes `RowLocks`, and waits there instead of
//! failing. There are no advisory locks. A read outside of a transaction sees what is committed when it begins.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::secret;

pub(crate) mod api_keys;
pub(crate) mod assertion_rules;
pub(crate) mod audit;
pub(crate) mod clients;
pub(crate) mod enforcement;
pub(crate) mod feed_state;
pub(crate) mod issue_clock;
pub(crate) mod log;
pub(crate) mod opaque_tokens;
pub(crate) mod outbox;
pub(crate) mod policy_sets;
mod postgres;
pub(crate) mod query;
pub(crate) mod reach;
pub(crate) mod realms;
pub(crate) mod retention;
pub(crate) mod revocation_jobs;
pub(crate) mod sealed_keys;
pub(crate) mod security_events;
pub(crate) mod sessions;
pub(crate) mod signing_keys;
pub(crate) mod single_use;
mod sqlite;
pub(crate) mod subjects;
pub(crate) mod transaction;
pub(crate) mod trusted_issuers;
pub(crate) mod versions;

#[cfg(test)]
pub(crate) mod tests;

pub use postgres::{PostgresSettings, PostgresTls};
pub(crate) use query::{Row, query};
pub(crate) use transaction::{Transaction, transact};

/// The schema's versions. Without sqlx's lock, which is an advisory one: whoever loses a race looks again.
static MIGRATIONS: sqlx::migrate::Migrator = {
    let mut migrator = sqlx::migrate!();
    migrator.locking = false;
    // A later version's migrations only add, so that this version still runs beside it.
    migrator.ignore_missing = true;
    migrator
};
/// How often the migrations are tried, where other replicas start at the same time.
const MIGRATION_ATTEMPTS: u32 = 20;

/// Why the store could not do what it was asked. Never holds stored data.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file or the server cannot be opened, or is no store of ours.
    #[error("cannot open the store {place}: {source}")]
    Open {
        /// The store's file, or the server's address.
        place: String,
        /// What the engine says.
        source: sqlx::Error,
    },
    /// The schema is of a later version, or was changed by hand.
    #[error("cannot migrate the store {place}: {source}")]
    Migrate {
        /// The store's file, or the server's address.
        place: String,
        /// What the migration says.
        source: sqlx::migrate::MigrateError,
    },
    /// A later version has taken away what this one needs.
    #[error(
        "the store {place} needs a later version of this program: its schema has migration {needs}, this one knows {knows}"
    )]
    TooOld {
        /// The store's file, or the server's address.
        place: String,
        /// The migration that a program must know at least.
        needs: i64,
        /// The newest one that this program knows.
        knows: i64,
    },
    /// A row with that key is there already.
    #[error("exists already")]
    Exists,
    /// Others came in between too often.
    #[error("the store is too busy: other transactions came in between at every attempt")]
    Conflict,
    /// A stored value that this version cannot read.
    #[error("the store holds a {what} that cannot be read: {problem}")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Disk full, disk broken, locked by another program; server away, too slow, or without a connection to spare.
    #[error("the store failed: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// As [`StoreError::Unavailable`], of a read that several calls shared.
    #[error("the store failed: {0}")]
    Away(Arc<str>),
    /// No randomness for an identifier.
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) if database.is_unique_violation() => Self::Exists,
            _ if is_conflict(&error) => Self::Conflict,
            _ => Self::Unavailable(error),
        }
    }
}

/// Whether PostgreSQL has ended the transaction in favour of another: serialisation failure or deadlock.
fn is_conflict(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| matches!(&*code, "40001" | "40P01"))
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

/// Where the store is.
#[derive(Debug, Clone)]
pub enum StoreSettings {
    /// In a file, for one control plane.
    Embedded(PathBuf),
    /// On a PostgreSQL, for any number of control planes.
    Postgres(PostgresSettings),
}

impl StoreSettings {
    /// The file, or the server without whatever could be a secret.
    fn place(&self) -> String {
        match self {
            Self::Embedded(path) => path.display().to_string(),
            Self::Postgres(settings) => settings.place(),
        }
    }
}

/// A handle to the open store; clones share its connections.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    versions: versions::Known,
}

#[derive(Debug)]
enum Engine {
    Sqlite(sqlite::Sqlite),
    Postgres(postgres::Postgres),
}

impl Store {
    /// Opens the store, creates it where there is none, and brings its schema up to date.
    pub async fn open(settings: &StoreSettings) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { place: settings.place(), source };
        let engine = match settings {
            StoreSettings::Embedded(path) => Engine::Sqlite(sqlite::Sqlite::open(path).await.map_err(open)?),
            StoreSettings::Postgres(postgres) => {
                Engine::Postgres(postgres::Postgres::connect(postgres).await.map_err(open)?)
            }
        };
        migrate(&engine).await.map_err(|source| StoreError::Migrate { place: settings.place(), source })?;
        let store = Self(Arc::new(Inner { engine, versions: versions::Known::default() }));
        let knows = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
        let needs = store.oldest_migration_needed().await?;
        if needs > knows {
            return Err(StoreError::TooOld { place: settings.place(), needs, knows });
        }
        log::ensure_head(&store).await?;
        feed_state::ensure(&store).await?;
        store.look_at_versions().await?;
        Ok(store)
    }

    /// As [`Store::open`], of the embedded store in the file `path`. The directory must exist.
    pub async fn open_embedded(path: &Path) -> Result<Self, StoreError> {
        Self::open(&StoreSettings::Embedded(path.to_owned())).await
    }

    async fn oldest_migration_needed(&self) -> Result<i64, StoreError> {
        query("SELECT version FROM schema_floor WHERE only_row = 1").fetch_one(self).await?.get("version")
    }

    /// Whether other processes may use the same store.
    pub fn is_shared(&self) -> bool {
        matches!(self.0.engine, Engine::Postgres(_))
    }

    /// Whether the store answers; for readiness.
    pub async fn check(&self) -> Result<(), StoreError> {
        log::head(self).await.map(drop)
    }

    /// Returns once much can be written without holding up others, or after a while.
    pub(crate) async fn room(&self) {
        match &self.0.engine {
            Engine::Sqlite(sqlite) => sqlite.room().await,
            // Its checkpoints hold up nobody.
            Engine::Postgres(_) => {}
        }
    }

    /// Waits for what is under way and closes the connections. A crash without it loses nothing.
    pub async fn close(&self) {
        match &self.0.engine {
            Engine::Sqlite(sqlite) => sqlite.close().await,
            Engine::Postgres(postgres) => postgres.pool.close().await,
        }
    }
}

/// Each migration is a transaction. Of several replicas that start at once one gets through; the others find it done.
async fn migrate(engine: &Engine) -> Result<(), sqlx::migrate::MigrateError> {
    let mut tried = 0;
    loop {
        let outcome = match engine {
            Engine::Sqlite(sqlite) => MIGRATIONS.run(&sqlite.migrating).await,
            Engine::Postgres(postgres) => MIGRATIONS.run(&postgres.pool).await,
        };
        match outcome {
            Err(
                sqlx::migrate::MigrateError::Execute(_) | sqlx::migrate::MigrateError::ExecuteMigration(..),
            ) if matches!(engine, Engine::Postgres(_)) && tried < MIGRATION_ATTEMPTS => {
                tried += 1;
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            outcome => return outcome,
        }
    }
}
