//! Writes the write-ahead log back into the database, beside the writer.
//!
//! SQLite does it within a commit by itself. Where a long read, that of a snapshot, has kept some hundred MiB from being written
//! back, that commit would take as long as the disk needs for all of them, and whoever waits for the writer would wait with
//! it. Here it is done by a connection of its own, which holds up no commit. What comes in bulk waits for it ([`WriteBack::room`]):
//! the log would grow with every part, faster than any disk takes back ids that lie all over an index.

use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Frames of the log, one a page of 4 KiB, from which on bulk waits: 256 MiB.
const FULL: u64 = 65_536;
/// From which on a commit writes back itself after all, should this task not come to it: 1 GiB.
pub(super) const AT_COMMIT: &str = "262144";
/// Bytes that the log's file keeps once it begins anew.
pub(super) const FILE_KEPT: &str = "67108864";
/// Between two looks, ...
const PERIOD: Duration = Duration::from_secs(1);
/// ... and while bulk may wait.
const SOON: Duration = Duration::from_millis(50);
/// How long bulk waits at most. Above it a read does not end, or the disk is stuck; the commits tell.
const ROOM_WAIT: Duration = Duration::from_secs(30);

/// The task; ends when dropped.
#[derive(Debug)]
pub(super) struct WriteBack {
    /// Frames of the log that cannot be used again yet.
    held: watch::Receiver<u64>,
    full: u64,
    ends: CancellationToken,
    task: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl WriteBack {
    /// Begins, over the file that `options` open.
    pub(super) fn start(options: SqliteConnectOptions) -> Self {
        Self::start_with(options, FULL)
    }

    fn start_with(options: SqliteConnectOptions, full: u64) -> Self {
        let ends = CancellationToken::new();
        let (held, receiver) = watch::channel(0);
        let task = tokio::spawn(run(options.optimize_on_close(false, None), held, full, ends.clone()));
        Self { held: receiver, full, ends, task: Some(task).into() }
    }

    /// Returns once the log has room for much, or after a while.
    pub(super) async fn room(&self) {
        let mut held = self.held.clone();
        let waited = timeout(ROOM_WAIT, held.wait_for(|held| *held < self.full)).await;
        if waited.is_err() {
            tracing::warn!(
                "the store's log is long, and is not written back; a read that does not end, or a slow disk"
            );
        }
    }

    /// Ends after what is under way.
    pub(super) async fn close(&self) {
        self.ends.cancel();
        let task = self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(task) = task {
            // It ends by itself.
            drop(task.await);
        }
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        self.ends.cancel();
    }
}

async fn run(options: SqliteConnectOptions, told: watch::Sender<u64>, full: u64, ends: CancellationToken) {
    let (mut connection, mut complained) = (None, false);
    let mut pause = PERIOD;
    while ends.run_until_cancelled(sleep(pause)).await.is_some() {
        match pass(&mut connection, &options).await {
            Ok(held) => {
                complained = false;
                pause = if held >= full / 4 { SOON } else { PERIOD };
                told.send_replace(held);
            }
            Err(error) => {
                if !complained {
                    tracing::error!(%error, "the store's log is not written back; trying again");
                }
                (connection, complained, pause) = (None, true, PERIOD);
            }
        }
    }
    if let Some(connection) = connection {
        // The file is left as it is either way.
        drop(connection.close().await);
    }
}

/// Writes back what no read needs as it was. Returns how many frames stay in use.
async fn pass(
    connection: &mut Option<SqliteConnection>,
    options: &SqliteConnectOptions,
) -> Result<u64, sqlx::Error> {
    let connection = match connection {
        Some(connection) => connection,
        none => none.insert(options.connect().await?),
    };
    // Waits for nobody: https://www.sqlite.org/pragma.html#pragma_wal_checkpoint
    let row = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(connection).await?;
    let (log, written_back): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
    // Where all is written back, the next commit begins the log anew.
    Ok(if log == written_back { 0 } else { u64::try_from(log).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
    use sqlx::{AssertSqlSafe, Executor};

    use super::*;

    const FEW: u64 = 200;

    fn options(directory: &tempfile::TempDir) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(directory.path().join("atm.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", AT_COMMIT)
    }

    async fn write(writer: &mut SqliteConnection, pages: u64) {
        let insert = format!("INSERT INTO t VALUES (zeroblob({}))", pages * 4096);
        writer.execute(sqlx::query(AssertSqlSafe(insert))).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bulk_waits_for_what_a_read_keeps_in_the_log_and_commits_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = options(&directory).connect().await.unwrap();
        writer.execute("CREATE TABLE t (b BLOB)").await.unwrap();
        let write_back = WriteBack::start_with(options(&directory), FEW);
        write(&mut writer, 2 * FEW).await;
        tokio::time::timeout(Duration::from_secs(30), write_back.room()).await.expect("nobody reads");

        let mut reader = options(&directory).connect().await.unwrap();
        reader.execute("BEGIN; SELECT COUNT(*) FROM t").await.unwrap();
        write(&mut writer, 2 * FEW).await;
        let mut held = write_back.held.clone();
        let is_full = held.wait_for(|held| *held >= FEW);
        tokio::time::timeout(Duration::from_secs(30), is_full).await.expect("it is looked at").unwrap();
        assert!(write_back.room().now_or_never().is_none(), "bulk waits");
        write(&mut writer, 1).await;

        reader.execute("COMMIT").await.unwrap();
        tokio::time::timeout(Duration::from_secs(30), write_back.room()).await.expect("it is written back");
        // The log begins anew, with what comes next.
        write(&mut writer, 1).await;
        let row = writer.fetch_one("PRAGMA wal_checkpoint(PASSIVE)").await.unwrap();
        let log: i64 = row.get(1);
        assert!(u64::try_from(log).unwrap() < FEW, "{log}");
        write_back.close().await;
    }
}
