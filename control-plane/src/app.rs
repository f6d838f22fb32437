//! The composition root: wires everything, binds, and says where.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atm_telemetry::{Tracing, TracingError, TracingSettings};
use rustls::ServerConfig;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::api_keys::ApiKeys;
use crate::assertions::AssertionGrants;
use crate::authentication::Authenticator;
use crate::authentication::certificate::Authorities;
use crate::authentication::key_sets::{KeySetSettings, KeySets};
use crate::clock::IssueClock;
use crate::config::{Config, OAuthConfig, RegistrationConfig, Secrets, TlsFiles};
use crate::events::Events;
use crate::feed::{Feed, FeedError, FeedHandle, FeedSettings};
use crate::http::{self, Services, admin, oauth};
use crate::introspection::Introspection;
use crate::issuance::{Issuance, IssuanceSettings};
use crate::issuers::Issuers;
use crate::issuers::cache::RefreshIntervals;
use crate::keys::{KeySettings, Keys, KeysError};
use crate::lifecycle::Lifecycle;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::policies::Policies;
use crate::registration::{Registration, RegistrationSettings};
use crate::registry::Registry;
use crate::revocation::Revocations;
use crate::secret::{RootKey, SecretError, SecretHasher, sha256};
use crate::sessions::Sessions;
use crate::store::{Store, StoreError, StoreSettings};
use crate::tls::{Certificate, TlsError};

/// The realm at the server's root issuer.
const DEFAULT_REALM: &str = "default";

/// Why the control plane does not start. Each message is one line that says what and where.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or is none of this machine's.
    #[error("{key}: cannot listen on {address}: {source}; free the port or configure another one")]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// As configured.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The bound addresses cannot be told.
    #[error("listen.addressFile: {} cannot be written: {source}; check the directory", path.display())]
    AddressFile {
        /// As configured.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The authorities of clients' certificates cannot be used.
    #[error("{key}: {} {problem}", path.display())]
    ClientAuthorities {
        /// The configuration key.
        key: &'static str,
        /// As configured.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A certificate or key cannot be served.
    #[error("{key}: {source}")]
    Tls {
        /// The configuration key.
        key: &'static str,
        /// What is wrong.
        source: TlsError,
    },
    /// The store does not open.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The feed does not start.
    #[error("nats: {0}")]
    Feed(#[from] FeedError),
    /// The signing keys do not open: mostly another wrapping key than the one they were stored under.
    #[error("keys: {0}")]
    Keys(#[from] KeysError),
    /// Derived keys cannot be made.
    #[error("keys: {0}")]
    Secret(#[from] SecretError),
    /// Traces cannot be exported.
    #[error(transparent)]
    Tracing(#[from] TracingError),
    /// A metric is defined twice.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Where the control plane listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// OAuth endpoints.
    pub oauth: SocketAddr,
    /// Admin API, health and metrics.
    pub admin: SocketAddr,
}

/// The running control plane.
#[derive(Debug)]
pub struct App {
    bound: Bound,
    lifecycle: Lifecycle,
    store: Store,
}

/// A listener that is bound, with its certificate.
struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
}

impl App {
    /// Starts everything. On return both listeners answer; NATS may still be away.
    pub async fn start(config: Config, secrets: Secrets) -> Result<Self, StartError> {
        let lifecycle = Lifecycle::default();
        let starting = lifecycle.readiness().block("start");
        // Bound first: a port that is taken must not cost a key or an epoch.
        let ask = config.oauth.client_certificates;
        let oauth_listener =
            listen(&lifecycle, "listen.oauth", config.listen.oauth, config.listen.oauth_tls.clone(), ask)
                .await?;
        let admin_listener =
            listen(&lifecycle, "listen.admin", config.listen.admin, config.listen.admin_tls.clone(), false)
                .await?;
        let bound = Bound { oauth: oauth_listener.address, admin: admin_listener.address };
        let address_file = config.listen.address_file.clone();

        let mut settings = config.store.settings.clone();
        if let StoreSettings::Postgres(postgres) = &mut settings {
            postgres.password.clone_from(&secrets.store_password);
        }
        let store = Store::open(&settings).await?;
        let services = Arc::new(assemble(config, secrets, &store, &lifecycle).await?);
        serve(&lifecycle, "oauth listener", oauth_listener, oauth::router(Arc::clone(&services)));
        serve(&lifecycle, "admin listener", admin_listener, admin::router(services));
        if let Some(path) = address_file {
            write_addresses(&path, bound).map_err(|source| StartError::AddressFile { path, source })?;
        }
        drop(starting);
        tracing::info!(oauth = %bound.oauth, admin = %bound.admin, "listening");
        Ok(Self { bound, lifecycle, store })
    }

    /// The addresses, with the ports that were taken for port 0.
    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// Returns when a part of it has ended unasked; nothing but [`Self::drain`] is of use then.
    pub async fn failed(&self) {
        self.lifecycle.failed().await;
    }

    /// Takes no more requests, lets those under way end within a bound, and closes the store. True: all of them ended.
    pub async fn drain(self) -> bool {
        let drained = self.lifecycle.drain().await;
        self.store.close().await;
        drained
    }
}

/// Wires what the interfaces work with, and starts the tasks behind it.
async fn assemble(
    config: Config,
    secrets: Secrets,
    store: &Store,
    lifecycle: &Lifecycle,
) -> Result<Services, StartError> {
    let Secrets { root_key, feed_signer, admin_token, registration_token, .. } = secrets;
    let clock = Arc::new(IssueClock::start(store.clone()).await?);
    let follow = store.clone().follow_versions();
    let ends = lifecycle.background_ends();
    lifecycle.spawn_background("store versions", async move {
        ends.run_until_cancelled(follow).await;
    });
    let metrics = Metrics::new()?;
    let settings = FeedSettings {
        realm_group: config.realm_group.clone(),
        nats_url: config.nats.url.clone(),
        nats_access: config.nats.access.clone(),
        linger: config.feed.linger,
        heartbeat: config.feed.heartbeat,
    };
    let (feed, tasks) =
        Feed::start(store.clone(), Arc::clone(&clock), feed_signer, settings, lifecycle.background_ends())
            .await?;
    lifecycle.spawn_background("feed", watch_over(tasks, lifecycle.background_ends()));
    let keys = start_keys(
        store,
        &feed,
        lifecycle,
        &root_key,
        KeySettings {
            issuer: config.issuer.clone(),
            realm: DEFAULT_REALM.to_owned(),
            algorithm: config.algorithm,
            max_token_lifetime: config.max_token_lifetime,
        },
    )
    .await?;
    let ground = Ground { store: store.clone(), clock, feed, keys, metrics };
    let admin_token_hash = sha256(admin_token.as_bytes());
    wire(ground, config, &root_key, admin_token_hash, registration_token, lifecycle)
}

/// What everything else stands on.
struct Ground {
    store: Store,
    clock: Arc<IssueClock>,
    feed: FeedHandle,
    keys: Keys,
    metrics: Metrics,
}

/// Wires the rest of what the interfaces work with.
fn wire(
    ground: Ground,
    config: Config,
    root_key: &RootKey,
    admin_token_hash: [u8; 32],
    registration_token: Option<Zeroizing<String>>,
    lifecycle: &Lifecycle,
) -> Result<Services, StartError> {
    let Ground { store, clock, feed, keys, metrics } = ground;
    let revocations =
        Revocations::new(store.clone(), feed.clone(), Arc::clone(&clock), keys.clone(), &config.issuer);
    let hasher = root_key.hasher()?;
    let registry =
        Registry::new(store.clone(), Arc::clone(&clock), hasher.clone(), revocations.clone(), DEFAULT_REALM);
    let api_keys = ApiKeys::new(
        store.clone(),
        Arc::clone(&clock),
        hasher.clone(),
        feed.clone(),
        revocations.clone(),
        &config.issuer,
    );
    let introspection = Introspection::new(
        store.clone(),
        Arc::clone(&clock),
        hasher.clone(),
        keys.clone(),
        revocations.clone(),
        api_keys.clone(),
    );
    let issuers = start_issuers(&store, &feed, &clock, &config.issuer, lifecycle);
    let tracing = start_tracing(config.tracing.as_ref(), lifecycle)?;
    let answering = answer_until(feed.clone(), introspection.clone(), tracing, lifecycle.background_ends());
    lifecycle.spawn_background("introspection", answering);
    let issuance = Issuance::new(
        keys.clone(),
        store.clone(),
        hasher.clone(),
        IssuanceSettings {
            issuer: config.issuer.clone(),
            realm: DEFAULT_REALM.to_owned(),
            lifetime: config.token_lifetime,
            max_lifetime: config.max_token_lifetime,
        },
    );
    let events = Events::default();
    let sessions = Sessions::new(
        store.clone(),
        Arc::clone(&clock),
        hasher.clone(),
        registry.clone(),
        revocations.clone(),
        issuance.clone(),
        events.clone(),
        config.oauth.sessions,
    );
    Ok(Services {
        origin: config.issuer_origin(),
        issuer_path: config.issuer_path().to_owned(),
        authenticator: Authenticator::new(
            store.clone(),
            Arc::clone(&clock),
            hasher.clone(),
            DEFAULT_REALM,
            &config.issuer,
            authorities(&config.oauth)?,
            key_sets(&config.oauth)?,
        ),
        registration: registration(&config.oauth, registration_token, &registry, &hasher, &config.issuer),
        assertions: AssertionGrants::new(store.clone(), Arc::clone(&clock), DEFAULT_REALM, &config.issuer),
        dpop_nonces: config.oauth.dpop_nonce.then(|| root_key.dpop_nonce_key()).transpose()?,
        takes_client_certificates: config.oauth.client_certificates || config.oauth.trusted_proxy.is_some(),
        trusted_proxy: config.oauth.trusted_proxy,
        limits: Limits::new(config.oauth.limits),
        issuer: config.issuer,
        admin_token_hash,
        policies: Policies::new(store.clone(), feed.clone(), Arc::clone(&clock)),
        store,
        clock,
        feed,
        keys,
        registry,
        sessions,
        api_keys,
        introspection,
        issuance,
        issuers,
        revocations,
        events,
        metrics,
        readiness: lifecycle.readiness().clone(),
    })
}

/// How clients register themselves, where they may.
fn registration(
    config: &OAuthConfig,
    token: Option<Zeroizing<String>>,
    registry: &Registry,
    hasher: &SecretHasher,
    issuer: &str,
) -> Option<Registration> {
    let (registration, token) = config.registration.clone().zip(token)?;
    let RegistrationConfig { scopes, audiences, .. } = registration;
    let settings = RegistrationSettings { token, scopes, audiences };
    Some(Registration::new(registry.clone(), hasher.clone(), settings, issuer, DEFAULT_REALM))
}

/// The authorities of `tls_client_auth`.
fn authorities(config: &OAuthConfig) -> Result<Option<Authorities>, StartError> {
    let Some(path) = &config.client_ca_file else { return Ok(None) };
    let key = "listen.clientCaFile";
    let refuse = |problem: String| StartError::ClientAuthorities { key, path: path.clone(), problem };
    let pem = std::fs::read(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    Authorities::from_pem(&pem).map(Some).map_err(|error| refuse(error.to_string()))
}

/// Where the keys of `private_key_jwt` are fetched from.
fn key_sets(config: &OAuthConfig) -> Result<KeySets, StartError> {
    let allow_private_addresses = config.private_client_keys;
    let Some(path) = &config.client_keys_ca_file else {
        return Ok(KeySets::new(KeySetSettings { allow_private_addresses, ca_certificate: None }));
    };
    let key = "clientKeys.caFile";
    let refuse = |problem: String| StartError::ClientAuthorities { key, path: path.clone(), problem };
    let pem = std::fs::read_to_string(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    Authorities::from_pem(pem.as_bytes()).map_err(|error| refuse(error.to_string()))?;
    Ok(KeySets::new(KeySetSettings { allow_private_addresses, ca_certificate: Some(pem) }))
}

fn start_issuers(
    store: &Store,
    feed: &FeedHandle,
    clock: &Arc<IssueClock>,
    own: &str,
    lifecycle: &Lifecycle,
) -> Issuers {
    let intervals = RefreshIntervals::default();
    let issuers = Issuers::new(store.clone(), feed.clone(), Arc::clone(clock), own, intervals);
    lifecycle.spawn_background("trusted issuers", issuers.clone().run(lifecycle.background_ends()));
    issuers
}

/// Spans go to the configured collector, if there is one.
fn start_tracing(
    settings: Option<&TracingSettings>,
    lifecycle: &Lifecycle,
) -> Result<Option<Tracing>, StartError> {
    let Some(settings) = settings else { return Ok(None) };
    let instance = std::process::id().to_string();
    let (tracing, exporting) = Tracing::start(
        settings,
        "atm-control-plane",
        &instance,
        env!("CARGO_PKG_VERSION"),
        lifecycle.background_ends(),
    )?;
    lifecycle.spawn_background("traces", exporting);
    Ok(Some(tracing))
}

async fn answer_until(
    feed: FeedHandle,
    introspection: Introspection,
    tracing: Option<Tracing>,
    shutdown: CancellationToken,
) {
    shutdown.run_until_cancelled(feed.answer_introspection(introspection, tracing)).await;
}

async fn start_keys(
    store: &Store,
    feed: &FeedHandle,
    lifecycle: &Lifecycle,
    root_key: &RootKey,
    settings: KeySettings,
) -> Result<Keys, StartError> {
    let keys = Keys::load_or_create(store.clone(), feed.clone(), root_key.wrapper()?, settings).await?;
    lifecycle.spawn_background("key rotation", keys.clone().run(lifecycle.background_ends()));
    Ok(keys)
}

/// Ends when all of `tasks` have, or as soon as one of them has ended unasked.
async fn watch_over(mut tasks: JoinSet<()>, shutdown: CancellationToken) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = &ended {
            tracing::error!(%error, "a task of the feed has failed");
        }
        if !shutdown.is_cancelled() {
            return;
        }
    }
}

async fn listen(
    lifecycle: &Lifecycle,
    key: &'static str,
    address: SocketAddr,
    tls: Option<TlsFiles>,
    ask_clients: bool,
) -> Result<Listening, StartError> {
    let bind = |source| StartError::Bind { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let bound = listener.local_addr().map_err(bind)?;
    let tls = match tls {
        None => None,
        Some(files) => {
            let certificate = Certificate::load(files).map_err(|source| StartError::Tls { key, source })?;
            let config = certificate.server_config(ask_clients);
            lifecycle.spawn_background("certificate", certificate.follow(lifecycle.background_ends()));
            Some(config)
        }
    };
    Ok(Listening { listener, address: bound, tls })
}

fn serve(lifecycle: &Lifecycle, name: &'static str, listening: Listening, router: axum::Router) {
    let server = http::serve::serve(listening.listener, listening.tls, router, lifecycle.servers_end());
    lifecycle.spawn_server(name, server);
}

/// Written beside and renamed, so that nobody reads half of it.
fn write_addresses(path: &Path, bound: Bound) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec(&bound)?)?;
    std::fs::rename(&beside, path)
}
