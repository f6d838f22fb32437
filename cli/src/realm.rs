//! `atmctl realm`: tenants, each with its own issuer, keys, clients and sessions. Other commands work on one with `--realm`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::connection::Connection;
use crate::output::{self, Format, cell, instant, text};

/// Realms.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a realm, with its first signing key
    Create(Create),
    /// All realms beside the default one
    List,
    /// One realm
    Show {
        /// Its name
        name: String,
    },
    /// Serve a realm no more and end what it issued
    Disable {
        /// Its name
        name: String,
    },
    /// Serve a disabled realm again; what was ended stays so
    Enable {
        /// Its name
        name: String,
    },
}

/// A new realm.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name: 1 to 63 of a-z, 0-9 and -; its issuer ends in /realms/NAME
    name: String,
    /// Algorithm of its signing keys, as in ES256; the configured one when left out
    #[arg(long)]
    algorithm: Option<String>,
    /// Life of its access tokens in seconds
    #[arg(long, value_name = "SECONDS")]
    lifetime: Option<u32>,
    /// Seconds without a refresh after which its sessions end
    #[arg(long, value_name = "SECONDS")]
    session_idle: Option<u32>,
    /// Seconds after which its sessions end in any case
    #[arg(long, value_name = "SECONDS")]
    session_lifetime: Option<u32>,
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        let (admin, format) = (connection.admin()?, connection.output);
        match self {
            Self::Create(create) => show(&admin.post(&["realms"], &create.into_body()).await?, format),
            Self::List => list(&admin.get(&["realms"]).await?, format),
            Self::Show { name } => show(&admin.get(&["realms", &name]).await?, format),
            Self::Disable { name } => {
                show(&admin.patch(&["realms", &name], &json!({ "status": "disabled" })).await?, format)
            }
            Self::Enable { name } => {
                show(&admin.patch(&["realms", &name], &json!({ "status": "active" })).await?, format)
            }
        }
    }
}

impl Create {
    fn into_body(self) -> Value {
        json!({
            "name": self.name,
            "algorithm": self.algorithm,
            "access_token_lifetime_seconds": self.lifetime,
            "session_idle_seconds": self.session_idle,
            "session_lifetime_seconds": self.session_lifetime,
        })
    }
}

fn list(realms: &Value, format: Format) -> Result<()> {
    if format == Format::Json {
        return output::print_json(realms);
    }
    let rows = realms["items"].as_array().into_iter().flatten().map(|realm| {
        [
            cell(text(&realm["name"])),
            cell(text(&realm["status"])),
            cell(text(&realm["issuer"])),
            cell(instant(&realm["created_at"])),
        ]
    });
    output::print(&output::table(["realm", "status", "issuer", "created"], rows))
}

fn show(realm: &Value, format: Format) -> Result<()> {
    let sentence = format!(
        "realm {} is {}; its issuer is {}",
        text(&realm["name"]),
        text(&realm["status"]),
        text(&realm["issuer"])
    );
    output::show(realm, format, &sentence)
}
