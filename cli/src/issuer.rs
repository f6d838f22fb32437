//! `atmctl issuer`: issuers that are not ours, whose tokens sidecars take.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::admin_api::AdminApi;
use crate::connection::Connection;
use crate::output::{self, Format, Tone, cell, instant, number, text, toned};

/// Trusted issuers.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Trust an issuer; its keys are fetched at once
    Add(Add),
    /// All issuers, and how fetching their keys goes
    List,
    /// One issuer
    Show {
        /// Its id in the list
        id: String,
    },
    /// Fetch an issuer's keys now
    Refresh {
        /// Its id in the list
        id: String,
    },
    /// Trust an issuer no longer
    Remove {
        /// Its id in the list
        id: String,
    },
}

/// What is trusted.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Exactly as in the tokens' `iss`
    issuer: String,
    /// Where its keys are, if its metadata does not say
    #[arg(long, value_name = "URL", conflicts_with = "jwks")]
    jwks_uri: Option<String>,
    /// A file with its keys (a JWK set), for an issuer that cannot be reached
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// An algorithm that its keys may have; repeat it; every accepted one when left out
    #[arg(long = "algorithm", value_name = "NAME")]
    algorithms: Vec<String>,
    /// A `typ` that its access tokens may have, `none` for a missing one; repeat it; at+jwt when left out
    #[arg(long = "token-type", value_name = "TYPE")]
    token_types: Vec<String>,
    /// Let it be at a private address and without TLS
    #[arg(long)]
    allow_private_addresses: bool,
    /// A file with the certificates (PEM) to trust in place of the system's
    #[arg(long, value_name = "FILE")]
    issuer_ca_file: Option<PathBuf>,
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        let (admin, format) = (connection.admin()?, connection.output);
        match self {
            Self::Add(add) => add.run(&admin, format).await,
            Self::List => list(&admin, format).await,
            Self::Show { id } => show(&admin.get(&["issuers", &id]).await?, format),
            Self::Refresh { id } => {
                show(&admin.post(&["issuers", &id, "refresh"], &json!({})).await?, format)
            }
            Self::Remove { id } => {
                let answer = admin.delete(&["issuers", &id]).await?;
                let sentence = match answer["revision"].as_u64() {
                    Some(revision) => format!("its tokens are refused from revision {revision} on"),
                    None => "it was trusted by no sidecar yet".to_owned(),
                };
                output::show(&answer, format, &sentence)
            }
        }
    }
}

impl Add {
    async fn run(self, admin: &AdminApi, format: Format) -> Result<()> {
        let read = |file: &PathBuf| {
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
        };
        let mut body = Map::new();
        body.insert("issuer".into(), self.issuer.into());
        body.insert("algorithms".into(), self.algorithms.into());
        body.insert("token_types".into(), self.token_types.into());
        body.insert("allow_private_addresses".into(), self.allow_private_addresses.into());
        if let Some(uri) = self.jwks_uri {
            body.insert("jwks_uri".into(), uri.into());
        }
        if let Some(file) = &self.jwks {
            let jwks: Value = serde_json::from_str(&read(file)?)
                .with_context(|| format!("{} is no JSON", file.display()))?;
            body.insert("jwks".into(), jwks);
        }
        if let Some(file) = &self.issuer_ca_file {
            body.insert("ca_certificate".into(), read(file)?.into());
        }
        show(&admin.post(&["issuers"], &Value::Object(body)).await?, format)
    }
}

async fn list(admin: &AdminApi, format: Format) -> Result<()> {
    let issuers = admin.get(&["issuers"]).await?;
    if format == Format::Json {
        return output::print_json(&issuers);
    }
    let rows = issuers["items"].as_array().into_iter().flatten().map(|issuer| {
        [
            cell(text(&issuer["id"])),
            cell(text(&issuer["issuer"])),
            status(issuer),
            number(issuer["keys"].as_u64()),
            cell(instant(&issuer["succeeded_at"])),
            cell(text(&issuer["last_error"])),
        ]
    });
    output::print(&output::table(["id", "issuer", "status", "keys", "fetched", "error"], rows))
}

fn show(issuer: &Value, format: Format) -> Result<()> {
    if format == Format::Json {
        return output::print_json(issuer);
    }
    let skipped = issuer["skipped_keys"].as_array().into_iter().flatten();
    let skipped: Vec<String> =
        skipped.map(|key| format!("{}: {}", text(&key["kid"]), text(&key["reason"]))).collect();
    let rows = [
        [cell("id"), cell(text(&issuer["id"]))],
        [cell("issuer"), cell(text(&issuer["issuer"]))],
        [cell("status"), status(issuer)],
        [cell("keys"), number(issuer["keys"].as_u64())],
        [cell("keys not used"), cell(skipped.join("\n"))],
        [cell("token types"), cell(text(&issuer["token_types"]))],
        [cell("fetched"), cell(instant(&issuer["succeeded_at"]))],
        [cell("next"), cell(instant(&issuer["next_fetch"]))],
        [cell("error"), cell(text(&issuer["last_error"]))],
    ];
    output::print(&output::table(["field", "value"], rows))
}

fn status(issuer: &Value) -> comfy_table::Cell {
    let status = text(&issuer["status"]);
    let tone = if status == "trusted" { Tone::Good } else { Tone::Attention };
    toned(status, tone)
}
