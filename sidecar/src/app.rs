//! The composition root: opens, binds, wires, and returns the bound addresses.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use atm_core::binding::NonceKey;
use atm_proto::subject::Subjects;
use prometheus::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;

use crate::admin::{self, Admin};
use crate::config::{Config, Listen, OriginalRequest};
use crate::decision_log::{self, DecisionLogSettings};
use crate::ext_authz::{self, Judge, JudgeParts, grpc};
use crate::feed::{self, FeedSettings};
use crate::introspection::{IntrospectionSettings, Introspector};
use crate::lifecycle::DRAIN;
use crate::memory::{Limits, Memory};
use crate::metrics::{DecisionMetrics, StateCollector};
use crate::report;
use crate::state::{self, StateReader};
use crate::store::{self, Store, StoreError};

/// Why the sidecar does not start: one line that says what and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The feed cannot be subscribed to.
    #[error(transparent)]
    Feed(#[from] feed::FeedError),
    /// An address or a socket cannot be had.
    #[error("{key}: cannot listen on {address}: {source}; {advice}")]
    Listen {
        /// The configuration's key.
        key: &'static str,
        /// What was to be bound.
        address: String,
        /// What the system says.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// A thread, a runtime or a file could not be made.
    #[error("{0}")]
    System(String),
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// What is bound.
    pub bound: Bound,
    /// What it decides from.
    pub reader: StateReader,
    stop: CancellationToken,
    tasks: tokio::task::JoinSet<()>,
    threads: Vec<std::thread::JoinHandle<()>>,
    store_thread: std::thread::JoinHandle<()>,
}

/// The addresses that are really bound.
#[derive(Debug, Clone)]
pub struct Bound {
    /// ext_authz over gRPC on a unix socket.
    pub grpc_unix: Option<PathBuf>,
    /// ext_authz over gRPC.
    pub grpc: Option<SocketAddr>,
    /// ext_authz over HTTP.
    pub http: Option<SocketAddr>,
    /// Health, metrics, state.
    pub admin: SocketAddr,
}

/// Starts everything; returns when the listeners are bound. Serving does not wait for NATS: until there is a state,
/// checks are refused as not ready.
pub async fn start(config: Config, stop: CancellationToken) -> Result<Sidecar, StartError> {
    let listeners = Listeners::bind(&config.listen)?;
    let (store, loaded) = open_store(&config)?;
    let sidecar_id = match config.id.clone().or(loaded.sidecar_id) {
        Some(id) => id,
        None => new_sidecar_id(&store)?,
    };
    let (publisher, reader) = state::channel(loaded.state, loaded.last_fresh, feed::now());
    let settings = FeedSettings {
        realm_group: config.realm_group.clone(),
        nats_url: config.nats_url.clone(),
        nats_credentials: config.nats_credentials.clone(),
        trusted: config.feed_keys.clone(),
        sidecar_id: sidecar_id.clone(),
        startup_wait: config.startup_wait,
    };
    let limits = Limits {
        verified_bytes: config.verified_tokens,
        introspected_bytes: config.introspected,
        proofs: config.dpop.proofs,
    };
    let memory = Arc::new(Memory::new(limits, nonce_key(config.dpop.nonce_key_file.as_deref())?));
    let connection = feed::connect(&settings).await?;
    let client = connection.client.clone();
    let bound = listeners.bound().map_err(system)?;
    if let Some(path) = &config.listen.address_file {
        write_addresses(path, &bound).map_err(system)?;
    }
    // From here on RocksDB lives on another thread, and must be closed before the process ends: nothing that a
    // configuration can make fail comes after it.
    let (writer, store_thread) = store::start_writer(store, reader.clone()).map_err(system)?;
    let mut tasks = tokio::task::JoinSet::new();
    let reporting = report::run(
        connection.client.clone(),
        config.realm_group.clone(),
        sidecar_id.clone(),
        reader.clone(),
        writer.kept(),
        stop.clone(),
    );
    tasks.spawn(async move {
        if let Err(error) = reporting.await {
            tracing::error!(%error, "reports ended");
        }
    });
    tasks.spawn(feed::follow(connection, settings, publisher, writer, stop.clone()));

    let registry = Registry::new();
    let metrics = DecisionMetrics::register(&registry).map_err(system)?;
    let subjects = Subjects::new(&config.realm_group).map_err(feed::FeedError::from)?;
    let (log, logging) = decision_log::start(
        client.clone(),
        DecisionLogSettings {
            permit_sample: config.decision_log.permit_sample,
            stdout: config.decision_log.stdout,
            subject: config.decision_log.audit.then(|| subjects.audit()),
        },
        stop.clone(),
    );
    tasks.spawn(logging);
    let introspection = IntrospectionSettings {
        subject: subjects.introspect(),
        realm_group: config.realm_group.clone(),
        sidecar_id: sidecar_id.clone(),
        trusted: config.feed_keys.clone(),
        timeout: config.introspection.timeout,
        concurrency: config.introspection.concurrency,
    };
    let judge = Judge::new(JudgeParts {
        reader: reader.clone(),
        introspector: Introspector::new(client, introspection, Arc::clone(&memory), reader.clone()),
        memory,
        metrics,
        log,
        freshness: config.freshness,
        trust_forwarded_certificate: config.trust_forwarded_certificate,
    });
    registry.register(Box::new(StateCollector::new(reader.clone(), Arc::clone(&judge)))).map_err(system)?;
    let admin = Admin {
        sidecar_id,
        reader: reader.clone(),
        registry,
        freshness: config.freshness,
        judge: Arc::clone(&judge),
    };
    let threads =
        listeners.serve(&judge, admin, &reader, config.listen.workers, &stop, &mut tasks).map_err(system)?;
    Ok(Sidecar { bound, reader, stop, tasks, threads, store_thread })
}

impl Sidecar {
    /// Runs until the stop token is cancelled, then drains within a bound and saves what was applied.
    pub async fn run(mut self) {
        self.stop.cancelled().await;
        let threads = std::mem::take(&mut self.threads);
        let drained = async {
            while self.tasks.join_next().await.is_some() {}
            join(threads).await;
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::info!("connections were still open when the drain's time was over");
        }
        // The feed's task owns the writer: aborting what is left of the tasks lets the store's thread end, too.
        self.tasks.shutdown().await;
        if tokio::time::timeout(DRAIN, join(vec![self.store_thread])).await.is_err() {
            tracing::warn!(
                "the store did not take what was applied last; the feed brings it after the next start"
            );
        }
        if let Some(path) = &self.bound.grpc_unix {
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn join(threads: Vec<std::thread::JoinHandle<()>>) {
    let _ = tokio::task::spawn_blocking(move || {
        for thread in threads {
            let _ = thread.join();
        }
    })
    .await;
}

fn open_store(config: &Config) -> Result<(Store, store::Loaded), StoreError> {
    if config.rebuild_on_corruption {
        let (store, loaded, _) = Store::open_or_rebuild(&config.store_path, config.block_cache)?;
        return Ok((store, loaded));
    }
    let store = Store::open(&config.store_path, config.block_cache)?;
    let loaded = store.load()?;
    Ok((store, loaded))
}

/// The key for DPoP nonces: the configured one, or one that lives as long as this process.
fn nonce_key(file: Option<&Path>) -> Result<NonceKey, StartError> {
    let mut key = zeroize::Zeroizing::new([0; 32]);
    let Some(path) = file else {
        getrandom(&mut *key).map_err(system)?;
        return Ok(NonceKey::new(&key));
    };
    let refuse =
        |problem: &str| StartError::System(format!("dpop.nonceKeyFile: {}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| refuse(&error.to_string()))?;
    let text = zeroize::Zeroizing::new(text);
    let bytes = atm_core::base64url::decode(text.trim()).map(zeroize::Zeroizing::new);
    let bytes = bytes.ok().filter(|bytes| bytes.len() == key.len());
    let bytes =
        bytes.ok_or_else(|| refuse("is not 32 random bytes in base64url without padding (43 characters)"))?;
    key.copy_from_slice(&bytes);
    Ok(NonceKey::new(&key))
}

fn new_sidecar_id(store: &Store) -> Result<String, StartError> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes).map_err(system)?;
    let id = format!("sidecar-{}", hex::encode(bytes));
    store.save_sidecar_id(&id)?;
    Ok(id)
}

fn getrandom(bytes: &mut [u8]) -> io::Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}

fn system(error: impl std::fmt::Display) -> StartError {
    StartError::System(error.to_string())
}

struct Listeners {
    grpc_unix: Option<(PathBuf, grpc::Listener)>,
    grpc: Option<TcpListener>,
    http: Option<TcpListener>,
    original: OriginalRequest,
    admin: TcpListener,
}

impl Listeners {
    fn bind(listen: &Listen) -> Result<Self, StartError> {
        Ok(Self {
            admin: tcp("listen.admin", listen.admin)?,
            grpc: listen.grpc.map(|address| tcp("listen.grpc", address)).transpose()?,
            http: listen.http.map(|address| tcp("listen.http", address)).transpose()?,
            original: listen.original.clone(),
            grpc_unix: match &listen.grpc_unix {
                Some(path) => Some((path.clone(), grpc::Listener::Unix(unix("listen.grpcUnix", path)?))),
                None => None,
            },
        })
    }

    fn bound(&self) -> io::Result<Bound> {
        Ok(Bound {
            grpc_unix: self.grpc_unix.as_ref().map(|(path, _)| path.clone()),
            grpc: self.grpc.as_ref().map(TcpListener::local_addr).transpose()?,
            http: self.http.as_ref().map(TcpListener::local_addr).transpose()?,
            admin: self.admin.local_addr()?,
        })
    }

    fn serve(
        self,
        judge: &Arc<Judge>,
        admin: Admin,
        reader: &StateReader,
        workers: usize,
        stop: &CancellationToken,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> io::Result<Vec<std::thread::JoinHandle<()>>> {
        let (reporter, health) = tonic_health::server::health_reporter();
        tasks.spawn(report_health(reporter, reader.clone(), stop.clone()));
        tasks.spawn(http(self.admin, admin::router(admin), stop.clone())?);
        if let Some(listener) = self.http {
            tasks.spawn(http(
                listener,
                ext_authz::http::router(Arc::clone(judge), self.original),
                stop.clone(),
            )?);
        }
        let mut threads = Vec::new();
        for listener in
            self.grpc_unix.map(|(_, listener)| listener).into_iter().chain(self.grpc.map(grpc::Listener::Tcp))
        {
            threads.extend(grpc::serve(&listener, judge, &health, workers, stop)?);
        }
        Ok(threads)
    }
}

fn tcp(key: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source: io::Error| StartError::Listen {
        key,
        address: address.to_string(),
        source,
        advice: "free the port or configure another one",
    })
}

/// Binds a unix socket. One that a dead process left behind is removed; one that answers is somebody's.
fn unix(key: &'static str, path: &Path) -> Result<UnixListener, StartError> {
    let refuse = |source: io::Error, advice| StartError::Listen {
        key,
        address: path.display().to_string(),
        source,
        advice,
    };
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(refuse(source, "what is there is no socket; remove it or configure another path"));
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)
                    .map_err(|source| refuse(source, "remove the socket that was left behind"))?;
            }
            Ok(_) => {
                let source = io::Error::from(io::ErrorKind::AddrInUse);
                return Err(refuse(
                    source,
                    "another process answers there; stop it or configure another path",
                ));
            }
            Err(source) => {
                return Err(refuse(source, "make the socket accessible to this user, or remove it"));
            }
        }
    }
    let listener = UnixListener::bind(path)
        .map_err(|source| refuse(source, "make the directory and let this user write to it"))?;
    listener.set_nonblocking(true).map_err(|source| refuse(source, "try again"))?;
    Ok(listener)
}

fn http(
    listener: TcpListener,
    router: axum::Router,
    stop: CancellationToken,
) -> io::Result<impl Future<Output = ()>> {
    use axum::serve::ListenerExt;
    let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    Ok(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "a listener ended");
        }
    })
}

/// Keeps grpc.health in step with readiness.
async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    reader: StateReader,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    let mut told = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let ready = reader.ready();
        if told != Some(ready) {
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            for service in ["", "envoy.service.auth.v3.Authorization"] {
                reporter.set_service_status(service, status).await;
            }
            let connected = reader.status().connected.load(Ordering::Relaxed);
            tracing::info!(ready, revision = reader.load().position.revision, connected, "readiness");
            told = Some(ready);
        }
    }
}

/// Written beside and renamed: whoever waits for the file reads it whole.
fn write_addresses(path: &Path, bound: &Bound) -> io::Result<()> {
    let addresses = json!({
        "grpcUnix": bound.grpc_unix,
        "grpc": bound.grpc.map(|address| address.to_string()),
        "http": bound.http.map(|address| address.to_string()),
        "admin": bound.admin.to_string(),
    });
    let part = path.with_extension("part");
    std::fs::write(&part, addresses.to_string())?;
    std::fs::rename(&part, path)
}
