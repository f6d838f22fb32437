//! The control plane's admin API, as far as the operator needs it.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::config::Config;

/// Bytes of an answer that are kept for a message.
const LONGEST_PROBLEM: usize = 2_000;

/// Why the control plane did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A file of the configuration cannot be used.
    #[error("{file}: {problem}")]
    File {
        /// Which.
        file: String,
        /// Why.
        problem: String,
    },
    /// It cannot be reached. Asking again may help.
    #[error("the control plane cannot be reached: {0}")]
    Unreachable(String),
    /// It refuses.
    #[error("the control plane refuses ({status}): {problem}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Its words.
        problem: String,
    },
}

/// A client of one control plane.
#[derive(Debug, Clone)]
pub struct AdminApi {
    http: Client,
    url: String,
    token_file: PathBuf,
}

/// How far a revision has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reach {
    /// The newest revision.
    pub revision: u64,
    /// Validators that report.
    pub live: u64,
    /// Of those, the ones that enforce at least the revision asked about.
    pub in_force_on: u64,
}

impl AdminApi {
    /// A client for the control plane of `config`.
    pub fn new(config: &Config) -> Result<Self, AdminError> {
        let mut builder =
            Client::builder().timeout(Duration::from_secs(10)).redirect(reqwest::redirect::Policy::none());
        if let Some(file) = &config.admin_ca_file {
            let problem = |problem: String| AdminError::File { file: file.display().to_string(), problem };
            let pem = std::fs::read(file).map_err(|error| problem(error.to_string()))?;
            let certificates =
                Certificate::from_pem_bundle(&pem).map_err(|error| problem(error.to_string()))?;
            builder = builder.tls_certs_merge(certificates);
        }
        let http = builder.build().map_err(|error| AdminError::Unreachable(error.to_string()))?;
        Ok(Self { http, url: config.admin_url.clone(), token_file: config.admin_token_file.clone() })
    }

    /// The documents in force.
    pub async fn policies(&self) -> Result<Vec<String>, AdminError> {
        let answer = self.ask(Method::GET, "policies", None).await?;
        let documents = answer["documents"].as_array().into_iter().flatten();
        Ok(documents.filter_map(|document| document.as_str().map(str::to_owned)).collect())
    }

    /// Puts the whole set in force; the revision that brings it.
    pub async fn apply_policies(&self, documents: &[String]) -> Result<u64, AdminError> {
        let answer = self.ask(Method::PUT, "policies", Some(json!({ "documents": documents }))).await?;
        Ok(answer["revision"].as_u64().unwrap_or_default())
    }

    /// How many live validators enforce at least `revision`.
    pub async fn reach(&self, revision: u64) -> Result<Reach, AdminError> {
        let fleet = self.ask(Method::GET, "fleet", None).await?;
        let sidecars = fleet["sidecars"].as_array().map(Vec::as_slice).unwrap_or_default();
        // A large fleet is not listed as a whole, but the worst come first.
        let lacking = sidecars.iter().filter(|sidecar| {
            sidecar["state"] != "gone" && sidecar["applied_revision"].as_u64().is_none_or(|at| at < revision)
        });
        let live = fleet["live"].as_u64().unwrap_or_default();
        Ok(Reach {
            revision: fleet["revision"].as_u64().unwrap_or_default(),
            live,
            in_force_on: live.saturating_sub(lacking.count() as u64),
        })
    }

    /// The registered issuers, as the API shows them.
    pub async fn issuers(&self) -> Result<Vec<Value>, AdminError> {
        let mut found = Vec::new();
        let mut path = "issuers?limit=100".to_owned();
        loop {
            let mut page = self.ask(Method::GET, &path, None).await?;
            found.extend(page["items"].as_array_mut().map(std::mem::take).unwrap_or_default());
            let Some(next) = page["next"].as_str() else { return Ok(found) };
            let next: String = reqwest::Url::parse_with_params("http://x/", [("after", next)])
                .ok()
                .and_then(|url| url.query().map(str::to_owned))
                .unwrap_or_default();
            path = format!("issuers?limit=100&{next}");
        }
    }

    /// Registers an issuer.
    pub async fn add_issuer(&self, settings: &Value) -> Result<(), AdminError> {
        self.ask(Method::POST, "issuers", Some(settings.clone())).await.map(drop)
    }

    /// Ends the trust in an issuer, by its id.
    pub async fn remove_issuer(&self, id: &str) -> Result<(), AdminError> {
        self.ask(Method::DELETE, &format!("issuers/{id}"), None).await.map(drop)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, AdminError> {
        let token = tokio::fs::read_to_string(&self.token_file).await.map_err(|error| AdminError::File {
            file: self.token_file.display().to_string(),
            problem: error.to_string(),
        })?;
        let mut request =
            self.http.request(method, format!("{}/admin/v1/{path}", self.url)).bearer_auth(token.trim());
        if let Some(body) = body {
            request = request.json(&body);
        }
        let unreachable = |error: reqwest::Error| AdminError::Unreachable(error.without_url().to_string());
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        if !status.is_success() {
            return Err(AdminError::Refused { status, problem: problem(&text) });
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| AdminError::Unreachable(error.to_string()))
    }
}

/// The words of an RFC 9457 problem.
fn problem(text: &str) -> String {
    let words = serde_json::from_str::<Value>(text)
        .ok()
        .and_then(|problem| problem["detail"].as_str().map(str::to_owned))
        .unwrap_or_else(|| text.to_owned());
    words.chars().take(LONGEST_PROBLEM).collect()
}
