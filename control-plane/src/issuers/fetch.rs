//! Fetches an issuer's key set: metadata first, unless the place of the keys is registered. Bounded in time and size, without
//! redirects and proxies, only from addresses that may be called.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use atm_core::json;
use atm_core::key::Algorithm;
use http::header::{ACCEPT, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, StatusCode};
use reqwest::{Certificate, Client, Response, Url};
use serde_json::Value;

use super::address::{self, AddressRefused, GuardedResolver};
use super::key_set::{self, KeySet, KeySetError};

/// Bytes of a metadata document at most.
pub const MAX_METADATA: usize = 256 * 1024;
/// Bytes of a key set at most.
pub const MAX_KEY_SET: usize = 1024 * 1024;
/// Bytes of an entity tag that is kept.
const MAX_ETAG: usize = 256;

/// How long a fetch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchBounds {
    /// To connect, TLS included.
    pub connect: Duration,
    /// For all requests of one fetch together.
    pub total: Duration,
}

impl Default for FetchBounds {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), total: Duration::from_secs(10) }
    }
}

/// Where an issuer's keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Exactly as in the tokens' `iss`.
    pub issuer: String,
    /// Where the keys are; none: the issuer's metadata says.
    pub jwks_uri: Option<String>,
    /// Algorithms that its keys may have; empty: every accepted one.
    pub algorithms: Vec<Algorithm>,
    /// Whether it may be at a private address and without TLS.
    pub allow_private_addresses: bool,
    /// PEM certificates that are trusted in place of the system's.
    pub ca_certificate: Option<String>,
}

/// The version of a key set that is known already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Where it came from; an entity tag means nothing elsewhere.
    pub jwks_uri: String,
    /// Its entity tag (RFC 9110 §8.8.3).
    pub etag: String,
}

/// What an issuer answered.
#[derive(Debug)]
pub enum Fetched {
    /// The set that is known already.
    NotModified {
        /// What the answer says of its freshness.
        headers: HeaderMap,
    },
    /// A set with at least one usable key.
    Set {
        /// Its keys.
        set: KeySet,
        /// To ask with the next time.
        known: Option<Known>,
        /// What the answer says of its freshness.
        headers: HeaderMap,
    },
}

/// Why there is no key set. Texts name the issuer's addresses and documents and hold no secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No URL, or one that may not be called.
    #[error("{0:?} is no https URL; http is for issuers with allow_private_addresses")]
    Url(String),
    /// An address that may not be called.
    #[error(transparent)]
    Address(#[from] AddressRefused),
    /// No answer.
    #[error("{url} does not answer: {cause}")]
    Unreachable {
        /// What was called.
        url: String,
        /// What the network says.
        cause: String,
    },
    /// Another status than 200; redirects are not followed.
    #[error("{url} answers with status {status}")]
    Status {
        /// What was called.
        url: String,
        /// Its answer.
        status: StatusCode,
    },
    /// A body over the bound.
    #[error("{url} answers with more than {limit} bytes")]
    TooLarge {
        /// What was called.
        url: String,
        /// Bytes.
        limit: usize,
    },
    /// A metadata document that is none, or of another issuer.
    #[error("the metadata at {url} {problem}")]
    Metadata {
        /// What was called.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// A key set that cannot be used.
    #[error("the key set at {url} {problem}")]
    KeySet {
        /// What was called.
        url: String,
        /// What is wrong.
        problem: KeySetError,
    },
    /// Over [`FetchBounds::total`].
    #[error("it took longer than {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The registered certificates cannot be used, or the system has none.
    #[error("no TLS client: {0}")]
    Client(String),
}

/// Fetches the key set of `source`; `known` spares the transfer of a set that has not changed.
pub async fn fetch(
    source: &Source,
    known: Option<&Known>,
    bounds: FetchBounds,
) -> Result<Fetched, FetchError> {
    tokio::time::timeout(bounds.total, fetch_unbounded(source, known, bounds))
        .await
        .unwrap_or(Err(FetchError::TimedOut(bounds.total)))
}

async fn fetch_unbounded(
    source: &Source,
    known: Option<&Known>,
    bounds: FetchBounds,
) -> Result<Fetched, FetchError> {
    let client = client(source, bounds)?;
    let jwks_uri = match &source.jwks_uri {
        Some(uri) => uri.clone(),
        None => discover(&client, source).await?,
    };
    let url = checked(&jwks_uri, source.allow_private_addresses)?;
    let known = known.filter(|known| known.jwks_uri == jwks_uri);
    let mut request = client.get(url).header(ACCEPT, "application/jwk-set+json, application/json");
    if let Some(known) = known {
        request = request.header(IF_NONE_MATCH, &known.etag);
    }
    let response = request.send().await.map_err(|error| unreachable(&jwks_uri, &error))?;
    let headers = response.headers().clone();
    if response.status() == StatusCode::NOT_MODIFIED && known.is_some() {
        return Ok(Fetched::NotModified { headers });
    }
    let document = body(response, &jwks_uri, MAX_KEY_SET).await?;
    let set = key_set::parse(&document, &source.algorithms)
        .map_err(|problem| FetchError::KeySet { url: jwks_uri.clone(), problem })?;
    let etag = headers.get(ETAG).and_then(|etag| etag.to_str().ok()).filter(|etag| etag.len() <= MAX_ETAG);
    let known = etag.map(|etag| Known { jwks_uri, etag: etag.to_owned() });
    Ok(Fetched::Set { set, known, headers })
}

/// A client of this fetch alone: no connection outlives the check of its address.
fn client(source: &Source, bounds: FetchBounds) -> Result<Client, FetchError> {
    let refused = |error: reqwest::Error| FetchError::Client(innermost(&error));
    let mut builder = Client::builder()
        .connect_timeout(bounds.connect)
        .timeout(bounds.total)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy() // a proxy would resolve the name, and nobody would check the address
        .pool_max_idle_per_host(0)
        .dns_resolver(GuardedResolver { allow_private: source.allow_private_addresses })
        .user_agent(concat!("atm-control-plane/", env!("CARGO_PKG_VERSION")));
    if let Some(pem) = &source.ca_certificate {
        builder = builder.tls_certs_only(Certificate::from_pem_bundle(pem.as_bytes()).map_err(refused)?);
    }
    builder.build().map_err(refused)
}

/// A URL that may be called: https, or http where that is allowed; an address in it is checked here, because no resolver is
/// asked for it.
fn checked(text: &str, allow_private: bool) -> Result<Url, FetchError> {
    let url = Url::parse(text).ok().filter(|url| {
        (url.scheme() == "https" || (allow_private && url.scheme() == "http"))
            && url.username().is_empty()
            && url.password().is_none()
    });
    let refused = || FetchError::Url(text.chars().take(256).collect());
    let url = url.ok_or_else(refused)?;
    let host = url.host_str().ok_or_else(refused)?;
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        address::check(address, allow_private)?;
    }
    Ok(url)
}

/// The `jwks_uri` of the issuer's metadata: OpenID Connect Discovery 1.0 §4, then RFC 8414 §3. Where both fail, the first
/// failure is told.
async fn discover(client: &Client, source: &Source) -> Result<String, FetchError> {
    let [first, second] = metadata_urls(&source.issuer, source.allow_private_addresses)?;
    let error = match metadata(client, first, source).await {
        Ok(jwks_uri) => return Ok(jwks_uri),
        Err(error) => error,
    };
    metadata(client, second, source).await.map_err(|_| error)
}

fn metadata_urls(issuer: &str, allow_private: bool) -> Result<[Url; 2], FetchError> {
    let base = checked(issuer, allow_private)?;
    let path = base.path().trim_end_matches('/').to_owned();
    let (mut openid, mut oauth) = (base.clone(), base);
    openid.set_path(&format!("{path}/.well-known/openid-configuration"));
    oauth.set_path(&format!("/.well-known/oauth-authorization-server{path}"));
    Ok([openid, oauth])
}

async fn metadata(client: &Client, url: Url, source: &Source) -> Result<String, FetchError> {
    let text = url.to_string();
    let response = client
        .get(url)
        .header(ACCEPT, "application/json")
        .send()
        .await
        .map_err(|error| unreachable(&text, &error))?;
    let document = body(response, &text, MAX_METADATA).await?;
    let wrong = |problem: String| FetchError::Metadata { url: text.clone(), problem };
    let document = json::parse_object(&document).map_err(|error| wrong(format!("is refused: {error}")))?;
    match document.get("issuer") {
        Some(Value::String(issuer)) if *issuer == source.issuer => {}
        Some(Value::String(issuer)) => {
            let issuer: String = issuer.chars().take(256).collect();
            return Err(wrong(format!("is of issuer {issuer:?}, and {:?} is registered", source.issuer)));
        }
        _ => return Err(wrong("names no issuer".to_owned())),
    }
    match document.get("jwks_uri") {
        Some(Value::String(uri)) => Ok(uri.clone()),
        _ => Err(wrong("names no jwks_uri".to_owned())),
    }
}

async fn body(mut response: Response, url: &str, limit: usize) -> Result<Vec<u8>, FetchError> {
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status { url: url.to_owned(), status: response.status() });
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(url, &error))? {
        if bytes.len() + chunk.len() > limit {
            return Err(FetchError::TooLarge { url: url.to_owned(), limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn unreachable(url: &str, error: &reqwest::Error) -> FetchError {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(at) = cause {
        if let Some(refused) = at.downcast_ref::<AddressRefused>() {
            return refused.clone().into();
        }
        cause = at.source();
    }
    FetchError::Unreachable { url: url.to_owned(), cause: innermost(error) }
}

fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
