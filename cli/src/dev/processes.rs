//! The processes of a stack, found by their exact command lines: a process id alone may by now be somebody else's.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Between asking a program to end and ending it.
const PATIENCE: Duration = Duration::from_secs(8);

/// The running processes with exactly this command line.
pub(crate) fn running(command: &[String]) -> Vec<u32> {
    let wanted: Vec<u8> = command.iter().flat_map(|word| [word.as_bytes(), &[0]].concat()).collect();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // A process that has ended and waits to be reaped has an empty command line.
    pids.filter(|pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted))
        .collect()
}

/// Asks the processes with these command lines to end, in order, and after a while ends them. Gives their number.
pub(crate) async fn stop(commands: &[&Vec<String>]) -> Result<usize> {
    let all = || commands.iter().flat_map(|command| running(command)).collect::<Vec<u32>>();
    let found = all();
    for pid in &found {
        signal("TERM", *pid)?;
    }
    let deadline = Instant::now() + PATIENCE;
    while !all().is_empty() {
        if Instant::now() > deadline {
            for pid in all() {
                signal("KILL", pid)?;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(found.len())
}

/// By the shell, whose `kill` is built in: there is not everywhere a program of that name.
fn signal(name: &str, pid: u32) -> Result<()> {
    let mut kill = Command::new("/bin/sh");
    kill.args(["-c", "kill -s \"$0\" \"$1\"", name, &pid.to_string()]);
    // It fails where the process has just ended by itself.
    kill.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run /bin/sh")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_found_by_its_command_and_stopped() {
        let command: Vec<String> = ["/bin/sleep", "86399"].map(str::to_owned).into();
        assert!(running(&command).is_empty());
        let mut child = Command::new(&command[0]).args(&command[1..]).spawn().unwrap();
        while running(&command) != [child.id()] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let stopped = stop(&[&command]).await.unwrap();
        assert_eq!(stopped, 1);
        child.wait().unwrap();
    }
}
