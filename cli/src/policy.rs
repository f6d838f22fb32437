//! `atmctl policy`: what requests are let through.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use atm_core::policy::{self, PolicyError, PolicySet};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::admin_api::AdminApi;
use crate::connection::Connection;
use crate::output::{self, Format, cell, instant, number, text};

mod tuning;

/// Policies.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Replace the whole set by these files; a set with a mistake has no effect
    Apply {
        /// YAML files, or directories whose *.yaml files are meant
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Check files here, without a control plane
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
    /// Judge tables of requests with expected outcomes, without a control plane
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
    },
    /// What these files would change: rules added, removed and changed
    Diff {
        /// YAML files, or directories whose *.yaml files are meant
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Compare with these files instead of the set in force
        #[arg(long, value_name = "FILE")]
        against: Vec<PathBuf>,
    },
    /// Judge recorded decisions again by these files, and show what would change
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
            Self::Test { tables, policies, explain } => {
                return tuning::test(&tables, &policies, explain, format);
            }
            Self::Replay { logs, policies } => return tuning::replay(&logs, &policies, format),
            Self::Diff { files, against } => {
                let before = if against.is_empty() {
                    documents_of(&connection.admin()?.get(&["policies"]).await?)
                } else {
                    Documents::read(&against)?.texts
                };
                return tuning::diff(&before, &Documents::read(&files)?, format);
            }
            Self::Rollout { name, percent } => {
                let admin = connection.admin()?;
                let documents = documents_of(&admin.get(&["policies"]).await?);
                let documents = tuning::with_rollout(documents, &name, percent)?;
                let applied = admin.put(&["policies"], &json!({ "documents": documents })).await?;
                output::show(&applied, format, &in_force(&applied))
            }
            Self::Schema => output::print_json(&policy::json_schema()),
            Self::Check { files } => {
                let documents = Documents::read(&files)?;
                let rules = documents.check()?;
                output::show(
                    &json!({ "documents": documents.texts.len(), "rules": rules }),
                    format,
                    &format!("{} documents with {rules} rules are in order", documents.texts.len()),
                )
            }
            Self::Apply { files } => apply(&connection.admin()?, &files, format).await,
            Self::List => list(&connection.admin()?, format).await,
            Self::Show { version } => {
                let version = version.map(|version| version.to_string());
                let path = std::iter::once("policies").chain(version.as_deref()).collect::<Vec<_>>();
                let policies = connection.admin()?.get(&path).await?;
                output::show(&policies, format, &documents_of(&policies).join("\n---\n"))
            }
            Self::Rollback { version } => {
                let body = version.map_or_else(|| json!({}), |version| json!({ "version": version }));
                let applied = connection.admin()?.post(&["policies", "rollback"], &body).await?;
                output::show(&applied, format, &in_force(&applied))
            }
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

fn documents_of(policies: &Value) -> Vec<String> {
    policies["documents"].as_array().into_iter().flatten().map(text).collect()
}

async fn apply(admin: &AdminApi, files: &[PathBuf], format: Format) -> Result<()> {
    let documents = Documents::read(files)?;
    // The control plane compiles them again; here a mistake can be shown in its file.
    documents.check()?;
    let applied = admin.put(&["policies"], &json!({ "documents": documents.texts })).await?;
    output::show(&applied, format, &in_force(&applied))
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

fn in_force(applied: &Value) -> String {
    format!("policy set {} goes out with revision {}", applied["version"], applied["revision"])
}

/// Policy documents, and where each came from.
#[derive(Debug, Default)]
struct Documents {
    texts: Vec<String>,
    /// File, and number of lines in it before the document.
    origins: Vec<(PathBuf, usize)>,
}

impl Documents {
    fn read(files: &[PathBuf]) -> Result<Self> {
        let mut documents = Self::default();
        for file in files {
            for file in expand(file)? {
                let text = std::fs::read_to_string(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                documents.split(&file, &text);
            }
        }
        if documents.texts.is_empty() {
            bail!("no policy document in these files; give files that hold a TokenPolicy");
        }
        Ok(documents)
    }

    /// Adds the documents of a stream, which `---` lines divide. What is empty or comment alone is none.
    fn split(&mut self, file: &Path, text: &str) {
        let (mut document, mut first) = (String::new(), 0);
        let mut end = |document: &mut String, first: usize| {
            if document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')) {
                self.texts.push(std::mem::take(document));
                self.origins.push((file.to_path_buf(), first));
            }
            document.clear();
        };
        for (at, line) in text.lines().enumerate() {
            if line.trim_end() == "---" {
                end(&mut document, first);
                first = at + 1;
            } else {
                document.push_str(line);
                document.push('\n');
            }
        }
        end(&mut document, first);
    }

    /// The number of rules, or every mistake with its file, line and column.
    fn check(&self) -> Result<usize> {
        Ok(self.compile()?.rules().len())
    }

    /// The compiled set, or every mistake with its file, line and column.
    fn compile(&self) -> Result<PolicySet> {
        policy::compile(&self.texts).map_err(|mistakes| anyhow!(self.describe(&mistakes)))
    }

    fn describe(&self, mistakes: &[PolicyError]) -> String {
        let number = mistakes.len();
        let mut message = format!(
            "{number} mistake{} in these policies, so that nothing is changed",
            if number == 1 { "" } else { "s" }
        );
        for mistake in mistakes {
            let PolicyError { document, line, column, path, message: what, excerpt } = mistake;
            let (file, before) = self.origins.get(*document).map_or_else(
                || (format!("document {document}"), 0),
                |(file, before)| (file.display().to_string(), *before),
            );
            let path = if path.is_empty() { String::new() } else { format!("{path}: ") };
            let indent = column.saturating_sub(1);
            // Writing to a String cannot fail.
            let _ = write!(
                message,
                "\n{file}:{}:{column}: {path}{what}\n    {excerpt}\n    {:indent$}^",
                line + before,
                ""
            );
        }
        message
    }
}

fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let file = entry.with_context(|| format!("cannot read {}", path.display()))?.path();
        // Tables of tests lie beside the policies that they are for.
        let is_table = file.to_string_lossy().ends_with(".test.yaml");
        if !is_table && file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../examples/policies/orders.yaml");

    #[test]
    fn the_example_is_in_order() {
        let mut documents = Documents::default();
        documents.split(Path::new("orders.yaml"), GOOD);
        assert_eq!(documents.check().unwrap(), 3);
    }

    #[test]
    fn a_mistake_is_shown_in_its_file() {
        let mut documents = Documents::default();
        let bad = GOOD.replace("name: orders }", "name: other }").replace("audiences:", "audience:");
        documents.split(Path::new("two.yaml"), &format!("# only a comment\n---\n{GOOD}---\n{bad}"));
        let error = documents.check().unwrap_err().to_string();
        let line = 2
            + GOOD.lines().count()
            + 1
            + GOOD.lines().position(|line| line.contains("audiences:")).unwrap()
            + 1;
        assert!(error.contains(&format!("two.yaml:{line}:")), "{error}");
    }
}
