//! `atmctl revoke`: ends tokens, and shows on how many sidecars that is in force.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::admin_api::AdminApi;
use crate::connection::Connection;
use crate::output::{self, Format};
use crate::token_input;
use crate::{http_client, token};

mod file;

/// How long `--until-refused` asks at most.
const LONGEST_REFUSAL: Duration = Duration::from_secs(30);

/// What to revoke, and whether to wait for proof.
#[derive(Debug, Args)]
pub(crate) struct Revoke {
    #[command(flatten)]
    what: What,
    /// Issuer of the token, session, subject, client or key; the realm's own when left out
    #[arg(long, value_name = "ISSUER")]
    token_issuer: Option<String>,
    /// When the token of --jti expires, in seconds since 1970; without it the revocation is kept for ever
    #[arg(long, value_name = "SECONDS", requires = "jti")]
    expires_at: Option<i64>,
    /// What the lines of --file are
    #[arg(long, value_enum, default_value_t = file::Kind::Token, requires = "file")]
    kind: file::Kind,
    /// Only what was issued until then, like 2026-11-24T10:00:00Z; not for single tokens and keys
    #[arg(long, value_name = "TIME", value_parser = instant)]
    before: Option<i64>,
    /// Do it then and not now; the control plane keeps it through restarts
    #[arg(long, value_name = "TIME", value_parser = instant, conflicts_with_all = ["wait", "file", "preview", "until_refused"])]
    at: Option<i64>,
    /// Say what it would hit, and change nothing
    #[arg(long, conflicts_with_all = ["wait", "file", "until_refused"])]
    preview: bool,
    /// Why, for the record
    #[arg(long)]
    reason: Option<String>,
    /// Wait until every live sidecar enforces it, at most so long [default: 10 seconds]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "10")]
    wait: Option<f64>,
    /// With --token: meanwhile send the token to this URL until it is refused, and show how long that took
    #[arg(long, value_name = "URL", requires = "token")]
    until_refused: Option<String>,
}

#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = false)]
struct What {
    /// One token: a file that holds it, or - to read it from standard input
    #[arg(long, alias = "token-file", value_name = "FILE")]
    token: Option<String>,
    /// One token, by its id
    #[arg(long)]
    jti: Option<String>,
    /// Every token of a session
    #[arg(long, value_name = "SID")]
    session: Option<String>,
    /// Every token that a subject got until now
    #[arg(long, value_name = "SUB")]
    subject: Option<String>,
    /// Every token that a client got until now
    #[arg(long, value_name = "CLIENT_ID")]
    client: Option<String>,
    /// Every token that a realm issued until now
    #[arg(long)]
    realm: Option<String>,
    /// Every token that an issuer issued until now
    #[arg(long)]
    issuer: Option<String>,
    /// A signing key, with every token that it signed
    #[arg(long, value_name = "KID")]
    key: Option<String>,
    /// All values in a file, one a line; run the same command again to go on where it was stopped
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Revoke {
    /// Does it. Fails where `--wait` ended before every live sidecar had it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        if let Some(path) = self.what.file.clone() {
            return self.import(path, connection).await;
        }
        let token =
            self.what.token.as_deref().map(|argument| token_input::token(Some(argument))).transpose()?;
        let mut body = Map::new();
        body.insert("selector".into(), self.selector(token.as_deref())?);
        if let Some(reason) = &self.reason {
            body.insert("reason".into(), reason.as_str().into());
        }
        if let Some(wait) = self.wait_for()? {
            body.insert("wait".into(), wait);
        }
        if let Some(before) = self.before {
            body.insert("before_ms".into(), before.into());
        }
        let admin = connection.admin()?;
        if self.preview {
            let preview = admin.post(&["revocations", "preview"], &body.into()).await?;
            output::show(&preview, connection.output, &foretold(&preview))?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(at) = self.at {
            body.insert("at_ms".into(), at.into());
            let scheduled = admin.post(&["revocations"], &body.into()).await?;
            let id = output::text(&scheduled["id"]);
            let words = format!("scheduled as {id}; atmctl revocations cancel {id} withdraws it");
            output::show(&scheduled, connection.output, &words)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut answer = match (&self.until_refused, token) {
            (Some(url), Some(token)) => prove(&admin, &body.into(), url, &token, connection).await?,
            _ => admin.post(&["revocations"], &body.into()).await?,
        };
        let complete = answer["receipt"]["complete"] == true;
        if connection.output == Format::Json {
            output::print_json(&answer)?;
        } else {
            tell(&mut answer, self.wait.is_some())?;
        }
        if self.wait.is_some() && !complete {
            bail!("revoked, but not every live sidecar has reported it in time; see atmctl fleet");
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn import(self, path: PathBuf, connection: &Connection) -> Result<ExitCode> {
        let wait = self.wait_for()?;
        let import = file::Import {
            path,
            kind: self.kind,
            issuer: self.token_issuer,
            before_ms: self.before,
            reason: self.reason,
            wait,
        };
        let mut answer = import.run(&connection.admin()?).await?;
        let complete = answer["receipt"]["complete"] == true;
        if connection.output == Format::Json {
            output::print_json(&answer)?;
        } else {
            output::print(&format!("{} values are in force", answer["revoked"]))?;
            tell(&mut answer, self.wait.is_some())?;
        }
        if self.wait.is_some() && !complete {
            bail!("revoked, but not every live sidecar has reported it in time; see atmctl fleet");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn wait_for(&self) -> Result<Option<Value>> {
        let Some(seconds) = self.wait else { return Ok(None) };
        if !(0.0..=60.0).contains(&seconds) {
            bail!("--wait={seconds}: give 0 to 60 seconds");
        }
        let timeout = Duration::from_secs_f64(seconds).as_millis();
        Ok(Some(json!({ "share": 1.0, "timeout_ms": u64::try_from(timeout)? })))
    }

    fn selector(&self, token: Option<&str>) -> Result<Value> {
        let What { jti, session, subject, client, realm, issuer, key, .. } = &self.what;
        let of_token = |jti: &Value, issuer: Value, expires_at: Value| {
            let mut selector = Map::from_iter([("jti".to_owned(), jti.clone())]);
            let optional = [("issuer", issuer), ("expires_at", expires_at)];
            selector.extend(
                optional
                    .into_iter()
                    .filter(|(_, value)| !value.is_null())
                    .map(|(name, value)| (name.to_owned(), value)),
            );
            json!({ "token": selector })
        };
        if let Some(token) = token {
            let claims = token::claims(token)?;
            if !claims["jti"].is_string() {
                bail!("this token has no jti, so it cannot be named; revoke its session, subject or client");
            }
            return Ok(of_token(&claims["jti"], claims["iss"].clone(), claims["exp"].clone()));
        }
        if let Some(jti) = jti {
            return Ok(of_token(
                &jti.as_str().into(),
                self.token_issuer.clone().into(),
                self.expires_at.into(),
            ));
        }
        let named = [
            ("session", session),
            ("subject", subject),
            ("client", client),
            ("realm", realm),
            ("issuer", issuer),
            ("key", key),
        ];
        let (kind, value) = named
            .into_iter()
            .find_map(|(kind, value)| Some((kind, value.as_ref()?)))
            .context("what is to be revoked?")?;
        if self.token_issuer.is_some() {
            bail!("--token-issuer goes with --jti only; a {kind} is one of the realm's own issuer");
        }
        Ok(json!({ kind: value }))
    }
}

/// Revokes while it keeps using the token, and adds `refused: {after_call_started_ms, requests, status, reason}`.
async fn prove(
    admin: &AdminApi,
    body: &Value,
    url: &str,
    token: &str,
    connection: &Connection,
) -> Result<Value> {
    let url = http_client::url(url)?;
    let http = http_client::client(&url, connection.ca_file.as_deref())?;
    let request = || http.get(url.clone()).bearer_auth(token).timeout(Duration::from_secs(5)).send();
    // The first request opens the connection, and shows that the token is good so far.
    let before = request().await.map_err(|error| http_client::unreachable(&error, "the service", &url))?;
    if !before.status().is_success() {
        bail!(
            "{url} answers {} before the revocation already: --until-refused would prove nothing",
            before.status()
        );
    }
    let started = Instant::now();
    let call =
        async { Ok::<_, anyhow::Error>((admin.post(&["revocations"], body).await?, started.elapsed())) };
    let refusal = async {
        let mut requests = 0_u64;
        loop {
            let answer =
                request().await.map_err(|error| http_client::unreachable(&error, "the service", &url))?;
            requests += 1;
            if matches!(answer.status().as_u16(), 401 | 403) {
                return Ok((started.elapsed(), requests, answer));
            }
            if started.elapsed() > LONGEST_REFUSAL {
                bail!("{url} still answers {} after {} s", answer.status(), LONGEST_REFUSAL.as_secs());
            }
        }
    };
    let ((mut answer, returned), (refused, requests, last)) = tokio::try_join!(call, refusal)?;
    let millis = |duration: Duration| (duration.as_secs_f64() * 10_000.0).round() / 10.0;
    answer["refused"] = json!({
        "after_call_started_ms": millis(refused),
        "call_took_ms": millis(returned),
        "requests": requests,
        "status": last.status().as_u16(),
        "reason": last.headers().get("x-atm-reason").and_then(|reason| reason.to_str().ok()),
    });
    Ok(answer)
}

/// An instant like `2026-11-24T10:00:00Z`, in milliseconds.
fn instant(text: &str) -> Result<i64, String> {
    text.parse::<jiff::Timestamp>()
        .map(jiff::Timestamp::as_millisecond)
        .map_err(|_| "give an instant like 2026-11-24T10:00:00Z".to_owned())
}

fn foretold(preview: &Value) -> String {
    let mut lines: Vec<String> = [
        ("sessions", "sessions would end"),
        ("api_keys", "API keys would be refused"),
        ("clients", "clients are concerned"),
        ("signing_keys", "signing keys would be replaced"),
    ]
    .into_iter()
    .map(|(name, what)| format!("{} {what}", preview[name]))
    .collect();
    if let Some(number) = preview["issued_tokens"]["number"].as_u64() {
        let least = if preview["issued_tokens"]["at_least"] == true { "at least " } else { "" };
        lines.push(format!(
            "{least}{number} access tokens were issued within the longest lifetime, by the audit chain"
        ));
    }
    let not_counted = preview["not_counted"].as_array().into_iter().flatten();
    lines.extend(not_counted.map(|what| format!("not counted: {}", output::text(what))));
    lines.join("\n")
}

fn tell(answer: &mut Value, waited: bool) -> Result<()> {
    // Without a wait it says how things stood at once, which means nothing yet.
    let receipt = if waited { answer["receipt"].take() } else { Value::Null };
    let hint = if waited { "" } else { "; atmctl fleet shows who enforces it, --wait waits for all" };
    let mut lines = vec![format!("revoked with revision {}{hint}", answer["revision"])];
    if let (Some(live), Some(applied)) = (receipt["live"].as_u64(), receipt["applied"].as_u64()) {
        let slowest = receipt["slowest_ms"].as_u64().map(|slowest| format!(", slowest {slowest} ms"));
        lines.push(format!(
            "receipt: revision {} in force on {applied} of {live}{}",
            receipt["revision"],
            slowest.unwrap_or_default()
        ));
        let missing = output::text(&receipt["missing"]);
        if !missing.is_empty() {
            lines.push(format!("not yet on: {missing}"));
        }
        if let Some(gone @ 1..) = receipt["gone"].as_u64() {
            lines.push(format!("{gone} of the last hour report no more; what they do is not known"));
        }
    }
    let refused = &answer["refused"];
    if refused.is_object() {
        lines.push(format!(
            "refused: {} {} after {} ms, at request {} (the revocation call took {} ms)",
            refused["status"],
            output::text(&refused["reason"]),
            refused["after_call_started_ms"],
            refused["requests"],
            refused["call_took_ms"],
        ));
    }
    output::print(&lines.join("\n"))
}
