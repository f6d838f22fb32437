//! The API server of the tests (`tests/kubernetes/apiserver.py`), and an operator that talks to it.

use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Process;
use crate::{programs, wait};

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    _process: Process,
    directory: TempDir,
    url: String,
    http: Client,
}

impl ApiServer {
    /// Starts it; each of `services` says where a webhook's Service is reached: `namespace/name=host:port`.
    pub async fn start(services: &[String]) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let port_file = directory.path().join("port");
        let mut command = Command::new(programs::interpreter("python"));
        command.arg(programs::workspace().join("tests/kubernetes/apiserver.py")).arg(&port_file);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        for service in services {
            command.args(["--service", service]);
        }
        let log = directory.path().join("apiserver.log");
        let mut process = Process::start_command("apiserver", command, &log);
        let address = wait::until_some("the API server to listen", wait::USUAL, || {
            process.assert_running();
            std::fs::read_to_string(&port_file).ok()
        })
        .await;
        // Another test of this process may have done so.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self { _process: process, directory, url: format!("http://{address}"), http: Client::new() }
    }

    /// A kubeconfig for a program; the server knows it by `user`.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        let file = self.directory.path().join(format!("{user}.kubeconfig"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user } }],
            "clusters": [{ "name": "test", "cluster": { "server": self.url } }],
            "users": [{ "name": user, "user": { "token": user } }],
        });
        std::fs::write(&file, config.to_string()).expect("written");
        file
    }

    /// Asks for `path`; the status and the answer.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth("test");
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.expect("the API server answers");
        (response.status(), response.json().await.expect("JSON"))
    }

    /// Creates an object; panics with the server's words when it is refused.
    pub async fn create(&self, path: &str, object: &Value) -> Value {
        let (status, answer) = self.ask(Method::POST, path, Some(object)).await;
        assert!(status.is_success(), "{path}: {answer}");
        answer
    }

    /// Reads an object.
    pub async fn get(&self, path: &str) -> Value {
        self.ask(Method::GET, path, None).await.1
    }

    /// Merges `patch` into an object.
    pub async fn merge(&self, path: &str, patch: &Value) -> Value {
        let request = self.http.patch(format!("{}{path}", self.url)).bearer_auth("test");
        let request = request.header("content-type", "application/merge-patch+json").body(patch.to_string());
        let answer: Value = request.send().await.expect("answers").json().await.expect("JSON");
        assert!(answer["kind"] != "Status", "{path}: {answer}");
        answer
    }
}

/// Starts an operator with the configuration `config`, seen by the API server as `operator`.
pub fn start_operator(server: &ApiServer, config: &Value, directory: &Path) -> Process {
    let file = directory.join("operator.yaml");
    std::fs::write(&file, config.to_string()).expect("written");
    let mut command = Command::new(programs::ours("atm-operator"));
    command.arg("--config").arg(&file).env("KUBECONFIG", server.kubeconfig("operator"));
    Process::start_command("atm-operator", command, &directory.join("operator.log"))
}
