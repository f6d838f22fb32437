//! `atmctl fleet`: the sidecars, and the revision each enforces.

use anyhow::Result;
use serde_json::Value;

use crate::connection::Connection;
use crate::output::{self, Format, Tone, cell, number, text, toned};

/// Shows the fleet.
pub(crate) async fn run(connection: &Connection) -> Result<()> {
    let fleet = connection.admin()?.get(&["fleet"]).await?;
    if connection.output == Format::Json {
        return output::print_json(&fleet);
    }
    let sidecars = fleet["sidecars"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !sidecars.is_empty() {
        let header = ["sidecar", "state", "revision", "delay ms", "seen ms ago", "version", "degraded"];
        output::print(&output::table(header, sidecars.iter().map(row)))?;
        output::print("")?;
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
        "gone" => Tone::Bad,
        _ => Tone::Attention,
    };
    let state =
        if sidecar["ready"] == false && state != "gone" { format!("{state}, not ready") } else { state };
    [
        cell(text(&sidecar["id"])),
        toned(state, tone),
        number(sidecar["applied_revision"].as_u64()),
        number(sidecar["applied_delay_ms"].as_u64()),
        number(sidecar["last_seen_ms"].as_u64()),
        cell(text(&sidecar["version"])),
        cell(text(&sidecar["degraded"])),
    ]
}
