//! `atmctl backup` and `atmctl restore`: copies of the embedded store, checked before anyone relies on them.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions, Connection as _, Row, SqliteConnection};

use crate::connection::Connection;
use crate::output;

/// Copies the store of a control plane that may be running.
#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// The store's file: `store.path` of the control plane's configuration
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// The copy; its SHA-256 goes beside it, into FILE.sha256
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// Puts a copy in the store's place. The control plane must not run.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The copy, with its FILE.sha256
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The store's file: `store.path` of the control plane's configuration
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// Replace a store that is there
    #[arg(long)]
    force: bool,
}

impl Backup {
    /// Makes the copy, or leaves nothing.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        ensure!(
            self.store.is_file(),
            "{} is no file; name the store of the embedded control plane by --store",
            self.store.display()
        );
        let sum_file = beside(&self.to, ".sha256");
        for file in [&self.to, &sum_file] {
            ensure!(!file.exists(), "{} is there already; name another file by --to", file.display());
        }
        let part = Part::new(&self.to)?;
        let mut store = open(&self.store, true).await?;
        // One consistent state, without a lock that writers would wait for.
        let copied = sqlx::query("VACUUM INTO $1").bind(text(&part.0)?).execute(&mut store).await;
        copied.with_context(|| format!("cannot copy {} to {}", self.store.display(), self.to.display()))?;
        store.close().await?;
        let state = checked(&part.0).await?;
        let sum = sha256(&part.0)?;
        let name = self.to.file_name().unwrap_or_default().to_string_lossy();
        let sum_part = Part::new(&sum_file)?;
        fs::write(&sum_part.0, format!("{sum}  {name}\n"))?;
        sum_part.put(&sum_file)?;
        part.put(&self.to)?;
        let words = format!(
            "{} is a copy as of revision {} ({} bytes, sha256 {sum}).\n\
             It cannot be used without the wrapping key, and holds no key file: keep those elsewhere.",
            self.to.display(),
            state.revision,
            fs::metadata(&self.to)?.len(),
        );
        let mut document = state.document();
        document["file"] = json!(self.to);
        document["sha256"] = json!(sum);
        output::show(&document, connection.output, &words)
    }
}

impl Restore {
    /// Puts the copy in place as a whole, or changes nothing.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        check_sum(&self.from)?;
        ensure!(
            self.force || !self.store.exists(),
            "{} is there; move it away, or replace it with --force",
            self.store.display()
        );
        // The control plane's own lock, kept until the end.
        let lock = beside(&self.store, ".lock");
        let owned = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
        match owned.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("a control plane has {} open; stop it first", self.store.display())
            }
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the store"),
        }
        let part = Part::new(&self.store)?;
        fs::copy(&self.from, &part.0)
            .with_context(|| format!("cannot copy {} to {}", self.from.display(), part.0.display()))?;
        let state = checked(&part.0).await?;
        mark_restored(&part.0).await?;
        // What the replaced store had not folded in yet must not be taken for this one's.
        for suffix in ["-wal", "-shm"] {
            match fs::remove_file(beside(&self.store, suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        part.put(&self.store)?;
        let words = format!(
            "{} is restored as of revision {}.\n\
             At its next start the control plane begins a new epoch of the feed. Revoke again what was revoked since the copy was made.",
            self.store.display(),
            state.revision,
        );
        let mut document = state.document();
        document["file"] = json!(self.store);
        output::show(&document, connection.output, &words)
    }
}

/// What a copy holds.
struct State {
    revision: i64,
    epoch: String,
    migration: i64,
}

impl State {
    fn document(&self) -> Value {
        json!({ "epoch": self.epoch, "revision": self.revision, "migration": self.migration })
    }
}

/// A file that is not finished, removed when dropped.
struct Part(PathBuf);

impl Part {
    fn new(target: &Path) -> Result<Self> {
        let part = beside(target, ".part");
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", part.display()))
            }
            _ => Ok(Self(part)),
        }
    }

    /// Durable under its name, or not there.
    fn put(self, target: &Path) -> Result<()> {
        File::open(&self.0)?.sync_all()?;
        fs::rename(&self.0, target).with_context(|| format!("cannot write {}", target.display()))?;
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok(File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Gone already where it was put in place.
        let _ = fs::remove_file(&self.0);
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

async fn open(path: &Path, read_only: bool) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(path).read_only(read_only);
    // A copy is one file: without a log beside it.
    let options = if read_only { options } else { options.journal_mode(SqliteJournalMode::Delete) };
    options.connect().await.with_context(|| format!("cannot open {}", path.display()))
}

/// Reads the whole copy, and finds a control plane's store in it.
async fn checked(path: &Path) -> Result<State> {
    let mut copy = open(path, true).await?;
    let broken = || format!("{} is no whole store of a control plane", path.display());
    let findings = sqlx::query("PRAGMA integrity_check").fetch_all(&mut copy).await.with_context(broken)?;
    let said: Vec<String> = findings.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    ensure!(said == ["ok"], "{}: {}", broken(), said.join("; "));
    let head = sqlx::query("SELECT epoch, revision FROM feed_head WHERE only_row = 1");
    let head = head.fetch_one(&mut copy).await.with_context(broken)?;
    let migration = sqlx::query("SELECT MAX(version) FROM _sqlx_migrations WHERE success");
    let migration = migration.fetch_one(&mut copy).await.with_context(broken)?;
    let epoch: Vec<u8> = head.try_get("epoch")?;
    let state = State {
        revision: head.try_get("revision")?,
        epoch: hex::encode(epoch),
        migration: migration.try_get(0)?,
    };
    copy.close().await?;
    Ok(state)
}

/// Says to the control plane that this store's revisions are spent.
async fn mark_restored(path: &Path) -> Result<()> {
    let mut copy = open(path, false).await?;
    let statements = [
        "CREATE TABLE IF NOT EXISTS feed_restored (only_row BIGINT NOT NULL PRIMARY KEY CHECK (only_row = 1), restored_at BIGINT NOT NULL)",
        "INSERT INTO feed_restored (only_row, restored_at) VALUES (1, 0) ON CONFLICT (only_row) DO NOTHING",
    ];
    for statement in statements {
        sqlx::query(statement).execute(&mut copy).await?;
    }
    Ok(copy.close().await?)
}

/// Compares a copy with the sum that was written beside it.
fn check_sum(copy: &Path) -> Result<()> {
    let sum_file = beside(copy, ".sha256");
    let listed = fs::read_to_string(&sum_file).with_context(|| {
        format!("cannot read {}, which atmctl backup writes beside a copy", sum_file.display())
    })?;
    let expected = listed.split_whitespace().next().unwrap_or_default();
    let found = sha256(copy)?;
    ensure!(
        expected == found,
        "{} is not as it was made: its sha256 is {found}, {} says {expected}; take another copy",
        copy.display(),
        sum_file.display()
    );
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => context.update(&buffer[..read]),
        }
    }
    Ok(hex::encode(context.finish()))
}
