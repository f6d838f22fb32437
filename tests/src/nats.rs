//! A real nats-server with JetStream.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::process::Process;
use crate::{programs, wait};

/// A nats-server on a free port, its store in a directory that lives as long as this value.
#[derive(Debug)]
pub struct NatsServer {
    process: Option<Process>,
    directory: TempDir,
    port: u16,
}

impl NatsServer {
    /// Starts it and waits until a client can connect.
    pub async fn start() -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let mut server = Self { process: None, directory, port: 0 };
        server.spawn().await;
        server
    }

    /// The URL for clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same port with the same store.
    pub async fn restart(&mut self) {
        self.kill();
        self.spawn().await;
    }

    async fn spawn(&mut self) {
        let root = self.directory.path();
        let store = root.join("jetstream").display().to_string();
        let ports = root.join("ports");
        fs::create_dir_all(&ports).expect("ports directory");
        // Port -1: the server takes a free one and writes it down.
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let ports_argument = ports.display().to_string();
        let arguments =
            ["-a", "127.0.0.1", "-p", &port, "-js", "-sd", &store, "--ports_file_dir", &ports_argument];
        self.process = Some(Process::start(
            "nats-server",
            &programs::tool("nats-server"),
            &arguments,
            &root.join("nats.log"),
        ));
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
