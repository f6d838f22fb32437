//! `atmctl keys`: the signing keys and their rotation.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

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
    /// Emergency: end a key at once with every token that it signed, and show how far that has come
    Compromise {
        /// The key's kid, or active for the one that signs
        kid: String,
        /// Why, for the record
        #[arg(long)]
        reason: Option<String>,
        /// How long to wait for the whole fleet
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u64,
    },
    /// Seal the root key by the current wrapping key; the one before is needed no more
    Rewrap,
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        let admin = connection.admin()?;
        match self {
            Self::List => list(&admin, connection.output).await?,
            Self::Rotate { wait } => rotate(&admin, wait, connection.output).await?,
            Self::Compromise { kid, reason, timeout } => {
                let limit = Duration::from_secs(timeout);
                return compromise(&admin, &kid, reason.as_deref(), limit, connection.output).await;
            }
            Self::Rewrap => {
                let rewrapped = admin.post(&["keys", "rewrap"], &Value::Object(Map::new())).await?;
                let sealed_by = text(&rewrapped["sealed_by"]);
                let words = if rewrapped["changed"] == true {
                    format!(
                        "the root key is sealed by wrapping key {sealed_by}; the one before is needed no more"
                    )
                } else {
                    format!("the root key was sealed by wrapping key {sealed_by} already")
                };
                output::show(&rewrapped, connection.output, &words)?;
            }
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
            cell(text(&key["provider"])),
            cell(instant(&key["created_at"])),
            cell(instant(&key["activated_at"])),
            cell(text(&key["issuer"])),
        ]
    });
    output::print(&output::table(
        ["kid", "algorithm", "state", "kept by", "created", "signs since", "issuer"],
        rows,
    ))
}

async fn rotate(admin: &AdminApi, wait: bool, format: Format) -> Result<()> {
    let rotation = admin.post(&["keys", "rotate"], &Value::Object(Map::new())).await?;
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

/// Ends a key, then follows the fleet until every live sidecar refuses its tokens.
async fn compromise(
    admin: &AdminApi,
    kid: &str,
    reason: Option<&str>,
    limit: Duration,
    format: Format,
) -> Result<ExitCode> {
    let body = reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
    let mut answer = admin.post(&["keys", kid, "compromise"], &body).await?;
    let revision = text(&answer["revision"]);
    eprintln!(
        "key {} is dead with revision {revision}; {} signs",
        text(&answer["kid"]),
        text(&answer["active"])
    );
    let deadline = Instant::now() + limit;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // The template is ours and in order.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} in force on {pos} of {len} sidecars") {
        bar.set_style(style);
    }
    while answer["receipt"]["complete"] != true && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer["receipt"] = admin.get(&["receipts", &revision]).await?;
        bar.set_length(answer["receipt"]["live"].as_u64().unwrap_or(0));
        bar.set_position(answer["receipt"]["applied"].as_u64().unwrap_or(0));
    }
    bar.finish_and_clear();
    let receipt = &answer["receipt"];
    let words = format!(
        "revision {revision} in force on {} of {} sidecars; tokens of key {} are refused there",
        receipt["applied"],
        receipt["live"],
        text(&answer["kid"])
    );
    output::show(&answer, format, &words)?;
    if receipt["complete"] != true {
        let missing = text(&receipt["missing"]);
        bail!("not every live sidecar has reported it within {} s: {missing}", limit.as_secs());
    }
    Ok(ExitCode::SUCCESS)
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
