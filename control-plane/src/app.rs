//! The composition root: wires everything, binds, and says where.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atm_proto::signature::FeedSigner;
use atm_telemetry::{Tracing, TracingError, TracingSettings};
use nkeys::KeyPair;
use rustls::ServerConfig;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::anomalies::Anomalies;
use crate::audit::sinks::{FileSettings, FileSink, StreamSettings, StreamSink};
use crate::audit::{Audit, AuditError, AuditSettings};
use crate::authentication::certificate::Authorities;
use crate::authentication::key_sets::{KeySetSettings, KeySets};
use crate::clock::IssueClock;
use crate::config::{AuditConfig, AuditFiles, Config, OAuthConfig, Secrets, TlsFiles};
use crate::events::Events;
use crate::feed::{Feed, FeedError, FeedHandle, FeedSettings};
use crate::http::{self, Services, admin, oauth};
use crate::introspection::Introspection;
use crate::issuers::Issuers;
use crate::issuers::cache::RefreshIntervals;
use crate::keys::KeysError;
use crate::keys::root::{RootError, WrappingKeys};
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::nats_login::{LoginSettings, NatsLogins};
use crate::realms::{Realms, Serve};
use crate::retention;
use crate::secret::SecretError;
use crate::store::{Store, StoreError, StoreSettings};
use crate::tls::{Certificate, TlsError};

mod tenant;

use tenant::{Plant, Tenant};

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
    /// The audit chain does not open.
    #[error("audit: {0}")]
    Audit(#[from] AuditError),
    /// The root key does not open: mostly another wrapping key than the one it was sealed by.
    #[error("keys: {0}")]
    Root(#[from] RootError),
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
    let Secrets {
        wrapping_key,
        previous_wrapping_key,
        feed_signer,
        audit_signer,
        admin_access,
        transmitters,
        registration_token,
        callout_signer,
        store_password: _,
    } = secrets;
    let clock = Arc::new(IssueClock::start(store.clone()).await?);
    let follow = store.clone().follow_versions();
    let ends = lifecycle.background_ends();
    lifecycle.spawn_background("store versions", async move {
        ends.run_until_cancelled(follow).await;
    });
    let wrapping_keys = WrappingKeys { current: wrapping_key, previous: previous_wrapping_key };
    // What hangs on the root key never sees the operator's key.
    let root_key = wrapping_keys.open(store).await?;
    let settings = FeedSettings {
        realm_group: config.realm_group.clone(),
        nats_url: config.nats.url.clone(),
        nats_access: config.nats.access.clone(),
        linger: config.feed.linger,
        heartbeat: config.feed.heartbeat,
        replicas: config.nats.replicas,
        snapshots: config.feed.snapshots.clone(),
    };
    let audit = start_audit(store, lifecycle, &config.audit, audit_signer).await?;
    let following = admin_access.clone().follow(lifecycle.background_ends());
    lifecycle.spawn_background("admin credentials", following);
    let feed = start_feed(store, &clock, feed_signer, settings, lifecycle).await?;
    let anomalies = follow_audit(&audit, &feed, lifecycle, config.audit.clone());
    let plant = Plant {
        issuers: start_issuers(store, &feed, &clock, &config.issuer, lifecycle),
        store: store.clone(),
        clock,
        feed,
        hasher: root_key.hasher()?,
        custody: config.keys.custody(root_key.wrapper()?).map_err(KeysError::from)?,
        events: Events::new(audit.clone(), anomalies.clone()),
        audit,
        anomalies,
        admin_access,
        transmitters,
        wrapping_keys: Arc::new(wrapping_keys),
        metrics: Arc::new(Metrics::new()?),
        readiness: lifecycle.readiness().clone(),
        registration_token,
        dpop_nonces: config.oauth.dpop_nonce.then(|| root_key.dpop_nonce_key().map(Arc::new)).transpose()?,
        authorities: authorities(&config.oauth)?,
        key_sets: key_sets(&config.oauth)?,
        config: Arc::new(config),
        ends: lifecycle.background_ends(),
    };
    if let Some((callout, signer)) = plant.config.nats.auth_callout.as_ref().zip(callout_signer) {
        start_logins(&plant, callout.settings.clone(), signer, lifecycle);
    }
    serve_default(plant, lifecycle).await
}

/// Sidecars are let in to NATS by the tokens of their platform.
fn start_logins(plant: &Plant, settings: LoginSettings, signer: KeyPair, lifecycle: &Lifecycle) {
    let Plant { store, clock, audit, metrics, .. } = plant.clone();
    let logins = NatsLogins::new(settings, signer, store, clock, audit, metrics);
    let (ends, feed) = (lifecycle.background_ends(), plant.feed.clone());
    lifecycle.spawn_background("nats logins", async move {
        ends.run_until_cancelled(logins.answer(feed)).await;
    });
}

/// The default realm, from which the others are reached, and the tasks behind all of them.
async fn serve_default(plant: Plant, lifecycle: &Lifecycle) -> Result<Services, StartError> {
    let tenant = Tenant::default_of(&plant.config);
    let keys = plant.keys(&tenant).await?;
    lifecycle.spawn_background("key rotation", keys.clone().run(lifecycle.background_ends()));
    let serve: Arc<Serve> = {
        let plant = plant.clone();
        Arc::new(move |realm| Box::pin(plant.clone().serve(realm)))
    };
    let retention = retention::run(
        plant.store.clone(),
        Arc::clone(&plant.clock),
        plant.config.retention,
        lifecycle.background_ends(),
    );
    lifecycle.spawn_background("retention", retention);
    let realms = Realms::new(plant.store.clone(), Arc::clone(&plant.clock), serve);
    lifecycle.spawn_background("realms", realms.clone().run(lifecycle.background_ends()));
    let services = plant.services(&tenant, keys, Some(realms));
    let tracing = start_tracing(plant.config.tracing.as_ref(), lifecycle)?;
    // Of the default realm: it is the one that schedules.
    let scheduled = services.revocations.clone().run(lifecycle.background_ends());
    lifecycle.spawn_background("scheduled revocations", scheduled);
    let introspection = services.introspection.clone();
    let answering = answer_until(plant.feed, introspection, tracing, lifecycle.background_ends());
    lifecycle.spawn_background("introspection", answering);
    Ok(services)
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

/// The chain ends after everything that records.
async fn start_audit(
    store: &Store,
    lifecycle: &Lifecycle,
    config: &AuditConfig,
    signer: FeedSigner,
) -> Result<Audit, AuditError> {
    let settings = AuditSettings {
        instance: config.instance.clone(),
        checkpoint_every: config.checkpoint_every,
        retention: config.retention,
    };
    let (audit, writer) = Audit::start(store.clone(), settings, signer, lifecycle.background_ends()).await?;
    lifecycle.spawn_background("audit chain", writer);
    lifecycle.spawn_background("audit retention", audit.clone().retain(lifecycle.background_ends()));
    Ok(audit)
}

async fn start_feed(
    store: &Store,
    clock: &Arc<IssueClock>,
    signer: FeedSigner,
    settings: FeedSettings,
    lifecycle: &Lifecycle,
) -> Result<FeedHandle, FeedError> {
    let (store, clock, ends) = (store.clone(), Arc::clone(clock), lifecycle.background_ends());
    let (feed, tasks) = Feed::start(store, clock, signer, settings, ends).await?;
    lifecycle.spawn_background("feed", watch_over(tasks, lifecycle.background_ends()));
    Ok(feed)
}

/// The audit chain's stream and files, and what is found in what sidecars record.
fn follow_audit(audit: &Audit, feed: &FeedHandle, lifecycle: &Lifecycle, config: AuditConfig) -> Anomalies {
    if let Some((max_bytes, max_age)) = config.stream {
        let settings = StreamSettings { max_bytes, max_age };
        let sink = StreamSink::new(audit.clone(), feed.client(), feed.subjects().clone(), settings);
        lifecycle.spawn_background("audit stream", sink.run(lifecycle.background_ends()));
    }
    if let Some(AuditFiles { directory, max_bytes, keep }) = config.files {
        let sink = FileSink::new(audit.clone(), FileSettings { directory, max_bytes, keep });
        lifecycle.spawn_background("audit files", sink.run(lifecycle.background_ends()));
    }
    let anomalies = Anomalies::new(audit.clone());
    let looking = anomalies.clone().run(feed.clone(), lifecycle.background_ends());
    lifecycle.spawn_background("anomalies", looking);
    anomalies
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
