//! HashiCorp Vault's and OpenBao's transit engine, by its HTTP API.

use std::path::PathBuf;
use std::time::Duration;

use atm_core::key::Algorithm;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::{Client, Method, StatusCode, Url};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{KeyProvider, NewKey, ProviderError, der};
use crate::secret;

const NAME: &str = "vault";
/// Bytes of an answer at most.
const MAX_ANSWER: usize = 256 * 1024;

/// Where Vault is, and who we are there.
#[derive(Debug, Clone)]
pub struct VaultSettings {
    /// `https://vault.example.com:8200`
    pub address: Url,
    /// Path of the transit engine: `transit`.
    pub mount: String,
    /// `X-Vault-Namespace`, where there are namespaces.
    pub namespace: Option<String>,
    /// File with the token. Read for each request, so that an agent may renew it.
    pub token_file: PathBuf,
    /// PEM certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// One request.
    pub timeout: Duration,
}

/// The transit engine. A reference is the key's name.
#[derive(Debug)]
pub struct Vault {
    http: Client,
    settings: VaultSettings,
}

impl Vault {
    /// Talks to nobody yet.
    pub fn new(settings: VaultSettings) -> Result<Self, ProviderError> {
        let http = client(NAME, settings.timeout, settings.ca_file.as_deref())?;
        Ok(Self { http, settings })
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ProviderError> {
        let mut url = self.settings.address.clone();
        url.path_segments_mut()
            .map_err(|()| refused("the address cannot have a path"))?
            .pop_if_empty()
            .push("v1")
            .extend(self.settings.mount.split('/'))
            .extend(path.split('/'));
        let token = self.token().await?;
        let mut header = reqwest::header::HeaderValue::from_str(token.trim())
            .map_err(|_| refused("the token file holds no token"))?;
        header.set_sensitive(true);
        let mut request =
            self.http.request(method, url).header("x-vault-token", header).header("x-vault-request", "true");
        if let Some(namespace) = &self.settings.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| unavailable(NAME, &error))?;
        let status = response.status();
        let bytes = bounded(NAME, response, MAX_ANSWER).await?;
        let answer: Value =
            if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or_default() };
        if status.is_success() {
            return Ok(answer);
        }
        let said: Vec<&str> =
            answer["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).take(3).collect();
        let problem = format!("{} {}", status.as_u16(), said.join("; "));
        // 429: quota; 472, 473: a standby or replica; 503: sealed.
        let passing = status.is_server_error() || matches!(status.as_u16(), 429 | 412 | 472 | 473);
        if passing {
            Err(ProviderError::Unavailable { provider: NAME, problem })
        } else {
            Err(refused(&problem))
        }
    }

    async fn token(&self) -> Result<Zeroizing<String>, ProviderError> {
        let file = &self.settings.token_file;
        let text = tokio::fs::read_to_string(file).await;
        text.map(Zeroizing::new).map_err(|error| ProviderError::Unavailable {
            provider: NAME,
            problem: format!("token file {}: {error}", file.display()),
        })
    }
}

impl KeyProvider for Vault {
    fn name(&self) -> &'static str {
        NAME
    }

    fn generate(&self, algorithm: Algorithm) -> BoxFuture<'_, Result<NewKey, ProviderError>> {
        async move {
            let key_type = key_type(algorithm);
            let id = secret::random_id().map_err(|error| refused(&error.to_string()))?;
            let name = format!("atm-{id}");
            let path = format!("keys/{name}");
            let body = json!({ "type": key_type, "exportable": false, "allow_plaintext_backup": false });
            self.call(Method::POST, &path, Some(&body)).await?;
            let key = self.call(Method::GET, &path, None).await?;
            let public = key["data"]["keys"]["1"]["public_key"].as_str().unwrap_or_default();
            let spki = if key_type == "ed25519" {
                // The bare key in base64.
                STANDARD.decode(public).ok().filter(|key| key.len() == 32).map(|key| ed25519_spki(&key))
            } else {
                der::from_pem(public)
            };
            let spki = spki
                .filter(|spki| !spki.is_empty())
                .ok_or_else(|| refused("the new key has no public key"))?;
            Ok(NewKey { spki, reference: name.into_bytes() })
        }
        .boxed()
    }

    fn sign<'a>(
        &'a self,
        algorithm: Algorithm,
        reference: &'a [u8],
        message: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ProviderError>> {
        async move {
            let path = format!("sign/{}", name_of(reference)?);
            let mut body = json!({ "input": STANDARD.encode(message), "key_version": 1 });
            if let Some(hash) = hash(algorithm) {
                body["hash_algorithm"] = hash.into();
            }
            match algorithm {
                Algorithm::ES256 | Algorithm::ES384 | Algorithm::ES512 => {
                    body["marshaling_algorithm"] = "jws".into();
                }
                Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => {
                    body["signature_algorithm"] = "pkcs1v15".into();
                }
                Algorithm::PS256 | Algorithm::PS384 | Algorithm::PS512 => {
                    body["signature_algorithm"] = "pss".into();
                    body["salt_length"] = "hash".into();
                }
                Algorithm::EdDSA => {}
            }
            let answer = self.call(Method::POST, &path, Some(&body)).await?;
            // `vault:v1:<signature>`
            let text = answer["data"]["signature"].as_str().and_then(|text| text.rsplit(':').next());
            text.and_then(|text| URL_SAFE_NO_PAD.decode(text).or_else(|_| STANDARD.decode(text)).ok())
                .ok_or_else(|| refused("the answer holds no signature"))
        }
        .boxed()
    }

    fn destroy<'a>(&'a self, reference: &'a [u8]) -> BoxFuture<'a, Result<(), ProviderError>> {
        async move {
            let path = format!("keys/{}", name_of(reference)?);
            let allowed = json!({ "deletion_allowed": true });
            match self.call(Method::POST, &format!("{path}/config"), Some(&allowed)).await {
                Ok(_) => self.call(Method::DELETE, &path, None).await.map(drop),
                // Vault answers 400 for a key that is not there.
                Err(ProviderError::Refused { problem, .. }) if is_absent(&problem) => Ok(()),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }
}

fn is_absent(problem: &str) -> bool {
    problem.starts_with(StatusCode::NOT_FOUND.as_str()) || problem.contains("no existing key")
}

fn key_type(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::ES256 => "ecdsa-p256",
        Algorithm::ES384 => "ecdsa-p384",
        Algorithm::ES512 => "ecdsa-p521",
        Algorithm::EdDSA => "ed25519",
        Algorithm::RS256
        | Algorithm::RS384
        | Algorithm::RS512
        | Algorithm::PS256
        | Algorithm::PS384
        | Algorithm::PS512 => "rsa-3072",
    }
}

fn hash(algorithm: Algorithm) -> Option<&'static str> {
    match algorithm {
        Algorithm::ES256 | Algorithm::RS256 | Algorithm::PS256 => Some("sha2-256"),
        Algorithm::ES384 | Algorithm::RS384 | Algorithm::PS384 => Some("sha2-384"),
        Algorithm::ES512 | Algorithm::RS512 | Algorithm::PS512 => Some("sha2-512"),
        Algorithm::EdDSA => None,
    }
}

/// RFC 8410 §4.
fn ed25519_spki(key: &[u8]) -> Vec<u8> {
    [&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00][..], key].concat()
}

fn name_of(reference: &[u8]) -> Result<&str, ProviderError> {
    std::str::from_utf8(reference).map_err(|_| refused("the stored reference is no key name"))
}

fn refused(problem: &str) -> ProviderError {
    ProviderError::Refused { provider: NAME, problem: problem.to_owned() }
}

/// A client for a provider: no redirects, no proxies of the environment, bounded in time.
pub(super) fn client(
    provider: &'static str,
    timeout: Duration,
    ca_file: Option<&std::path::Path>,
) -> Result<Client, ProviderError> {
    let refused = |problem: String| ProviderError::Refused { provider, problem };
    let mut builder = Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    if let Some(file) = ca_file {
        let pem =
            std::fs::read(file).map_err(|error| refused(format!("CA file {}: {error}", file.display())))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|_| refused(format!("CA file {} holds no PEM certificates", file.display())))?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| refused(format!("the HTTP client does not start: {error}")))
}

/// Why there was no answer; without the URL, which says nothing more.
pub(super) fn unavailable(provider: &'static str, error: &reqwest::Error) -> ProviderError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let problem = if error.is_timeout() { "no answer in time".to_owned() } else { cause.to_string() };
    ProviderError::Unavailable { provider, problem }
}

/// The body of an answer, bounded.
pub(super) async fn bounded(
    provider: &'static str,
    mut response: reqwest::Response,
    limit: usize,
) -> Result<Vec<u8>, ProviderError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unavailable(provider, &error))? {
        if bytes.len() + chunk.len() > limit {
            return Err(ProviderError::Refused { provider, problem: "the answer is too large".to_owned() });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
