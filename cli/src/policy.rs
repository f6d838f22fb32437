//! `atmctl policy`: what requests are let through.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use atm_core::policy;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::admin_api::AdminApi;
use crate::connection::Connection;
use crate::output::{self, Format, cell, instant, number, text};

mod diff;
mod documents;
mod replay;
mod tuning;

use documents::Documents;

/// Exit status where a question could not be answered: 1 is an answer.
const UNANSWERED: u8 = 2;

/// Policies.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Replace the whole set by these files; a set with a mistake has no effect
    Apply {
        /// YAML files, or directories whose *.yaml files are meant
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Check files here, without a control plane; exit status 1 where there is a mistake
    Check {
        /// YAML files, or directories whose *.yaml files are meant
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// The versions that were applied, the newest first
    List,
    /// The documents of a version
    Show {
        /// The version; the one in force when left out
        version: Option<u64>,
    },
    /// Bring back an earlier version, as a new one
    Rollback {
        /// The version to bring back; the one before the current when left out
        version: Option<u64>,
    },
    /// Judge tables of requests with expected outcomes, without a control plane; exit status 1 where one is not met
    Test {
        /// Tables: YAML files with `tests`
        #[arg(required = true, value_name = "TABLE")]
        tables: Vec<PathBuf>,
        /// Policy files, or directories of them
        #[arg(long = "policy", required = true, value_name = "FILE")]
        policies: Vec<PathBuf>,
        /// Show every step of the tests that fail
        #[arg(long)]
        explain: bool,
        /// Judge by the policies in shadow mode instead of those in force
        #[arg(long)]
        shadow: bool,
    },
    /// What these files would change: rules added, removed and changed; exit status 1 where something would
    Diff {
        /// YAML files, or directories whose *.yaml files are meant
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Compare with these files instead of the set in force
        #[arg(long, value_name = "FILE")]
        against: Vec<PathBuf>,
    },
    /// Judge recorded decisions again by these files, and show what would change; exit status 1 where something would
    Replay {
        /// Decision logs: JSON, one record a line; - for standard input
        #[arg(required = true, value_name = "LOG")]
        logs: Vec<PathBuf>,
        /// Policy files, or directories of them
        #[arg(long = "policy", required = true, value_name = "FILE")]
        policies: Vec<PathBuf>,
    },
    /// Enforce one policy of the set in force for a share of the requests
    Rollout {
        /// The policy's name
        name: String,
        /// The share: more than 0, at most 100
        #[arg(long)]
        percent: f64,
    },
    /// Print the JSON Schema of policy documents, for editors
    Schema,
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        let format = connection.output;
        match self {
            // These ask a question, so that a failure must not read as an answer.
            Self::Check { files } => Ok(answered(check(&files, format))),
            Self::Test { tables, policies, explain, shadow } => {
                Ok(answered(tuning::test(&tables, &policies, explain, shadow, format)))
            }
            Self::Replay { logs, policies } => Ok(answered(replay::replay(&logs, &policies, format))),
            Self::Diff { files, against } => Ok(answered(compare(&files, &against, connection).await)),
            Self::Rollout { name, percent } => {
                rollout(&connection.admin()?, &name, percent, format).await.map(|()| ExitCode::SUCCESS)
            }
            Self::Schema => output::print_json(&policy::json_schema()).map(|()| ExitCode::SUCCESS),
            Self::Apply { files } => {
                apply(&connection.admin()?, &files, format).await.map(|()| ExitCode::SUCCESS)
            }
            Self::List => list(&connection.admin()?, format).await.map(|()| ExitCode::SUCCESS),
            Self::Show { version } => {
                let version = version.map(|version| version.to_string());
                let path = std::iter::once("policies").chain(version.as_deref()).collect::<Vec<_>>();
                let policies = connection.admin()?.get(&path).await?;
                output::show(&policies, format, &documents_of(&policies).join("\n---\n"))?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Rollback { version } => {
                let body = version.map_or_else(|| json!({}), |version| json!({ "version": version }));
                let applied = connection.admin()?.post(&["policies", "rollback"], &body).await?;
                show_applied(&applied, format)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// The exit status of an answer; what kept it from being found is told, and has another one.
fn answered(answer: Result<ExitCode>) -> ExitCode {
    answer.unwrap_or_else(|error| {
        if !output::is_broken_pipe(&error) {
            eprintln!("atmctl: {error:#}");
        }
        ExitCode::from(UNANSWERED)
    })
}

fn check(files: &[PathBuf], format: Format) -> Result<ExitCode> {
    let documents = Documents::read(files)?;
    let number = documents.texts.len();
    match (documents.compile(), format) {
        (Ok(set), _) => {
            let rules = set.rules().len();
            let words = format!(
                "{number} document{} with {rules} rule{}: in order",
                if number == 1 { "" } else { "s" },
                if rules == 1 { "" } else { "s" }
            );
            output::show(&json!({ "documents": number, "rules": rules, "mistakes": [] }), format, &words)?;
            Ok(ExitCode::SUCCESS)
        }
        (Err(mistakes), Format::Json) => {
            output::print_json(&json!({ "documents": number, "mistakes": mistakes }))?;
            Ok(ExitCode::FAILURE)
        }
        (Err(mistakes), Format::Human) => {
            eprintln!("atmctl: {mistakes}");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn compare(files: &[PathBuf], against: &[PathBuf], connection: &Connection) -> Result<ExitCode> {
    let after = Documents::read(files)?.compile()?;
    let before = if against.is_empty() {
        let documents = documents_of(&connection.admin()?.get(&["policies"]).await?);
        let compiled = policy::compile(&documents);
        // An older control plane may have taken what this program does not.
        compiled.map_err(|errors| anyhow::anyhow!("the set in force does not compile here: {}", errors[0]))?
    } else {
        Documents::read(against)?.compile()?
    };
    diff::diff(&before, &after, connection.output)
}

async fn rollout(admin: &AdminApi, name: &str, percent: f64, format: Format) -> Result<()> {
    let documents = documents_of(&admin.get(&["policies"]).await?);
    let documents = tuning::with_rollout(documents, name, percent)?;
    let applied = admin.put(&["policies"], &json!({ "documents": documents })).await.with_context(|| {
        if percent < 100.0 {
            format!("the share of {name} stays as it was")
        } else {
            format!(
                "the share of {name} stays as it was; with all requests nothing tells it from a policy that it \
                 replaces: take that one out of the files and apply them"
            )
        }
    })?;
    show_applied(&applied, format)
}

fn documents_of(policies: &Value) -> Vec<String> {
    policies["documents"].as_array().into_iter().flatten().map(text).collect()
}

async fn apply(admin: &AdminApi, files: &[PathBuf], format: Format) -> Result<()> {
    let documents = Documents::read(files)?;
    // The control plane compiles them again; here a mistake can be shown in its file.
    documents.compile().context("nothing is changed")?;
    let applied = admin.put(&["policies"], &json!({ "documents": documents.texts })).await?;
    show_applied(&applied, format)
}

async fn list(admin: &AdminApi, format: Format) -> Result<()> {
    let policies = admin.get(&["policies"]).await?;
    if format == Format::Json {
        return output::print_json(&policies);
    }
    let current = &policies["version"];
    if current.is_null() {
        return output::print(
            "no policies yet: every request is refused; apply some with atmctl policy apply FILE",
        );
    }
    let rows = policies["history"].as_array().into_iter().flatten().map(|version| {
        let in_force = (version["version"] == *current).then(|| "in force".to_owned());
        let restored = version["restored_from"].as_u64().map(|from| format!("restored from {from}"));
        let note = in_force.into_iter().chain(restored).collect::<Vec<_>>().join(", ");
        [
            number(version["version"].as_u64()),
            cell(instant(&version["applied_at"])),
            cell(text(&version["actor"])),
            cell(note),
        ]
    });
    output::print(&output::table(["version", "applied", "by", "note"], rows))
}

/// What an apply or a rollback came to, and what the control plane would have people look at.
fn show_applied(applied: &Value, format: Format) -> Result<()> {
    let words = format!("policy set {} goes out with revision {}", applied["version"], applied["revision"]);
    output::show(applied, format, &words)?;
    for warning in applied["warnings"].as_array().into_iter().flatten().filter(|_| format == Format::Human) {
        eprintln!("atmctl: warning: {}", text(warning));
    }
    Ok(())
}
