//! The HTTP client behind every call, and what its failures are called.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use reqwest::{Certificate, Client, Response, Url};

/// Bytes of an answer at most.
const LARGEST_ANSWER: usize = 32 * 1024 * 1024;
/// Longer than the longest wait for a receipt.
const TIMEOUT: Duration = Duration::from_mins(2);

/// A client for `url`. Proxies of the environment are not asked for loopback addresses.
pub(crate) fn client(url: &Url, ca_file: Option<&Path>) -> Result<Client> {
    let mut builder = Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("atmctl/", env!("CARGO_PKG_VERSION")));
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    if let Some(file) = ca_file {
        let pem = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let certificates = Certificate::from_pem_bundle(&pem)
            .with_context(|| format!("{} holds no PEM certificates", file.display()))?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().context("the HTTP client does not start")
}

/// `text` as an http or https URL.
pub(crate) fn url(text: &str) -> Result<Url> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.with_context(|| format!("{text} is no http or https URL; give for example http://127.0.0.1:8081"))
}

/// What kept a request from being answered, with the address and what to look at.
pub(crate) fn unreachable(error: &reqwest::Error, whom: &str, url: &Url) -> anyhow::Error {
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let at = url.origin().ascii_serialization();
    anyhow!("cannot reach {whom} at {at}: {cause}; check that it runs and that the address is right")
}

/// The body of an answer, bounded.
pub(crate) async fn body(mut response: Response) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.context("the answer broke off")? {
        anyhow::ensure!(
            bytes.len() + chunk.len() <= LARGEST_ANSWER,
            "the answer is larger than {LARGEST_ANSWER} bytes"
        );
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}
