//! `atmctl explain`: how a sidecar would decide one request now.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use atm_core::reason::Reason;
use clap::Args;
use serde_json::{Value, json};

use crate::connection::Connection;
use crate::output::{self, Format, Tone, cell, text, toned};
use crate::policy_table::split_url;
use crate::{http_client, token_input};

/// One request, as the client would send it. Nothing is sent to the service; the sidecar counts and records nothing.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The method
    #[arg(long, short = 'X', default_value = "GET")]
    method: String,
    /// A URL, or a path
    url: String,
    /// A header, as in 'x-tenant: acme'; repeat it
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The bearer token: a file, or - for standard input; for a bound one give -H 'authorization: DPoP ...' and -H 'dpop: ...'
    #[arg(long, value_name = "FILE")]
    token: Option<String>,
    /// A context extension of the route, as in policy=orders; repeat it
    #[arg(long = "extension", value_name = "NAME=VALUE")]
    extensions: Vec<String>,
    /// The client's address
    #[arg(long, value_name = "ADDRESS")]
    source: Option<String>,
    /// The client's certificate, in PEM
    #[arg(long, value_name = "FILE")]
    certificate: Option<std::path::PathBuf>,
    /// The sidecar's admin listener; that of the local stack when left out
    #[arg(long, env = "ATM_SIDECAR_URL", value_name = "URL")]
    sidecar_url: Option<String>,
}

impl Explain {
    /// Asks; exit status 1 for a denial.
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        let base = match (&self.sidecar_url, connection.local_stack()?) {
            (Some(url), _) => url.clone(),
            (None, Some(stack)) => stack.sidecar_admin_url,
            (None, None) => bail!(
                "which sidecar? give --sidecar-url URL of its admin listener, or --dir DIR of a local stack"
            ),
        };
        let base = http_client::url(&base)?;
        let url = base.join("explain").context("the sidecar's URL takes no path")?;
        let (scheme, host, target) = split_url(&self.url)?;
        let mut headers = Vec::new();
        for header in &self.headers {
            let (name, value) = header
                .split_once(':')
                .with_context(|| format!("--header {header}: must be 'name: value'"))?;
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        if let Some(token) = &self.token {
            headers
                .push(("authorization".to_owned(), format!("Bearer {}", token_input::token(Some(token))?)));
        }
        let mut extensions = Vec::new();
        for extension in &self.extensions {
            let pair = extension
                .split_once('=')
                .with_context(|| format!("--extension {extension}: must be name=value"))?;
            extensions.push(pair);
        }
        let certificate = self.certificate.as_ref().map(|file| {
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
        });
        let body = json!({
            "method": self.method, "scheme": scheme, "host": host, "target": target, "headers": headers,
            "extensions": extensions, "source_address": self.source, "certificate": certificate.transpose()?,
        });
        let client = http_client::client(&base, connection.ca_file.as_deref())?;
        let response = client.post(url).json(&body).send().await;
        let response = response.map_err(|error| http_client::unreachable(&error, "the sidecar", &base))?;
        let status = response.status();
        let answer: Value =
            serde_json::from_slice(&http_client::body(response).await?).with_context(|| {
                format!("the sidecar answers {status} and no JSON: does the URL name its admin listener?")
            })?;
        if !status.is_success() {
            bail!("the sidecar answers {status}: {}", text(&answer["detail"]));
        }
        show(&answer, connection.output)?;
        Ok(if answer["outcome"] == "permit" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn show(answer: &Value, format: Format) -> Result<()> {
    if format == Format::Json {
        return output::print_json(answer);
    }
    let rows = answer["steps"].as_array().into_iter().flatten().map(|step| {
        let passed = step["passed"] == true;
        let mark = toned(
            if passed { "passed" } else { "refused" },
            if passed { Tone::Good } else { Tone::Attention },
        );
        [cell(text(&step["step"])), mark, cell(text(&step["what"]))]
    });
    output::print(&output::table(["step", "", "by"], rows))?;
    let rule = match (text(&answer["policy"]), text(&answer["rule"])) {
        (policy, _) if policy.is_empty() => "no rule covers it".to_owned(),
        (policy, rule) => format!("rule {rule} of policy {policy}"),
    };
    let mut detail = text(&answer["detail"]);
    if !detail.is_empty() {
        detail.insert(0, '\n');
    }
    // A sidecar of another version may know reasons that this program does not.
    let reason = Reason::ALL.iter().find(|reason| answer["reason"] == reason.as_str());
    if let Some(reason) = reason {
        detail.push_str(&format!("\n{}\nWhat to do: {}", reason.meaning(), reason.advice()));
    }
    output::print(&format!(
        "{} {} ({rule}; revision {}, policy set {}){detail}",
        text(&answer["status"]),
        text(&answer["reason"]),
        answer["revision"],
        answer["policy_version"],
    ))
}
