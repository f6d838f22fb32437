//! `atmctl token verify`: a sidecar's checks of a token, one by one, against a key set.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use atm_core::claims::Expectations;
use atm_core::jwk;
use atm_core::jws::UnverifiedToken;
use atm_core::key::{Issuer, Issuers, KeyState, VerificationKey};
use atm_core::reason::Reason;
use atm_core::time::UnixMillis;
use atm_core::token::KeyedToken;
use clap::Args;
use serde_json::{Value, json};

use crate::connection::Connection;
use crate::http_client;
use crate::output::{self, Format, Tone, cell, toned};
use crate::token_input;

/// What to verify, and against what.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// A file that holds the token, or - to read it from standard input; ATM_TOKEN when left out
    #[arg(value_name = "FILE")]
    token: Option<String>,
    /// The issuer's key set (JWKS): a file, or an http or https URL
    #[arg(long, value_name = "FILE or URL")]
    jwks: Option<String>,
    /// The issuer that the token must be from; any whose key is in the set when left out
    #[arg(long)]
    issuer: Option<String>,
    /// The audience that the token must name
    #[arg(long, required_unless_present = "signature_only")]
    audience: Option<String>,
    /// End after the signature: claims may be anything
    #[arg(long)]
    signature_only: bool,
    /// Difference between clocks that is forgiven, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(i64).range(0..=300))]
    clock_skew: i64,
}

/// One check and its outcome.
struct Check {
    name: &'static str,
    /// `None`: not reached, because one before it failed, or not asked for.
    outcome: Option<Result<(), Reason>>,
    detail: String,
}

impl Verify {
    /// Verifies, and shows each check.
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        let token = token_input::token(self.token.as_deref())?;
        let (keys, unusable) = self.key_set(connection).await?;
        let checks = self.checks(&token, keys);
        let valid = checks.iter().all(|check| !matches!(check.outcome, Some(Err(_))));
        match connection.output {
            Format::Json => output::print_json(&as_json(&checks, valid))?,
            Format::Human => {
                output::print(&output::table(["check", "outcome", "detail"], checks.iter().map(row)))?;
                output::print(if valid {
                    "valid; whether it is revoked is not in a key set"
                } else {
                    "NOT valid"
                })?;
            }
        }
        for problem in unusable {
            eprintln!("atmctl: {problem}");
        }
        Ok(if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The usable keys, and why others are not.
    async fn key_set(&self, connection: &Connection) -> Result<(Vec<VerificationKey>, Vec<String>)> {
        let source = if let Some(source) = &self.jwks {
            source.clone()
        } else {
            let stack = connection.local_stack()?;
            let stack =
                stack.context("with which keys? give --jwks FILE or URL, or --dir DIR of a local stack")?;
            format!("{}/oauth2/jwks", stack.issuer)
        };
        let bytes = if source.starts_with("http://") || source.starts_with("https://") {
            fetch(&source, connection.ca_file.as_deref()).await?
        } else {
            std::fs::read(&source).with_context(|| format!("cannot read the key set {source}"))?
        };
        let document: Value =
            serde_json::from_slice(&bytes).with_context(|| format!("{source} is no JSON"))?;
        let Some(entries) = document["keys"].as_array() else {
            bail!("{source} is no key set: it has no list `keys` (RFC 7517 §5)");
        };
        let (mut keys, mut unusable) = (Vec::new(), Vec::new());
        for (at, entry) in entries.iter().enumerate() {
            match key(entry, at) {
                Ok(key) => keys.push(key),
                Err(error) => unusable.push(format!("key {at} of {source} is not used: {error:#}")),
            }
        }
        Ok((keys, unusable))
    }

    /// The checks in the order of a sidecar's decision; each uses what the one before it made.
    fn checks(&self, token: &str, keys: Vec<VerificationKey>) -> Vec<Check> {
        let mut checks = Checks::default();
        let all = self.run_checks(token, keys, &mut checks);
        if let Err(reason) = all {
            checks.fail(reason);
        }
        checks.finish(self.signature_only)
    }

    fn run_checks(&self, token: &str, keys: Vec<VerificationKey>, checks: &mut Checks) -> Result<(), Reason> {
        let token = UnverifiedToken::parse(token)?;
        let algorithm = token.header().algorithm;
        checks.pass(format!("{algorithm} access token"));

        let mut issuers = Issuers::default();
        issuers.set(Issuer::new(token.issuer().unwrap_or_default(), None, keys));
        let kid = token.header().kid.clone().unwrap_or_else(|| "the only one".to_owned());
        let keyed = match token.issuer() {
            Ok(_) => KeyedToken::select(token, &issuers)?,
            Err(reason) => return Err(reason),
        };
        checks.pass(kid);

        let signed = match keyed.verify() {
            // The signature held; the claims were typed after it.
            Err(Reason::ClaimMissing | Reason::ClaimMalformed) if self.signature_only => {
                checks.pass(String::new());
                return Ok(());
            }
            Err(reason @ (Reason::ClaimMissing | Reason::ClaimMalformed)) => {
                checks.pass(String::new());
                return Err(reason);
            }
            other => other?,
        };
        checks.pass(String::new());
        if self.signature_only {
            return Ok(());
        }
        let claims = &signed.claims;
        checks.pass(format!("subject {}", claims.subject));

        let issuers: Vec<String> = self.issuer.iter().cloned().collect();
        let audiences: Vec<String> = self.audience.iter().cloned().collect();
        let expected = Expectations {
            issuers: &issuers,
            audiences: &audiences,
            clock_skew: self.clock_skew,
            now: now(),
        };
        // One judgement, three lines: it judges issuer, audience and times in this order.
        let judged = claims.validate(expected).map(|_| ());
        if judged == Err(Reason::IssuerRefused) {
            return judged;
        }
        checks.pass(if self.issuer.is_some() {
            claims.issuer.clone()
        } else {
            format!("{} (any accepted)", claims.issuer)
        });
        if judged == Err(Reason::AudienceRefused) {
            return judged;
        }
        checks.pass(claims.audience.join(" "));
        judged?;
        checks.pass(format!("expires {}", output::instant(&claims.expires_at.saturating_mul(1000).into())));
        Ok(())
    }
}

/// The checks' names in order; their outcomes as they come.
#[derive(Default)]
struct Checks(Vec<(Result<(), Reason>, String)>);

impl Checks {
    const NAMES: [&str; 7] = ["form", "key", "signature", "claims", "issuer", "audience", "time"];

    fn pass(&mut self, detail: String) {
        self.0.push((Ok(()), detail));
    }

    fn fail(&mut self, reason: Reason) {
        self.0.push((Err(reason), format!("{}: {}", reason.as_str(), reason.description())));
    }

    fn finish(self, signature_only: bool) -> Vec<Check> {
        let number = if signature_only { 3 } else { Self::NAMES.len() };
        let outcomes = self.0.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let named = Self::NAMES.into_iter().take(number).zip(outcomes);
        named
            .map(|(name, outcome)| match outcome {
                Some((outcome, detail)) => Check { name, outcome: Some(outcome), detail },
                None => Check { name, outcome: None, detail: String::new() },
            })
            .collect()
    }
}

fn key(entry: &Value, at: usize) -> Result<VerificationKey> {
    let jwk = jwk::spki_from_jwk(entry)?;
    // A key without an id is found where it is the only one; the name given here is no token's.
    let kid = jwk.kid.unwrap_or_else(|| format!("unnamed-key-{at}"));
    Ok(VerificationKey::from_spki(&kid, jwk.algorithm, &jwk.spki, KeyState::Active)?)
}

async fn fetch(source: &str, ca_file: Option<&Path>) -> Result<Vec<u8>> {
    let url = http_client::url(source)?;
    let response = http_client::client(&url, ca_file)?.get(url.clone()).send().await;
    let response = response.map_err(|error| http_client::unreachable(&error, "the key set", &url))?;
    if !response.status().is_success() {
        bail!("{source} answers {}", response.status());
    }
    http_client::body(response).await
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn row(check: &Check) -> [comfy_table::Cell; 3] {
    let outcome = match check.outcome {
        Some(Ok(())) => toned("passed", Tone::Good),
        Some(Err(_)) => toned("FAILED", Tone::Bad),
        None => toned("not reached", Tone::Attention),
    };
    [cell(check.name), outcome, cell(&check.detail)]
}

fn as_json(checks: &[Check], valid: bool) -> Value {
    let check = |check: &Check| {
        let (passed, reason) = match check.outcome {
            Some(Ok(())) => (Some(true), None),
            Some(Err(reason)) => (Some(false), Some(reason.as_str())),
            None => (None, None),
        };
        json!({ "check": check.name, "passed": passed, "reason": reason, "detail": check.detail })
    };
    json!({ "valid": valid, "checks": checks.iter().map(check).collect::<Vec<_>>() })
}
