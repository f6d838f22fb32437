//! How the feed is reached: a connection to NATS that is being made for as long as it takes, and where snapshots come from.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{Event, ServerAddr};
use atm_nats::NatsAccess;
use atm_proto::subject::{InvalidToken, Subjects};
use tokio::sync::mpsc;

use super::snapshot::{HttpSource, Source};
use super::trust::FeedTrust;

/// How the feed is reached and whom it believes.
#[derive(Debug, Clone)]
pub struct FeedSettings {
    /// The realms that share the log.
    pub realm_group: String,
    /// `nats://host:port`, or several with commas.
    pub nats_url: String,
    /// Who this sidecar is to NATS.
    pub nats_access: NatsAccess,
    /// The feed keys that are believed.
    pub trust: FeedTrust,
    /// This sidecar's name; part of its report subject.
    pub sidecar_id: String,
    /// How long a start waits for a heartbeat before the persisted state is taken as it is.
    pub startup_wait: Duration,
    /// Where snapshots are asked for before NATS is.
    pub snapshots: Option<SnapshotUrl>,
}

/// Snapshots over HTTP.
#[derive(Debug, Clone)]
pub struct SnapshotUrl {
    /// `<url>/manifest` and `<url>/segments/<sha256>`.
    pub url: String,
    /// PEM file of the certificates that vouch for that server; the system's when left out.
    pub ca_file: Option<PathBuf>,
}

/// Why the feed cannot be subscribed to at all. A NATS that is away is none of these: it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A name that cannot be part of a subject.
    #[error(transparent)]
    Name(#[from] InvalidToken),
    /// The file with the credentials, the password or the token cannot be used.
    #[error("nats: {0}; check the path of its credentials, password or token file, and the permissions")]
    Login(#[source] std::io::Error),
    /// The HTTP source of snapshots cannot be used.
    #[error("snapshots: {0}")]
    Snapshots(String),
    /// The URL cannot be used.
    #[error("nats.url: {url}: {problem}; give nats://host:port")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong.
        problem: String,
    },
}

/// A connection to NATS that is being made or made again for as long as it takes, and what happens to it.
#[derive(Debug)]
pub struct Connection {
    /// The client.
    pub client: async_nats::Client,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) subjects: Subjects,
    pub(super) source: Source,
}

fn http_source(settings: &SnapshotUrl) -> Result<HttpSource, FeedError> {
    let ca = settings.ca_file.as_ref().map(std::fs::read).transpose();
    let ca = ca.map_err(|error| FeedError::Snapshots(format!("caFile cannot be read: {error}")))?;
    HttpSource::new(&settings.url, ca.as_deref()).map_err(FeedError::Snapshots)
}

/// The servers of a URL, or of several with commas.
fn servers(urls: &str) -> std::io::Result<Vec<ServerAddr>> {
    urls.split(',').map(|url| url.trim().parse()).collect()
}

/// Begins to connect; returns at once.
pub async fn connect(settings: &FeedSettings) -> Result<Connection, FeedError> {
    let subjects = Subjects::new(&settings.realm_group)?;
    subjects.fleet(&settings.sidecar_id)?;
    // An event that finds the queue full is lost; whether there is a connection, the tick asks for itself.
    let (sender, events) = mpsc::channel(16);
    let options = settings
        .nats_access
        .options()
        .map_err(FeedError::Login)?
        .name(format!("atm-sidecar {}", settings.sidecar_id))
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| Duration::from_millis((50 << attempts.min(5)).min(1_000)))
        .ping_interval(Duration::from_secs(5))
        // Of its own, so that permissions keep a sidecar from hearing what another one is answered.
        .custom_inbox_prefix(format!("_INBOX.{}", settings.sidecar_id))
        .event_callback(move |event| {
            let sender = sender.clone();
            async move {
                let _ = sender.try_send(event);
            }
        });
    let unusable = |problem: String| FeedError::Url { url: settings.nats_url.clone(), problem };
    let servers = servers(&settings.nats_url).map_err(|error| unusable(error.to_string()))?;
    let client = options.connect(servers).await.map_err(|error| unusable(error.to_string()))?;
    let http = settings.snapshots.as_ref().map(http_source).transpose()?;
    let source = Source { client: client.clone(), subjects: subjects.clone(), http };
    Ok(Connection { client, events, subjects, source })
}
