//! A child process with its output in a file, killed when dropped.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use crate::wait;

/// Variables and their values, beside those that the tests themselves run with.
pub type Environment = Vec<(String, String)>;

/// A running program. Dropping it sends SIGKILL and reaps it; in a failing test its log is printed first.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; standard output and error are appended to `log`.
    pub fn start(name: &str, program: &Path, arguments: &[&str], log: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(arguments);
        Self::start_command(name, command, log)
    }

    /// As [`Self::start`], with variables of its own.
    pub fn start_in(
        name: &str,
        program: &Path,
        arguments: &[&str],
        log: &Path,
        environment: &Environment,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
        Self::start_command(name, command, log)
    }

    /// As [`Self::start_in`], behind the words that come before the program: see [`crate::island::Island::prefix`].
    pub fn start_behind(
        name: &str,
        prefix: &[String],
        program: &Path,
        arguments: &[&str],
        log: &Path,
        environment: &Environment,
    ) -> Self {
        let Some((first, rest)) = prefix.split_first() else {
            return Self::start_in(name, program, arguments, log, environment);
        };
        let mut command = Command::new(first);
        command.args(rest).arg(program).args(arguments);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Self::start_command(name, command, log)
    }

    /// Starts `command`; standard output and error are appended to `log`.
    pub fn start_command(name: &str, mut command: Command, log: &Path) -> Self {
        let out: File = OpenOptions::new().create(true).append(true).open(log).expect("log file opens");
        let err = out.try_clone().expect("log file is shared");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start ({command:?}): {error}"));
        Self { name: name.to_owned(), child, log: log.to_path_buf() }
    }

    /// The operating system's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("child can be waited for")
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // it may have ended already
        let _ = self.child.wait();
    }

    /// Waits until it has ended by itself.
    pub async fn wait(&mut self, bound: Duration) -> ExitStatus {
        let what = format!("{} to end", self.name);
        wait::until_some(&what, bound, || self.child.try_wait().expect("child can be waited for")).await
    }

    /// Panics with the log if it has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.exited() {
            panic!("{} has ended with {status}; its log:\n{}", self.name, self.log());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- end of the log of {}", self.name);
            for line in tail.iter().rev() {
                eprintln!("{}: {line}", self.name);
            }
        }
    }
}

/// Runs `program` to its end, at most for `bound`, and gives what it printed.
pub async fn run(program: &Path, arguments: &[&str], bound: Duration) -> Output {
    run_with(program, arguments, &[], bound).await
}

/// As [`run`], with environment variables.
pub async fn run_with(
    program: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
    bound: Duration,
) -> Output {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    tokio::time::timeout(bound, command.output())
        .await
        .unwrap_or_else(|_| panic!("{} {arguments:?} has not ended within {bound:?}", program.display()))
        .expect("program starts")
}

/// The text of an [`Output`]'s standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The text of an [`Output`]'s standard output.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `VmRSS` of a process: the memory that it has now.
pub fn resident_mib(pid: u32) -> f64 {
    status_mib(pid, "VmRSS:")
}

/// `VmHWM` of a process: the most that it ever had.
pub fn peak_mib(pid: u32) -> f64 {
    status_mib(pid, "VmHWM:")
}

fn status_mib(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("a number") / 1024.0
}

/// SIGKILL for a process that another program started.
pub fn kill_pid(pid: u32) {
    let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status().expect("kill runs");
    assert!(status.success(), "process {pid} is not there to be killed");
}
