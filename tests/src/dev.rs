//! The local stack as a user starts it: `atmctl dev up`.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{self, Answer};
use crate::process::{self, Process};
use crate::{programs, wait};

/// A running local stack; `atmctl dev down` when dropped.
#[derive(Debug)]
pub struct DevStack {
    directory: TempDir,
    /// The content of `dev.json`.
    pub info: Value,
    restarted: Vec<(String, Process)>,
}

impl DevStack {
    /// Starts the stack; panics with what `atmctl` printed when it does not come up.
    pub async fn up() -> Self {
        Self::up_with(&[]).await
    }

    /// As [`Self::up`], with variables that override keys of all programs' configurations.
    pub async fn up_with(environment: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let tools = programs::tools_dir().display().to_string();
        let output = process::run_with(
            &programs::ours("atmctl"),
            &["dev", "up", "--dir", directory.path().to_str().expect("UTF-8 path")],
            &[&[("ATM_TOOLS_DIR", tools.as_str())], environment].concat(),
            Duration::from_secs(90),
        )
        .await;
        let mut stack = Self { directory, info: Value::Null, restarted: Vec::new() };
        assert!(
            output.status.success(),
            "atmctl dev up failed:\n{}{}",
            process::stdout(&output),
            process::stderr(&output)
        );
        let text = std::fs::read_to_string(stack.path().join("dev.json")).expect("dev.json is written");
        stack.info = serde_json::from_str(&text).expect("dev.json is JSON");
        stack
    }

    /// The stack's directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A text field of `dev.json`.
    pub fn field(&self, name: &str) -> &str {
        self.info[name].as_str().unwrap_or_else(|| panic!("dev.json has no {name}: {}", self.info))
    }

    /// SIGKILL for one of the stack's programs: `nats`, `control_plane`, `sidecar`.
    pub fn kill(&mut self, program: &str) {
        if let Some(at) = self.restarted.iter().position(|(name, _)| name == program) {
            self.restarted.remove(at); // drop kills and reaps
            return;
        }
        let pid = self.info["pids"][program].as_u64().unwrap_or_else(|| panic!("no pid of {program}"));
        process::kill_pid(u32::try_from(pid).expect("a pid"));
    }

    /// Starts a killed program again with the command that `dev.json` gives.
    pub fn start_again(&mut self, program: &str) {
        let words: Vec<String> = serde_json::from_value(self.info["commands"][program].clone())
            .unwrap_or_else(|error| panic!("commands.{program}: {error}"));
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let log = self.path().join(format!("{program}-again.log"));
        let process = Process::start(program, &PathBuf::from(&words[0]), &arguments, &log);
        self.restarted.push((program.to_owned(), process));
    }

    /// Runs `atmctl` against this stack.
    pub async fn atmctl(&self, arguments: &[&str]) -> Output {
        let directory = self.path().display().to_string();
        process::run_with(
            &programs::ours("atmctl"),
            arguments,
            &[("ATM_DEV_DIR", &directory)],
            Duration::from_secs(40),
        )
        .await
    }

    /// A client of this stack's interfaces that tasks can own.
    pub fn client(&self) -> DevClient {
        DevClient { info: self.info.clone() }
    }
}

impl Drop for DevStack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_logs(self.path());
        }
        self.restarted.clear();
        let down = std::process::Command::new(programs::ours("atmctl"))
            .args(["dev", "down", "--dir"])
            .arg(self.path())
            .output();
        if let Ok(output) = down
            && !output.status.success()
        {
            eprintln!("atmctl dev down: {}", process::stderr(&output));
        }
    }
}

fn print_logs(directory: &Path) {
    let logs = [directory.join("logs"), directory.to_path_buf()];
    for entry in logs.iter().filter_map(|logs| std::fs::read_dir(logs).ok()).flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(25).collect();
            eprintln!("--- end of {}", entry.path().display());
            for line in lines.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// The interfaces of a stack, by the addresses in `dev.json`.
#[derive(Debug, Clone)]
pub struct DevClient {
    info: Value,
}

impl DevClient {
    fn field(&self, name: &str) -> &str {
        self.info[name].as_str().unwrap_or_else(|| panic!("dev.json has no {name}"))
    }

    /// A new access token by `client_credentials`, or why there is none just now.
    pub async fn issue(&self) -> Result<String, String> {
        let address = http::authority(self.field("issuer"));
        let body = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}&audience={}&scope={}",
            self.field("client_id"),
            self.field("client_secret"),
            self.field("audience"),
            self.field("scope").replace(' ', "+"),
        );
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let request = http::request("POST", "/oauth2/token", address, &headers, &body);
        let answer = http::exchange(address, &request).await.map_err(|error| error.to_string())?;
        match answer.json()["access_token"].as_str() {
            Some(token) if answer.status == 200 => Ok(token.to_owned()),
            _ => Err(format!("{} {}", answer.status, answer.text())),
        }
    }

    /// `GET /orders` through Envoy with this token.
    pub async fn use_token(&self, token: &str) -> std::io::Result<Answer> {
        let address = http::authority(self.field("envoy_url"));
        let authorization = format!("Bearer {token}");
        let request = http::request("GET", "/orders", address, &[("authorization", &authorization)], "");
        http::exchange(address, &request).await
    }

    /// A call of the admin API.
    pub async fn admin(&self, method: &str, path: &str, body: &Value) -> std::io::Result<Answer> {
        let address = http::authority(self.field("admin_url"));
        http::json(method, address, path, self.field("admin_token"), body).await
    }

    /// Revokes `selector` and waits for the whole fleet for `timeout_ms`; gives the receipt.
    pub async fn revoke(&self, selector: &Value, timeout_ms: u64) -> Result<Value, String> {
        let body = json!({ "selector": selector, "wait": { "share": 1.0, "timeout_ms": timeout_ms } });
        let answer =
            self.admin("POST", "/admin/v1/revocations", &body).await.map_err(|error| error.to_string())?;
        if answer.status == 200 {
            Ok(answer.json())
        } else {
            Err(format!("{} {}", answer.status, answer.text()))
        }
    }

    /// GET of the sidecar's admin listener.
    pub async fn sidecar(&self, path: &str) -> std::io::Result<Answer> {
        http::get(http::authority(self.field("sidecar_admin_url")), path).await
    }

    /// Waits until control plane and sidecar are ready and the sidecar has the log's newest revision.
    pub async fn until_settled(&self) {
        wait::until("control plane and sidecar to agree", Duration::from_secs(30), || async {
            let feed =
                self.admin("GET", "/admin/v1/feed", &Value::Null).await.map_err(|error| error.to_string())?;
            let ready = self.sidecar("/readyz").await.map_err(|error| error.to_string())?;
            let state = self.sidecar("/state").await.map_err(|error| error.to_string())?.json();
            let agree = feed.status == 200
                && ready.status == 200
                && feed.json()["revision"] == state["revision"]
                && state["freshness"] == "fresh";
            if agree { Ok(()) } else { Err(format!("{} {} {state}", feed.text(), ready.text())) }
        })
        .await;
    }
}

/// The claims of a token, unverified.
pub fn claims(token: &str) -> Value {
    use base64::Engine;
    let part = token.split('.').nth(1).expect("a JWT");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).expect("base64url");
    serde_json::from_slice(&bytes).expect("JSON claims")
}
