//! The sidecar under test, configured for one feed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::authority::merge;
use crate::authz::Authz;
use crate::clock::WallClock;
use crate::http::{self, Answer};
use crate::island::Island;
use crate::process::{Environment, Process};
use crate::{programs, wait};

/// A sidecar whose state outlives its process.
#[derive(Debug)]
pub struct Sidecar {
    process: Option<Process>,
    directory: TempDir,
    bound: Value,
    environment: Environment,
    /// What its program is started behind.
    prefix: Vec<String>,
}

impl Sidecar {
    /// Writes a configuration for the feed at `nats_url` signed by `feed_key`; does not start it.
    pub fn configure(nats_url: &str, feed_key: &str) -> Self {
        Self::configure_with(nats_url, feed_key, &Value::Null)
    }

    /// As [`Self::configure`], with `changes` laid over the configuration.
    pub fn configure_with(nats_url: &str, feed_key: &str, changes: &Value) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let mut config = config(directory.path(), nats_url, feed_key);
        if !changes.is_null() {
            merge(&mut config, changes);
        }
        std::fs::create_dir_all(directory.path().join("disk")).expect("a directory for its store");
        std::fs::write(directory.path().join("sidecar.yaml"), config.to_string())
            .expect("configuration is written");
        Self {
            process: None,
            directory,
            bound: Value::Null,
            environment: Environment::new(),
            prefix: Vec::new(),
        }
    }

    /// Configures it, starts it and waits until it is ready.
    pub async fn start_ready(nats_url: &str, feed_key: &str) -> Self {
        let mut sidecar = Self::configure(nats_url, feed_key);
        sidecar.start().await;
        sidecar.until_ready().await;
        sidecar
    }

    /// Sets a key of its configuration, by its path, as in `listen.workers`; in force from the next start on.
    pub fn set(&self, path: &str, value: Value) {
        let text = std::fs::read_to_string(self.config_file()).expect("it is configured");
        let mut config: Value = serde_json::from_str(&text).expect("JSON");
        let key = format!("/{}", path.replace('.', "/"));
        if let Some(found) = config.pointer_mut(&key) {
            *found = value;
        } else {
            let (section, key) = key.rsplit_once('/').expect("a path");
            config.pointer_mut(section).expect("its section is there")[key] = value;
        }
        std::fs::write(self.config_file(), config.to_string()).expect("configuration is written");
    }

    /// As [`Self::start_ready`], with `changes` laid over the configuration.
    pub async fn start_ready_with(nats_url: &str, feed_key: &str, changes: &Value) -> Self {
        let mut sidecar = Self::configure_with(nats_url, feed_key, changes);
        sidecar.start().await;
        sidecar.until_ready().await;
        sidecar
    }

    /// Starts it and waits until it listens.
    pub async fn start(&mut self) {
        let bound = self.directory.path().join("bound.json");
        let _ = std::fs::remove_file(&bound); // of the start before
        self.process = Some(self.spawn());
        let bound = wait::until_some("the sidecar to listen", wait::USUAL, || {
            self.process.as_mut().expect("just started").assert_running();
            serde_json::from_str(&std::fs::read_to_string(&bound).ok()?).ok()
        })
        .await;
        self.bound = bound;
    }

    /// Starts the program without waiting for anything. Writes past a file size limit fail, as on a full disk, instead of
    /// ending it by a signal: see [`Self::limit_files`].
    pub fn spawn(&self) -> Process {
        let (config, program) = (self.config_file(), programs::ours("atm-sidecar"));
        let (config, program) = (config.to_str().expect("UTF-8 path"), program.to_str().expect("UTF-8 path"));
        let arguments = ["--ignore-signal=XFSZ", program, "--config", config];
        let log = self.path("sidecar.log");
        let (env, environment) = (Path::new("/usr/bin/env"), &self.environment);
        Process::start_behind("atm-sidecar", &self.prefix, env, &arguments, &log, environment)
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

    /// Lets no file that it writes grow beyond `bytes`: what a full disk is to a program, without a disk to fill.
    pub fn limit_files(&mut self, bytes: u64) {
        let pid = self.process().id().to_string();
        let limit = format!("--fsize={bytes}");
        let status = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(status.expect("prlimit of util-linux runs").success(), "prlimit {limit}");
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.path("sidecar.yaml")
    }

    /// The unix socket for gRPC.
    pub fn socket(&self) -> PathBuf {
        self.path("atm.sock")
    }

    /// What its RocksDB lies on: a directory that a file system of its own can be mounted over before the first start.
    pub fn disk(&self) -> PathBuf {
        self.path("disk")
    }

    /// Where its RocksDB lies.
    pub fn store(&self) -> PathBuf {
        self.disk().join("db")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// SIGKILL; the state stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the sidecar runs")
    }

    /// Everything it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("sidecar.log")).unwrap_or_default()
    }

    /// `host:port` of one of its listeners: `grpc`, `http` or `admin`.
    pub fn address(&self, listener: &str) -> &str {
        self.bound[listener].as_str().unwrap_or_else(|| panic!("no address of {listener} in {}", self.bound))
    }

    /// A client of its gRPC listener.
    pub async fn authz(&self) -> Authz {
        Authz::connect(self.address("grpc")).await
    }

    /// GET on the admin listener.
    pub async fn admin(&self, path: &str) -> std::io::Result<Answer> {
        http::get(self.address("admin"), path).await
    }

    /// `/state`.
    pub async fn state(&self) -> Value {
        self.admin("/state").await.expect("admin answers").json()
    }

    /// Waits until `/readyz` is 200.
    pub async fn until_ready(&self) {
        self.until_ready_within(wait::USUAL).await;
    }

    /// As [`Self::until_ready`], within `bound`.
    pub async fn until_ready_within(&self, bound: Duration) {
        wait::until("the sidecar to be ready", bound, || async {
            match self.admin("/readyz").await {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(other.map(|answer| answer.text())),
            }
        })
        .await;
    }

    /// Waits until it has applied `revision`.
    pub async fn until_applied(&self, revision: u64) {
        self.until_applied_within(revision, wait::USUAL).await;
    }

    /// As [`Self::until_applied`], within `bound`.
    pub async fn until_applied_within(&self, revision: u64, bound: Duration) {
        wait::until(&format!("revision {revision} to be applied"), bound, || async {
            let applied = self.applied().await;
            if applied >= revision { Ok(()) } else { Err(applied) }
        })
        .await;
    }

    /// The revision in force.
    pub async fn applied(&self) -> u64 {
        self.state().await["revision"].as_u64().unwrap_or_default()
    }

    /// The value of the metric whose line begins with `series`, for example `name{label="x"}`; 0 when there is none.
    pub async fn metric(&self, series: &str) -> f64 {
        metric(&self.admin("/metrics").await.expect("admin answers").text(), series)
    }

    /// As [`Self::metric`], for what is a count.
    pub async fn count(&self, series: &str) -> u64 {
        count(&self.admin("/metrics").await.expect("admin answers").text(), series)
    }

    /// Waits until the metric is at least `least`.
    pub async fn until_metric(&self, series: &str, least: f64) {
        wait::until(&format!("{series} >= {least}"), Duration::from_secs(10), || async {
            let value = self.metric(series).await;
            if value >= least { Ok(()) } else { Err(value) }
        })
        .await;
    }
}

/// The value of one series in the Prometheus text format; 0 when there is none.
pub fn metric(text: &str, series: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse::<f64>().ok())
        .unwrap_or_default()
}

/// As [`metric`], for what is a count.
pub fn count(text: &str, series: &str) -> u64 {
    let found =
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse().ok());
    found.unwrap_or_default()
}

/// A complete configuration in `directory`, every port free; JSON is YAML.
pub fn config(directory: &Path, nats_url: &str, feed_key: &str) -> Value {
    let path = |name: &str| directory.join(name).display().to_string();
    json!({
        "realmGroup": "default",
        "nats": { "url": nats_url },
        "feedKeys": [feed_key],
        "store": { "path": path("disk/db"), "blockCacheMiB": 8 },
        "listen": {
            "grpcUnix": path("atm.sock"),
            "grpc": "127.0.0.1:0",
            "http": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "addressFile": path("bound.json"),
        },
        "log": { "format": "json", "level": "info" },
    })
}
