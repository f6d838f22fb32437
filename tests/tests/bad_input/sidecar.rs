//! The sidecar's part.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use atm_core::id::IdKind;
use atm_proto::signature::FeedSigner;
use atm_tests::feed::{FeedAuthor, policies, revoked_tokens};
use atm_tests::nats::NatsServer;
use atm_tests::process::stderr;
use atm_tests::sidecar::{self, Sidecar};
use atm_tests::token::TokenMint;
use atm_tests::wait;
use serde_json::json;

use crate::{BOUND, assert_mistakes, assert_one_line, run_with_config};

const POLICY: &str = include_str!("../requests/policy.yaml");
const PROGRAM: &str = "atm-sidecar";
const NOWHERE: &str = "nats://127.0.0.1:1";

fn any_feed_key() -> String {
    FeedSigner::generate().expect("a key").0.public_key().to_string()
}

/// A feed that an issuer with one key and a policy set were published to: enough to let a request through.
async fn feed_with_issuer() -> (NatsServer, FeedAuthor, TokenMint) {
    let nats = NatsServer::start().await;
    let author = FeedAuthor::start(&nats).await;
    let mint = TokenMint::new("https://issuer.test", "main", &[("ed", "EdDSA")]);
    author.publish(vec![mint.to_change(), policies(1, &[POLICY])]).await;
    (nats, author, mint)
}

#[tokio::test]
async fn a_wrong_configuration_lists_every_mistake() {
    let config = r#"
realmGroup: "a.b"
nats: { url: "http://nowhere" }
feedKeys: ["short"]
store: { path: "" , blockCacheMiB: many }
listen: { grpc: "here", http: "127.0.0.1:99999", admin: "127.0.0.1:0" }
freshness: { degradedAfterMs: 9000, staleAfterMs: 10 }
colour: blue
"#;
    for more in [&[][..], &["--check"]] {
        let output = run_with_config(PROGRAM, config, more).await;
        let mistakes = [
            "realmGroup",
            "nats.url",
            "feedKeys[0]",
            "store.path",
            "store.blockCacheMiB",
            "listen.grpc",
            "listen.http",
            "colour",
        ];
        assert_mistakes(&output, &mistakes);
        assert!(stderr(&output).contains("freshness"), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn a_good_configuration_passes_the_check_and_starts_nothing() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let config = sidecar::config(directory.path(), NOWHERE, &any_feed_key());
    let output = run_with_config(PROGRAM, &config.to_string(), &["--check"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!directory.path().join("disk").exists(), "a check must not create the store");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for listener in ["grpc", "http", "admin"] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut config = sidecar::config(directory.path(), NOWHERE, &any_feed_key());
        config["listen"][listener] = json!(address);
        let output = run_with_config(PROGRAM, &config.to_string(), &[]).await;
        assert_one_line(&output, &[&address]);
    }
}

#[tokio::test]
async fn a_socket_in_use_is_not_stolen_and_a_dead_one_is_replaced() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("in-use.sock");
    let alive = UnixListener::bind(&socket).expect("bound");
    let mut config = sidecar::config(directory.path(), NOWHERE, &any_feed_key());
    config["listen"]["grpcUnix"] = json!(socket.display().to_string());
    let output = run_with_config(PROGRAM, &config.to_string(), &[]).await;
    assert_one_line(&output, &["in-use.sock"]);
    drop(alive); // the file stays behind, as after a crash

    let nats = NatsServer::start().await;
    let author = FeedAuthor::start(&nats).await;
    author.publish(vec![policies(1, &[POLICY])]).await;
    let mut sidecar = Sidecar::configure(&nats.url(), &author.public_key());
    std::fs::remove_file(sidecar.socket()).ok();
    drop(UnixListener::bind(sidecar.socket()).expect("bound"));
    sidecar.start().await;
    sidecar.until_ready().await;
}

#[tokio::test]
async fn a_path_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("precious.txt");
    std::fs::write(&file, "precious").expect("written");
    let mut config = sidecar::config(directory.path(), NOWHERE, &any_feed_key());
    config["listen"]["grpcUnix"] = json!(file.display().to_string());
    let output = run_with_config(PROGRAM, &config.to_string(), &[]).await;
    assert_one_line(&output, &["precious.txt"]);
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "precious");
}

#[tokio::test]
async fn without_nats_and_without_state_it_stays_up_and_is_not_ready() {
    let mut sidecar = Sidecar::configure(NOWHERE, &any_feed_key());
    sidecar.start().await;
    let verdict = sidecar.authz().await.check_token("x").await;
    assert_eq!((verdict.status, verdict.reason.as_str()), (503, "not_ready"));
    // It waits a while for a heartbeat before it judges its own state; readiness must not come from an empty one.
    wait::until("the readiness probe to name NATS", BOUND, || async {
        let answer = sidecar.admin("/readyz").await.map_err(|error| error.to_string())?;
        assert_eq!(answer.status, 503, "ready without any state: {}", answer.text());
        if answer.text().to_lowercase().contains("nats") { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    assert!(sidecar.metric("atm_sidecar_ready").await < 0.5);
    sidecar.process().assert_running();
}

#[tokio::test]
async fn a_wrong_feed_key_never_becomes_ready_and_says_so() {
    let (nats, _author, mint) = feed_with_issuer().await;
    let mut sidecar = Sidecar::configure(&nats.url(), &any_feed_key());
    sidecar.start().await;
    sidecar.until_metric("atm_sidecar_change_sets_refused_total{cause=\"signature\"}", 1.0).await;
    let ready = sidecar.admin("/readyz").await.expect("admin answers");
    assert_eq!(ready.status, 503, "{}", ready.text());
    let verdict = sidecar.authz().await.check_token(&mint.token().sign()).await;
    assert_eq!((verdict.status, verdict.reason.as_str()), (503, "not_ready"));
    wait::until("the log to name the feed key", BOUND, || async {
        if sidecar.log().contains("feed key") { Ok(()) } else { Err(sidecar.log()) }
    })
    .await;
}

#[tokio::test]
async fn a_corrupt_store_is_moved_aside_and_restored_from_the_feed() {
    let (nats, author, mint) = feed_with_issuer().await;
    let mut sidecar = Sidecar::start_ready(&nats.url(), &author.public_key()).await;
    sidecar.kill();
    corrupt(&sidecar.store());
    sidecar.start().await;
    sidecar.until_ready().await;
    sidecar.until_applied(1).await;
    assert!(sidecar.authz().await.check_token(&mint.token().sign()).await.is_permit());
    let beside = std::fs::read_dir(sidecar.store().parent().expect("a parent")).expect("readable").flatten();
    let aside = beside.filter(|entry| entry.file_name().to_string_lossy().contains("corrupt")).count();
    assert_eq!(aside, 1, "the corrupt store is kept for whoever wants to know why");
    assert!(sidecar.log().to_lowercase().contains("corrupt"), "{}", sidecar.log());
}

#[tokio::test]
async fn a_corrupt_store_ends_with_one_line_where_that_is_configured() {
    let nats = NatsServer::start().await;
    let author = FeedAuthor::start(&nats).await;
    author.publish(vec![policies(1, &[POLICY])]).await;
    let mut sidecar = Sidecar::start_ready(&nats.url(), &author.public_key()).await;
    sidecar.kill();
    corrupt(&sidecar.store());
    let text = std::fs::read_to_string(sidecar.config_file()).expect("readable");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["store"]["onCorruption"] = json!("fail");
    let output = run_with_config(PROGRAM, &config.to_string(), &[]).await;
    assert_one_line(&output, &["db", "orrupt"]);
}

#[tokio::test]
async fn a_full_disk_degrades_it_and_loses_nothing() {
    let (nats, author, mint) = feed_with_issuer().await;
    let mut sidecar = Sidecar::start_ready(&nats.url(), &author.public_key()).await;
    sidecar.limit_files(1);

    let revoked = mint.token().claim("jti", "during").sign();
    let good = mint.token().claim("jti", "never").sign();
    let assert_enforced = async |sidecar: &Sidecar| {
        let authz = sidecar.authz().await;
        assert_eq!(authz.check_token(&revoked).await.reason, "revoked_token");
        assert!(authz.check_token(&good).await.is_permit());
    };
    let revision = author.publish(vec![revoked_tokens(0, [mint.id(IdKind::Token, "during")])]).await;
    sidecar.until_applied(revision).await;
    sidecar.until_metric("atm_sidecar_degraded", 1.0).await;
    let state = sidecar.state().await;
    assert!(state["degraded"].to_string().contains("store write failed"), "{state}");
    let ready = sidecar.admin("/readyz").await.expect("admin answers");
    assert_eq!(ready.status, 200, "it decides as before: {}", ready.text());
    assert_enforced(&sidecar).await;

    // With room again, a start brings what was not saved before it is ready.
    sidecar.kill();
    sidecar.start().await;
    sidecar.until_ready().await;
    assert_enforced(&sidecar).await;
}

/// Overwrites what RocksDB reads first.
fn corrupt(store: &std::path::Path) {
    let mut corrupted = 0;
    for entry in std::fs::read_dir(store).expect("the store").flatten() {
        if entry.file_name().to_string_lossy().starts_with("MANIFEST") {
            std::fs::write(entry.path(), b"not a manifest at all").expect("written");
            corrupted += 1;
        }
    }
    assert!(corrupted > 0, "no manifest in {}", store.display());
}
