//! The embedded store's one writer. A commit waits for the disk, so whatever waits for the writer meanwhile shares the next one:
//! statements and transactions run one after the other in a single transaction of SQLite's, each after the first behind a
//! savepoint, so that one that fails or is given up undoes only itself. Nobody gets an answer before the commit; if that fails,
//! it fails for all. Who finds nobody waiting is alone in its commit, and pays nothing for the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Either, Executor, Sqlite, SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::WRITER_WAIT;
use crate::store::StoreError;

/// What waits for the writer at most; more wait for a place.
const QUEUE: usize = 1_024;
/// Members of one commit at most.
const MEMBERS: usize = 256;
/// A group that has been at work for so long takes nobody in any more.
const OPEN_FOR: Duration = Duration::from_millis(20);
/// How long the answer of a commit may take. Above it the disk is stuck, or another member does not come to its end.
const OUTCOME_WAIT: Duration = Duration::from_secs(30);

/// A statement with its values.
pub(in crate::store) type Statement = sqlx::query::Query<'static, Sqlite, SqliteArguments>;
type Connection = sqlx::Transaction<'static, Sqlite>;
type Answer<T> = Result<T, StoreError>;
/// Why a group came to nothing, for each of its members.
type Problem = Arc<str>;

/// What a statement came to.
#[derive(Default)]
pub(in crate::store) struct Done {
    /// What it returned.
    pub(in crate::store) rows: Vec<SqliteRow>,
    /// How many rows it touched.
    pub(in crate::store) touched: u64,
}

/// Takes what is to be written.
#[derive(Debug)]
pub(in crate::store) struct Writer {
    queue: mpsc::Sender<Work>,
    closing: CancellationToken,
}

enum Work {
    /// A transaction of its own.
    Statement(Statement, oneshot::Sender<Answer<Done>>),
    /// Lends the connection for one.
    Transaction(oneshot::Sender<Result<Member, StoreError>>),
}

/// A transaction in a group. Dropped, it is undone.
pub(in crate::store) struct Member {
    /// None once it was given back.
    lent: Option<(Connection, oneshot::Sender<Returned>)>,
    outcome: oneshot::Receiver<Answer<()>>,
}

struct Returned {
    connection: Connection,
    verdict: Verdict,
}

/// What is to become of a transaction.
pub(in crate::store) enum Verdict {
    Keep,
    /// With the error of its statement that has failed, if one has.
    Undo(Option<Problem>),
}

/// Who waits for the commit, and what it is told if that succeeds.
enum Waiting {
    Statement(oneshot::Sender<Answer<Done>>, Answer<Done>),
    Transaction(oneshot::Sender<Answer<()>>),
}

impl Writer {
    /// Writes by the one connection of `pool`, until [`Self::close`] or until nobody can write any more.
    pub(super) fn start(pool: SqlitePool) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        let closing = CancellationToken::new();
        tokio::spawn(write(pool, queued, closing.clone()));
        Self { queue, closing }
    }

    /// Runs a statement. Returns when what it did is durable.
    pub(in crate::store) async fn statement(&self, statement: Statement) -> Answer<Done> {
        self.asked(|reply| Work::Statement(statement, reply)).await
    }

    /// Begins a transaction, once it is its turn.
    pub(in crate::store) async fn begin(&self) -> Result<Member, StoreError> {
        self.asked(Work::Transaction).await
    }

    /// Ends after what is under way. What waits is refused.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        self.queue.closed().await;
    }

    async fn asked<T>(&self, work: impl FnOnce(oneshot::Sender<Answer<T>>) -> Work) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.queue.send(work(reply)).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        timeout(WRITER_WAIT, asked)
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)))
    }
}

impl Member {
    pub(in crate::store) fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        // It ends by value, so the connection is there.
        let (connection, _) = self.lent.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        Ok(&mut *connection)
    }

    /// Gives the connection back and waits for the group's commit, also where this transaction is to be undone: what it has
    /// read may come from members before it, and is not true unless they are.
    pub(in crate::store) async fn end(mut self, verdict: Verdict) -> Answer<()> {
        self.give_back(verdict);
        match timeout(OUTCOME_WAIT, &mut self.outcome).await {
            Ok(outcome) => outcome.map_err(|_| closed())?,
            Err(_) => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
        }
    }

    fn give_back(&mut self, verdict: Verdict) {
        if let Some((connection, back)) = self.lent.take() {
            // Nobody takes it where the runtime ends: then it is dropped, and undone.
            let _ = back.send(Returned { connection, verdict });
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.give_back(Verdict::Undo(None));
    }
}

impl Work {
    /// Whether nobody waits for it any more: it is not begun then.
    fn is_given_up(&self) -> bool {
        match self {
            Self::Statement(_, reply) => reply.is_closed(),
            Self::Transaction(grant) => grant.is_closed(),
        }
    }

    fn refuse(self, error: StoreError) {
        // Whoever is gone needs no answer.
        match self {
            Self::Statement(_, reply) => drop(reply.send(Err(error))),
            Self::Transaction(grant) => drop(grant.send(Err(error))),
        }
    }
}

impl Waiting {
    /// Tells how the commit went.
    fn tell(self, failure: Option<&Problem>) {
        let failed = failure.map(|problem| StoreError::Away(Arc::clone(problem)));
        // Whoever is gone needs no answer.
        match self {
            Self::Statement(reply, answer) => drop(reply.send(failed.map_or(answer, Err))),
            Self::Transaction(told) => drop(told.send(failed.map_or(Ok(()), Err))),
        }
    }
}

/// The task.
async fn write(pool: SqlitePool, mut queued: mpsc::Receiver<Work>, closing: CancellationToken) {
    while let Some(Some(work)) = closing.run_until_cancelled(queued.recv()).await {
        match work {
            work if work.is_given_up() => {}
            Work::Statement(statement, reply) if queued.is_empty() => {
                let answer = alone(&pool, statement).await;
                // Whoever is gone needs no answer.
                drop(reply.send(answer));
            }
            work => together(&pool, work, &mut queued).await,
        }
    }
    pool.close().await;
}

async fn alone(pool: &SqlitePool, statement: Statement) -> Answer<Done> {
    Ok(run(&mut *pool.acquire().await?, statement).await?)
}

/// One group: `first`, and who waits behind it.
async fn together(pool: &SqlitePool, first: Work, queued: &mut mpsc::Receiver<Work>) {
    let connection = match pool.begin_with("BEGIN IMMEDIATE").await {
        Ok(connection) => connection,
        Err(error) => return first.refuse(error.into()),
    };
    let mut waiting = Vec::new();
    let outcome = match members(connection, first, queued, &mut waiting).await {
        Ok(connection) => connection.commit().await.map_err(problem),
        Err(problem) => Err(problem),
    };
    let failure = outcome.err();
    for one in waiting {
        one.tell(failure.as_ref());
    }
}

/// Runs the members. A problem is everybody's: the connection is dropped, and SQLite undoes all.
async fn members(
    mut connection: Connection,
    first: Work,
    queued: &mut mpsc::Receiver<Work>,
    waiting: &mut Vec<Waiting>,
) -> Result<Connection, Problem> {
    let begun = Instant::now();
    let mut next = Some(first);
    while let Some(work) = next {
        match work {
            work if work.is_given_up() => {}
            Work::Statement(statement, reply) => {
                let outcome = run(&mut connection, statement).await;
                let broken = outcome.as_ref().err().filter(|error| !is_constraint(error)).map(problem);
                waiting.push(Waiting::Statement(reply, outcome.map_err(Into::into)));
                if let Some(problem) = broken {
                    return Err(problem);
                }
            }
            Work::Transaction(grant) => connection = transaction(connection, grant, waiting).await?,
        }
        let is_full = waiting.len() >= MEMBERS || begun.elapsed() >= OPEN_FOR;
        next = if is_full { None } else { queued.try_recv().ok() };
    }
    Ok(connection)
}

/// Lends the connection to one member, and keeps or undoes what that did.
async fn transaction(
    mut connection: Connection,
    grant: oneshot::Sender<Result<Member, StoreError>>,
    waiting: &mut Vec<Waiting>,
) -> Result<Connection, Problem> {
    let behind_others = !waiting.is_empty();
    if behind_others {
        sqlx::query("SAVEPOINT member").execute(&mut *connection).await.map_err(problem)?;
    }
    let (back, returned) = oneshot::channel();
    let (told, outcome) = oneshot::channel();
    // Whoever is gone drops it, which gives it back.
    drop(grant.send(Ok(Member { lent: Some((connection, back)), outcome })));
    let Returned { mut connection, verdict } = returned.await.map_err(problem)?;
    let told = Waiting::Transaction(told);
    let (end, before) = match verdict {
        Verdict::Undo(before) if !behind_others => {
            // It has seen nothing that was not true. What follows is in a transaction that begins anew.
            told.tell(None);
            ("ROLLBACK; BEGIN IMMEDIATE", before)
        }
        verdict => {
            waiting.push(told);
            match verdict {
                Verdict::Keep if !behind_others => return Ok(connection),
                Verdict::Keep => ("RELEASE member", None),
                Verdict::Undo(before) => ("ROLLBACK TO member; RELEASE member", before),
            }
        }
    };
    // Where the disk has failed, SQLite itself has undone everything: nothing is left to go back to, and this fails too.
    match connection.execute(end).await {
        Ok(_) => Ok(connection),
        Err(error) => Err(before.unwrap_or_else(|| problem(error))),
    }
}

fn problem(error: impl std::fmt::Display) -> Problem {
    error.to_string().into()
}

async fn run(connection: &mut SqliteConnection, statement: Statement) -> Result<Done, sqlx::Error> {
    let mut done = Done::default();
    let mut results = connection.fetch_many(statement);
    while let Some(result) = results.try_next().await? {
        match result {
            Either::Left(result) => done.touched += result.rows_affected(),
            Either::Right(row) => done.rows.push(row),
        }
    }
    Ok(done)
}

/// Whether SQLite has undone the statement and nothing else. After an error of the disk it may have undone all.
fn is_constraint(error: &sqlx::Error) -> bool {
    /// `SQLITE_CONSTRAINT`; its extended codes have more above the lowest byte.
    const CONSTRAINT: i64 = 19;
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .and_then(|code| code.parse::<i64>().ok())
        .is_some_and(|code| code & 0xff == CONSTRAINT)
}

fn closed() -> StoreError {
    StoreError::Unavailable(sqlx::Error::PoolClosed)
}
