//! `atmctl client`: the OAuth clients that may get tokens.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
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
    /// Change a client: a file with the members to change; null brings a member's default back
    Update {
        /// The client's id
        client_id: String,
        /// JSON with the members to change (RFC 7396), `-` for standard input
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Give a client a new secret; the one before is taken for a while, too
    RotateSecret(RotateSecret),
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
    #[arg(long = "scope", value_name = "SCOPE", required_unless_present = "file")]
    scopes: Vec<String>,
    /// An audience that its tokens may be for; repeat it, or give several with spaces
    #[arg(long = "audience", value_name = "AUDIENCE", required_unless_present = "file")]
    audiences: Vec<String>,
    /// What it may ask the token endpoint for; repeat it; client_credentials when left out
    #[arg(long = "grant", value_name = "GRANT", value_enum)]
    grants: Vec<Grant>,
    /// How it authenticates, as in private_key_jwt or tls_client_auth; client_secret_basic when left out
    #[arg(long, value_name = "METHOD")]
    auth_method: Option<String>,
    /// Its public keys: a file with a JWK set
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,
    /// Where it publishes its public keys, in the place of --jwks
    #[arg(long, value_name = "URL", conflicts_with = "jwks")]
    jwks_uri: Option<String>,
    /// Give it opaque access tokens instead of JWTs
    #[arg(long)]
    opaque: bool,
    /// Give it tokens for a DPoP key only
    #[arg(long)]
    dpop: bool,
    /// Life of its access tokens in seconds
    #[arg(long, value_name = "SECONDS")]
    lifetime: Option<u32>,
    /// JSON with whatever else a client has, `-` for standard input; options go before it
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Write the secret to this file (readable by its owner only) and do not show it
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

/// A new secret.
#[derive(Debug, Args)]
pub(crate) struct RotateSecret {
    /// The client's id
    client_id: String,
    /// Seconds for which the secret before is taken, too; 0 ends it at once
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    overlap: u64,
    /// Write the secret to this file (readable by its owner only) and do not show it
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

/// The grants by their short names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Grant {
    ClientCredentials,
    RefreshToken,
    TokenExchange,
    JwtBearer,
}

impl Grant {
    const fn name(self) -> &'static str {
        match self {
            Self::ClientCredentials => "client_credentials",
            Self::RefreshToken => "refresh_token",
            Self::TokenExchange => "urn:ietf:params:oauth:grant-type:token-exchange",
            Self::JwtBearer => "urn:ietf:params:oauth:grant-type:jwt-bearer",
        }
    }
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        let (admin, format) = (connection.admin()?, connection.output);
        match self {
            Self::Create(create) => create.run(&admin, format).await,
            Self::List => list(&admin, format).await,
            Self::Show { client_id } => show(&admin.get(&["clients", &client_id]).await?, format),
            Self::Update { client_id, file } => {
                show(&admin.patch(&["clients", &client_id], &read_json(&file)?).await?, format)
            }
            Self::RotateSecret(rotate) => rotate.run(&admin, format).await,
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
        let secret_file = self.secret_file.clone();
        let client = admin.post(&["clients"], &self.into_body()?).await?;
        show_secret(client, secret_file.as_deref(), format, "delete the client and create it again")
    }

    fn into_body(self) -> Result<Value> {
        let mut body = match &self.file {
            None => Map::new(),
            Some(file) => match read_json(file)? {
                Value::Object(members) => members,
                _ => bail!("{}: must hold one JSON object", file.display()),
            },
        };
        let grants: Vec<&str> = self.grants.iter().map(|grant| grant.name()).collect();
        let list = |values: &[String]| (!values.is_empty()).then(|| words(values));
        let optional = [
            ("client_id", self.id.map(Value::from)),
            ("name", self.name.map(Value::from)),
            ("scopes", list(&self.scopes)),
            ("audiences", list(&self.audiences)),
            ("grant_types", (!grants.is_empty()).then(|| grants.into())),
            ("token_endpoint_auth_method", self.auth_method.map(Value::from)),
            ("jwks", self.jwks.as_deref().map(read_json).transpose()?),
            ("jwks_uri", self.jwks_uri.map(Value::from)),
            ("access_token_format", self.opaque.then(|| "opaque".into())),
            ("dpop_bound_access_tokens", self.dpop.then(|| true.into())),
            ("access_token_lifetime_seconds", self.lifetime.map(Value::from)),
        ];
        body.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        Ok(Value::Object(body))
    }
}

impl RotateSecret {
    async fn run(self, admin: &AdminApi, format: Format) -> Result<()> {
        let body = json!({ "overlap_seconds": self.overlap });
        let client = admin.post(&["clients", &self.client_id, "secret"], &body).await?;
        show_secret(client, self.secret_file.as_deref(), format, "rotate it again")
    }
}

/// The client's id and, where it has one, its secret: shown, or in a file. `otherwise` says what to do where that fails.
fn show_secret(mut client: Value, file: Option<&Path>, format: Format, otherwise: &str) -> Result<()> {
    let has_secret = client["client_secret"].is_string();
    if let Some(file) = file.filter(|_| has_secret) {
        let secret = client.as_object_mut().and_then(|client| client.remove("client_secret"));
        crate::dev::write_secret(file, &text(&secret.unwrap_or_default())).with_context(|| {
            format!("the secret was made, but cannot be written to {}; {otherwise}", file.display())
        })?;
    }
    if format == Format::Json {
        return output::print_json(&client);
    }
    output::print(&format!("client_id      {}", text(&client["client_id"])))?;
    match file {
        _ if !has_secret => Ok(()),
        Some(file) => output::print(&format!("client_secret  written to {}", file.display())),
        None => {
            output::print(&format!("client_secret  {}", text(&client["client_secret"])))?;
            eprintln!("atmctl: the secret is not shown again; keep it now");
            Ok(())
        }
    }
}

fn read_json(file: &Path) -> Result<Value> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("standard input cannot be read")?
    } else {
        std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?
    };
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))
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
        [cell("authenticates by"), cell(text(&client["token_endpoint_auth_method"]))],
        [cell("grants"), cell(text(&client["grant_types"]))],
        [cell("scopes"), cell(text(&client["scopes"]))],
        [cell("audiences"), cell(text(&client["audiences"]))],
        [cell("token life"), cell(lifetime)],
        [cell("token format"), cell(text(&client["access_token_format"]))],
        [cell("secret before, until"), cell(instant(&client["previous_secret_expires_at"]))],
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
