//! `atmctl assertion-rule`: which assertions of trusted issuers stand for which client (RFC 7523 §2.1).

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::connection::Connection;
use crate::output::{self, Format, cell, instant, text};

/// Rules for assertions.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Let assertions of a trusted issuer have the tokens of a client
    Add(Add),
    /// All rules
    List,
    /// Remove a rule; tokens that were issued by it live on until they end
    Remove {
        /// The rule's id
        id: String,
    },
}

/// Which assertions, for which client.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The trusted issuer, exactly as in its tokens
    #[arg(long)]
    issuer: String,
    /// The client whose tokens they get
    #[arg(long = "client", value_name = "CLIENT")]
    client_id: String,
    /// What a claim must be, as in /kubernetes.io/namespace=prod or /sub=system:serviceaccount:prod:*; repeat it
    #[arg(long = "claim", value_name = "POINTER=VALUE", required = true)]
    claims: Vec<String>,
    /// Take one assertion as often as it is shown: for platforms that give a workload one token and not one a use
    #[arg(long)]
    reusable: bool,
    /// Seconds that an assertion may live on at most
    #[arg(long, value_name = "SECONDS")]
    max_lifetime: Option<u32>,
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        let (admin, format) = (connection.admin()?, connection.output);
        match self {
            Self::Add(add) => {
                let rule = admin.post(&["assertion-rules"], &add.into_body()?).await?;
                output::show(&rule, format, &format!("rule {} is in force", text(&rule["id"])))
            }
            Self::List => list(&admin.get(&["assertion-rules"]).await?, format),
            Self::Remove { id } => {
                let answer = admin.delete(&["assertion-rules", &id]).await?;
                output::show(&answer, format, &format!("rule {id} is removed"))
            }
        }
    }
}

impl Add {
    fn into_body(self) -> Result<Value> {
        let mut claims = Map::new();
        for claim in &self.claims {
            let (pointer, value) = claim
                .split_once('=')
                .ok_or_else(|| anyhow!("--claim {claim}: must be POINTER=VALUE, as in /sub=robot"))?;
            claims.insert(pointer.to_owned(), value.into());
        }
        let mut body = json!({
            "issuer": self.issuer, "client_id": self.client_id, "claims": claims, "reusable": self.reusable,
        });
        if let Some(seconds) = self.max_lifetime {
            body["max_lifetime_seconds"] = seconds.into();
        }
        Ok(body)
    }
}

fn list(rules: &Value, format: Format) -> Result<()> {
    if format == Format::Json {
        return output::print_json(rules);
    }
    let rows = rules["items"].as_array().into_iter().flatten().map(|rule| {
        let claims = rule["claims"].as_object().into_iter().flatten();
        let claims: Vec<String> =
            claims.map(|(pointer, value)| format!("{pointer}={}", text(value))).collect();
        [
            cell(text(&rule["id"])),
            cell(text(&rule["issuer"])),
            cell(claims.join("\n")),
            cell(text(&rule["client_id"])),
            cell(text(&rule["reusable"])),
            cell(instant(&rule["created_at"])),
        ]
    });
    output::print(&output::table(["rule", "issuer", "claims", "client", "reusable", "created"], rows))
}
