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

use crate::api_keys::ApiKeys;
use crate::clock::IssueClock;
use crate::config::{Config, Secrets, TlsFiles};
use crate::feed::{Feed, FeedError, FeedHandle, FeedSettings};
use crate::http::{self, Services, admin, oauth};
use crate::issuance::{Issuance, IssuanceSettings};
use crate::issuers::Issuers;
use crate::issuers::cache::RefreshIntervals;
use crate::keys::{KeySettings, Keys, KeysError};
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::policies::Policies;
use crate::registry::Registry;
use crate::revocation::Revocations;
use crate::secret::{SecretError, sha256};
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
        let oauth_listener =
            listen(&lifecycle, "listen.oauth", config.listen.oauth, config.listen.oauth_tls.clone()).await?;
        let admin_listener =
            listen(&lifecycle, "listen.admin", config.listen.admin, config.listen.admin_tls.clone()).await?;
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
    let clock = Arc::new(IssueClock::start(store.clone()).await?);
    let follow = store.clone().follow_versions();
    let ends = lifecycle.background_ends();
    lifecycle.spawn_background("store versions", async move {
        ends.run_until_cancelled(follow).await;
    });
    let metrics = Metrics::new()?;
    let issuer_path = config.issuer_path().to_owned();
    let settings = FeedSettings {
        realm_group: config.realm_group,
        nats_url: config.nats.url,
        nats_credentials: config.nats.credentials,
        linger: config.feed.linger,
        heartbeat: config.feed.heartbeat,
    };
    let (feed, tasks) = Feed::start(
        store.clone(),
        Arc::clone(&clock),
        secrets.feed_signer,
        settings,
        lifecycle.background_ends(),
    )
    .await?;
    lifecycle.spawn_background("feed", watch_over(tasks, lifecycle.background_ends()));
    let keys = start_keys(
        store,
        &feed,
        lifecycle,
        &secrets.root_key,
        KeySettings {
            issuer: config.issuer.clone(),
            realm: DEFAULT_REALM.to_owned(),
            algorithm: config.algorithm,
            max_token_lifetime: config.max_token_lifetime,
        },
    )
    .await?;
    let revocations =
        Revocations::new(store.clone(), feed.clone(), Arc::clone(&clock), keys.clone(), &config.issuer);
    let registry =
        Registry::new(store.clone(), Arc::clone(&clock), secrets.root_key.hasher()?, revocations.clone());
    let api_keys = ApiKeys::new(
        store.clone(),
        Arc::clone(&clock),
        secrets.root_key.hasher()?,
        feed.clone(),
        revocations.clone(),
        &config.issuer,
    );
    let issuers = Issuers::new(
        store.clone(),
        feed.clone(),
        Arc::clone(&clock),
        &config.issuer,
        RefreshIntervals::default(),
    );
    lifecycle.spawn_background("trusted issuers", issuers.clone().run(lifecycle.background_ends()));
    let tracing = start_tracing(config.tracing.as_ref(), lifecycle)?;
    let answering = answer_until(feed.clone(), api_keys.clone(), tracing, lifecycle.background_ends());
    lifecycle.spawn_background("introspection", answering);
    let issuance = Issuance::new(
        keys.clone(),
        IssuanceSettings {
            issuer: config.issuer.clone(),
            lifetime: config.token_lifetime,
            max_lifetime: config.max_token_lifetime,
        },
    );
    Ok(Services {
        issuer: config.issuer,
        issuer_path,
        admin_token_hash: sha256(secrets.admin_token.as_bytes()),
        policies: Policies::new(store.clone(), feed.clone(), Arc::clone(&clock)),
        store: store.clone(),
        clock,
        feed,
        keys,
        registry,
        api_keys,
        issuance,
        issuers,
        revocations,
        metrics,
        readiness: lifecycle.readiness().clone(),
    })
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
    api_keys: ApiKeys,
    tracing: Option<Tracing>,
    shutdown: CancellationToken,
) {
    shutdown.run_until_cancelled(feed.answer_introspection(api_keys, tracing)).await;
}

async fn start_keys(
    store: &Store,
    feed: &FeedHandle,
    lifecycle: &Lifecycle,
    root_key: &crate::secret::RootKey,
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
) -> Result<Listening, StartError> {
    let bind = |source| StartError::Bind { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let bound = listener.local_addr().map_err(bind)?;
    let tls = match tls {
        None => None,
        Some(files) => {
            let certificate = Certificate::load(files).map_err(|source| StartError::Tls { key, source })?;
            let config = certificate.server_config();
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
