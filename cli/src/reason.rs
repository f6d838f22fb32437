//! `atmctl reason`: what a refusal means, and what to do about it.

use anyhow::{Result, bail};
use atm_core::reason::{self, Reason};
use clap::Args;
use serde_json::{Value, json};

use crate::output::{self, Format, cell};

/// Reasons for refusals.
#[derive(Debug, Args)]
pub(crate) struct Explained {
    /// The code, as in the header x-atm-reason; all of them when left out
    code: Option<String>,
    /// Print the page of the documentation
    #[arg(long, conflicts_with = "code")]
    markdown: bool,
}

impl Explained {
    /// Prints it.
    pub(crate) fn run(&self, format: Format) -> Result<()> {
        if self.markdown {
            return output::print(&reason::reference());
        }
        let Some(code) = &self.code else {
            let all: Vec<Value> = Reason::ALL.iter().map(|reason| described(*reason)).collect();
            if format == Format::Json {
                return output::print_json(&all.into());
            }
            let rows = Reason::ALL.iter().map(|reason| {
                [cell(reason.as_str()), cell(reason.status().to_string()), cell(reason.description())]
            });
            return output::print(&output::table(["reason", "status", "what callers are told"], rows));
        };
        let Some(reason) = Reason::ALL.iter().find(|reason| reason.as_str() == code) else {
            let near = Reason::ALL.iter().min_by_key(|reason| strsim::osa_distance(reason.as_str(), code));
            bail!("there is no reason {code}; did you mean {}?", near.map_or("permit", |near| near.as_str()));
        };
        let challenge = reason.error().unwrap_or("none");
        output::show(
            &described(*reason),
            format,
            &format!(
                "{reason} ({}, error {challenge})\n\n{}\n\nWhat to do: {}",
                reason.status(),
                reason.meaning(),
                reason.advice()
            ),
        )
    }
}

fn described(reason: Reason) -> Value {
    json!({
        "reason": reason.as_str(), "status": reason.status(), "error": reason.error(),
        "description": reason.description(), "meaning": reason.meaning(), "advice": reason.advice(),
    })
}
