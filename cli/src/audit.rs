//! `atmctl audit`: reads, exports and verifies the audit chains, and tells one token's life.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use atm_proto::audit::{Beginning, Report, Verifier};
use atm_proto::signature::{FeedPublicKey, TrustedFeedKeys};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::admin_api::AdminApi;
use crate::connection::Connection;
use crate::output::{self, Format};

/// How often `tail --follow` asks.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// Passes over the chains until none has grown meanwhile.
const PASSES: usize = 5;

/// What to do with the audit chains.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prove that the chains are complete and untouched
    Verify(Verify),
    /// The newest events
    Tail(Tail),
    /// All events as JSON Lines, ready to be verified later
    Export(Export),
    /// One token's life: issuance, use, refusal
    Trace {
        /// The token's id (jti)
        jti: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The key that signs checkpoints (43 characters), as it was noted when the control plane was set up; repeat it for former keys. Without it the
    /// one that the control plane names is taken, which proves nothing against whoever holds the control plane
    #[arg(long = "key", value_name = "PUBLIC_KEY")]
    keys: Vec<FeedPublicKey>,
    /// Exported files instead of the control plane; they are ranges, so that chains they do not hold are not missed
    #[arg(long = "file", value_name = "FILE", requires = "keys")]
    files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// How many of the newest events
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    lines: u32,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// An action, token.issued, or all of a kind, token.
    #[arg(long)]
    action: Option<String>,
    /// success, refused or failed
    #[arg(long)]
    outcome: Option<String>,
    /// Who did it
    #[arg(long)]
    actor: Option<String>,
    /// Events about this client
    #[arg(long)]
    client: Option<String>,
    /// Events about this subject
    #[arg(long)]
    subject: Option<String>,
    /// Events about this session
    #[arg(long)]
    session: Option<String>,
    /// Events about this token (jti)
    #[arg(long)]
    token: Option<String>,
    /// Events about this signing key (kid)
    #[arg(long)]
    key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Where to write; standard output when left out
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// One chain only
    #[arg(long)]
    chain: Option<String>,
    /// With --chain: from this event on
    #[arg(long, value_name = "NUMBER", requires = "chain", default_value_t = 1)]
    from: u64,
}

impl Command {
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        match self {
            Self::Verify(verify) => verify.run(connection).await,
            Self::Tail(tail) => tail.run(connection).await,
            Self::Export(export) => export.run(connection).await,
            Self::Trace { jti } => trace(connection, &jti).await,
        }
    }
}

impl Verify {
    async fn run(self, connection: &Connection) -> Result<ExitCode> {
        let whole = self.files.is_empty();
        let mut keys = self.keys;
        if keys.is_empty() {
            let chains = connection.admin()?.get(&["audit", "chains"]).await?;
            keys.push(chains["key"].as_str().context("the control plane names no key; give --key")?.parse()?);
            eprintln!("atmctl: believing the key that the control plane names; pin it with --key");
        }
        let mut verifier = Verifier::new(TrustedFeedKeys::new(keys), whole);
        if whole {
            let admin = connection.admin()?;
            each_line(&admin, None, 1, |line| {
                verifier.line(line.as_bytes());
                Ok(())
            })
            .await?;
        }
        for path in &self.files {
            let file = File::open(path).with_context(|| path.display().to_string())?;
            for line in BufReader::new(file).split(b'\n') {
                verifier.line(&line.with_context(|| path.display().to_string())?);
            }
        }
        let report = verifier.finish();
        let intact = report.is_intact();
        match connection.output {
            Format::Json => output::print_json(&serde_json::to_value(&report)?)?,
            Format::Human => output::print(&told(&report))?,
        }
        if report.events == 0 && intact {
            bail!("there was nothing to verify");
        }
        Ok(if intact { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn told(report: &Report) -> String {
    let mut lines = Vec::new();
    for chain in &report.chains {
        let from = match (chain.beginning, chain.first) {
            (_, None) => "retention has removed all of it".to_owned(),
            (Beginning::First, _) => "from its beginning".to_owned(),
            (Beginning::Retention, Some(first)) => {
                format!("from {first}, behind a signed bridge of retention")
            }
            (Beginning::Range, Some(first)) => format!("from {first}"),
        };
        let end = if chain.closed {
            "closed in order"
        } else {
            "not closed: it is being written, or its process was killed"
        };
        let unproven = match chain.last - chain.proven_to.min(chain.last) {
            0 => String::new(),
            number => format!(", {number} behind the last checkpoint"),
        };
        let lost =
            if chain.lost > 0 { format!(", {} lost by its own account", chain.lost) } else { String::new() };
        lines.push(format!(
            "chain {}: {from} to {}, signed to {}{unproven}; {end}{lost}",
            chain.chain, chain.last, chain.proven_to
        ));
    }
    for finding in &report.findings {
        let place = match (&finding.chain, finding.sequence) {
            (Some(chain), Some(sequence)) => format!("chain {chain}, event {sequence}: "),
            (Some(chain), None) => format!("chain {chain}: "),
            _ => String::new(),
        };
        lines.push(format!("WRONG: {place}{}", finding.problem));
    }
    if report.more_findings > 0 {
        lines.push(format!("... and {} more", report.more_findings));
    }
    let verdict = if report.is_intact() { "complete and untouched" } else { "NOT as it was written" };
    lines.push(format!("{} events, {} checkpoints: {verdict}", report.events, report.checkpoints));
    lines.join("\n")
}

impl Tail {
    async fn run(self, connection: &Connection) -> Result<ExitCode> {
        let admin = connection.admin()?;
        // Where each chain is now: what comes later is what is followed.
        let mut positions = if self.follow { positions(&admin).await? } else { BTreeMap::new() };
        let page = admin.get_with(&["audit"], &self.query()).await?;
        let mut events: Vec<Value> = page["items"].as_array().cloned().unwrap_or_default();
        events.reverse();
        for event in &events {
            self.show(event, connection.output)?;
        }
        if !self.follow {
            return Ok(ExitCode::SUCCESS);
        }
        loop {
            tokio::time::sleep(FOLLOW_EVERY).await;
            let mut fresh = Vec::new();
            for (chain, last) in self::positions(&admin).await? {
                let from = positions.get(&chain).map_or(1, |last| last + 1);
                if last < from {
                    continue;
                }
                each_line_of(&admin, &chain, from, |line| {
                    if let Some(event) = event(line) {
                        fresh.push(event);
                    }
                    Ok(())
                })
                .await?;
                positions.insert(
                    chain,
                    last.max(fresh.last().map_or(0, |event: &Value| event["seq"].as_u64().unwrap_or(0))),
                );
            }
            fresh.sort_by_key(|event| event["time_ms"].as_i64());
            for event in fresh.iter().filter(|event| self.fits(event)) {
                self.show(event, connection.output)?;
            }
        }
    }

    fn filters(&self) -> [(&'static str, &Option<String>); 8] {
        [
            ("action", &self.action),
            ("outcome", &self.outcome),
            ("actor", &self.actor),
            ("client", &self.client),
            ("subject", &self.subject),
            ("session", &self.session),
            ("token", &self.token),
            ("key", &self.key),
        ]
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let given = self.filters().into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
        std::iter::once(("limit", self.lines.to_string())).chain(given).collect()
    }

    fn fits(&self, event: &Value) -> bool {
        self.filters().into_iter().all(|(name, wanted)| {
            let Some(wanted) = wanted else { return true };
            let value = if name == "actor" { &event["actor"]["id"] } else { &event[name] };
            let value = value.as_str().unwrap_or_default();
            value == wanted || name == "action" && wanted.ends_with('.') && value.starts_with(wanted.as_str())
        })
    }

    #[expect(clippy::unused_self, reason = "reads as what it does")]
    fn show(&self, event: &Value, format: Format) -> Result<()> {
        output::print(&match format {
            Format::Json => event.to_string(),
            Format::Human => sentence(event),
        })
    }
}

impl Export {
    async fn run(self, connection: &Connection) -> Result<ExitCode> {
        let admin = connection.admin()?;
        let mut out: Box<dyn Write> = match &self.to {
            Some(path) => Box::new(io::BufWriter::new(File::create_new(path).with_context(|| {
                format!("{} must not be there yet, in a directory that is", path.display())
            })?)),
            None => Box::new(io::stdout().lock()),
        };
        let mut number = 0_u64;
        each_line(&admin, self.chain.as_deref(), self.from, |line| {
            number += 1;
            Ok(writeln!(out, "{line}")?)
        })
        .await?;
        out.flush()?;
        if let Some(path) = &self.to {
            eprintln!("{number} lines in {}", path.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn trace(connection: &Connection, jti: &str) -> Result<ExitCode> {
    let trace = connection.admin()?.get(&["audit", "trace", jti]).await?;
    if connection.output == Format::Json {
        output::print_json(&trace)?;
        return Ok(ExitCode::SUCCESS);
    }
    let list = |name: &str| trace[name].as_array().cloned().unwrap_or_default();
    let mut lines: Vec<(i64, String)> = list("events")
        .iter()
        .map(|event| (event["time_ms"].as_i64().unwrap_or_default(), sentence(event)))
        .collect();
    lines.extend(list("decisions").iter().map(|decision| {
        let time = decision["time_ms"].as_i64().unwrap_or_default();
        let text = |name: &str| decision[name].as_str().unwrap_or_default();
        let rule = match (text("policy"), text("rule")) {
            ("", _) => String::new(),
            (policy, rule) => format!(", rule {policy}/{rule}"),
        };
        let line = format!(
            "{}  sidecar  {} {}{}: {} ({}{rule})",
            instant(time),
            text("method"),
            text("host"),
            text("path"),
            text("outcome"),
            text("reason"),
        );
        (time, line)
    }));
    lines.sort_by_key(|(time, _)| *time);
    let mut text: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    if let Some(why) = trace["incomplete"].as_str() {
        text.push(format!("incomplete: {why}"));
    }
    output::print(&text.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// `2026-11-24T10:00:00.123Z  token.issued  client c1: success (token j, client c1) from 192.0.2.1`
fn sentence(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let about: Vec<String> = ["client", "subject", "session", "token", "key", "api_key", "issuer"]
        .into_iter()
        .filter_map(|name| Some(format!("{name} {}", event[name].as_str()?)))
        .collect();
    let mut line = format!(
        "{}  {}  {} {}: {}",
        instant(event["time_ms"].as_i64().unwrap_or_default()),
        text(&event["action"]),
        text(&event["actor"]["kind"]),
        text(&event["actor"]["id"]),
        text(&event["outcome"]),
    );
    if let Some(reason) = event["reason"].as_str() {
        line.push_str(&format!(", {reason}"));
    }
    if !about.is_empty() {
        line.push_str(&format!(" ({})", about.join(", ")));
    }
    if let Some(address) = event["from"]["address"].as_str() {
        line.push_str(&format!(" from {address}"));
    }
    if let Some(trace) = event["trace_id"].as_str() {
        line.push_str(&format!(" trace {trace}"));
    }
    // What came from outside must not move the cursor or colour the terminal.
    line.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn instant(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| millis.to_string(), |at| format!("{at:.3}"))
}

fn event(line: &str) -> Option<Value> {
    let line: Value = serde_json::from_str(line).ok()?;
    line.get("event").cloned()
}

/// The chains, and the last event of each.
async fn positions(admin: &AdminApi) -> Result<BTreeMap<String, u64>> {
    let chains = admin.get(&["audit", "chains"]).await?;
    let chains = chains["items"].as_array().cloned().unwrap_or_default();
    Ok(chains
        .iter()
        .filter_map(|chain| Some((chain["chain"].as_str()?.to_owned(), chain["last"].as_u64().unwrap_or(0))))
        .collect())
}

/// Every line of all chains, or of one. Chains that grow meanwhile are looked at again, because the checkpoints of one name
/// the others.
async fn each_line(
    admin: &AdminApi,
    only: Option<&str>,
    from: u64,
    mut take: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for pass in 0..PASSES {
        let chains: Vec<String> = match only {
            Some(chain) => vec![chain.to_owned()],
            None => positions(admin).await?.into_keys().collect(),
        };
        let mut grown = false;
        for chain in chains {
            let at = next.entry(chain.clone()).or_insert(from);
            let reached = each_line_of(admin, &chain, *at, &mut take).await?;
            grown |= reached != *at;
            *at = reached;
        }
        if only.is_some() || pass > 0 && !grown {
            break;
        }
    }
    Ok(())
}

/// Every line of `chain` from the event `from` on. Returns the event to go on with.
async fn each_line_of(
    admin: &AdminApi,
    chain: &str,
    from: u64,
    mut take: impl FnMut(&str) -> Result<()>,
) -> Result<u64> {
    let mut next = from;
    loop {
        let page = admin.lines(&["audit", "export", chain], &[("from", next.to_string())]).await?;
        page.text.lines().try_for_each(&mut take)?;
        next = page.next;
        if !page.more {
            return Ok(next);
        }
    }
}
