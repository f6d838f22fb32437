//! `atmctl doctor`: what is wrong between a sidecar, NATS and the control plane, and what to do about it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

use crate::connection::Connection;
use crate::output::{self, Format, Tone, cell, text, toned};
use crate::{http_client, output::print_json};

mod judge;

use judge::{Finding, Outcome};

/// How long NATS may take to greet.
const GREETING: Duration = Duration::from_secs(3);
/// Bytes of a greeting at most.
const LONGEST_GREETING: usize = 64 * 1024;

/// Checks of the parts and of what they say of each other.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// A sidecar's admin listener; repeat it. That of the local stack when left out
    #[arg(long = "sidecar-url", env = "ATM_SIDECAR_URL", value_name = "URL", value_delimiter = ',')]
    sidecar_urls: Vec<String>,
    /// A NATS server; that of the local stack when left out
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,
}

impl Doctor {
    /// Checks everything that can be reached; exit status 1 when something is wrong.
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        let stack = connection.local_stack()?;
        let (mut sidecars, mut nats) = (self.sidecar_urls, self.nats_url);
        if let Some(stack) = stack {
            if sidecars.is_empty() {
                sidecars.push(stack.sidecar_admin_url);
            }
            nats = nats.or(Some(stack.nats_url));
        }
        let mut findings = Vec::new();
        if let Some(url) = &nats {
            findings.push(judge::nats(greeting(url).await));
        }
        let feed = control_plane(connection, &mut findings).await;
        for url in &sidecars {
            match state_of(url, connection).await {
                Ok(state) => findings.extend(judge::sidecar(&state, feed.as_ref())),
                Err(error) => findings.push(Finding::bad(
                    format!("sidecar {url}"),
                    format!("{error:#}"),
                    "check that it runs, and forward its admin port (9193) if it is elsewhere",
                )),
            }
        }
        show(&findings, connection.output)?;
        let wrong = findings.iter().any(|finding| finding.outcome == Outcome::Bad);
        Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// What the control plane says of itself, of the feed and of the fleet.
async fn control_plane(connection: &Connection, findings: &mut Vec<Finding>) -> Option<Value> {
    let asked = async {
        let admin = connection.admin()?;
        anyhow::Ok((admin.get(&["feed"]).await?, admin.get(&["fleet"]).await?, admin.get(&["keys"]).await?))
    };
    match asked.await {
        Ok((feed, fleet, keys)) => {
            findings.extend(judge::feed(&feed));
            findings.extend(judge::fleet(&fleet));
            findings.push(judge::keys(&keys));
            Some(feed)
        }
        Err(error) => {
            findings.push(Finding::bad(
                "control plane",
                format!("{error:#}"),
                "check its address, its certificate (ATM_CA_FILE) and the token",
            ));
            None
        }
    }
}

async fn state_of(url: &str, connection: &Connection) -> Result<Value> {
    let base = http_client::url(url)?;
    let url = base.join("state").context("the sidecar's URL takes no path")?;
    let client = http_client::client(&base, connection.ca_file.as_deref())?;
    let response = client.get(url).timeout(GREETING).send().await;
    let response = response.map_err(|error| http_client::unreachable(&error, "the sidecar", &base))?;
    serde_json::from_slice(&http_client::body(response).await?)
        .context("it answers no JSON: does the URL name its admin listener?")
}

/// The INFO with which a NATS server greets everybody, before any login.
async fn greeting(url: &str) -> Result<Value> {
    let address = url.split_once("://").map_or(url, |(_, rest)| rest);
    let address = address.split(',').next().unwrap_or(address).trim_end_matches('/');
    let address = address.rsplit('@').next().unwrap_or(address);
    let greeted = async {
        let stream = TcpStream::connect(address).await?;
        let mut line = String::new();
        let mut bounded = tokio::io::AsyncReadExt::take(BufReader::new(stream), LONGEST_GREETING as u64);
        bounded.read_line(&mut line).await?;
        anyhow::Ok(line)
    };
    let line = tokio::time::timeout(GREETING, greeted)
        .await
        .with_context(|| format!("{address} does not greet within {GREETING:?}"))?
        .with_context(|| format!("cannot reach {address}"))?;
    let info = line.strip_prefix("INFO ").with_context(|| format!("{address} is no NATS server"))?;
    serde_json::from_str(info.trim()).with_context(|| format!("{address} greets with no JSON"))
}

fn show(findings: &[Finding], format: Format) -> Result<()> {
    if format == Format::Json {
        let list: Vec<Value> = findings.iter().map(Finding::as_json).collect();
        return print_json(&json!({ "findings": list }));
    }
    let rows = findings.iter().map(|finding| {
        let (word, tone) = match finding.outcome {
            Outcome::Good => ("good", Tone::Good),
            Outcome::Attention => ("look", Tone::Attention),
            Outcome::Bad => ("wrong", Tone::Bad),
        };
        [cell(&finding.what), toned(word, tone), cell(&finding.detail)]
    });
    output::print(&output::table(["check", "outcome", "detail"], rows))?;
    for finding in findings.iter().filter(|finding| !finding.advice.is_empty()) {
        output::print(&format!("{}: {}", finding.what, text(&finding.advice.clone().into())))?;
    }
    Ok(())
}
