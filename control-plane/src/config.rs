//! Configuration: a YAML file, with overrides from the environment, checked as a whole before anything starts.
//!
//! A key `nats.url` is overridden by `ATM_NATS__URL`, `listen.adminAllowRemote` by `ATM_LISTEN__ADMIN_ALLOW_REMOTE`. Every
//! mistake is reported at once, with the path of its key; unknown keys and unknown overrides are mistakes too.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atm_core::key::Algorithm;
pub use atm_core::settings::Mistake;
use atm_core::settings::{Reader, boolean, number};
use atm_nats::NatsAccess;
use atm_proto::subject::Subjects;
use atm_telemetry::TracingSettings;

use crate::feed::SnapshotSettings;
use crate::retention::RetentionSettings;
use crate::store::StoreSettings;

mod audit;
mod auth_callout;
mod keys;
mod oauth;
mod retention;
mod secrets;
mod store;
#[cfg(test)]
mod tests;

pub use audit::{AuditConfig, AuditFiles};
pub use auth_callout::AuthCalloutConfig;
pub use keys::KeysConfig;
pub use oauth::{OAuthConfig, RegistrationConfig, TrustedProxy};
pub use secrets::Secrets;
pub use store::StoreConfig;

/// The environment, as far as it matters here: names and values.
pub type Environment = BTreeMap<String, String>;

/// Everything that the control plane needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Exactly as in the tokens' `iss`: an `http` or `https` URL without query, fragment and final slash.
    pub issuer: String,
    /// The realms that share one feed; part of the NATS subjects.
    pub realm_group: String,
    /// Where to listen.
    pub listen: Listen,
    /// The store.
    pub store: StoreConfig,
    /// The feed's carrier.
    pub nats: Nats,
    /// Where the wrapping key (32 bytes in base64url) is.
    pub wrapping_key: KeySource,
    /// Of new signing keys.
    pub algorithm: Algorithm,
    /// Who keeps signing keys, and when they change.
    pub keys: KeysConfig,
    /// File with the bearer token of the admin API's first administrator.
    pub admin_token_file: PathBuf,
    /// File with further admin credentials and their roles.
    pub admin_credentials_file: Option<PathBuf>,
    /// File with the transmitters of security events.
    pub transmitters_file: Option<PathBuf>,
    /// The audit chain.
    pub audit: AuditConfig,
    /// For how long ended sessions and records of revocations are kept.
    pub retention: RetentionSettings,
    /// The feed.
    pub feed: FeedConfig,
    /// Life of access tokens where the client has none of its own.
    pub token_lifetime: Duration,
    /// Life of any access token at most.
    pub max_token_lifetime: Duration,
    /// Where spans go; none without `tracing.endpoint`.
    pub tracing: Option<TracingSettings>,
    /// How the OAuth endpoints treat clients.
    pub oauth: OAuthConfig,
    /// Logging.
    pub log: Log,
}

/// Addresses and certificates. Port 0 takes a free one.
#[derive(Debug, Clone)]
pub struct Listen {
    /// OAuth endpoints.
    pub oauth: SocketAddr,
    /// Admin API, health and metrics. Loopback, unless `listen.adminAllowRemote` is set.
    pub admin: SocketAddr,
    /// TLS of the OAuth listener.
    pub oauth_tls: Option<TlsFiles>,
    /// TLS of the admin listener.
    pub admin_tls: Option<TlsFiles>,
    /// Where the bound addresses are written, as JSON.
    pub address_file: Option<PathBuf>,
}

/// A certificate chain and its private key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Leaf first.
    pub certificate: PathBuf,
    /// PKCS #8, SEC 1 or PKCS #1.
    pub key: PathBuf,
}

/// How to reach NATS.
#[derive(Debug, Clone)]
pub struct Nats {
    /// `nats://host:port` or `tls://host:port`, several with commas.
    pub url: String,
    /// Who the control plane is to NATS.
    pub access: NatsAccess,
    /// Copies that JetStream keeps of its streams.
    pub replicas: usize,
    /// Whether and how NATS's auth callout is answered.
    pub auth_callout: Option<AuthCalloutConfig>,
}

/// Where a key is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In a file.
    File(PathBuf),
    /// In the environment variable of that name.
    Environment(String),
}

/// How the feed is signed and paced.
#[derive(Debug, Clone)]
pub struct FeedConfig {
    /// File with the Ed25519 seed (32 bytes in base64url).
    pub signing_key_file: PathBuf,
    /// Under load, changes of this time travel together.
    pub linger: Duration,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Snapshots; their directory is beside the store, unless another is named.
    pub snapshots: SnapshotSettings,
}

/// What the log looks like.
#[derive(Debug, Clone)]
pub struct Log {
    /// Its form.
    pub format: LogFormat,
    /// As `RUST_LOG` has it: `info`, or `warn,atm_control_plane=debug`.
    pub level: String,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Every mistake of a configuration, one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Mistake>);

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{mistake}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads the file at `path`, with overrides from `environment`.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError(vec![Mistake {
                path: path.display().to_string(),
                message: format!("cannot be read: {error}; name a readable YAML file with --config"),
            }])
        })?;
        Self::parse(&text, environment)
    }

    /// Reads `text`, with overrides from `environment`.
    pub fn parse(text: &str, environment: &Environment) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(text, environment).map_err(|mistake| ConfigError(vec![mistake]))?;
        let config = read(&mut reader);
        reader.finish().map_err(ConfigError)?;
        // Without a mistake every required value was there.
        config.ok_or_else(|| {
            let message = "is incomplete; compare it with the documented keys".to_owned();
            ConfigError(vec![Mistake { path: "configuration".to_owned(), message }])
        })
    }

    /// The paths of all keys, in order.
    ///
    /// # Errors
    /// None that can happen: a document without values is read.
    pub fn keys() -> Result<Vec<String>, Mistake> {
        // Sections that are read where they are there.
        let sections = "{ listen: { tls: {}, oauthTls: {}, adminTls: {} }, trustedProxy: {}, registration: {}, nats: { authCallout: {} }, \
                        keys: { pkcs11: {}, vault: {}, awsKms: {} } }";
        let mut reader = Reader::new(sections, std::iter::empty())?;
        let _ = read(&mut reader);
        Ok(reader.keys())
    }

    /// Scheme and authority of the issuer's URL.
    pub fn issuer_origin(&self) -> (String, String) {
        let (scheme, rest) = self.issuer.split_once("://").unwrap_or(("https", &self.issuer));
        let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
        (scheme.to_owned(), authority.to_owned())
    }

    /// The path of the issuer's URL, without a final slash: empty for a server's root.
    pub fn issuer_path(&self) -> &str {
        let after_scheme = self.issuer.find("://").map_or(0, |at| at + 3);
        self.issuer[after_scheme..].find('/').map_or("", |at| &self.issuer[after_scheme + at..])
    }
}

/// Reads all sections before it gives up, so that every mistake is found.
fn read(reader: &mut Reader<'_>) -> Option<Config> {
    let issuer = reader.required("issuer", issuer);
    let realm_group = reader.optional("realmGroup", |text| match Subjects::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    });
    let listen = listen(reader);
    let store = store::read(reader);
    let nats_url = reader.required("nats.url", nats_url);
    let nats_access = NatsAccess::read(&reader.root().section("nats"));
    let replicas = reader.optional("nats.replicas", |text| match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("must be 1, 3 or 5, and no more than there are servers in the cluster".to_owned()),
    });
    let auth_callout = auth_callout::read(reader);
    let wrapping_key = wrapping_key(reader);
    let algorithm =
        reader.optional("keys.algorithm", |name| name.parse::<Algorithm>().map_err(|e| e.to_string()));
    let keys = keys::read(reader);
    let admin_token_file = reader.required("admin.tokenFile", path);
    let admin_credentials_file = reader.optional("admin.credentialsFile", path);
    let audit = audit::read(reader);
    let retention = retention::read(reader);
    let transmitters_file = reader.optional("securityEvents.transmittersFile", path);
    let feed = feed(reader, store.as_ref().map(|store| &store.settings));
    let (token_lifetime, max_token_lifetime) = lifetimes(reader);
    let tracing = tracing(reader);
    let oauth = oauth::read(reader);
    let log = log(reader);
    Some(Config {
        issuer: issuer?,
        realm_group: realm_group.unwrap_or_else(|| "default".to_owned()),
        listen: listen?,
        store: store?,
        nats: Nats { url: nats_url?, access: nats_access, replicas: replicas.unwrap_or(1), auth_callout },
        wrapping_key: wrapping_key?,
        algorithm: algorithm.unwrap_or(Algorithm::ES256),
        keys,
        admin_token_file: admin_token_file?,
        admin_credentials_file,
        transmitters_file,
        audit,
        retention,
        feed: feed?,
        token_lifetime,
        max_token_lifetime,
        tracing,
        oauth,
        log,
    })
}

fn listen(reader: &mut Reader<'_>) -> Option<Listen> {
    let oauth = reader.required("listen.oauth", address);
    let admin = reader.required("listen.admin", address);
    let allow_remote = reader.optional("listen.adminAllowRemote", boolean).unwrap_or(false);
    if let Some(admin) = admin
        && !admin.ip().is_loopback()
        && !allow_remote
    {
        reader.mistake(
            "listen.admin",
            format!(
                "{admin} can be reached from other machines; bind 127.0.0.1, or set listen.adminAllowRemote: true"
            ),
        );
    }
    if let (Some(oauth), Some(admin)) = (oauth, admin)
        && oauth == admin
        && oauth.port() != 0
    {
        reader.mistake("listen.admin", "is the address of listen.oauth; give it another port".to_owned());
    }
    let both = tls(reader, "listen.tls");
    let oauth_tls = tls(reader, "listen.oauthTls").or_else(|| both.clone());
    let admin_tls = tls(reader, "listen.adminTls").or(both);
    let address_file = reader.optional("listen.addressFile", path);
    Some(Listen { oauth: oauth?, admin: admin?, oauth_tls, admin_tls, address_file })
}

fn tls(reader: &mut Reader<'_>, section: &str) -> Option<TlsFiles> {
    if !reader.has_section(section) {
        return None;
    }
    let certificate = reader.required(&format!("{section}.certificate"), path);
    let key = reader.required(&format!("{section}.key"), path);
    Some(TlsFiles { certificate: certificate?, key: key? })
}

fn wrapping_key(reader: &mut Reader<'_>) -> Option<KeySource> {
    let file = reader.optional("keys.wrappingKeyFile", path);
    let variable = reader.optional("keys.wrappingKeyEnv", |name| Ok(name.to_owned()));
    match (file, variable) {
        (Some(file), None) => Some(KeySource::File(file)),
        (None, Some(variable)) => Some(KeySource::Environment(variable)),
        (Some(_), Some(_)) => {
            reader.mistake("keys", "has wrappingKeyFile and wrappingKeyEnv; keep one of them".to_owned());
            None
        }
        (None, None) => {
            // Present but refused is a mistake already.
            if !reader.has_mistake("keys.wrappingKey") {
                reader.mistake(
                    "keys",
                    "names no wrapping key; set wrappingKeyFile or wrappingKeyEnv".to_owned(),
                );
            }
            None
        }
    }
}

fn feed(reader: &mut Reader<'_>, store: Option<&StoreSettings>) -> Option<FeedConfig> {
    let signing_key_file = reader.required("feed.signingKeyFile", path);
    let linger = reader.optional("feed.lingerMs", |text| number(text, 0..=1_000));
    // Sidecars call three seconds without a heartbeat degraded.
    let heartbeat = reader.optional("feed.heartbeatMs", |text| number(text, 50..=2_000));
    let snapshots = snapshots(reader, store);
    Some(FeedConfig {
        snapshots,
        signing_key_file: signing_key_file?,
        linger: Duration::from_millis(linger.unwrap_or(5)),
        heartbeat: Duration::from_millis(heartbeat.unwrap_or(1_000)),
    })
}

fn snapshots(reader: &mut Reader<'_>, store: Option<&StoreSettings>) -> SnapshotSettings {
    let directory = segments(reader, store);
    let revisions = reader.optional("feed.snapshots.everyRevisions", |text| number(text, 1..=1_000_000));
    let mebibytes = reader.optional("feed.snapshots.everyMiB", |text| number(text, 1..=4_096));
    let interval = reader.optional("feed.snapshots.everySeconds", |text| number(text, 1..=86_400));
    let keep = reader.optional("feed.snapshots.keepLogSeconds", |text| number(text, 1..=2_592_000));
    let serve = reader.optional("feed.snapshots.http", boolean).unwrap_or(false);
    SnapshotSettings {
        directory,
        revisions: revisions.unwrap_or(4_096),
        bytes: mebibytes.unwrap_or(64) << 20,
        interval: Duration::from_secs(interval.unwrap_or(3_600)),
        keep: Duration::from_secs(keep.unwrap_or(3_600)),
        serve,
    }
}

/// Beside the embedded store, unless something else is said. Beside a database there is no place that is this process's own.
fn segments(reader: &mut Reader<'_>, store: Option<&StoreSettings>) -> PathBuf {
    const KEY: &str = "feed.snapshots.directory";
    match (reader.optional(KEY, path), store) {
        (Some(directory), _) => directory,
        (None, Some(StoreSettings::Embedded(file))) => {
            file.parent().unwrap_or(Path::new(".")).join("snapshots")
        }
        (None, Some(StoreSettings::Postgres(_))) => {
            reader.mistake(
                KEY,
                "is missing; with store.url, name a directory of this process's own".to_owned(),
            );
            PathBuf::new()
        }
        (None, None) => PathBuf::new(), // a store that is missing is a mistake already
    }
}

fn lifetimes(reader: &mut Reader<'_>) -> (Duration, Duration) {
    let lifetime = reader.optional("tokens.lifetimeSeconds", |text| number(text, 1..=86_400)).unwrap_or(300);
    let max = reader.optional("tokens.maxLifetimeSeconds", |text| number(text, 1..=86_400)).unwrap_or(3_600);
    if lifetime > max {
        let message = format!("is over tokens.maxLifetimeSeconds ({max}); lower it or raise the maximum");
        reader.mistake("tokens.lifetimeSeconds", message);
    }
    (Duration::from_secs(lifetime), Duration::from_secs(max))
}

fn tracing(reader: &mut Reader<'_>) -> Option<TracingSettings> {
    let endpoint =
        reader.optional("tracing.endpoint", |text| TracingSettings::endpoint(text).map_err(str::to_owned));
    let sample = reader.optional("tracing.sample", |text| number(text, TracingSettings::SAMPLES));
    let queue = reader.optional("tracing.queue", |text| number(text, TracingSettings::QUEUES));
    let queue = usize::try_from(queue.unwrap_or(TracingSettings::DEFAULT_QUEUE));
    Some(TracingSettings {
        endpoint: endpoint?,
        sample: sample.unwrap_or(TracingSettings::DEFAULT_SAMPLE),
        queue: queue.unwrap_or(usize::MAX),
    })
}

fn log(reader: &mut Reader<'_>) -> Log {
    let format = reader.optional("log.format", |text| match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("must be json or text".to_owned()),
    });
    let level = reader.optional("log.level", |text| {
        // Stricter than the filter, which takes a misspelt level for the name of a module.
        let level = |directive: &str| directive.rsplit('=').next().is_some_and(is_level);
        if text.split(',').all(level) {
            Ok(text.to_owned())
        } else {
            Err("must be off, error, warn, info, debug or trace, or module=level, several with commas"
                .to_owned())
        }
    });
    Log { format: format.unwrap_or(LogFormat::Json), level: level.unwrap_or_else(|| "info".to_owned()) }
}

fn is_level(text: &str) -> bool {
    text.trim().parse::<tracing_subscriber::filter::LevelFilter>().is_ok()
}

fn issuer(text: &str) -> Result<String, String> {
    const FORM: &str =
        "must be an http or https URL without query, fragment and final slash, as in https://id.example.com";
    let uri: http::Uri = text.parse().map_err(|_| FORM.to_owned())?;
    let scheme_fits = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority_fits = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let in_path = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
    let path_fits = uri.path().chars().all(in_path) && !uri.path().contains("//");
    if !scheme_fits || !authority_fits || !path_fits || text.contains(['?', '#']) || text.ends_with('/') {
        return Err(FORM.to_owned());
    }
    Ok(text.to_owned())
}

fn nats_url(text: &str) -> Result<String, String> {
    let one = |url: &str| {
        let (scheme, rest) = url.trim().split_once("://").unwrap_or(("nats", url.trim()));
        matches!(scheme, "nats" | "tls" | "ws" | "wss") && !rest.is_empty()
    };
    if text.split(',').all(one) {
        Ok(text.to_owned())
    } else {
        Err("must be nats://host:port or tls://host:port, several with commas".to_owned())
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, as in 127.0.0.1:8080 or [::1]:8080".to_owned())
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for all values")]
fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}
