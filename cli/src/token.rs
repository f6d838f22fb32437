//! `atmctl token`: issue, read and verify access tokens.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use crate::connection::Connection;
use crate::http_client;
use crate::output::{self, text};
use crate::token_input;

mod inspect;
mod verify;

/// The variable that may hold the client's secret.
const CLIENT_SECRET: &str = "ATM_CLIENT_SECRET";

/// Access tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Get a token with a client's credentials and print it
    Issue(Issue),
    /// Show what a token says; nothing of it is verified
    Inspect {
        /// A file that holds the token, or - to read it from standard input; ATM_TOKEN when left out
        #[arg(value_name = "FILE")]
        token: Option<String>,
    },
    /// Verify a token against a key set, and show each check; exit status 0 only if it is valid
    Verify(verify::Verify),
}

/// Whose token, and for what. In a local stack everything is known.
#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// The issuer's URL
    #[arg(long, env = "ATM_ISSUER", value_name = "URL")]
    issuer: Option<String>,
    /// The client
    #[arg(long, env = "ATM_CLIENT_ID", value_name = "ID")]
    client_id: Option<String>,
    /// File with the client's secret (or set ATM_CLIENT_SECRET to the secret)
    #[arg(long, value_name = "FILE")]
    client_secret_file: Option<PathBuf>,
    /// Scopes, with spaces between; all that the client may have when left out
    #[arg(long)]
    scope: Option<String>,
    /// The service that the token is for
    #[arg(long)]
    audience: Option<String>,
}

impl Command {
    /// Does it.
    pub(crate) async fn run(self, connection: &Connection) -> Result<ExitCode> {
        match self {
            Self::Issue(issue) => issue.run(connection).await?,
            Self::Inspect { token } => {
                inspect::run(&token_input::token(token.as_deref())?, connection.output)?;
            }
            Self::Verify(verify) => return verify.run(connection).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Issue {
    async fn run(self, connection: &Connection) -> Result<()> {
        let answer = self.request(connection).await?;
        output::show(&answer, connection.output, &text(&answer["access_token"]))
    }

    /// `POST /oauth2/token` (RFC 6749 §4.4) with `client_secret_basic` (§2.3.1).
    async fn request(self, connection: &Connection) -> Result<Value> {
        let stack = connection.local_stack()?;
        let secret = self.secret()?;
        let known = |given: Option<String>, of_stack: Option<String>, missing: &'static str| {
            given.or(of_stack).context(missing)
        };
        let of_stack =
            |field: fn(&crate::dev::Description) -> &String| stack.as_ref().map(|stack| field(stack).clone());
        let issuer = known(
            self.issuer,
            of_stack(|stack| &stack.issuer),
            "whose token? give --issuer URL, or --dir DIR of a local stack",
        )?;
        let own_client = self.client_id.is_some();
        let client_id =
            known(self.client_id, of_stack(|stack| &stack.client_id), "which client? give --client-id ID")?;
        let of_client = |field| if own_client { None } else { of_stack(field) };
        let secret = known(
            secret,
            of_client(|stack| &stack.client_secret),
            "the client's secret is missing: give --client-secret-file FILE, or set ATM_CLIENT_SECRET",
        )?;
        let optional = [
            ("scope", self.scope.or(of_client(|stack| &stack.scope))),
            ("audience", self.audience.or(of_client(|stack| &stack.audience))),
        ];
        let mut form = vec![("grant_type", "client_credentials".to_owned())];
        form.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));

        let url = http_client::url(&format!("{}/oauth2/token", issuer.trim_end_matches('/')))?;
        let http = http_client::client(&url, connection.ca_file.as_deref())?;
        let escaped = |text: &str| form_encoded(text);
        let request =
            http.post(url.clone()).basic_auth(escaped(&client_id), Some(escaped(&secret))).form(&form);
        let response =
            request.send().await.map_err(|error| http_client::unreachable(&error, "the issuer", &url))?;
        let status = response.status();
        let answer: Value = serde_json::from_slice(&http_client::body(response).await?).unwrap_or_default();
        if status.is_success() && answer["access_token"].is_string() {
            return Ok(answer);
        }
        let (code, description) = (text(&answer["error"]), text(&answer["error_description"]));
        bail!("no token for client {client_id}: {status} {code} {description}{}", hint(&code))
    }

    fn secret(&self) -> Result<Option<String>> {
        match &self.client_secret_file {
            Some(file) => token_input::secret_file(file).map(Some),
            None => Ok(std::env::var(CLIENT_SECRET).ok()),
        }
    }
}

/// What to do about an OAuth error (RFC 6749 §5.2, RFC 8707 §2).
fn hint(code: &str) -> &'static str {
    match code {
        "invalid_client" => "; check id and secret, and that the client is not disabled (atmctl client show)",
        "invalid_scope" => "; ask for scopes that the client has (atmctl client show)",
        "invalid_target" => "; ask for an audience that the client has (atmctl client show)",
        _ => "",
    }
}

/// Id and secret are form-encoded before they become Basic credentials (RFC 6749 §2.3.1).
fn form_encoded(text: &str) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'*');
    text.bytes()
        .map(|byte| match byte {
            b' ' => "+".to_owned(),
            byte if unreserved(byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// The claims of a token, unverified.
pub(crate) fn claims(token: &str) -> Result<Map<String, Value>> {
    Ok(decode(token)?.1)
}

/// Header and claims of a compact JWS, unverified and unjudged.
fn decode(token: &str) -> Result<(Map<String, Value>, Map<String, Value>)> {
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, _signature] = parts[..] else {
        bail!("this is no JWT: it has {} parts, and a signed one has 3", parts.len());
    };
    let object = |part: &str, name: &str| {
        let bytes = atm_core::base64url::decode(part)
            .map_err(|_| anyhow!("the token's {name} is not canonical base64url; was it cut?"))?;
        atm_core::json::parse_object(&bytes)
            .map_err(|error| anyhow!("the token's {name} is refused: {error}"))
    };
    Ok((object(header, "header")?, object(claims, "claims")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_form_encoded() {
        assert_eq!(form_encoded("a b:c%é-_.*"), "a+b%3Ac%25%C3%A9-_.*");
    }

    #[test]
    fn what_is_no_token_is_said() {
        assert!(decode("abc").unwrap_err().to_string().contains("1 parts"));
        assert!(decode("e30.e3.x").unwrap_err().to_string().contains("claims"));
        assert!(decode("e30.e30.x").unwrap().0.is_empty());
    }
}
