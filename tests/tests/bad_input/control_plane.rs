//! The control plane's part.

use std::net::TcpListener;
use std::path::Path;

use atm_tests::http;
use atm_tests::process::{Process, stderr};
use atm_tests::token::base64url;
use atm_tests::{programs, wait};
use serde_json::{Value, json};

use crate::{BOUND, assert_mistakes, assert_one_line, run_with_config, run_with_file};

const PROGRAM: &str = "atm-control-plane";

/// A complete configuration with its key files in `directory`, every port free; JSON is YAML.
fn config(directory: &Path) -> Value {
    let path = |name: &str| directory.join(name).display().to_string();
    std::fs::write(path("wrapping.key"), base64url([7; 32])).expect("written");
    std::fs::write(path("feed.key"), base64url([8; 32])).expect("written");
    std::fs::write(path("admin.token"), "an-admin-token-of-the-tests-0123456789abcdef").expect("written");
    for key in ["wrapping.key", "feed.key", "admin.token"] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path(key), std::fs::Permissions::from_mode(0o600)).expect("permissions");
    }
    json!({
        "issuer": "http://127.0.0.1:8080",
        "realmGroup": "default",
        "listen": { "oauth": "127.0.0.1:0", "admin": "127.0.0.1:0", "addressFile": path("bound.json") },
        "store": { "path": path("atm.db") },
        "nats": { "url": "nats://127.0.0.1:1" },
        "keys": { "wrappingKeyFile": path("wrapping.key"), "algorithm": "ES256" },
        "admin": { "tokenFile": path("admin.token") },
        "feed": { "signingKeyFile": path("feed.key") },
        "log": { "format": "json", "level": "info" },
    })
}

#[tokio::test]
async fn a_wrong_configuration_lists_every_mistake() {
    let config = r#"
issuer: "ftp://nowhere"
realmGroup: "a.b"
listen: { oauth: "here", admin: "127.0.0.1:99999" }
store: { path: "" }
nats: { url: "http://nowhere" }
keys: { algorithm: HS256 }
admin: { tokenFile: "" }
feed: { lingerMs: soon }
tokens: { lifetimeSeconds: 0 }
colour: blue
"#;
    for more in [&[][..], &["--check"]] {
        let output = run_with_config(PROGRAM, config, more).await;
        let mistakes = [
            "issuer",
            "realmGroup",
            "listen.oauth",
            "listen.admin",
            "store.path",
            "nats.url",
            "keys.algorithm",
            "keys",
            "admin.tokenFile",
            "feed.signingKeyFile",
            "feed.lingerMs",
            "tokens.lifetimeSeconds",
            "colour",
        ];
        assert_mistakes(&output, &mistakes);
    }
}

#[tokio::test]
async fn a_key_file_that_is_missing_is_named() {
    for (section, key) in [("keys", "wrappingKeyFile"), ("admin", "tokenFile"), ("feed", "signingKeyFile")] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut config = config(directory.path());
        config[section][key] = json!("/nonexistent/secret");
        let output = run_with_config(PROGRAM, &config.to_string(), &[]).await;
        assert_mistakes(&output, &[&format!("{section}.{key}")]);
        assert!(stderr(&output).contains("/nonexistent/secret"), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn a_good_configuration_passes_the_check_and_starts_nothing() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let output = run_with_config(PROGRAM, &config(directory.path()).to_string(), &["--check"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!directory.path().join("atm.db").exists(), "a check must not create the store");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for listener in ["oauth", "admin"] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut config = config(directory.path());
        config["listen"][listener] = json!(address);
        let output = run_with_config(PROGRAM, &config.to_string(), &[]).await;
        assert_one_line(&output, &[&address]);
    }
}

#[tokio::test]
async fn a_wrong_wrapping_key_is_named_before_anything_is_served() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let config = config(directory.path());
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, config.to_string()).expect("written");
    start_until_serving(&file, directory.path()).await.kill();
    std::fs::write(directory.path().join("wrapping.key"), base64url([9; 32])).expect("written");
    let output = run_with_file(PROGRAM, &file, &[]).await;
    assert_one_line(&output, &["wrapping"]);
}

#[tokio::test]
async fn a_store_that_is_no_database_is_named_and_left_alone() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let config = config(directory.path());
    let store = directory.path().join("atm.db");
    std::fs::write(&store, "this is no database, and somebody's only copy".repeat(100)).expect("written");
    let before = std::fs::read(&store).expect("read");
    let output = run_with_config(PROGRAM, &config.to_string(), &[]).await;
    assert_one_line(&output, &["atm.db"]);
    assert_eq!(std::fs::read(&store).expect("read"), before);
}

#[tokio::test]
async fn without_nats_it_serves_and_is_degraded() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, config(directory.path()).to_string()).expect("written");
    let mut process = start_until_serving(&file, directory.path()).await;
    let bound: Value =
        serde_json::from_str(&std::fs::read_to_string(directory.path().join("bound.json")).expect("read"))
            .expect("JSON");
    let admin = bound["admin"].as_str().expect("an address");
    assert_eq!(http::get(admin, "/healthz").await.expect("answers").status, 200);
    wait::until("readiness to name NATS", BOUND, || async {
        let answer = http::get(admin, "/readyz").await.map_err(|error| error.to_string())?;
        if answer.text().to_lowercase().contains("nats") { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    let jwks =
        http::get(bound["oauth"].as_str().expect("an address"), "/oauth2/jwks").await.expect("answers");
    assert_eq!(jwks.status, 200, "{}", jwks.text());
    process.assert_running();
}

async fn start_until_serving(file: &Path, directory: &Path) -> Process {
    let arguments = ["--config", file.to_str().expect("UTF-8 path")];
    let mut process =
        Process::start(PROGRAM, &programs::ours(PROGRAM), &arguments, &directory.join("control-plane.log"));
    wait::until_some("the control plane to listen", BOUND, || {
        process.assert_running();
        directory.join("bound.json").exists().then_some(())
    })
    .await;
    process
}
