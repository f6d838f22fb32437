//! Start, end, health, metrics, TLS and the program's exit status.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Server, answer, configuration, part, try_start};

const LISTEN: &str = "listen: { oauth: '127.0.0.1:0', admin: '127.0.0.1:0' }";

fn admin_url(server: &Server, path: &str) -> String {
    format!("http://{}{path}", server.app.bound().admin)
}

#[tokio::test]
async fn health_and_metrics_need_no_credential() {
    let server = Server::start().await;
    assert_eq!(answer(server.http.get(server.oauth("/healthz"))).await.0, 200);
    assert_eq!(answer(server.http.get(admin_url(&server, "/healthz"))).await.0, 200);
    let (status, ready) = answer(server.http.get(admin_url(&server, "/readyz"))).await;
    assert_eq!((status, &ready["ready"]), (200, &Value::Bool(true)));
    assert!(ready["degraded"].is_string(), "ready without NATS, and says so: {ready}");

    let client = server.client().await;
    server.token(&client).await;
    let text = server.http.get(admin_url(&server, "/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("atm_control_plane_tokens_issued_total 1"), "{text}");
    assert!(text.contains("atm_control_plane_nats_connected 0"), "{text}");
    assert!(!text.contains(&client.id), "no client in a label");
}

#[tokio::test]
async fn what_was_promised_survives_a_restart() {
    let server = Server::start().await;
    let client = server.client().await;
    let (kept, revoked) = (server.token(&client).await, server.token(&client).await);
    server.revoke(serde_json::json!({ "token": revoked })).await;
    let server = server.restarted().await;
    assert!(server.is_active(&client, &kept).await);
    assert!(!server.is_active(&client, &revoked).await);
    assert_eq!(part(&server.token(&client).await, 0)["kid"], part(&kept, 0)["kid"]);
}

#[tokio::test]
async fn another_wrapping_key_is_told_at_the_start() {
    let server = Server::start().await;
    assert!(server.app.drain().await);
    let text = configuration(server.dir.path(), LISTEN);
    std::fs::write(server.dir.path().join("wrapping.key"), "A".repeat(43)).unwrap();
    let error = try_start(&text).await.unwrap_err();
    assert!(error.contains("another wrapping key"), "{error}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("listen: {{ oauth: '127.0.0.1:0', admin: '{}' }}", taken.local_addr().unwrap());
    let error = try_start(&configuration(dir.path(), &listen)).await.unwrap_err();
    assert!(error.starts_with("listen.admin: cannot listen on") && !error.contains('\n'), "{error}");
}

#[tokio::test]
async fn a_drain_lets_a_request_under_way_end() {
    let server = Server::start().await;
    let request = server
        .admin("POST", "/admin/v1/revocations")
        .json(&serde_json::json!({ "selector": { "client": "a" }, "wait": { "timeout_ms": 600 } }));
    let under_way = tokio::spawn(answer(request));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let oauth = server.oauth("/healthz");
    assert!(server.app.drain().await);
    assert_eq!(under_way.await.unwrap().0, 200);
    assert!(server.http.get(oauth).send().await.is_err(), "no new connections");
}

#[tokio::test]
async fn tls_when_configured() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(path("tls.key"), made.signing_key.serialize_pem()).unwrap();
    let listen = format!(
        "listen: {{ oauth: '127.0.0.1:0', admin: '127.0.0.1:0', oauthTls: {{ certificate: {}, key: {} }}, addressFile: {} }}",
        path("tls.crt"),
        path("tls.key"),
        path("addresses.json")
    );
    let app = try_start(&configuration(dir.path(), &listen)).await.unwrap();
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap()])
        .build()
        .unwrap();
    let response =
        http.get(format!("https://localhost:{}/healthz", app.bound().oauth.port())).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let addresses: Value = serde_json::from_slice(&std::fs::read(path("addresses.json")).unwrap()).unwrap();
    assert_eq!(addresses["admin"], app.bound().admin.to_string());
    assert!(app.drain().await);
}

#[test]
fn the_program_checks_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let check = || {
        Command::new(env!("CARGO_BIN_EXE_atm-control-plane"))
            .args(["--check", "--config"])
            .arg(&file)
            .output()
            .unwrap()
    };
    std::fs::write(&file, configuration(dir.path(), LISTEN)).unwrap();
    assert_eq!(check().status.code(), Some(0));

    std::fs::write(&file, "listen: { oauth: nowhere, admin: '0.0.0.0:1' }\nextra: 1\n").unwrap();
    let output = check();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    for path in ["issuer: ", "listen.oauth: ", "listen.admin: ", "extra: ", "nats.url: "] {
        assert!(errors.lines().any(|line| line.starts_with(path)), "{path} in {errors}");
    }

    std::fs::remove_file(&file).unwrap();
    assert_eq!(check().status.code(), Some(2));
}
