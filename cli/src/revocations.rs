//! `atmctl revocations`: what was revoked, and what will be.

use anyhow::Result;
use clap::Subcommand;
use serde_json::Value;

use crate::connection::Connection;
use crate::output::{self, cell, instant};

/// Past and scheduled revocations.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Past revocations, the newest first
    List {
        /// How many at most
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// token, session, subject, client, realm, issuer or key
        #[arg(long)]
        kind: Option<String>,
        /// What was named
        #[arg(long)]
        value: Option<String>,
        /// Who did it
        #[arg(long)]
        actor: Option<String>,
        /// Why, word for word
        #[arg(long)]
        reason: Option<String>,
    },
    /// Revocations to come, the next first
    Scheduled {
        /// pending, done or cancelled
        #[arg(long, default_value = "pending")]
        status: String,
    },
    /// Withdraw a scheduled revocation
    Cancel {
        /// Its id
        id: String,
    },
}

impl Command {
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        let admin = connection.admin()?;
        match self {
            Self::List { limit, kind, value, actor, reason } => {
                let given = [("kind", kind), ("value", value), ("actor", actor), ("reason", reason)];
                let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
                let query: Vec<_> = std::iter::once(("limit", limit.to_string())).chain(given).collect();
                let page = admin.get_with(&["revocations"], &query).await?;
                let rows = items(&page).map(|item| {
                    [
                        cell(instant(&item["created_at"])),
                        cell(output::text(&item["kind"])),
                        cell(output::text(&item["value"])),
                        cell(item["number"].to_string()),
                        cell(output::text(&item["actor"])),
                        cell(output::text(&item["reason"])),
                    ]
                });
                let table = output::table(["when", "kind", "value", "number", "by", "reason"], rows);
                output::show(&page, connection.output, &table)
            }
            Self::Scheduled { status } => {
                let page = admin.get_with(&["revocations", "scheduled"], &[("status", status)]).await?;
                let rows = items(&page).map(|item| {
                    [
                        cell(output::text(&item["id"])),
                        cell(instant(&item["at_ms"])),
                        cell(item["selectors"].to_string()),
                        cell(output::text(&item["actor"])),
                        cell(output::text(&item["reason"])),
                    ]
                });
                let table = output::table(["id", "at", "what", "by", "reason"], rows);
                output::show(&page, connection.output, &table)
            }
            Self::Cancel { id } => {
                let cancelled = admin.delete(&["revocations", "scheduled", &id]).await?;
                output::show(&cancelled, connection.output, &format!("revocation {id} is withdrawn"))
            }
        }
    }
}

fn items(page: &Value) -> impl Iterator<Item = &Value> {
    page["items"].as_array().into_iter().flatten()
}
