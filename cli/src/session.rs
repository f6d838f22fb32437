//! `atmctl session` and `atmctl subject`: sessions that the login service opened, and the subjects that they are of.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::admin_api::AdminApi;
use crate::connection::Connection;
use crate::output::{self, Format, Tone, cell, instant, text, toned};

/// Sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Open a session for a subject, as a login service does; its tokens are shown this once
    Open(Open),
    /// The sessions of a subject
    List {
        /// The subject (`sub`)
        subject: String,
    },
    /// One session
    Show {
        /// The session's id (`sid`)
        id: String,
    },
    /// End a session and the tokens that were issued of it
    End {
        /// The session's id (`sid`)
        id: String,
    },
}

/// Subjects.
#[derive(Debug, Subcommand)]
pub(crate) enum Subject {
    /// End all sessions of a subject and whatever else it holds
    Logout(Named),
    /// Give a subject no more tokens and end those it has
    Disable(Named),
    /// Let a disabled subject have tokens again
    Enable {
        /// The subject (`sub`)
        subject: String,
    },
    /// The disabled subjects
    Disabled,
}

/// Which subject, and why.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The subject (`sub`)
    subject: String,
    /// Why, for the records
    #[arg(long)]
    reason: Option<String>,
}

/// What a new session is.
#[derive(Debug, Args)]
pub(crate) struct Open {
    /// Whom the login service has authenticated
    #[arg(long)]
    subject: String,
    /// The client that gets the tokens
    #[arg(long = "client", value_name = "CLIENT")]
    client_id: String,
    /// A scope out of the client's; repeat it, or give several with spaces; all of them when left out
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// An audience out of the client's; repeat it, or give several with spaces; all of them when left out
    #[arg(long = "audience", value_name = "AUDIENCE")]
    audiences: Vec<String>,
    /// The DPoP key that its tokens are bound to (RFC 7638 thumbprint)
    #[arg(long, value_name = "THUMBPRINT")]
    dpop_jkt: Option<String>,
    /// Life in seconds, whatever happens
    #[arg(long, value_name = "SECONDS")]
    lifetime: Option<u64>,
    /// Life in seconds without a refresh
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        let (admin, format) = (connection.admin()?, connection.output);
        match self {
            Self::Open(open) => open.run(&admin, format).await,
            Self::List { subject } => list(&admin, &subject, format).await,
            Self::Show { id } => show(&admin.get(&["sessions", &id]).await?, format),
            Self::End { id } => {
                let answer = admin.delete(&["sessions", &id]).await?;
                let sentence = format!(
                    "session {id} has ended; its tokens are refused from revision {} on",
                    answer["revision"]
                );
                output::show(&answer, format, &sentence)
            }
        }
    }
}

impl Open {
    async fn run(self, admin: &AdminApi, format: Format) -> Result<()> {
        let mut body = Map::new();
        body.insert("subject".into(), self.subject.into());
        body.insert("client_id".into(), self.client_id.into());
        let words = |values: &[String]| -> Option<Value> {
            let words: Vec<&str> = values.iter().flat_map(|value| value.split_whitespace()).collect();
            (!words.is_empty()).then(|| words.into())
        };
        let optional = [
            ("scopes", words(&self.scopes)),
            ("audiences", words(&self.audiences)),
            ("dpop_jkt", self.dpop_jkt.map(Value::from)),
            ("lifetime_seconds", self.lifetime.map(Value::from)),
            ("idle_seconds", self.idle.map(Value::from)),
        ];
        body.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        let opened = admin.post(&["sessions"], &Value::Object(body)).await?;
        if format == Format::Json {
            return output::print_json(&opened);
        }
        for name in ["id", "access_token", "refresh_token"] {
            output::print(&format!("{name:<14} {}", text(&opened[name])))?;
        }
        eprintln!("atmctl: the tokens are not shown again; keep them now");
        Ok(())
    }
}

impl Subject {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<()> {
        let (admin, format) = (connection.admin()?, connection.output);
        match self {
            Self::Logout(named) => {
                let answer = named.post(&admin, &["sessions", "end"]).await?;
                let sentence =
                    format!("what {} held is refused from revision {} on", named.subject, answer["revision"]);
                output::show(&answer, format, &sentence)
            }
            Self::Disable(named) => {
                let answer = named.post(&admin, &["subjects", "disable"]).await?;
                let sentence = format!(
                    "{} gets no tokens, and what it held is refused from revision {} on",
                    named.subject, answer["revision"]
                );
                output::show(&answer, format, &sentence)
            }
            Self::Enable { subject } => {
                let answer = admin.post(&["subjects", "enable"], &json!({ "subject": subject })).await?;
                output::show(&answer, format, &format!("{subject} may have tokens again"))
            }
            Self::Disabled => disabled(&admin, format).await,
        }
    }
}

impl Named {
    async fn post(&self, admin: &AdminApi, path: &[&str]) -> Result<Value> {
        admin.post(path, &json!({ "subject": self.subject, "reason": self.reason })).await
    }
}

async fn list(admin: &AdminApi, subject: &str, format: Format) -> Result<()> {
    let sessions = admin.get_with(&["sessions"], &[("subject", subject)]).await?;
    if format == Format::Json {
        return output::print_json(&sessions);
    }
    let rows = sessions["items"].as_array().into_iter().flatten().map(|session| {
        [
            cell(text(&session["id"])),
            cell(text(&session["client_id"])),
            status(session),
            cell(text(&session["generation"])),
            cell(instant(&session["opened_at"])),
            cell(instant(&session["refreshed_at"])),
            cell(instant(&session["expires_at"])),
        ]
    });
    let header = ["session", "client", "status", "generation", "opened", "refreshed", "expires"];
    output::print(&output::table(header, rows))
}

fn show(session: &Value, format: Format) -> Result<()> {
    if format == Format::Json {
        return output::print_json(session);
    }
    let rows = [
        [cell("session"), cell(text(&session["id"]))],
        [cell("subject"), cell(text(&session["subject"]))],
        [cell("client"), cell(text(&session["client_id"]))],
        [cell("status"), status(session)],
        [cell("scopes"), cell(text(&session["scopes"]))],
        [cell("audiences"), cell(text(&session["audiences"]))],
        [cell("generation"), cell(text(&session["generation"]))],
        [cell("bound to"), cell(text(&session["bound_to"]))],
        [cell("opened"), cell(instant(&session["opened_at"]))],
        [cell("refreshed"), cell(instant(&session["refreshed_at"]))],
        [cell("idle until"), cell(instant(&session["idle_expires_at"]))],
        [cell("expires"), cell(instant(&session["expires_at"]))],
        [cell("ended"), cell(instant(&session["ended_at"]))],
    ];
    output::print(&output::table(["field", "value"], rows))
}

async fn disabled(admin: &AdminApi, format: Format) -> Result<()> {
    let subjects = admin.get(&["subjects", "disabled"]).await?;
    if format == Format::Json {
        return output::print_json(&subjects);
    }
    let rows = subjects["items"].as_array().into_iter().flatten().map(|subject| {
        [
            cell(text(&subject["subject"])),
            cell(text(&subject["reason"])),
            cell(text(&subject["actor"])),
            cell(instant(&subject["created_at"])),
        ]
    });
    output::print(&output::table(["subject", "reason", "by", "since"], rows))
}

fn status(session: &Value) -> comfy_table::Cell {
    let status = text(&session["status"]);
    let tone = if status == "active" { Tone::Good } else { Tone::Attention };
    toned(status, tone)
}
