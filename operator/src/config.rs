//! The configuration file. All mistakes are reported at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use atm_core::settings::{Mistake, Reader, Section};

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `controlPlane.url`: its admin listener.
    pub admin_url: String,
    /// `controlPlane.tokenFile`: the bearer token, read anew for each request.
    pub admin_token_file: PathBuf,
    /// `controlPlane.caFile`: PEM certificates to trust besides the system's.
    pub admin_ca_file: Option<PathBuf>,
    /// `listen.health`: `/healthz`, `/readyz` and `/metrics`.
    pub health: SocketAddr,
    /// `policies.enabled`: whether `TokenPolicy` resources are the control plane's policies; true.
    pub policies: bool,
    /// `issuers.enabled`: whether `TrustedIssuer` resources are its trusted issuers; true.
    pub issuers: bool,
    /// `webhook`, where it is enabled.
    pub webhook: Option<WebhookConfig>,
    /// `log.format` is `json`.
    pub log_json: bool,
    /// `log.level`.
    pub log_level: String,
}

/// The admission webhook.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// `listen.webhook`.
    pub listen: SocketAddr,
    /// `webhook.namespace`: where its Service and its Secret are.
    pub namespace: String,
    /// `webhook.service`: the name that the API server calls.
    pub service: String,
    /// `webhook.secret`: where the certificate is kept.
    pub secret: String,
    /// `webhook.configuration`: the MutatingWebhookConfiguration that learns the certificate's authority.
    pub configuration: String,
    /// `webhook.templateFile`: what is injected.
    pub template_file: PathBuf,
    /// `webhook.onError`: whether a pod whose annotations are wrong is refused (`fail`) or left as it is (`ignore`).
    pub refuse_wrong_pods: bool,
}

impl Config {
    /// Reads and checks the file at `path`, with overrides from the environment.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Mistake>> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let message = format!("cannot be read: {error}; name a readable YAML file with --config");
            vec![Mistake { path: path.display().to_string(), message }]
        })?;
        Self::parse(&text, environment)
    }

    /// Reads and checks a document with its overrides.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Mistake>> {
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        let reader = Reader::new(text, &environment).map_err(|mistake| vec![mistake])?;
        let config = Self::read(&reader.root());
        reader.finish().map(|()| config)
    }

    fn read(root: &Section<'_>) -> Self {
        let (plane, listen, log) =
            (root.section("controlPlane"), root.section("listen"), root.section("log"));
        let url = plane.required("url");
        if !url.is_empty() && !url.starts_with("https://") && !url.starts_with("http://") {
            plane.mistake("url", "must begin with https:// or http://");
        }
        let address = |key: &'static str| {
            listen.parsed(key, |text| {
                text.parse::<SocketAddr>().map_err(|_| "must be an address and port, as in 0.0.0.0:8443")
            })
        };
        let webhook_address = address("webhook");
        Self {
            admin_url: url.trim_end_matches('/').to_owned(),
            admin_token_file: plane.required("tokenFile").into(),
            admin_ca_file: plane.text("caFile").map(PathBuf::from),
            health: address("health").unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9194))),
            policies: root.section("policies").boolean("enabled", true),
            issuers: root.section("issuers").boolean("enabled", true),
            webhook: webhook(&root.section("webhook"), webhook_address),
            log_json: json(&log),
            log_level: log.text("level").unwrap_or_else(|| "info".to_owned()),
        }
    }
}

fn webhook(section: &Section<'_>, listen: Option<SocketAddr>) -> Option<WebhookConfig> {
    if !section.boolean("enabled", false) {
        return None;
    }
    let refuse_wrong_pods = match section.text("onError").as_deref() {
        None | Some("fail") => true,
        Some("ignore") => false,
        Some(_) => {
            section.mistake("onError", "must be fail or ignore");
            true
        }
    };
    Some(WebhookConfig {
        listen: listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 8443))),
        namespace: section.required("namespace"),
        service: section.required("service"),
        secret: section.required("secret"),
        configuration: section.required("configuration"),
        template_file: section.required("templateFile").into(),
        refuse_wrong_pods,
    })
}

fn json(log: &Section<'_>) -> bool {
    match log.text("format").as_deref() {
        None | Some("json") => true,
        Some("text") => false,
        Some(_) => {
            log.mistake("format", "must be json or text");
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_at_once() {
        let mistakes = Config::parse(
            "controlPlane: {url: ftp://x}\nwebhook: {enabled: true, onError: maybe}\nlisten: {health: nine}",
            [],
        );
        let text = mistakes.unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for part in [
            "controlPlane.url",
            "controlPlane.tokenFile",
            "webhook.onError",
            "webhook.service",
            "listen.health",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
