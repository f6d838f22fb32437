//! `atmctl fleet`: the sidecars, how each stands, and the revision each enforces.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::admin_api::AdminApi;
use crate::connection::Connection;
use crate::output::{self, Format, Tone, cell, number, text, toned};

/// What of the fleet to show.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Fleet {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only sidecars that stand so
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Show it again every second, until interrupted
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum State {
    Live,
    New,
    Behind,
    Diverged,
    Refusing,
    Gone,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Have every sidecar compare its whole copy with the log and repair what differs
    Scrub {
        /// How long to wait for all live sidecars to have done it
        #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
        wait: f64,
    },
}

impl Fleet {
    /// Shows it. A scrub fails where a sidecar did not answer in time or differs.
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        let admin = connection.admin()?;
        if let Some(Command::Scrub { wait }) = self.command {
            return scrub(&admin, wait, connection.output).await;
        }
        loop {
            let fleet = self.get(&admin).await?;
            if self.watch && connection.output != Format::Json {
                output::print("\x1b[2J\x1b[H")?; // clears the screen
            }
            show(&fleet, connection.output)?;
            if !self.watch {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn get(&self, admin: &AdminApi) -> Result<Value> {
        let state = self.state.and_then(|state| state.to_possible_value());
        match &state {
            Some(state) => admin.get_with(&["fleet"], &[("state", state.get_name())]).await,
            None => admin.get(&["fleet"]).await,
        }
    }
}

fn show(fleet: &Value, format: Format) -> Result<()> {
    if format == Format::Json {
        return output::print_json(fleet);
    }
    let sidecars = fleet["sidecars"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !sidecars.is_empty() {
        let header = ["sidecar", "state", "revision", "delay ms", "seen ms ago", "version", "degraded"];
        output::print(&output::table(header, sidecars.iter().map(row)))?;
        output::print("")?;
    }
    if let Some(left_out @ 1..) = fleet["left_out"].as_u64() {
        output::print(&format!("and {left_out} more; --state narrows the list"))?;
    }
    let counts: Vec<String> = fleet["states"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, number)| number.as_u64() != Some(0))
        .map(|(state, number)| format!("{number} {state}"))
        .collect();
    if !counts.is_empty() {
        output::print(&counts.join(", "))?;
    }
    let revision = &fleet["revision"];
    output::print(&match (fleet["in_force_on"].as_u64(), fleet["live"].as_u64()) {
        (_, Some(0) | None) => format!("revision {revision}; no sidecar reports"),
        (in_force, Some(live)) => {
            format!("revision {revision} is in force on {} of {live}", in_force.unwrap_or_default())
        }
    })
}

fn row(sidecar: &Value) -> [comfy_table::Cell; 7] {
    let state = text(&sidecar["state"]);
    let tone = match state.as_str() {
        "live" if sidecar["ready"] == true => Tone::Good,
        "gone" | "diverged" | "refusing" => Tone::Bad,
        _ => Tone::Attention,
    };
    let more = match (&sidecar["ready"], &sidecar["loading"]) {
        _ if state == "gone" => "",
        (_, Value::Bool(true)) => ", loading a snapshot",
        (Value::Bool(false), _) => ", not ready",
        _ => "",
    };
    [
        cell(text(&sidecar["id"])),
        toned(format!("{state}{more}"), tone),
        number(sidecar["applied_revision"].as_u64()),
        number(sidecar["applied_delay_ms"].as_u64()),
        number(sidecar["last_seen_ms"].as_u64()),
        cell(text(&sidecar["version"])),
        cell(text(&sidecar["degraded"])),
    ]
}

/// Asks for the comparison and waits until every live sidecar has reported that it is done.
async fn scrub(admin: &AdminApi, wait: f64, format: Format) -> Result<ExitCode> {
    if !(0.0..=3_600.0).contains(&wait) {
        bail!("--wait {wait}: give 0 to 3600 seconds");
    }
    let asked = admin.post(&["fleet", "scrub"], &json!({})).await?["scrub"].as_u64().unwrap_or(u64::MAX);
    let deadline = Instant::now() + Duration::from_secs_f64(wait);
    loop {
        let fleet = admin.get_with(&["fleet"], &[("limit", "10000")]).await?;
        let sidecars = fleet["sidecars"].as_array().map(Vec::as_slice).unwrap_or_default();
        let live = || sidecars.iter().filter(|sidecar| sidecar["state"] != "gone");
        let differs = |sidecar: &&Value| sidecar["state"] == "diverged";
        let waiting: Vec<String> = live()
            .filter(|sidecar| sidecar["scrubbed"].as_u64().unwrap_or(0) < asked || differs(sidecar))
            .map(|sidecar| text(&sidecar["id"]))
            .collect();
        let diverged: Vec<String> = live().filter(differs).map(|sidecar| text(&sidecar["id"])).collect();
        if !waiting.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        let compared = live().count() - waiting.len();
        if format == Format::Json {
            output::print_json(&json!({ "compared": compared, "waiting": waiting, "diverged": diverged }))?;
        } else {
            output::print(&format!("compared and level: {compared} of {}", live().count()))?;
        }
        if !diverged.is_empty() {
            bail!("differ from the log and are being repaired: {}", diverged.join(", "));
        }
        if !waiting.is_empty() {
            bail!("did not answer in time: {}", waiting.join(", "));
        }
        return Ok(ExitCode::SUCCESS);
    }
}
