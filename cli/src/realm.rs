//! `atmctl realm`: tenants, each with its own issuer, keys, clients and sessions. Other commands work on one with `--realm`.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::connection::Connection;
use crate::output::{self, Format, cell, instant, text};

/// Realms.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a realm, with its first signing key
    Create(Create),
    /// Change what a realm decides about itself; what is left out stays
    Set(Set),
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
    #[command(flatten)]
    settings: Settings,
}

/// Changes of a realm.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Its name
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// Settings to be as configured again, as in audit_retention_days; several with commas
    #[arg(long, value_name = "SETTING", value_delimiter = ',')]
    reset: Vec<String>,
}

/// What a realm decides about itself.
#[derive(Debug, Args)]
struct Settings {
    /// Algorithm of its signing keys, as in ES256
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
    /// Days that its sessions are kept after their end; 0: for ever
    #[arg(long, value_name = "DAYS")]
    session_retention: Option<u32>,
    /// Days that records of its revocations are kept; 0: for ever
    #[arg(long, value_name = "DAYS")]
    revocation_retention: Option<u32>,
    /// Days that its audit events are kept at least; 0: for ever
    #[arg(long, value_name = "DAYS")]
    audit_retention: Option<u32>,
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        let (admin, format) = (connection.admin()?, connection.output);
        match self {
            Self::Create(create) => show(&admin.post(&["realms"], &create.into_body()).await?, format),
            Self::Set(set) => {
                let name = set.name.clone();
                show(&admin.patch(&["realms", &name], &set.into_body()?).await?, format)
            }
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
        let mut body = self.settings.into_members();
        body.insert("name".to_owned(), self.name.into());
        Value::Object(body)
    }
}

impl Set {
    fn into_body(self) -> Result<Value> {
        let mut body = self.settings.into_members();
        for setting in self.reset {
            if setting == "status" || body.insert(setting.clone(), Value::Null).is_some() {
                bail!(
                    "--reset {setting}: is no setting that can be left to the configuration beside its new value"
                );
            }
        }
        if body.is_empty() {
            bail!("nothing to change; give at least one option, as in --session-retention 30");
        }
        Ok(Value::Object(body))
    }
}

impl Settings {
    /// Those that are given, as the admin API names them.
    fn into_members(self) -> Map<String, Value> {
        let members = [
            ("algorithm", self.algorithm.map(Value::from)),
            ("access_token_lifetime_seconds", self.lifetime.map(Value::from)),
            ("session_idle_seconds", self.session_idle.map(Value::from)),
            ("session_lifetime_seconds", self.session_lifetime.map(Value::from)),
            ("session_retention_days", self.session_retention.map(Value::from)),
            ("revocation_retention_days", self.revocation_retention.map(Value::from)),
            ("audit_retention_days", self.audit_retention.map(Value::from)),
        ];
        members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
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
