//! The composition root: opens, binds, wires, and returns the bound addresses.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atm_core::binding::NonceKey;
use atm_proto::subject::Subjects;
use atm_telemetry::{Tracing, TracingError};
use prometheus::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::config::Config;
use crate::decision_log::{self, DecisionLogSettings};
use crate::ext_authz::{Judge, JudgeParts};
use crate::feed::{self, FeedSettings, FeedTrust};
use crate::introspection::{IntrospectionSettings, Introspector, Keeper, keeping};
use crate::lifecycle::DRAIN;
use crate::memory::{Limits, Memory};
use crate::metrics::{DecisionMetrics, StateCollector};
use crate::report;
use crate::state::{self, StateReader};
use crate::store::{self, Store, StoreError};

mod listeners;

use listeners::Listeners;

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
    /// Traces cannot be exported.
    #[error(transparent)]
    Tracing(#[from] TracingError),
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
    let limits = Limits {
        verified_bytes: config.verified_tokens,
        introspected_bytes: config.introspected,
        proofs: config.dpop.proofs,
    };
    let memory = Arc::new(Memory::new(limits, nonce_key(config.dpop.nonce_key_file.as_deref())?));
    let introspected = store.introspected();
    let restored = keeping::restore(&introspected, &loaded.state, &memory.introspected, feed::now());
    tracing::debug!(restored, "opaque credentials are known from before this start");
    let (publisher, reader) = state::channel(loaded.state, loaded.last_fresh, feed::now());
    let kept = config.store_path.with_extension("feedkeys");
    let trust = FeedTrust::open(&config.realm_group, config.feed_keys.clone(), Some(kept));
    reader
        .status()
        .fresh_for_ms
        .store(config.freshness.degraded_after_ms, std::sync::atomic::Ordering::Relaxed);
    let settings = FeedSettings {
        realm_group: config.realm_group.clone(),
        nats_url: config.nats_url.clone(),
        nats_access: config.nats_access.clone(),
        trust: trust.clone(),
        sidecar_id: sidecar_id.clone(),
        startup_wait: config.startup_wait,
        snapshots: config.snapshots.clone(),
    };
    let connection = feed::connect(&settings).await?;
    let client = connection.client.clone();
    let spans = match &config.tracing {
        None => None,
        Some(settings) => Some(Tracing::start(
            settings,
            "atm-sidecar",
            &sidecar_id,
            env!("CARGO_PKG_VERSION"),
            stop.clone(),
        )?),
    };
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

    let (keeper, keeping) = keeping::start(introspected, stop.clone());
    tasks.spawn(keeping);
    let tracing = spans.map(|(tracing, exporting)| {
        tasks.spawn(exporting);
        tracing
    });
    let registry = Registry::new();
    let parts = Checks { client, trust, sidecar_id: &sidecar_id, reader: &reader, memory, keeper, tracing };
    let (judge, logging) = judge(&config, parts, &registry, &stop)?;
    tasks.spawn(logging);
    let collector = StateCollector::new(reader.clone(), Arc::clone(&judge));
    registry.register(Box::new(collector)).map_err(system)?;
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

/// What a judge works with that is there already.
struct Checks<'a> {
    client: async_nats::Client,
    trust: FeedTrust,
    sidecar_id: &'a str,
    reader: &'a StateReader,
    memory: Arc<Memory>,
    keeper: Keeper,
    tracing: Option<Tracing>,
}

/// The judge of all listeners, and what writes its decision log.
fn judge(
    config: &Config,
    parts: Checks<'_>,
    registry: &Registry,
    stop: &CancellationToken,
) -> Result<(Arc<Judge>, impl Future<Output = ()> + use<>), StartError> {
    let Checks { client, trust, sidecar_id, reader, memory, keeper, tracing } = parts;
    let metrics = DecisionMetrics::register(registry).map_err(system)?;
    let subjects = Subjects::new(&config.realm_group).map_err(feed::FeedError::from)?;
    let (log, logging) = decision_log::start(
        client.clone(),
        DecisionLogSettings {
            sidecar: sidecar_id.to_owned(),
            permit_sample: config.decision_log.permit_sample,
            shadow_sample: config.decision_log.shadow_sample,
            stdout: config.decision_log.stdout,
            subject: config.decision_log.audit.then(|| subjects.audit()),
        },
        stop.clone(),
    );
    let introspection = IntrospectionSettings {
        subject: subjects.introspect(),
        realm_group: config.realm_group.clone(),
        sidecar_id: sidecar_id.to_owned(),
        trust,
        timeout: config.introspection.timeout,
        concurrency: config.introspection.concurrency,
    };
    let judge = Judge::new(JudgeParts {
        reader: reader.clone(),
        introspector: Introspector::new(
            client,
            introspection,
            Arc::clone(&memory),
            reader.clone(),
            Some(keeper),
        ),
        memory,
        metrics,
        log,
        tracing,
        freshness: config.freshness,
        trust_forwarded_certificate: config.trust_forwarded_certificate,
    });
    Ok((judge, logging))
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
