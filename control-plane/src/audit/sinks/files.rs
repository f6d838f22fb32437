//! Rotated files of JSON Lines, one chain a file: for log shippers, and for archives that `atmctl audit verify` reads.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use atm_proto::audit::{Line, MAX_LINE, Place};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::RETRY;
use crate::audit::Audit;

/// Chains of this instance that are looked at for what an end left unwritten.
const FORMER_CHAINS: usize = 8;

/// Where files go and how many there are.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// Made where it is missing.
    pub directory: PathBuf,
    /// A file that has reached this size is followed by a new one.
    pub max_bytes: u64,
    /// Files kept; the oldest go.
    pub keep: usize,
}

/// Writes the chains of this instance.
pub struct FileSink {
    audit: Audit,
    settings: FileSettings,
}

/// Where the files of a chain stand.
#[derive(Debug, Default)]
struct Position {
    /// The event to go on with.
    next: u64,
    /// The event of the last checkpoint written.
    checkpoint: Option<u64>,
}

impl FileSink {
    /// A sink into a directory of its own.
    pub fn new(audit: Audit, settings: FileSettings) -> Self {
        Self { audit, settings }
    }

    /// Writes until `stop`. A full or broken disk stops the sink and nothing else; it goes on where it was.
    pub async fn run(self, stop: CancellationToken) {
        let work = async {
            let mut said = false;
            let mut chains: Vec<(String, Position)> = Vec::new();
            loop {
                let outcome = async {
                    if chains.is_empty() {
                        chains = self.begin().await?;
                    }
                    for (chain, position) in &mut chains {
                        self.follow(chain, position).await?;
                    }
                    // Former chains are written to their end; ours goes on.
                    chains.retain(|(chain, _)| chain == self.audit.chain());
                    io::Result::Ok(())
                };
                match outcome.await {
                    Ok(()) => {
                        said = false;
                        self.audit.until_appended().await;
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut said, true) {
                            tracing::warn!(%error, "the audit files take nothing; the store keeps all of it");
                        }
                        // A line may be half written: the files say where to go on.
                        chains.clear();
                        sleep(RETRY).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(work).await;
    }

    /// This instance's chains, ours last, with the positions that their files show.
    async fn begin(&self) -> io::Result<Vec<(String, Position)>> {
        let instance = &self.audit.0.settings.instance;
        let chains = self.audit.chains().await.map_err(io::Error::other)?;
        let mut names: Vec<String> =
            chains.into_iter().filter(|chain| chain.instance == *instance).map(|chain| chain.chain).collect();
        let former = names.len().saturating_sub(FORMER_CHAINS + 1);
        let names = names.split_off(former);
        let directory = self.settings.directory.clone();
        blocking(move || {
            std::fs::create_dir_all(&directory)?;
            names
                .into_iter()
                .map(|chain| {
                    let position = resume(&directory, &chain)?;
                    Ok((chain, position))
                })
                .collect()
        })
        .await
    }

    async fn follow(&self, chain: &str, position: &mut Position) -> io::Result<()> {
        loop {
            let page = self.audit.export(chain, position.next).await.map_err(io::Error::other)?;
            // A checkpoint that was written with the page before comes again.
            let is_new = page.next != position.next.max(1) || page.checkpoint > position.checkpoint;
            if !is_new || page.lines.is_empty() {
                return Ok(());
            }
            let (settings, chain, first) = (self.settings.clone(), chain.to_owned(), position.next.max(1));
            let (lines, last_checkpoint) = (page.lines, position.checkpoint);
            blocking(move || write(&settings, &chain, first, &lines, last_checkpoint)).await?;
            position.next = page.next;
            position.checkpoint = page.checkpoint.or(position.checkpoint);
            if !page.more {
                return Ok(());
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Appends `lines` to the chain's newest file, or to a new one.
fn write(
    settings: &FileSettings,
    chain: &str,
    first: u64,
    lines: &str,
    last_checkpoint: Option<u64>,
) -> io::Result<()> {
    let newest = files_of(&settings.directory, chain)?.pop();
    let has_room = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|data| data.len() < settings.max_bytes);
    let is_new = !newest.as_ref().is_some_and(has_room);
    let path = newest.filter(|_| !is_new).unwrap_or_else(|| name(&settings.directory, chain, first));
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let lines =
        if last_checkpoint.is_some_and(|at| at + 1 == first) { without_repetition(lines) } else { lines };
    file.write_all(lines.as_bytes())?;
    file.sync_data()?;
    if is_new {
        remove_old(settings)?;
    }
    Ok(())
}

/// Without the checkpoint at the beginning, which the page before ended with.
fn without_repetition(lines: &str) -> &str {
    match lines.split_once('\n') {
        Some((line, rest)) if matches!(Line::parse(line.as_bytes()), Some(Line::Checkpoint(_))) => rest,
        _ => lines,
    }
}

/// Where the chain's files end. A line that was not written to its end is cut off.
fn resume(directory: &Path, chain: &str) -> io::Result<Position> {
    for path in files_of(directory, chain)?.iter().rev() {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let tail = tail(&mut file)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let torn = (tail.len() - whole) as u64;
        if torn > 0 {
            let length = file.metadata()?.len();
            file.set_len(length - torn)?;
        }
        let mut lines = tail[..whole].split(|byte| *byte == b'\n').rev().filter(|line| !line.is_empty());
        let mut with_checkpoint = false;
        while let Some(line) = lines.next().map(Line::parse) {
            match line {
                Some(Line::Event { event, .. }) => {
                    let Ok(place) = Place::of(event) else { break };
                    let checkpoint = with_checkpoint.then_some(place.seq);
                    return Ok(Position { next: place.seq + 1, checkpoint });
                }
                Some(Line::Checkpoint(_)) => with_checkpoint = true,
                _ => break,
            }
        }
    }
    Ok(Position::default())
}

/// The last bytes of a file: more than one line.
fn tail(file: &mut File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(4 * MAX_LINE as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(length - from).read_to_end(&mut tail)?;
    Ok(tail)
}

fn name(directory: &Path, chain: &str, first: u64) -> PathBuf {
    directory.join(format!("audit-{chain}-{first:015}.jsonl"))
}

/// The chain's files in order.
fn files_of(directory: &Path, chain: &str) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("audit-{chain}-");
    let mut files = all_files(directory)?;
    files.retain(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix))
    });
    files.sort();
    Ok(files)
}

fn all_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let is_ours = path.extension().is_some_and(|extension| extension == "jsonl")
            && path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("audit-"));
        if is_ours {
            files.push(path);
        }
    }
    Ok(files)
}

fn remove_old(settings: &FileSettings) -> io::Result<()> {
    let mut files: Vec<_> = all_files(&settings.directory)?
        .into_iter()
        .map(|path| Ok((std::fs::metadata(&path)?.modified()?, path)))
        .collect::<io::Result<_>>()?;
    files.sort();
    let excess = files.len().saturating_sub(settings.keep);
    files.into_iter().take(excess).try_for_each(|(_, path)| std::fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_cut_off_and_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let link = atm_proto::audit::Link::genesis("c");
        let event = r#"{"chain":"c","seq":7,"time_ms":1,"action":"token.issued"}"#;
        let line = format!("{}\n", atm_proto::audit::event_line(link, event));
        let path = name(dir.path(), "c", 1);
        std::fs::write(&path, format!("{line}{{\"prev\":")).unwrap();
        assert_eq!(resume(dir.path(), "c").unwrap().next, 8);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), line);
        assert_eq!(resume(dir.path(), "other").unwrap().next, 0);
    }

    #[test]
    fn the_oldest_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let settings = FileSettings { directory: dir.path().to_owned(), max_bytes: 10, keep: 2 };
        for first in 1..=4 {
            write(&settings, "c", first, "0123456789\n", None).unwrap();
        }
        let files = files_of(dir.path(), "c").unwrap();
        assert_eq!(files, [name(dir.path(), "c", 3), name(dir.path(), "c", 4)]);
    }
}
