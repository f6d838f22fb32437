//! What concerns the OAuth side: client certificates, proofs, sessions, limits, registration.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use atm_core::settings::{Reader, boolean, number};
use http::HeaderName;
use ipnet::IpNet;

use super::path;
use crate::limits::DefaultLimits;
use crate::sessions::SessionSettings;

/// Ten years, in seconds.
const LONGEST_SESSION: u64 = 3_653 * 86_400;

/// How the OAuth endpoints treat clients.
#[derive(Debug, Clone)]
pub struct OAuthConfig {
    /// Whether the TLS of the OAuth listener asks clients for certificates. They need not have one.
    pub client_certificates: bool,
    /// PEM file with the authorities of `tls_client_auth`.
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients that an operator registered may publish their keys (`jwks_uri`) at private addresses and without TLS.
    pub private_client_keys: bool,
    /// PEM file with the certificates that are trusted in place of the system's where clients publish their keys.
    pub client_keys_ca_file: Option<PathBuf>,
    /// Who may pass on a client's certificate.
    pub trusted_proxy: Option<TrustedProxy>,
    /// Whether DPoP proofs need a nonce of ours.
    pub dpop_nonce: bool,
    /// How long sessions live.
    pub sessions: SessionSettings,
    /// How much a client may ask.
    pub limits: DefaultLimits,
    /// How clients register themselves; none: they do not.
    pub registration: Option<RegistrationConfig>,
}

/// Dynamic client registration.
#[derive(Debug, Clone)]
pub struct RegistrationConfig {
    /// File with the initial access token.
    pub token_file: PathBuf,
    /// Scopes that such clients may ask for.
    pub scopes: Vec<String>,
    /// Audiences that such clients get.
    pub audiences: Vec<String>,
}

/// A proxy that ends TLS and passes on the client's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedProxy {
    /// Where it calls from.
    pub networks: Vec<IpNet>,
    /// The header with the certificate: PEM with URL encoding. The proxy must remove it from what clients send.
    pub certificate_header: HeaderName,
}

impl TrustedProxy {
    /// Whether a connection from `address` is the proxy's.
    pub fn is_trusted(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }
}

pub(super) fn read(reader: &mut Reader<'_>) -> OAuthConfig {
    let client_certificates = reader.optional("listen.clientCertificates", boolean).unwrap_or(false);
    if client_certificates && !reader.has_section("listen.oauthTls") && !reader.has_section("listen.tls") {
        let message = "needs TLS at the OAuth listener; set listen.oauthTls or listen.tls";
        reader.mistake("listen.clientCertificates", message.to_owned());
    }
    let client_ca_file = reader.optional("listen.clientCaFile", path);
    let private_client_keys = reader.optional("clientKeys.allowPrivateAddresses", boolean).unwrap_or(false);
    let client_keys_ca_file = reader.optional("clientKeys.caFile", path);
    let trusted_proxy = trusted_proxy(reader);
    let dpop_nonce = reader.optional("dpop.nonce", boolean).unwrap_or(true);
    let seconds = |key: &str, range, default: u64| {
        Duration::from_secs(reader.optional(key, |text| number(text, range)).unwrap_or(default))
    };
    let sessions = SessionSettings {
        idle: seconds("sessions.idleSeconds", 1..=LONGEST_SESSION, 14 * 86_400),
        lifetime: seconds("sessions.lifetimeSeconds", 1..=LONGEST_SESSION, 90 * 86_400),
        grace: seconds("sessions.refreshGraceSeconds", 0..=600, 30),
    };
    let count = |key: &str, default: u32| {
        let count = reader.optional(key, |text| number(text, 1..=1_000_000));
        count.and_then(|count| u32::try_from(count).ok()).unwrap_or(default)
    };
    let limits = DefaultLimits {
        requests_per_second: count("limits.clientRequestsPerSecond", 1_000),
        burst: count("limits.clientBurst", 2_000),
        concurrency: count("limits.clientConcurrency", 512),
    };
    let registration = registration(reader);
    OAuthConfig {
        client_certificates,
        client_ca_file,
        private_client_keys,
        client_keys_ca_file,
        trusted_proxy,
        dpop_nonce,
        sessions,
        limits,
        registration,
    }
}

fn trusted_proxy(reader: &mut Reader<'_>) -> Option<TrustedProxy> {
    if !reader.has_section("trustedProxy") {
        return None;
    }
    let networks = reader.required("trustedProxy.networks", networks);
    let header = reader.required("trustedProxy.certificateHeader", |text| {
        text.parse::<HeaderName>().map_err(|_| "must be the name of a header".to_owned())
    });
    Some(TrustedProxy { networks: networks?, certificate_header: header? })
}

fn registration(reader: &mut Reader<'_>) -> Option<RegistrationConfig> {
    if !reader.has_section("registration") {
        return None;
    }
    let words = |text: &str| -> Result<Vec<String>, String> {
        let words = text.split([',', ' ']).filter(|word| !word.is_empty());
        Ok(words.map(ToOwned::to_owned).collect())
    };
    let token_file = reader.required("registration.tokenFile", path);
    let scopes = reader.optional("registration.scopes", words).unwrap_or_default();
    let audiences = reader.required("registration.audiences", words);
    Some(RegistrationConfig { token_file: token_file?, scopes, audiences: audiences? })
}

fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let network = |entry: &str| {
        let entry = entry.trim();
        entry.parse::<IpNet>().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from))
    };
    text.split(',')
        .map(network)
        .collect::<Result<_, _>>()
        .map_err(|_| "must be addresses or prefixes like 10.0.0.0/8, several with commas".to_owned())
}
