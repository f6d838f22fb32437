//! The configuration file: every key, its default and its bounds. All mistakes are reported at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use atm_core::settings::{Mistake, Reader, Section};
use atm_nats::NatsAccess;
use atm_proto::signature::{FeedPublicKey, TrustedFeedKeys};
use atm_proto::subject::Subjects;
use atm_telemetry::TracingSettings;
use http::StatusCode;

use crate::feed::SnapshotUrl;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `id`: this sidecar's name in the fleet; made up and kept in the store when left out.
    pub id: Option<String>,
    /// `realmGroup`: the realms that share the feed; `default`.
    pub realm_group: String,
    /// `nats.url`.
    pub nats_url: String,
    /// The rest of `nats`: who this sidecar is to NATS.
    pub nats_access: NatsAccess,
    /// `feedKeys`: public feed keys, at least one.
    pub feed_keys: TrustedFeedKeys,
    /// `store.path`: the database's directory.
    pub store_path: PathBuf,
    /// `store.blockCacheMiB`, in bytes; 64 MiB.
    pub block_cache: usize,
    /// `store.onCorruption`: `rebuild` (move aside and fetch again) or `fail`.
    pub rebuild_on_corruption: bool,
    /// `snapshots.url`, `snapshots.caFile`: where snapshots are asked for before NATS is.
    pub snapshots: Option<SnapshotUrl>,
    /// `listen`.
    pub listen: Listen,
    /// `freshness.degradedAfterMs`, `freshness.staleAfterMs`.
    pub freshness: FreshnessSettings,
    /// `cache.verifiedTokensMiB`, in bytes; 16 MiB.
    pub verified_tokens: u64,
    /// `cache.introspectedMiB`, in bytes; 16 MiB.
    pub introspected: u64,
    /// `introspection`: how the control plane is asked about opaque credentials.
    pub introspection: Introspection,
    /// `dpop`: proofs of possession.
    pub dpop: DpopSettings,
    /// `clientCertificate.trustForwarded`: the header `x-forwarded-client-cert` is believed instead of the connection. Only
    /// behind a proxy that sets it anew for each request.
    pub trust_forwarded_certificate: bool,
    /// `decisionLog`.
    pub decision_log: DecisionLogConfig,
    /// `tracing`: where spans go; none without `tracing.endpoint`.
    pub tracing: Option<TracingSettings>,
    /// `startup.waitForFeedMs`: how long a start waits for a heartbeat before it serves what the store holds; 3 s.
    pub startup_wait: Duration,
    /// `log`.
    pub log: Log,
}

/// Where the sidecar listens; at least one of the three for checks.
#[derive(Debug, Clone)]
pub struct Listen {
    /// `grpcUnix`: ext_authz over gRPC on a unix socket.
    pub grpc_unix: Option<PathBuf>,
    /// `grpcUnixMode`: the socket's permissions, where the umask's are not right because Envoy runs as another user.
    pub grpc_unix_mode: Option<u32>,
    /// `grpc`: ext_authz over gRPC on TCP.
    pub grpc: Option<SocketAddr>,
    /// `http`: ext_authz over HTTP.
    pub http: Option<SocketAddr>,
    /// `httpPathPrefix`, `httpTrustForwarded`, `httpUnavailableStatus`: how the HTTP variant reads and answers.
    pub http_settings: HttpSettings,
    /// `admin`: health, readiness, metrics and state; 127.0.0.1:9193.
    pub admin: SocketAddr,
    /// `addressFile`: where the bound addresses are written as JSON.
    pub address_file: Option<PathBuf>,
    /// `workers`: threads that answer checks; one a core.
    pub workers: usize,
}

/// How the HTTP variant reads and answers.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Where the request to be judged is found.
    pub original: OriginalRequest,
    /// `httpUnavailableStatus`: what is answered where gRPC would answer 503. 403, because gateways take a 5xx for a failure of
    /// the sidecar's, which they may be told to let through; or 503 for one that hands it on to its client.
    pub unavailable: StatusCode,
}

/// Where the HTTP variant finds the request to be judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginalRequest {
    /// `httpPathPrefix`: what the gateway puts before the original path (Envoy's `path_prefix`), to be taken off.
    pub path_prefix: Option<String>,
    /// `httpTrustForwarded`: method, host and target are those of `x-forwarded-method`, `x-forwarded-host` and
    /// `x-forwarded-uri` (or `x-original-method`, `x-original-uri`), for gateways that ask with a request of their own.
    /// Only where no client reaches the listener past such a gateway.
    pub trust_forwarded: bool,
}

/// How the control plane is asked about opaque credentials.
#[derive(Debug, Clone, Copy)]
pub struct Introspection {
    /// `timeoutMs`: how long an answer may take; 150 ms, shorter than the gateway waits for the check (Envoy: 200 ms by default).
    pub timeout: Duration,
    /// `concurrency`: questions under way at most; 256.
    pub concurrency: usize,
}

/// Proofs of possession (RFC 9449).
#[derive(Debug, Clone)]
pub struct DpopSettings {
    /// `replayCacheEntries`: used proofs that are remembered; 100,000. Full means refuse.
    pub proofs: usize,
    /// `nonceKeyFile`: 32 random bytes in base64url. Sidecars with the same key take each other's nonces; without one each
    /// makes its own at its start.
    pub nonce_key_file: Option<PathBuf>,
}

/// What is written down of decisions.
#[derive(Debug, Clone, Copy)]
pub struct DecisionLogConfig {
    /// `stdout`: whether records go to standard output; true.
    pub stdout: bool,
    /// `audit`: whether records go to the audit subject; true.
    pub audit: bool,
    /// `permitSample`: of so many permits one is recorded, 0 for none; 100.
    pub permit_sample: u64,
    /// `shadowSample`: of so many differences to a shadow policy one is recorded, 0 for none; 10.
    pub shadow_sample: u64,
}

/// When knowledge is called old.
#[derive(Debug, Clone, Copy)]
pub struct FreshnessSettings {
    /// Milliseconds without a heartbeat after which the sidecar says that it is degraded.
    pub degraded_after_ms: u64,
    /// Milliseconds after which rules decide what happens.
    pub stale_after_ms: u64,
}

/// How the program logs, to standard error.
#[derive(Debug, Clone)]
pub struct Log {
    /// `format`: `json` (default) or `text`.
    pub json: bool,
    /// `level`: `error` to `trace`, or a filter as of tracing's `EnvFilter`; `info`.
    pub level: String,
}

impl Config {
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

    /// The paths of all keys, in order.
    ///
    /// # Errors
    /// None that can happen: an empty document is read.
    pub fn keys() -> Result<Vec<String>, Mistake> {
        let reader = Reader::new("", std::iter::empty())?;
        let _ = Self::read(&reader.root());
        Ok(reader.keys())
    }

    fn read(root: &Section<'_>) -> Self {
        let (nats, store, cache) = (root.section("nats"), root.section("store"), root.section("cache"));
        let subject = |name: &str| Subjects::new(name).map(|_| name.to_owned());
        Self {
            id: root.parsed("id", subject),
            realm_group: root.parsed("realmGroup", subject).unwrap_or_else(|| "default".into()),
            nats_url: nats_url(&nats),
            nats_access: NatsAccess::read(&nats),
            feed_keys: feed_keys(root),
            store_path: store.required("path").into(),
            block_cache: mebibytes(&store, "blockCacheMiB", 64, 1..=65_536),
            rebuild_on_corruption: rebuild(&store),
            snapshots: snapshots(&root.section("snapshots")),
            listen: listen(&root.section("listen")),
            freshness: freshness(&root.section("freshness")),
            verified_tokens: mebibytes(&cache, "verifiedTokensMiB", 16, 0..=65_536) as u64,
            introspected: mebibytes(&cache, "introspectedMiB", 16, 1..=65_536) as u64,
            introspection: introspection(&root.section("introspection")),
            dpop: dpop(&root.section("dpop")),
            trust_forwarded_certificate: root.section("clientCertificate").boolean("trustForwarded", false),
            decision_log: decision_log(&root.section("decisionLog")),
            tracing: TracingSettings::read(&root.section("tracing")),
            startup_wait: Duration::from_millis(root.section("startup").number(
                "waitForFeedMs",
                3_000,
                0..=600_000,
            )),
            log: log(&root.section("log")),
        }
    }
}

fn nats_url(nats: &Section<'_>) -> String {
    let url = nats.required("url");
    let is_server = |one: &str| {
        let (scheme, rest) = one.trim().split_once("://").unwrap_or(("nats", one.trim()));
        matches!(scheme, "nats" | "tls" | "ws" | "wss") && !rest.is_empty()
    };
    // An empty text is a mistake already.
    if !url.is_empty() && !url.split(',').all(is_server) {
        nats.mistake("url", "must be nats://host:port or tls://host:port, several with commas");
    }
    url
}

fn feed_keys(root: &Section<'_>) -> TrustedFeedKeys {
    let texts = root.list("feedKeys");
    if texts.is_empty() {
        root.mistake(
            "feedKeys",
            "is missing; give the control plane's feed key (GET /admin/v1/feed shows it)",
        );
    }
    let parse = |(at, text): (usize, &String)| {
        let key = text.parse::<FeedPublicKey>();
        key.map_err(|error| root.mistake(&format!("feedKeys[{at}]"), error.to_string())).ok()
    };
    TrustedFeedKeys::new(texts.iter().enumerate().filter_map(parse).collect())
}

fn mebibytes(
    section: &Section<'_>,
    key: &'static str,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> usize {
    usize::try_from(section.number(key, default, range) << 20).unwrap_or(usize::MAX)
}

fn rebuild(store: &Section<'_>) -> bool {
    match store.text("onCorruption").as_deref() {
        None | Some("rebuild") => true,
        Some("fail") => false,
        Some(_) => {
            store.mistake("onCorruption", "must be rebuild or fail");
            true
        }
    }
}

fn snapshots(section: &Section<'_>) -> Option<SnapshotUrl> {
    let url = section.text("url");
    let ca_file = section.text("caFile").map(PathBuf::from);
    if url.as_ref().is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://")) {
        section.mistake(
            "url",
            "must begin with https:// or http://, as in https://atm.example.com/feed/snapshots",
        );
    }
    url.map(|url| SnapshotUrl { url, ca_file })
}

fn listen(section: &Section<'_>) -> Listen {
    let address = |key: &'static str| {
        section.parsed(key, |text| {
            text.parse::<SocketAddr>().map_err(|_| "must be an address and port, for example 127.0.0.1:9191")
        })
    };
    let admin = address("admin").unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9193)));
    if !section.boolean("adminAllowRemote", false) && !admin.ip().is_loopback() {
        section.mistake(
            "admin",
            "is not a loopback address; set listen.adminAllowRemote to true if that is meant",
        );
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let listen = Listen {
        grpc_unix: section.text("grpcUnix").map(PathBuf::from),
        grpc_unix_mode: section.parsed("grpcUnixMode", |text| {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| (0o600..=0o777).contains(mode));
            mode.ok_or("must be permissions in octal from 0600 to 0777, quoted, as in \"0660\"")
        }),
        grpc: address("grpc"),
        http: address("http"),
        http_settings: HttpSettings {
            original: OriginalRequest {
                path_prefix: section.text("httpPathPrefix"),
                trust_forwarded: section.boolean("httpTrustForwarded", false),
            },
            unavailable: unavailable(section),
        },
        admin,
        address_file: section.text("addressFile").map(PathBuf::from),
        workers: usize::try_from(section.number("workers", cores, 1..=256)).unwrap_or(1),
    };
    if listen.grpc_unix.is_none() && listen.grpc.is_none() && listen.http.is_none() {
        section.mistake(
            "grpcUnix",
            "is missing, and so are grpc and http; give at least one, or nobody can ask",
        );
    }
    if listen.http_settings.original.path_prefix.as_ref().is_some_and(|prefix| !prefix.starts_with('/')) {
        section.mistake("httpPathPrefix", "must begin with a slash, as in /authz");
    }
    // The kernel's limit for the path of a unix socket (sockaddr_un).
    if listen.grpc_unix.as_ref().is_some_and(|path| path.as_os_str().len() > 107) {
        section.mistake("grpcUnix", "is longer than 107 bytes, more than a unix socket's path may have");
    }
    listen
}

fn unavailable(section: &Section<'_>) -> StatusCode {
    let status = section.parsed("httpUnavailableStatus", |text| match text {
        "403" => Ok(StatusCode::FORBIDDEN),
        "503" => Ok(StatusCode::SERVICE_UNAVAILABLE),
        _ => Err("must be 403, or 503 where the gateway hands that on to its client"),
    });
    status.unwrap_or(StatusCode::FORBIDDEN)
}

fn introspection(section: &Section<'_>) -> Introspection {
    Introspection {
        timeout: Duration::from_millis(section.number("timeoutMs", 150, 10..=10_000)),
        concurrency: usize::try_from(section.number("concurrency", 256, 1..=65_536)).unwrap_or(256),
    }
}

fn dpop(section: &Section<'_>) -> DpopSettings {
    let proofs = section.number("replayCacheEntries", 100_000, 16..=10_000_000);
    DpopSettings {
        proofs: usize::try_from(proofs).unwrap_or(usize::MAX),
        nonce_key_file: section.text("nonceKeyFile").map(PathBuf::from),
    }
}

fn decision_log(section: &Section<'_>) -> DecisionLogConfig {
    DecisionLogConfig {
        stdout: section.boolean("stdout", true),
        audit: section.boolean("audit", true),
        permit_sample: section.number("permitSample", 100, 0..=1_000_000_000),
        shadow_sample: section.number("shadowSample", 10, 0..=1_000_000_000),
    }
}

fn freshness(section: &Section<'_>) -> FreshnessSettings {
    let settings = FreshnessSettings {
        degraded_after_ms: section.number("degradedAfterMs", 3_000, 1_000..=3_600_000),
        stale_after_ms: section.number("staleAfterMs", 15_000, 2_000..=86_400_000),
    };
    if settings.stale_after_ms <= settings.degraded_after_ms {
        section.mistake("staleAfterMs", "must be more than freshness.degradedAfterMs");
    }
    settings
}

fn log(section: &Section<'_>) -> Log {
    let json = match section.text("format").as_deref() {
        None | Some("json") => true,
        Some("text") => false,
        Some(_) => {
            section.mistake("format", "must be json or text");
            true
        }
    };
    let level = section.parsed("level", |text| {
        text.parse::<tracing_subscriber::EnvFilter>()
            .map(|_| text.to_owned())
            .map_err(|_| "must be error, warn, info, debug or trace")
    });
    Log { json, level: level.unwrap_or_else(|| "info".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        Config::parse(text, []).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_wrong_file_lists_all_its_mistakes() {
        let found = mistakes(
            "nats: {}\nstore: {path: /x, size: 1}\nlisten: {admin: '0.0.0.0:1'}\nfeedKeys: [abc]\nid: 'a.b'",
        );
        for part in ["nats.url", "store.size", "listen.admin", "listen.grpcUnix", "feedKeys[0]", "id:"] {
            assert!(found.iter().any(|mistake| mistake.starts_with(part)), "{part} in {found:#?}");
        }
    }

    #[test]
    fn a_small_file_is_enough() {
        let key = atm_proto::signature::FeedSigner::from_seed(&[1; 32]).unwrap().public_key().to_string();
        let text = format!(
            "nats: {{url: 'nats://127.0.0.1:4222'}}\nfeedKeys: [{key}]\nstore: {{path: /x}}\nlisten: {{grpcUnix: /s}}"
        );
        let config = Config::parse(&text, []).unwrap();
        assert_eq!(config.realm_group, "default");
        assert_eq!(config.freshness.stale_after_ms, 15_000);
    }
}
