//! One program of a stack while it comes up.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// How long each program may take to come up; generous for loaded machines.
const BOUND: Duration = Duration::from_secs(40);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Lines of a log that are shown when its program fails.
const TAIL: usize = 15;

/// A started program. Dropping it kills it, unless it was released.
#[derive(Debug)]
pub(crate) struct Program {
    name: &'static str,
    command: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

/// A program found its port taken between our look and its own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct PortTaken(String);

impl Program {
    /// Starts `command` in a process group of its own, so that an interrupt of ours does not reach it.
    pub(crate) fn start(name: &'static str, command: Vec<String>, log: &Path) -> Result<Self> {
        let open = || -> std::io::Result<(File, File)> {
            let out = File::options().create(true).append(true).open(log)?;
            let err = out.try_clone()?;
            Ok((out, err))
        };
        let (out, err) = open().with_context(|| format!("cannot write {}", log.display()))?;
        let (program, arguments) = command.split_first().context("a command has at least a program")?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Ok(Self { name, command, log: log.to_path_buf(), child: Some(child) })
    }

    /// Its name in `dev.json`.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// What starts it.
    pub(crate) fn command(&self) -> &[String] {
        &self.command
    }

    /// Where it logs.
    pub(crate) fn log(&self) -> String {
        self.log.display().to_string()
    }

    /// Lets it run on without us.
    pub(crate) fn release(mut self) {
        self.child = None;
    }

    /// Waits until `probe` finds something. Fails with the end of the log when the program ends before, or takes too long.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        mut probe: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T> {
        let deadline = Instant::now() + BOUND;
        loop {
            let missing = match probe().await {
                Ok(found) => return Ok(found),
                Err(missing) => missing,
            };
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait().context("cannot ask for a program's state")?
            {
                return Err(self.failed(&format!("ended with {status}")));
            }
            if Instant::now() > deadline {
                bail!(
                    self.failed(&format!("{what} has not come about in {} s ({missing})", BOUND.as_secs()))
                );
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn failed(&self, how: &str) -> anyhow::Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n    ");
        let message = format!("{}: {how}; end of {}:\n    {tail}", self.name, self.log.display());
        if tail.to_lowercase().contains("in use") { PortTaken(message).into() } else { anyhow!(message) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Either it has ended already, which is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_ends_is_reported_with_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let command =
            ["/bin/sh", "-c", "echo 'listen: address already in use' >&2; exit 3"].map(str::to_owned);
        let mut program = Program::start("nats", command.into(), &directory.path().join("log")).unwrap();
        let error =
            program.until("a miracle", async || Err::<(), _>("none yet".to_owned())).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("already in use"), "{text}");
        assert!(error.is::<PortTaken>());
    }
}
