//! Real nats-servers with JetStream: one, a cluster of three, or a hub with a leaf.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::Process;
use crate::{programs, wait};

/// A nats-server on a free port, its store in a directory that lives as long as this value.
#[derive(Debug)]
pub struct NatsServer {
    process: Option<Process>,
    directory: TempDir,
    port: u16,
    /// A configuration file's text; none: JetStream and nothing else.
    config: Option<String>,
}

impl NatsServer {
    /// Starts it and waits until a client can connect.
    pub async fn start() -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let mut server = Self { process: None, directory, port: 0, config: None };
        server.spawn().await;
        server
    }

    /// Starts it with the configuration that `config` makes of its port and directory. Does not wait for a client to be let in,
    /// only for the port.
    pub async fn start_configured(config: impl FnOnce(u16, &Path) -> String) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let port = free_port();
        let text = config(port, directory.path());
        let mut server = Self { process: None, directory, port, config: Some(text) };
        server.spawn().await;
        server
    }

    /// The URL for clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where JetStream keeps its streams.
    pub fn store(&self) -> PathBuf {
        self.directory.path().join("jetstream")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Deletes everything that JetStream kept, of a server that was killed.
    pub fn wipe(&self) {
        assert!(self.process.is_none(), "only a server that does not run is wiped");
        let _ = fs::remove_dir_all(self.store()); // there may be nothing yet
    }

    /// Starts it again on the same port with the same store.
    pub async fn restart(&mut self) {
        self.kill();
        self.spawn().await;
    }

    async fn spawn(&mut self) {
        let root = self.directory.path();
        let log = root.join("nats.log");
        if let Some(config) = &self.config {
            let file = root.join("nats.conf");
            fs::write(&file, config).expect("configuration is written");
            let arguments = ["-c", file.to_str().expect("UTF-8 path")];
            self.process =
                Some(Process::start("nats-server", &programs::tool("nats-server"), &arguments, &log));
            let port = self.port;
            wait::until("nats-server to listen", wait::USUAL, || {
                tokio::net::TcpStream::connect(("127.0.0.1", port))
            })
            .await;
            return;
        }
        let store = self.store().display().to_string();
        let ports = root.join("ports");
        fs::create_dir_all(&ports).expect("ports directory");
        // Port -1: the server takes a free one and writes it down.
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let ports_argument = ports.display().to_string();
        let arguments =
            ["-a", "127.0.0.1", "-p", &port, "-js", "-sd", &store, "--ports_file_dir", &ports_argument];
        self.process = Some(Process::start("nats-server", &programs::tool("nats-server"), &arguments, &log));
        if self.port == 0 {
            self.port = wait::until_some("nats-server's port", wait::USUAL, || read_port(&ports)).await;
        }
        let url = self.url();
        wait::until("nats-server to accept", wait::USUAL, || async_nats::connect(url.as_str())).await;
    }
}

fn read_port(ports: &Path) -> Option<u16> {
    let file = fs::read_dir(ports).ok()?.next()?.ok()?.path();
    let text = fs::read_to_string(file).ok()?;
    let listed: serde_json::Value = serde_json::from_str(&text).ok()?;
    listed["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}

/// A port that nobody has just now; for configurations that must name ports before a server runs.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// Three servers that keep streams together, each write on the disk before it is acknowledged. They do not tell clients of each
/// other, so that whoever is given a proxy stays behind it.
#[derive(Debug)]
pub struct NatsCluster {
    /// The servers.
    pub servers: Vec<NatsServer>,
}

impl NatsCluster {
    /// Starts all three and waits until JetStream has a leader.
    pub async fn start() -> Self {
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let mut servers = Vec::new();
        for (number, route) in routes.iter().enumerate() {
            let others: Vec<String> =
                routes.iter().map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).collect();
            let server = NatsServer::start_configured(|port, directory| {
                format!(
                    "server_name: n{number}\nlisten: \"127.0.0.1:{port}\"\n\
                     jetstream {{ store_dir: \"{}\", sync_interval: always }}\n\
                     cluster {{ name: atm, listen: \"127.0.0.1:{route}\", no_advertise: true, routes: [{}] }}\n",
                    directory.join("jetstream").display(),
                    others.join(", ")
                )
            })
            .await;
            servers.push(server);
        }
        let cluster = Self { servers };
        cluster.until_jetstream().await;
        cluster
    }

    /// The URLs of all servers, with commas.
    pub fn url(&self) -> String {
        self.servers.iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// Waits until JetStream answers.
    pub async fn until_jetstream(&self) {
        let url = self.url();
        wait::until("the cluster to elect a leader", wait::LONG, || async {
            let urls: Vec<&str> = url.split(',').collect();
            let client = async_nats::connect(urls).await.map_err(|error| error.to_string())?;
            let context = async_nats::jetstream::new(client);
            let account = tokio::time::timeout(Duration::from_secs(2), context.query_account()).await;
            account.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
        })
        .await;
    }
}
