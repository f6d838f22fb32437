//! Transactions on either engine, and how they are run again where another one came in between.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Sqlite;

use super::postgres::Lease;
use super::query::{Query, Row};
use super::sqlite::group::{Member, Verdict};
use super::versions::Topic;
use super::{Engine, Store, StoreError, corrupt, is_conflict};

/// How often a transaction is run at most, where others come in between.
const ATTEMPTS: u32 = 12;
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What a transaction is protected from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// From everything: it is as if transactions ran one after the other.
    Serializable,
    /// From what locks the same rows: each statement sees all that is committed when it begins. For work that begins with
    /// the lock of one row, which then queues where a serializable one would fail and start over.
    RowLocks,
}

/// A transaction. On the embedded store it holds the write lock from its beginning. Dropped without commit, it rolls back.
///
/// Run it by [`transact!`](super::transact), which runs it again where PostgreSQL asks for that.
pub(crate) struct Transaction {
    store: Store,
    connection: Connection,
    /// Versions that become known with the commit.
    bumped: Vec<(Topic, u64)>,
    /// Another transaction came in between: this one has failed, and may succeed when it is run again.
    conflicted: bool,
    /// Why a statement has failed. PostgreSQL undoes all then, whatever is said at the end.
    failed: Option<Arc<str>>,
}

enum Connection {
    Sqlite(Member),
    SqliteRead(sqlx::Transaction<'static, Sqlite>),
    Postgres(Lease),
}

impl Transaction {
    fn over(store: &Store, connection: Connection) -> Self {
        Self { store: store.clone(), connection, bumped: Vec::new(), conflicted: false, failed: None }
    }

    pub(super) async fn execute(&mut self, query: Query<'_>) -> Result<u64, StoreError> {
        self.goes_on()?;
        let outcome = match &mut self.connection {
            Connection::Sqlite(member) => {
                let done = query.for_sqlite().execute(member.connection()?).await;
                done.map(|done| done.rows_affected())
            }
            Connection::SqliteRead(connection) => {
                query.for_sqlite().execute(&mut **connection).await.map(|done| done.rows_affected())
            }
            Connection::Postgres(connection) => connection.execute(query).await,
        };
        self.noted(outcome)
    }

    pub(super) async fn fetch_all(&mut self, query: Query<'_>) -> Result<Vec<Row>, StoreError> {
        self.goes_on()?;
        let outcome = match &mut self.connection {
            Connection::Sqlite(member) => {
                query.for_sqlite().fetch_all(member.connection()?).await.map(Row::sqlite)
            }
            Connection::SqliteRead(connection) => {
                query.for_sqlite().fetch_all(&mut **connection).await.map(Row::sqlite)
            }
            Connection::Postgres(connection) => connection.fetch_all(query).await,
        };
        self.noted(outcome)
    }

    /// PostgreSQL takes nothing more after a statement that has failed. SQLite would, and where the disk has failed it may have
    /// ended the transaction: what followed would be a commit of its own.
    fn goes_on(&self) -> Result<(), StoreError> {
        if self.failed.is_some() && !matches!(self.connection, Connection::Postgres(_)) {
            return Err(corrupt("transaction", "goes on although a statement of it has failed"));
        }
        Ok(())
    }

    fn noted<T>(&mut self, outcome: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        outcome.map_err(|error| {
            self.conflicted |= is_conflict(&error);
            self.failed = Some(error.to_string().into());
            error.into()
        })
    }

    pub(super) fn bumps(&mut self, topic: Topic, version: u64) {
        self.bumped.push((topic, version));
    }

    /// Makes it true. An error here means that it is not known whether it is.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        if self.failed.is_some() {
            self.rollback().await?;
            return Err(corrupt("transaction", "is committed although a statement of it has failed"));
        }
        match self.connection {
            Connection::Sqlite(member) => member.end(Verdict::Keep).await?,
            Connection::SqliteRead(connection) => connection.commit().await?,
            Connection::Postgres(mut connection) => {
                let outcome = connection.command("COMMIT").await;
                connection.end_after(&outcome);
                outcome?;
            }
        }
        for (topic, version) in self.bumped {
            self.store.0.versions.note(topic, version);
        }
        Ok(())
    }

    /// Undoes it. Dropping it does the same a little later. An error means that what it has read was not true: it came from
    /// others of its group, whose commit failed.
    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        // A connection that cannot roll back is not used again, and its transaction ends with it.
        match self.connection {
            Connection::Sqlite(member) => member.end(Verdict::Undo(self.failed)).await?,
            Connection::SqliteRead(connection) => drop(connection.rollback().await),
            Connection::Postgres(mut connection) => {
                let outcome = connection.command("ROLLBACK").await;
                connection.end_after(&outcome);
            }
        }
        Ok(())
    }
}

impl Store {
    /// Begins a serialisable transaction that is not run again.
    #[cfg(test)]
    pub(crate) async fn begin(&self) -> Result<Transaction, StoreError> {
        self.begin_with(Isolation::Serializable).await
    }

    /// A transaction that only reads, all of it as of one instant, and holds no lock. It ends by [`Transaction::commit`]: a
    /// connection that is dropped within one is closed.
    pub(crate) async fn begin_read(&self) -> Result<Transaction, StoreError> {
        let connection = match &self.0.engine {
            Engine::Sqlite(sqlite) => Connection::SqliteRead(sqlite.readers.begin().await?),
            Engine::Postgres(postgres) => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                let mut connection = postgres.lease().await?;
                connection.command(begin).await?;
                Connection::Postgres(connection)
            }
        };
        Ok(Transaction::over(self, connection))
    }

    async fn begin_with(&self, isolation: Isolation) -> Result<Transaction, StoreError> {
        let connection = match &self.0.engine {
            Engine::Sqlite(sqlite) => Connection::Sqlite(sqlite.writer.begin().await?),
            Engine::Postgres(postgres) => {
                let begin = match isolation {
                    Isolation::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
                    Isolation::RowLocks => "BEGIN ISOLATION LEVEL READ COMMITTED",
                };
                let mut connection = postgres.lease().await?;
                connection.command(begin).await?;
                Connection::Postgres(connection)
            }
        };
        Ok(Transaction::over(self, connection))
    }

    pub(super) async fn execute_alone(&self, query: Query<'_>) -> Result<u64, StoreError> {
        match &self.0.engine {
            Engine::Sqlite(sqlite) => Ok(sqlite.writer.statement(query.for_sqlite()).await?.touched),
            Engine::Postgres(postgres) => {
                let mut retries = Retries::default();
                loop {
                    match postgres.execute(query.clone()).await {
                        Ok(done) => return Ok(done),
                        Err(error) => retries.after(error).await?,
                    }
                }
            }
        }
    }

    pub(super) async fn fetch_alone(&self, query: Query<'_>) -> Result<Vec<Row>, StoreError> {
        match &self.0.engine {
            Engine::Sqlite(sqlite) => {
                Ok(Row::sqlite(sqlite.writer.statement(query.for_sqlite()).await?.rows))
            }
            Engine::Postgres(postgres) => {
                let mut retries = Retries::default();
                loop {
                    match postgres.fetch_all(query.clone()).await {
                        Ok(rows) => return Ok(rows),
                        Err(error) => retries.after(error).await?,
                    }
                }
            }
        }
    }

    /// The attempts of [`transact!`](super::transact).
    pub(crate) fn attempts(&self, isolation: Isolation) -> Attempts<'_> {
        Attempts { store: self, isolation, made: 0 }
    }
}

/// Runs a transaction until it has succeeded, failed by itself, or met others too often.
pub(crate) struct Attempts<'s> {
    store: &'s Store,
    isolation: Isolation,
    made: u32,
}

impl Attempts<'_> {
    pub(crate) async fn begin(&mut self) -> Result<Transaction, StoreError> {
        if self.made > 0 {
            pause(self.made - 1).await;
        }
        self.made += 1;
        self.store.begin_with(self.isolation).await
    }

    /// Commits what came to `Ok`, undoes the rest. None: another transaction came in between; run it again.
    pub(crate) async fn settle<T, E: From<StoreError>>(
        &self,
        transaction: Transaction,
        outcome: Result<T, E>,
    ) -> Option<Result<T, E>> {
        let again = self.made < ATTEMPTS;
        match outcome {
            Ok(value) => match transaction.commit().await {
                Ok(()) => Some(Ok(value)),
                Err(StoreError::Conflict) if again => None,
                Err(error) => Some(Err(error.into())),
            },
            Err(error) => {
                let conflicted = transaction.conflicted;
                match transaction.rollback().await {
                    _ if conflicted && again => None,
                    Ok(()) => Some(Err(error)),
                    Err(failed) => Some(Err(failed.into())),
                }
            }
        }
    }
}

/// Says how often one statement, which met other transactions, is run again.
#[derive(Default)]
struct Retries(u32);

impl Retries {
    /// Returns when it may be run again, or the error.
    async fn after(&mut self, error: sqlx::Error) -> Result<(), StoreError> {
        if !is_conflict(&error) || self.0 + 1 >= ATTEMPTS {
            return Err(error.into());
        }
        pause(self.0).await;
        self.0 += 1;
        Ok(())
    }
}

/// Doubles with each attempt, and differs between those that met each other.
async fn pause(before: u32) {
    let longest = LONGEST_PAUSE.min(Duration::from_millis(2) * (1 << before.min(10)));
    let mut random = [255; 1];
    // Without randomness the pause is the longest one.
    let _ = aws_lc_rs::rand::fill(&mut random);
    tokio::time::sleep(longest.mul_f64(f64::from(random[0]) / 255.0)).await;
}

/// Runs the block in a transaction and gives its result: committed where it is `Ok`, undone where it is not, and run again
/// from the beginning where another transaction came in between. So the block changes nothing but the store, and uses `?`
/// as a function does.
///
/// ```ignore
/// let number = transact!(self.store, |transaction| -> Result<u64, StoreError> {
///     clients::insert(transaction, &client).await?;
///     clients::count(transaction).await
/// })?;
/// ```
///
/// `transact!(RowLocks: store, |transaction| ..)` takes the other [`Isolation`].
macro_rules! transact {
    ($store:expr, |$transaction:ident| -> $result:ty $work:block) => {
        $crate::store::transact!(Serializable: $store, |$transaction| -> $result $work)
    };
    ($isolation:ident: $store:expr, |$transaction:ident| -> $result:ty $work:block) => {
        async {
            let mut attempts = $store.attempts($crate::store::transaction::Isolation::$isolation);
            loop {
                let mut begun = attempts.begin().await?;
                let outcome: $result = {
                    let $transaction = &mut begun;
                    async { $work }.await
                };
                if let Some(outcome) = attempts.settle(begun, outcome).await {
                    break outcome;
                }
            }
        }
        .await
    };
}
pub(crate) use transact;
