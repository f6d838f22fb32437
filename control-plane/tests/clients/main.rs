//! OAuth clients that others wrote, and a property-based tester of APIs, against the real program: what they cannot do with it,
//! users cannot. `tools/install.sh` installs them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and helpers of tests")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tempfile::TempDir;

const ADMIN_TOKEN: &str = "admin-token-of-the-client-suites";
/// How long the program may take to start.
const START_BOUND: Duration = Duration::from_mins(1);

/// The program, ended when dropped.
struct Program {
    child: Child,
    issuer: String,
    admin: String,
    _dir: TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait();
    }
}

/// A port that is free now. The issuer's URL holds it, so it must be known before the program starts.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Program {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, content) in [
            ("wrapping.key", URL_SAFE_NO_PAD.encode([1; 32])),
            ("feed.key", URL_SAFE_NO_PAD.encode([2; 32])),
            ("admin.token", ADMIN_TOKEN.to_owned()),
        ] {
            std::fs::write(path(name), content).unwrap();
        }
        let (oauth, admin) = (free_port(), free_port());
        let issuer = format!("http://127.0.0.1:{oauth}");
        let show = |name: &str| path(name).display().to_string();
        // Port 1: nobody listens there, so the feed goes on without its carrier.
        let config = format!(
            "issuer: {issuer}\nlisten: {{ oauth: '127.0.0.1:{oauth}', admin: '127.0.0.1:{admin}' }}\n\
             store: {{ path: {} }}\nnats: {{ url: 'nats://127.0.0.1:1' }}\nkeys: {{ wrappingKeyFile: {} }}\n\
             admin: {{ tokenFile: {} }}\nfeed: {{ signingKeyFile: {} }}\nlog: {{ level: error }}\n",
            show("atm.db"),
            show("wrapping.key"),
            show("admin.token"),
            show("feed.key"),
        );
        std::fs::write(path("config.yaml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_atm-control-plane"))
            .arg("--config")
            .arg(path("config.yaml"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", admin)).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "the program ended");
            assert!(started.elapsed() < START_BOUND, "the program does not answer");
            std::thread::yield_now();
        }
        Self { child, issuer, admin: format!("http://127.0.0.1:{admin}"), _dir: dir }
    }

    /// Runs a suite to its end; what it prints is shown where it fails.
    fn drive(&self, mut suite: Command) {
        let output = suite
            .env("ATM_ISSUER", &self.issuer)
            .env("ATM_ADMIN_URL", &self.admin)
            .env("ATM_ADMIN_TOKEN", ADMIN_TOKEN)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}\n{}", shown(&output.stdout), shown(&output.stderr));
    }
}

/// A directory that `tools/install.sh` makes.
fn installed(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = root.join(".tools").join(name);
    assert!(path.exists(), "{} is missing; run: make tools", path.display());
    path
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

#[test]
fn authlib() {
    let mut suite = Command::new(installed("python").join("bin/python"));
    suite.arg("-W").arg("error::ResourceWarning").arg(script("authlib_suite.py"));
    Program::start().drive(suite);
}

#[test]
fn openid_client() {
    let mut suite = Command::new(installed("python").join("bin/node"));
    // Modules are found from the script's directory upwards; this one says where they are.
    suite.arg(script("openid_client_suite.mjs")).env("ATM_NODE_MODULES", installed("node_modules"));
    Program::start().drive(suite);
}

/// What a schema's answers are held to.
const CHECKS: &str =
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";

/// Whatever a request holds, the answer is one that the OpenAPI document announces, and no fault of ours.
#[test]
fn schemathesis() {
    let program = Program::start();
    let dir = tempfile::tempdir().unwrap();
    let mut suite = Command::new(installed("python").join("bin/schemathesis"));
    suite
        .current_dir(dir.path())
        .arg("run")
        .arg(format!("{}/admin/v1/openapi.json", program.admin))
        .args(["--url", &program.admin])
        .args(["--header", &format!("Authorization: Bearer {ADMIN_TOKEN}")])
        .args(["--checks", CHECKS])
        // The same requests each time; how many there are bounds the time.
        .args(["--phases", "coverage,fuzzing", "--max-examples", "12", "--seed", "9457"])
        .args(["--request-timeout", "20", "--generation-database", "none", "--no-color"]);
    program.drive(suite);
}
