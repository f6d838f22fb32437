//! `atmctl dev`: a local stack of the real parts on free ports, to try things on and to test against.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use tokio::signal::unix::{SignalKind, signal};

use crate::connection::Connection;
use crate::output::{self, Format, Tone, cell, number, toned};

mod bring_up;
mod description;
mod layout;
mod ports;
mod processes;
mod program;
mod programs;
mod template;
mod upstream;

pub(crate) use description::Description;
pub(crate) use layout::write_secret;

/// A local stack.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a fresh stack in --dir; returns when a request can pass
    Up,
    /// Stop the stack in --dir; its logs stay
    Down,
    /// What runs of the stack in --dir, and where
    Status,
    /// The echo service behind Envoy: answers with what it received
    #[command(hide = true)]
    Upstream {
        /// Address to listen on
        #[arg(long)]
        listen: std::net::SocketAddr,
    },
}

impl Command {
    /// Does it. `Status` fails where not everything runs.
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        match self {
            Self::Up => up(connection.stack_dir()?, connection.output).await?,
            Self::Down => down(connection.stack_dir()?).await?,
            Self::Status => return status(connection.stack_dir()?, connection.output),
            Self::Upstream { listen } => upstream::serve(listen).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn up(dir: &Path, format: Format) -> Result<()> {
    if let Some(description) = Description::find(dir)?
        && description.commands.values().any(|command| !processes::running(command).is_empty())
    {
        bail!("a stack runs in {0} already; stop it first: atmctl dev down --dir {0}", dir.display());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let stack = tokio::select! {
        stack = bring_up::bring_up(dir) => stack?,
        // What was started so far ends with the dropped future.
        _ = tokio::signal::ctrl_c() => bail!("interrupted; what was started has been stopped"),
        _ = terminate.recv() => bail!("told to end; what was started has been stopped"),
    };
    match format {
        Format::Json => output::print_json(&stack.without_secrets()?)?,
        Format::Human => output::print(&format!(
            "up: {}\n\n  export ATM_DEV_DIR={}\n  atmctl token issue\n  atmctl dev down",
            stack.envoy_url,
            dir.display()
        ))?,
    }
    Ok(())
}

async fn down(dir: &Path) -> Result<()> {
    let Some(description) = Description::find(dir)? else {
        return output::print(&format!("no stack in {}", dir.display()));
    };
    // From the edge inwards, so that nothing loses what it stands on first.
    let order = ["envoy", "upstream", "sidecar", "control_plane", "nats"];
    let commands: Vec<_> = order.into_iter().filter_map(|name| description.commands.get(name)).collect();
    let stopped = processes::stop(&commands).await?;
    Description::remove(dir)?;
    output::print(&format!("stopped {stopped} programs; their logs are in {}", dir.join("logs").display()))
}

fn status(dir: &Path, format: Format) -> Result<ExitCode> {
    let description = Description::read(dir)?;
    let states: Vec<_> = description
        .commands
        .iter()
        .map(|(name, command)| (name.as_str(), processes::running(command).first().copied()))
        .collect();
    let all = states.iter().all(|(_, pid)| pid.is_some());
    match format {
        Format::Json => {
            let mut shown = description.without_secrets()?;
            shown["running"] = states.iter().map(|(name, pid)| ((*name).to_owned(), pid.is_some())).collect();
            output::print_json(&shown)?;
        }
        Format::Human => {
            let rows = states.iter().map(|(name, pid)| {
                let state = if pid.is_some() { toned("runs", Tone::Good) } else { toned("ended", Tone::Bad) };
                let log = description.logs.get(*name).map(String::as_str).unwrap_or_default();
                [cell(name), state, number(pid.map(u64::from)), cell(description.address(name)), cell(log)]
            });
            output::print(&output::table(["program", "state", "pid", "address", "log"], rows))?;
        }
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
