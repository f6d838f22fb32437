//! A control plane as a replica of one store: configured like its peers, killed and started again.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{self, Answer};
use crate::process::Process;
use crate::token::base64url;
use crate::{programs, wait};

/// The bearer token of every replica's admin API.
pub const ADMIN_TOKEN: &str = "an-admin-token-of-the-tests-0123456789abcdef";
/// The issuer of every replica.
pub const ISSUER: &str = "http://127.0.0.1:8080";

/// A control plane whose configuration outlives its process.
#[derive(Debug)]
pub struct ControlPlane {
    process: Option<Process>,
    directory: TempDir,
    bound: Value,
}

impl ControlPlane {
    /// Writes a configuration over `store` (the section of that name); does not start it. All of them have the same keys.
    pub fn configure(store: &Value, nats_url: &str) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let config = config(directory.path(), store, nats_url);
        std::fs::write(directory.path().join("control-plane.yaml"), config.to_string()).expect("written");
        Self { process: None, directory, bound: Value::Null }
    }

    /// Starts it and waits until it listens.
    pub async fn start(&mut self) {
        let bound = self.directory.path().join("bound.json");
        let _ = std::fs::remove_file(&bound); // of the start before
        let config = self.directory.path().join("control-plane.yaml");
        self.process = Some(Process::start(
            "atm-control-plane",
            &programs::ours("atm-control-plane"),
            &["--config", config.to_str().expect("UTF-8 path")],
            &self.directory.path().join("control-plane.log"),
        ));
        self.bound = wait::until_some("the control plane to listen", wait::USUAL, || {
            self.process.as_mut().expect("just started").assert_running();
            serde_json::from_str(&std::fs::read_to_string(&bound).ok()?).ok()
        })
        .await;
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The address of the OAuth endpoints.
    pub fn oauth(&self) -> &str {
        self.bound["oauth"].as_str().expect("it listens")
    }

    /// The address of the admin API.
    pub fn admin(&self) -> &str {
        self.bound["admin"].as_str().expect("it listens")
    }

    /// A client of this start's admin API that tasks can own.
    pub fn client(&self) -> AdminClient {
        AdminClient { address: self.admin().to_owned() }
    }

    /// Where its segments of snapshots are.
    pub fn segments(&self) -> std::path::PathBuf {
        self.directory.path().join("snapshots")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("control-plane.log")).unwrap_or_default()
    }
}

/// Calls one control plane's admin API.
#[derive(Debug, Clone)]
pub struct AdminClient {
    address: String,
}

impl AdminClient {
    /// A request with a JSON body, or without one where it is null; an error where no answer came.
    pub async fn call(&self, method: &str, path: &str, body: &Value) -> std::io::Result<Answer> {
        http::json(method, &self.address, path, ADMIN_TOKEN, body).await
    }
}

/// JSON is YAML.
fn config(directory: &Path, store: &Value, nats_url: &str) -> Value {
    let path = |name: &str| directory.join(name).display().to_string();
    for (name, content) in [
        ("wrapping.key", base64url([7; 32])),
        ("feed.key", base64url([8; 32])),
        ("admin.token", ADMIN_TOKEN.to_owned()),
    ] {
        std::fs::write(path(name), content).expect("written");
    }
    json!({
        "issuer": ISSUER,
        "listen": { "oauth": "127.0.0.1:0", "admin": "127.0.0.1:0", "addressFile": path("bound.json") },
        "store": store,
        "nats": { "url": nats_url },
        "keys": { "wrappingKeyFile": path("wrapping.key") },
        "admin": { "tokenFile": path("admin.token") },
        "feed": { "signingKeyFile": path("feed.key"), "snapshots": { "directory": path("snapshots"), "http": true } },
        "log": { "format": "text", "level": "warn" },
    })
}
