//! A control plane as an operator runs it: a store, keys and a configuration of its own, for one NATS.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::clock::WallClock;
use crate::http::{self, Answer};
use crate::island::Island;
use crate::process::{Environment, Process};
use crate::token::base64url;
use crate::{programs, wait};

const ISSUER: &str = "http://issuer.test";
/// The bearer token of its admin API.
pub const ADMIN_TOKEN: &str = "admin-token-of-the-tests";

/// A control plane whose store outlives its process.
#[derive(Debug)]
pub struct FeedAuthority {
    process: Option<Process>,
    directory: TempDir,
    bound: Value,
    environment: Environment,
    /// What its program is started behind.
    prefix: Vec<String>,
}

impl FeedAuthority {
    /// Writes secrets and a configuration for the NATS at `nats_url`, with `changes` laid over it; does not start it.
    pub fn configure(nats_url: &str, changes: &Value) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        for name in ["wrapping.key", "feed.key"] {
            let mut bytes = [0; 32];
            aws_lc_rs::rand::fill(&mut bytes).expect("randomness");
            std::fs::write(directory.path().join(name), base64url(bytes)).expect("secret is written");
        }
        std::fs::write(directory.path().join("admin.token"), ADMIN_TOKEN).expect("secret is written");
        let control_plane = Self {
            process: None,
            directory,
            bound: Value::Null,
            environment: Environment::new(),
            prefix: Vec::new(),
        };
        let mut config = control_plane.base(nats_url);
        merge(&mut config, changes);
        std::fs::write(control_plane.path("control-plane.yaml"), config.to_string())
            .expect("configuration is written");
        control_plane
    }

    fn base(&self, nats_url: &str) -> Value {
        let path = |name: &str| self.path(name).display().to_string();
        json!({
            "issuer": ISSUER,
            "realmGroup": "default",
            "listen": { "oauth": "127.0.0.1:0", "admin": "127.0.0.1:0", "addressFile": path("bound.json") },
            "store": { "path": path("atm.db") },
            "nats": { "url": nats_url },
            "keys": { "wrappingKeyFile": path("wrapping.key") },
            "admin": { "tokenFile": path("admin.token") },
            "feed": { "signingKeyFile": path("feed.key"), "heartbeatMs": 200 },
            "log": { "format": "json", "level": "info" },
        })
    }

    /// Configures it, starts it and waits until it is connected to NATS.
    pub async fn start_connected(nats_url: &str, changes: &Value) -> Self {
        let mut control_plane = Self::configure(nats_url, changes);
        control_plane.start().await;
        control_plane.until_connected().await;
        control_plane
    }

    /// Starts it and waits until it listens.
    pub async fn start(&mut self) {
        let bound = self.path("bound.json");
        let _ = std::fs::remove_file(&bound); // of the start before
        self.process = Some(self.spawn());
        self.bound = wait::until_some("the control plane to listen", wait::USUAL, || {
            self.process.as_mut().expect("just started").assert_running();
            serde_json::from_str(&std::fs::read_to_string(&bound).ok()?).ok()
        })
        .await;
    }

    /// Starts it where it is expected to end by itself; gives how.
    pub async fn start_and_end(&mut self) -> std::process::ExitStatus {
        let mut process = self.spawn();
        process.wait(wait::USUAL).await
    }

    fn spawn(&self) -> Process {
        let config = self.path("control-plane.yaml").display().to_string();
        let (program, log) = (programs::ours("atm-control-plane"), self.path("control-plane.log"));
        let arguments = ["--config", &config];
        let environment = &self.environment;
        Process::start_behind("atm-control-plane", &self.prefix, &program, &arguments, &log, environment)
    }

    /// Has it run in a network of its own from the next start on.
    pub fn put_in(&mut self, island: &Island) {
        self.prefix = island.prefix();
    }

    /// Starts it with the wall clock that this returns, from the next start on.
    pub fn give_clock(&mut self) -> WallClock {
        let clock = WallClock::new(self.directory.path());
        self.environment = clock.environment();
        clock
    }

    /// SIGKILL; the store stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the control plane runs")
    }

    /// Changes the configuration for the next start.
    pub fn reconfigure(&self, changes: &Value) {
        let file = self.path("control-plane.yaml");
        let text = std::fs::read_to_string(&file).expect("configuration");
        let mut config: Value = serde_json::from_str(&text).expect("JSON");
        merge(&mut config, changes);
        std::fs::write(file, config.to_string()).expect("configuration is written");
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Everything it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("control-plane.log")).unwrap_or_default()
    }

    /// `http://host:port` of the OAuth listener.
    pub fn oauth_url(&self) -> String {
        format!("http://{}", self.bound["oauth"].as_str().expect("an address"))
    }

    /// `host:port` of the admin listener.
    pub fn admin_address(&self) -> String {
        self.bound["admin"].as_str().expect("an address").to_owned()
    }

    /// A call of the admin API.
    pub async fn admin(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.try_admin(method, path, body).await.expect("the admin API answers")
    }

    /// As [`Self::admin`], while it may be down.
    pub async fn try_admin(&self, method: &str, path: &str, body: &Value) -> std::io::Result<Answer> {
        http::json(method, self.bound["admin"].as_str().expect("an address"), path, ADMIN_TOKEN, body).await
    }

    /// `GET /admin/v1/feed`.
    pub async fn feed(&self) -> Value {
        self.admin("GET", "/admin/v1/feed", &Value::Null).await.json()
    }

    /// `GET /admin/v1/fleet`.
    pub async fn fleet(&self) -> Value {
        self.admin("GET", "/admin/v1/fleet", &Value::Null).await.json()
    }

    /// The public feed key that sidecars pin.
    pub async fn feed_key(&self) -> String {
        self.feed().await["feed_public_key"].as_str().expect("a key").to_owned()
    }

    /// Waits until JetStream holds what the store holds.
    pub async fn until_connected(&self) {
        wait::until("the control plane to be connected", wait::LONG, || async {
            let feed = self.feed().await;
            let level = feed["degraded"].is_null() && feed["published"] == feed["revision"];
            if level { Ok(()) } else { Err(feed) }
        })
        .await;
    }

    /// Revokes tokens by their `jti`, which expire at `expires_at`; gives the revision.
    pub async fn revoke(&self, jtis: &[String], expires_at: i64) -> u64 {
        let tokens: Vec<_> = jtis.iter().map(|jti| json!({ "jti": jti, "expires_at": expires_at })).collect();
        let answer = self.admin("POST", "/admin/v1/revocations", &json!({ "tokens": tokens })).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["revision"].as_u64().expect("a revision")
    }

    /// Waits until the newest snapshot is of `revision` or later and JetStream holds it; gives its revision.
    pub async fn until_snapshot(&self, revision: u64) -> u64 {
        wait::until(&format!("a snapshot of revision {revision}"), wait::LONG, || async {
            let feed = self.feed().await;
            let published = feed["snapshot"]["published"].as_u64().unwrap_or(0);
            if published >= revision { Ok(published) } else { Err(feed) }
        })
        .await
    }
}

/// Lays `changes` over `value`, section by section; null removes.
pub fn merge(value: &mut Value, changes: &Value) {
    match (value, changes) {
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                if change.is_null() {
                    fields.remove(name);
                } else {
                    merge(fields.entry(name).or_insert(Value::Null), change);
                }
            }
        }
        (value, changes) => *value = changes.clone(),
    }
}
