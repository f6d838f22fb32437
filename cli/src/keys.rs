//! `atmctl keys`: the signing keys and their rotation.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::Value;

use crate::admin_api::AdminApi;
use crate::connection::Connection;
use crate::output::{self, Format, Tone, cell, instant, text, toned};

/// The control plane activates a published key after 30 s at the latest; this is longer.
const LONGEST_ROTATION: Duration = Duration::from_secs(45);

/// Signing keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The keys and where each is in its life
    List,
    /// Publish a new key; it signs as soon as every live sidecar has it
    Rotate {
        /// Return when the new key signs
        #[arg(long)]
        wait: bool,
    },
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        let admin = connection.admin()?;
        match self {
            Self::List => list(&admin, connection.output).await?,
            Self::Rotate { wait } => rotate(&admin, wait, connection.output).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(admin: &AdminApi, format: Format) -> Result<()> {
    let keys = admin.get(&["keys"]).await?;
    if format == Format::Json {
        return output::print_json(&keys);
    }
    let rows = keys["items"].as_array().into_iter().flatten().map(|key| {
        let state = text(&key["state"]);
        let tone = if state == "active" { Tone::Good } else { Tone::Attention };
        [
            cell(text(&key["kid"])),
            cell(text(&key["algorithm"])),
            toned(state, tone),
            cell(instant(&key["created_at"])),
            cell(instant(&key["activated_at"])),
            cell(text(&key["issuer"])),
        ]
    });
    output::print(&output::table(["kid", "algorithm", "state", "created", "signs since", "issuer"], rows))
}

async fn rotate(admin: &AdminApi, wait: bool, format: Format) -> Result<()> {
    let rotation = admin.post(&["keys", "rotate"], &Value::Object(serde_json::Map::new())).await?;
    let pending = text(&rotation["pending"]);
    if wait {
        until_active(admin, &pending).await?;
    }
    if format == Format::Json {
        return output::print_json(&rotation);
    }
    output::print(&if wait {
        format!("key {pending} signs; the one before still verifies until its last token ends")
    } else {
        format!(
            "key {pending} is published with revision {}; it signs as soon as every live sidecar has it (atmctl keys list)",
            text(&rotation["revision"])
        )
    })
}

async fn until_active(admin: &AdminApi, kid: &str) -> Result<()> {
    let deadline = Instant::now() + LONGEST_ROTATION;
    loop {
        let keys = admin.get(&["keys"]).await?;
        let mut items = keys["items"].as_array().into_iter().flatten();
        if items.any(|key| key["kid"] == kid && key["state"] == "active") {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "key {kid} does not sign yet after {} s; see atmctl fleet for the sidecars that lack it",
                LONGEST_ROTATION.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
