//! `atmctl api-key`: long-lived credentials for machines.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::admin_api::AdminApi;
use crate::connection::Connection;
use crate::output::{self, Format, Tone, cell, instant, text, toned};

/// API keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a key; it is shown this once
    Create(Create),
    /// All keys
    List,
    /// One key
    Show {
        /// The key's id
        id: String,
    },
    /// Change what a key may be used for; in force at every sidecar with the next revision
    Restrict(Restrict),
    /// Give a key another text, shown this once; the one before is taken for a while, too
    Rotate {
        /// The key's id
        id: String,
        /// Seconds for which the key before is taken, too; 0 ends it at once
        #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
        overlap: u64,
    },
    /// End a key
    Revoke {
        /// The key's id
        id: String,
    },
}

/// What a new key is for.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Whose requests it stands for
    #[arg(long)]
    subject: String,
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    limits: Limits,
    /// When it ends, in seconds since the Unix epoch; a year from now when left out
    #[arg(long, value_name = "SECONDS")]
    expires_at: Option<i64>,
    /// Write the key to this file (readable by its owner only) and do not show it
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// What a key is to be for from now on.
#[derive(Debug, Args)]
pub(crate) struct Restrict {
    /// The key's id
    id: String,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Debug, Args)]
struct Limits {
    /// A scope; repeat it, or give several with spaces
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// An audience; repeat it, or give several with spaces
    #[arg(long = "audience", value_name = "AUDIENCE")]
    audiences: Vec<String>,
    /// A network that it may be used from, as in 10.0.0.0/8; repeat it
    #[arg(long = "network", value_name = "PREFIX")]
    networks: Vec<String>,
}

impl Limits {
    fn into_body(self) -> Map<String, Value> {
        let lists = [("scopes", self.scopes), ("audiences", self.audiences), ("networks", self.networks)];
        let given = lists.into_iter().filter(|(_, values)| !values.is_empty());
        given.map(|(name, values)| (name.to_owned(), words(&values))).collect()
    }
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        let (admin, format) = (connection.admin()?, connection.output);
        match self {
            Self::Create(create) => create.run(&admin, format).await,
            Self::List => list(&admin, format).await,
            Self::Show { id } => show(&admin.get(&["api-keys", &id]).await?, format),
            Self::Restrict(Restrict { id, limits }) => {
                let body = limits.into_body();
                if body.is_empty() {
                    anyhow::bail!("nothing to change; give --scope, --audience or --network");
                }
                show(&admin.patch(&["api-keys", &id], &Value::Object(body)).await?, format)
            }
            Self::Rotate { id, overlap } => {
                let body = json!({ "overlap_seconds": overlap });
                let key = admin.post(&["api-keys", &id, "rotate"], &body).await?;
                if format == Format::Human {
                    eprintln!("atmctl: the key is not shown again; keep it now");
                }
                output::show(&key, format, &format!("api_key  {}", text(&key["api_key"])))
            }
            Self::Revoke { id } => {
                let answer = admin.delete(&["api-keys", &id]).await?;
                let sentence = format!("API key {id} is refused from revision {} on", answer["revision"]);
                output::show(&answer, format, &sentence)
            }
        }
    }
}

impl Create {
    async fn run(self, admin: &AdminApi, format: Format) -> Result<()> {
        let mut body = self.limits.into_body();
        body.insert("subject".into(), self.subject.into());
        let optional =
            [("name", self.name.map(Value::from)), ("expires_at", self.expires_at.map(Value::from))];
        body.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        if !body.contains_key("audiences") {
            body.insert("audiences".into(), json!([]));
        }
        let mut key = admin.post(&["api-keys"], &Value::Object(body)).await?;
        if let Some(file) = &self.key_file {
            let secret = key.as_object_mut().and_then(|key| key.remove("api_key"));
            crate::dev::write_secret(file, &text(&secret.unwrap_or_default())).with_context(|| {
                format!(
                    "the key was made, but cannot be written to {}; revoke it and make another",
                    file.display()
                )
            })?;
        }
        if format == Format::Json {
            return output::print_json(&key);
        }
        output::print(&format!("id       {}", text(&key["id"])))?;
        if let Some(file) = &self.key_file {
            output::print(&format!("api_key  written to {}", file.display()))
        } else {
            output::print(&format!("api_key  {}", text(&key["api_key"])))?;
            eprintln!("atmctl: the key is not shown again; keep it now");
            Ok(())
        }
    }
}

async fn list(admin: &AdminApi, format: Format) -> Result<()> {
    let keys = admin.get(&["api-keys"]).await?;
    if format == Format::Json {
        return output::print_json(&keys);
    }
    let rows = keys["items"].as_array().into_iter().flatten().map(|key| {
        [
            cell(text(&key["id"])),
            cell(text(&key["name"])),
            cell(text(&key["subject"])),
            status(key),
            cell(text(&key["scopes"])),
            cell(text(&key["audiences"])),
            cell(seconds(&key["expires_at"])),
        ]
    });
    output::print(&output::table(["id", "name", "subject", "status", "scopes", "audiences", "expires"], rows))
}

fn show(key: &Value, format: Format) -> Result<()> {
    if format == Format::Json {
        return output::print_json(key);
    }
    let rows = [
        [cell("id"), cell(text(&key["id"]))],
        [cell("name"), cell(text(&key["name"]))],
        [cell("subject"), cell(text(&key["subject"]))],
        [cell("status"), status(key)],
        [cell("scopes"), cell(text(&key["scopes"]))],
        [cell("audiences"), cell(text(&key["audiences"]))],
        [cell("networks"), cell(text(&key["networks"]))],
        [cell("expires"), cell(seconds(&key["expires_at"]))],
        [cell("key before, until"), cell(instant(&key["previous_expires_at"]))],
        [cell("last used, about"), cell(instant(&key["last_used_at"]))],
        [cell("created"), cell(instant(&key["created_at"]))],
        [cell("changed"), cell(instant(&key["updated_at"]))],
    ];
    output::print(&output::table(["field", "value"], rows))
}

fn seconds(value: &Value) -> String {
    instant(&value.as_i64().map_or(Value::Null, |seconds| Value::from(seconds.saturating_mul(1_000))))
}

fn status(key: &Value) -> comfy_table::Cell {
    let status = text(&key["status"]);
    let tone = if status == "active" { Tone::Good } else { Tone::Attention };
    toned(status, tone)
}

fn words(values: &[String]) -> Value {
    values.iter().flat_map(|value| value.split_whitespace()).collect()
}
