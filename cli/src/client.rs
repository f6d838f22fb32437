//! `atmctl client`: the OAuth clients that may get tokens.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::admin_api::AdminApi;
use crate::connection::Connection;
use crate::output::{self, Format, Tone, cell, instant, text, toned};

/// OAuth clients.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Register a client; its secret is shown this once
    Create(Create),
    /// All clients
    List,
    /// One client
    Show {
        /// The client's id
        client_id: String,
    },
    /// Give a client no more tokens and end those it has
    Disable {
        /// The client's id
        client_id: String,
    },
    /// Let a disabled client have tokens again
    Enable {
        /// The client's id
        client_id: String,
    },
    /// Remove a client and end its tokens
    Delete {
        /// The client's id
        client_id: String,
    },
}

/// What a new client may do.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its id; made up when left out
    #[arg(long)]
    id: Option<String>,
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    /// A scope that it may ask for; repeat it, or give several with spaces
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<String>,
    /// An audience that its tokens may be for; repeat it, or give several with spaces
    #[arg(long = "audience", value_name = "AUDIENCE", required = true)]
    audiences: Vec<String>,
    /// Life of its access tokens in seconds
    #[arg(long, value_name = "SECONDS")]
    lifetime: Option<u32>,
    /// Write the secret to this file (readable by its owner only) and do not show it
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        let (admin, format) = (connection.admin()?, connection.output);
        match self {
            Self::Create(create) => create.run(&admin, format).await,
            Self::List => list(&admin, format).await,
            Self::Show { client_id } => show(&admin.get(&["clients", &client_id]).await?, format),
            Self::Disable { client_id } => {
                show(&admin.patch(&["clients", &client_id], &json!({ "status": "disabled" })).await?, format)
            }
            Self::Enable { client_id } => {
                show(&admin.patch(&["clients", &client_id], &json!({ "status": "active" })).await?, format)
            }
            Self::Delete { client_id } => {
                let answer = admin.delete(&["clients", &client_id]).await?;
                let sentence = format!("client {client_id} is deleted and its tokens are revoked");
                output::show(&answer, format, &sentence)
            }
        }
    }
}

impl Create {
    async fn run(self, admin: &AdminApi, format: Format) -> Result<()> {
        let mut body = Map::new();
        body.insert("scopes".into(), words(&self.scopes));
        body.insert("audiences".into(), words(&self.audiences));
        let optional = [
            ("client_id", self.id.map(Value::from)),
            ("name", self.name.map(Value::from)),
            ("access_token_lifetime_seconds", self.lifetime.map(Value::from)),
        ];
        body.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        let mut client = admin.post(&["clients"], &Value::Object(body)).await?;
        if let Some(file) = &self.secret_file {
            let secret = client.as_object_mut().and_then(|client| client.remove("client_secret"));
            crate::dev::write_secret(file, &text(&secret.unwrap_or_default()))
                .with_context(|| format!("the client was created, but its secret cannot be written to {}; delete the client and create it again", file.display()))?;
        }
        if format == Format::Json {
            return output::print_json(&client);
        }
        output::print(&format!("client_id      {}", text(&client["client_id"])))?;
        if let Some(file) = &self.secret_file {
            output::print(&format!("client_secret  written to {}", file.display()))?;
        } else {
            output::print(&format!("client_secret  {}", text(&client["client_secret"])))?;
            eprintln!("atmctl: the secret is not shown again; keep it now");
        }
        Ok(())
    }
}

async fn list(admin: &AdminApi, format: Format) -> Result<()> {
    let clients = admin.get(&["clients"]).await?;
    if format == Format::Json {
        return output::print_json(&clients);
    }
    let rows = clients["items"].as_array().into_iter().flatten().map(|client| {
        [
            cell(text(&client["client_id"])),
            cell(text(&client["name"])),
            status(client),
            cell(text(&client["scopes"])),
            cell(text(&client["audiences"])),
            cell(instant(&client["created_at"])),
        ]
    });
    output::print(&output::table(["client", "name", "status", "scopes", "audiences", "created"], rows))
}

fn show(client: &Value, format: Format) -> Result<()> {
    if format == Format::Json {
        return output::print_json(client);
    }
    let lifetime = text(&client["access_token_lifetime_seconds"]);
    let lifetime =
        if lifetime.is_empty() { "the realm's default".to_owned() } else { format!("{lifetime} s") };
    let rows = [
        [cell("client"), cell(text(&client["client_id"]))],
        [cell("name"), cell(text(&client["name"]))],
        [cell("status"), status(client)],
        [cell("scopes"), cell(text(&client["scopes"]))],
        [cell("audiences"), cell(text(&client["audiences"]))],
        [cell("token life"), cell(lifetime)],
        [cell("created"), cell(instant(&client["created_at"]))],
        [cell("changed"), cell(instant(&client["updated_at"]))],
    ];
    output::print(&output::table(["field", "value"], rows))
}

fn status(client: &Value) -> comfy_table::Cell {
    let status = text(&client["status"]);
    let tone = if status == "active" { Tone::Good } else { Tone::Attention };
    toned(status, tone)
}

fn words(values: &[String]) -> Value {
    values.iter().flat_map(|value| value.split_whitespace()).collect()
}
