//! Gets, keeps and renews access tokens from ATM by client credentials (RFC 6749 §4.4).
//!
//! ```console
//! $ ATM_ISSUER=https://id.example.com ATM_CLIENT_ID=... ATM_CLIENT_SECRET_FILE=... \
//!     cargo run --example atm-client -- orders-api orders.read https://api.example.com/orders
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

/// Why there is no token.
#[derive(Debug)]
enum TokenError {
    /// The issuer refused; asking again does not help.
    Refused(String),
    /// The issuer cannot be reached or has failed; asking again may help.
    Away(String),
}

impl std::fmt::Display for TokenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "no token: {why}"),
            Self::Away(why) => write!(f, "no token: the issuer is away: {why}"),
        }
    }
}

impl std::error::Error for TokenError {}

/// One token for one audience and scope, shared by all tasks. It is renewed when four fifths of its life are over, by one
/// request for all; while the issuer is away the old one is used until it ends.
struct TokenSource {
    http: Client,
    issuer: String,
    client_id: String,
    client_secret: String,
    audience: String,
    scope: String,
    held: Mutex<Option<Held>>,
}

#[derive(Clone)]
struct Held {
    token: String,
    renew_at: Instant,
    ends_at: Instant,
}

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    token_endpoint: String,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

#[derive(Default, Deserialize)]
struct Problem {
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
}

impl TokenSource {
    /// A token that is valid now.
    async fn token(&self) -> Result<String, TokenError> {
        let mut held = self.held.lock().await;
        let now = Instant::now();
        if let Some(held) = held.as_ref().filter(|held| now < held.renew_at) {
            return Ok(held.token.clone());
        }
        match self.renew(now).await {
            Ok(new) => Ok(held.insert(new).token.clone()),
            Err(TokenError::Away(why)) => match held.as_mut().filter(|held| now < held.ends_at) {
                Some(old) => {
                    old.renew_at = now + Duration::from_secs(1); // still good; ask again soon
                    Ok(old.token.clone())
                }
                None => Err(TokenError::Away(why)),
            },
            Err(refused) => Err(refused),
        }
    }

    /// Forgets `token` after a 401 with `error="invalid_token"`: it may have been revoked.
    async fn refused(&self, token: &str) {
        let mut held = self.held.lock().await;
        if held.as_ref().is_some_and(|held| held.token == token) {
            *held = None;
        }
    }

    async fn renew(&self, now: Instant) -> Result<Held, TokenError> {
        let metadata: Metadata = read(self.http.get(self.metadata_url()?)).await?;
        if metadata.issuer != self.issuer {
            return Err(TokenError::Refused(format!("{} calls itself {}", self.issuer, metadata.issuer)));
        }
        let form =
            [("grant_type", "client_credentials"), ("audience", &self.audience), ("scope", &self.scope)];
        let request = self.http.post(metadata.token_endpoint).form(&form);
        // ATM's client ids and secrets hold nothing that RFC 6749 §2.3.1 would encode.
        let answer: Answer = read(request.basic_auth(&self.client_id, Some(&self.client_secret))).await?;
        let life = Duration::from_secs(answer.expires_in.unwrap_or(60));
        // A little earlier or later in each process, so that a thousand replicas do not ask in one second.
        let share = 70 + std::process::id() % 15;
        Ok(Held {
            token: answer.access_token,
            renew_at: now + life * share / 100,
            ends_at: now + life.saturating_sub(Duration::from_secs(1)),
        })
    }

    /// RFC 8414 §3: the well-known part goes before the issuer's path.
    fn metadata_url(&self) -> Result<Url, TokenError> {
        let mut url: Url =
            self.issuer.parse().map_err(|_| TokenError::Refused(format!("{} is no URL", self.issuer)))?;
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("/.well-known/oauth-authorization-server{path}"));
        Ok(url)
    }
}

async fn read<T: for<'de> Deserialize<'de>>(request: reqwest::RequestBuilder) -> Result<T, TokenError> {
    let away = |error: reqwest::Error| TokenError::Away(error.to_string());
    let response = request.timeout(Duration::from_secs(5)).send().await.map_err(away)?;
    let status = response.status();
    if status == StatusCode::OK {
        return response.json().await.map_err(away);
    }
    let Problem { error, error_description } = response.json().await.unwrap_or_default();
    let why = format!("{status} {error} {error_description}");
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Err(TokenError::Away(why))
    } else {
        Err(TokenError::Refused(why))
    }
}

/// GET with a token; once more with a new one when the first was refused.
async fn call(source: &TokenSource, url: &str) -> anyhow::Result<Response> {
    let mut again = true;
    loop {
        let token = source.token().await?;
        let response = source.http.get(url).bearer_auth(&token).send().await?;
        let challenge = response.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
        let invalid = challenge.is_some_and(|challenge| challenge.contains(r#"error="invalid_token""#));
        if !again || response.status() != StatusCode::UNAUTHORIZED || !invalid {
            return Ok(response);
        }
        source.refused(&token).await;
        again = false;
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        bail!("another cryptographic provider is installed");
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [audience, scope, url] = <[String; 3]>::try_from(arguments)
        .map_err(|_| anyhow::anyhow!("usage: atm-client AUDIENCE SCOPE URL"))?;
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let secret =
        std::fs::read_to_string(variable("ATM_CLIENT_SECRET_FILE")?).context("ATM_CLIENT_SECRET_FILE")?;
    let source = TokenSource {
        http: Client::new(),
        issuer: variable("ATM_ISSUER")?,
        client_id: variable("ATM_CLIENT_ID")?,
        client_secret: secret.trim().to_owned(),
        audience,
        scope,
        held: Mutex::new(None),
    };
    let response = call(&source, &url).await?;
    let status = response.status();
    println!("{}", response.text().await?);
    if !status.is_success() {
        bail!("{url} answered {status}");
    }
    Ok(())
}
