//! A table of requests through a real Envoy and a real sidecar, each with the answer that it must get.
//!
//! A row that must be refused must not reach the upstream either; a row that passes must reach it with the identity that the
//! sidecar verified and no other.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

mod requests {
    pub(crate) mod headers;
    pub(crate) mod paths;
    pub(crate) mod table;
    pub(crate) mod tokens;
}

use atm_tests::envoy::Envoy;
use atm_tests::feed::{FeedAuthor, policies};
use atm_tests::http;
use atm_tests::nats::NatsServer;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::TokenMint;
use atm_tests::upstream::Upstream;
use requests::table::{Case, judge};
use requests::{headers, paths, tokens};
use serde_json::Value;

const POLICY: &str = include_str!("requests/policy.yaml");

/// Envoy, sidecar and what feeds it.
struct Mesh {
    envoy: Envoy,
    sidecar: Sidecar,
    _upstream: Upstream,
    author: FeedAuthor,
    _nats: NatsServer,
    mint: TokenMint,
    other: TokenMint,
}

impl Mesh {
    async fn start() -> Self {
        let mint = TokenMint::new(
            "https://issuer.test",
            "main",
            &[
                ("es256", "ES256"),
                ("es384", "ES384"),
                ("ed", "EdDSA"),
                ("rs256", "RS256"),
                ("ps256", "PS256"),
            ],
        );
        // The second issuer uses a kid of the first one for a key of its own.
        let other = TokenMint::new("https://other.test", "other", &[("es256", "ES256")]);
        let nats = NatsServer::start().await;
        let author = FeedAuthor::start(&nats).await;
        let changes = vec![mint.to_change(), other.to_change(), policies(1, &[POLICY])];
        let revision = author.publish(changes).await;
        let sidecar = Sidecar::start_ready(&nats.url(), &author.public_key()).await;
        sidecar.until_applied(revision).await;
        let upstream = Upstream::start().await;
        let envoy = Envoy::start(upstream.address(), &sidecar.socket()).await;
        Self { envoy, sidecar, _upstream: upstream, author, _nats: nats, mint, other }
    }

    async fn judge(&self, cases: &[Case]) {
        judge(self.envoy.address(), cases).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_gets_the_answer_it_must() {
    let mesh = Mesh::start().await;
    let groups = [
        tokens::accepted(&mesh.mint, &mesh.other),
        tokens::claims(&mesh.mint, &mesh.other),
        tokens::headers(&mesh.mint),
        tokens::forged(&mesh.mint, &mesh.other),
        tokens::malformed(&mesh.mint),
        headers::credentials(&mesh.mint),
        paths::methods_and_hosts(&mesh.mint),
        paths::tricks(&mesh.mint),
    ];
    let cases: Vec<Case> = groups.into_iter().flatten().collect();
    assert!(cases.len() >= 60, "{} rows are too few", cases.len());
    mesh.judge(&cases).await;
    // The same rows again: tokens seen before take the cache's way and must be judged the same.
    mesh.judge(&cases).await;

    let permits = mesh.sidecar.metric("atm_sidecar_decisions_total{reason=\"permit\"}").await;
    let expired = mesh.sidecar.metric("atm_sidecar_decisions_total{reason=\"expired\"}").await;
    assert!(permits >= 10.0 && expired >= 2.0, "decisions are counted by reason: {permits}, {expired}");
}

/// What was verified is kept by the keys in force: a key that goes takes with it what it verified, also what was seen before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_key_is_believed_no_more() {
    let mesh = Mesh::start().await;
    let (old, new) = (mesh.mint.token().sign(), mesh.mint.token().with_key("ed").sign());
    let send = async |token: &str| {
        let answer =
            http::exchange(mesh.envoy.address(), &headers::get_orders(token)).await.expect("Envoy answers");
        answer.header("x-atm-reason").unwrap_or("permit").to_owned()
    };
    for token in [&old, &new, &old] {
        assert_eq!(send(token).await, "permit");
    }
    let revision = mesh.author.publish(vec![mesh.mint.to_change_without("es256")]).await;
    mesh.sidecar.until_applied(revision).await;
    assert_eq!(send(&old).await, "key_unknown");
    assert_eq!(send(&new).await, "permit");
    // It comes back, and with it what it signed.
    let revision = mesh.author.publish(vec![mesh.mint.to_change()]).await;
    mesh.sidecar.until_applied(revision).await;
    assert_eq!(send(&old).await, "permit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_headers_come_from_the_sidecar_alone() {
    let mesh = Mesh::start().await;
    let token = mesh.mint.token().claim("sub", "alice").claim("jti", "jti-identity").sign();

    let spoofed = headers::spoofed(Some(&token));
    let answer = http::exchange(mesh.envoy.address(), &spoofed).await.expect("Envoy answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = &answer.json()["headers"];
    let expected = [
        ("x-atm-subject", "alice"),
        ("x-atm-client", "shop"),
        ("x-atm-issuer", "https://issuer.test"),
        ("x-atm-scope", "orders.read orders.write"),
        ("x-atm-token-id", "jti-identity"),
    ];
    for (name, value) in expected {
        assert_eq!(seen[name], Value::from(vec![value]), "{name} in {seen}");
    }
    assert!(!seen.to_string().contains("mallory"), "a spoofed header came through: {seen}");

    // Without a credential nobody is anybody.
    let anonymous = headers::spoofed(None);
    let answer = http::exchange(mesh.envoy.address(), &anonymous).await.expect("Envoy answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.text().contains("mallory"), "a spoofed header came through: {}", answer.text());

    // A value that would break out of a header never becomes one.
    let token = mesh.mint.token().claim("sub", "alice\r\nx-admin: 1").sign();
    let request = headers::get_orders(&token);
    let answer = http::exchange(mesh.envoy.address(), &request).await.expect("Envoy answers");
    assert!(!answer.reached_upstream() || answer.json()["headers"]["x-admin"].is_null(), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_says_why_in_the_words_of_rfc_6750() {
    let mesh = Mesh::start().await;
    let expired = mesh.mint.token().claim("exp", atm_tests::token::now() - 3600).sign();
    let answer =
        http::exchange(mesh.envoy.address(), &headers::get_orders(&expired)).await.expect("Envoy answers");
    assert_eq!(answer.status, 401);
    let challenge = answer.header("www-authenticate").expect("a challenge").to_owned();
    assert!(challenge.starts_with("Bearer ") && challenge.contains("error=\"invalid_token\""), "{challenge}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let body = answer.json();
    assert_eq!((&body["status"], &body["reason"]), (&Value::from(401), &Value::from("expired")), "{body}");
    assert!(!answer.text().contains(&expired[..40]), "the denial repeats the token");

    let narrow = mesh.mint.token().claim("scope", "profile").sign();
    let answer =
        http::exchange(mesh.envoy.address(), &headers::get_orders(&narrow)).await.expect("Envoy answers");
    let challenge = answer.header("www-authenticate").expect("a challenge").to_owned();
    assert!(
        challenge.contains("error=\"insufficient_scope\"") && challenge.contains("scope=\"orders.read\""),
        "{challenge}"
    );
    // RFC 6750 §3.1: without a credential the challenge carries no error code.
    let answer =
        http::exchange(mesh.envoy.address(), &http::request("GET", "/orders", "orders.test", &[], ""))
            .await
            .expect("Envoy answers");
    let challenge = answer.header("www-authenticate").expect("a challenge");
    assert!(challenge.starts_with("Bearer ") && !challenge.contains("error="), "{challenge}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shipped_envoy_configuration_leaves_no_way_around() {
    let mesh = Mesh::start().await;
    let upstream = Upstream::start().await;
    let envoy = Envoy::start_shipped(upstream.address(), &mesh.sidecar.socket()).await;
    let groups = [
        tokens::accepted(&mesh.mint, &mesh.other),
        tokens::forged(&mesh.mint, &mesh.other),
        headers::credentials(&mesh.mint),
        paths::tricks_that_envoy_resolves(),
    ];
    judge(envoy.address(), &groups.concat()).await;

    let token = mesh.mint.token().sign();
    let answer =
        http::exchange(envoy.address(), &headers::spoofed(Some(&token))).await.expect("Envoy answers");
    assert_eq!(answer.json()["headers"]["x-atm-subject"], Value::from(vec!["alice"]), "{}", answer.text());
    assert!(!answer.text().contains("mallory"), "a spoofed header came through: {}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_sidecar_nothing_passes() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Upstream::start().await;
    let envoy = Envoy::start(upstream.address(), &directory.path().join("nobody.sock")).await;
    for target in ["/orders", "/healthz"] {
        let request = http::request("GET", target, "orders.test", &[], "");
        let answer = http::exchange(envoy.address(), &request).await.expect("Envoy answers");
        assert_eq!((answer.status, answer.reached_upstream()), (503, false), "{target}");
    }
}
