//! Gateways other than Envoy that ask over HTTP: nginx for real, Traefik by the requests that it sends.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::collections::BTreeSet;

use atm_tests::feed::{FeedAuthor, policies};
use atm_tests::http::{self, Answer};
use atm_tests::nats::NatsServer;
use atm_tests::nginx::Nginx;
use atm_tests::programs;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::TokenMint;
use atm_tests::upstream::Upstream;
use serde_json::{Value, json};

const POLICY: &str = include_str!("requests/policy.yaml");

struct Fed {
    sidecar: Sidecar,
    mint: TokenMint,
    _author: FeedAuthor,
    _nats: NatsServer,
}

impl Fed {
    /// A sidecar that judges the request that a gateway tells it of.
    async fn start() -> Self {
        let mint = TokenMint::new("https://issuer.test", "main", &[("one", "ES256")]);
        let nats = NatsServer::start().await;
        let author = FeedAuthor::start(&nats).await;
        let revision = author.publish(vec![mint.to_change(), policies(1, &[POLICY])]).await;
        let mut sidecar = Sidecar::configure(&nats.url(), &author.public_key());
        sidecar.set("listen.httpTrustForwarded", json!(true));
        sidecar.start().await;
        sidecar.until_ready().await;
        sidecar.until_applied(revision).await;
        Self { sidecar, mint, _author: author, _nats: nats }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_asks_for_every_request_and_believes_no_client() {
    let mut fed = Fed::start().await;
    let upstream = Upstream::start().await;
    let nginx = Nginx::start_shipped(upstream.address(), fed.sidecar.address("http")).await;
    let get = async |target: &str, headers: &[(&str, &str)]| {
        nginx.exchange(&http::request("GET", target, "orders.test", headers, "")).await.unwrap()
    };
    let token = fed.mint.token().claim("sub", "alice").without("sid").sign();
    let bearer = format!("Bearer {token}");
    let narrow = format!("Bearer {}", fed.mint.token().claim("scope", "profile").sign());

    let spoofed = [
        ("authorization", bearer.as_str()),
        ("x-atm-subject", "mallory"),
        ("X-Atm-Session", "mallory"),
        ("x_atm_subject", "mallory"),
    ];
    let answer = get("/orders?page=1", &spoofed).await;
    assert!(answer.reached_upstream(), "{} {}", answer.status, answer.text());
    let seen = answer.json();
    assert_eq!(seen["headers"]["x-atm-subject"], json!(["alice"]), "{seen}");
    assert_eq!(seen["target"], "/orders?page=1");
    assert!(!seen.to_string().contains("mallory"), "{seen}");

    // What a client says of itself does not reach the sidecar as nginx's word.
    let lies = [
        ("x-forwarded-uri", "/healthz"),
        ("x-original-uri", "/healthz"),
        ("x-original-method", "GET"),
        ("x-forwarded-host", "elsewhere.test"),
        ("x-forwarded-method", "GET"),
    ];
    let answer = get("/orders", &lies).await;
    expect(&answer, 401, "credential_missing");
    assert!(answer.header("www-authenticate").unwrap_or_default().starts_with("Bearer "), "{answer:?}");
    let delete =
        http::request("DELETE", "/orders", "orders.test", &[("authorization", &bearer), lies[4]], "");
    let deletes = fed.mint.token().claim("scope", "orders.read").sign();
    let delete = String::from_utf8(delete).unwrap().replace(&token, &deletes);
    expect(&nginx.exchange(delete.as_bytes()).await.unwrap(), 403, "scope_insufficient");

    let answer = get("/orders", &[("authorization", &narrow)]).await;
    expect(&answer, 403, "scope_insufficient");
    assert!(
        answer.header("www-authenticate").unwrap_or_default().contains("insufficient_scope"),
        "{answer:?}"
    );
    assert!(get("/healthz", &[]).await.reached_upstream());
    for target in ["/healthz/../orders", "/healthz/%2e%2e/orders", "/healthz%2f..%2forders", "//healthz"] {
        expect(&get(target, &[("authorization", &bearer)]).await, 400, "ambiguous_path");
    }

    fed.sidecar.kill();
    let answer = get("/healthz", &[]).await;
    assert_eq!((answer.status, answer.reached_upstream()), (503, false), "{}", answer.text());
}

fn expect(answer: &Answer, status: u16, reason: &str) {
    let found = (answer.status, answer.header("x-atm-reason"), answer.reached_upstream());
    assert_eq!(found, (status, Some(reason), false), "{}", answer.text());
    assert_eq!(answer.json()["reason"], reason, "{}", answer.text());
}

/// What Traefik's forward-auth middleware sends: its own GET, and the original request in headers that replace a client's.
fn forward_auth(method: &str, uri: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let forwarded = [
        ("X-Forwarded-Method", method),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "orders.test"),
        ("X-Forwarded-Uri", uri),
        ("X-Forwarded-For", "203.0.113.7"),
    ];
    http::request("GET", "/", "127.0.0.1:9192", &[headers, &forwarded].concat(), "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traefiks_forward_auth_gets_statuses_and_identities_that_it_passes_on() {
    let mut fed = Fed::start().await;
    fed.sidecar.set("listen.httpUnavailableStatus", json!(503));
    fed.sidecar.kill();
    fed.sidecar.start().await;
    fed.sidecar.until_ready().await;
    let ask = async |method: &str, uri: &str, headers: &[(&str, &str)]| {
        http::exchange(fed.sidecar.address("http"), &forward_auth(method, uri, headers)).await.unwrap()
    };
    let bearer = format!("Bearer {}", fed.mint.token().claim("sub", "alice").sign());
    let bearer = [("Authorization", bearer.as_str())];

    let permitted = ask("GET", "/orders?page=1", &bearer).await;
    assert_eq!(permitted.status, 200, "{}", permitted.text());
    assert_eq!(permitted.header("x-atm-subject"), Some("alice"));
    let copied = copied_headers();
    let set =
        permitted.headers.iter().map(|(name, _)| name.clone()).filter(|name| name.starts_with("x-atm-"));
    assert_eq!(copied, set.collect(), "authResponseHeaders of examples/traefik/dynamic.yaml");

    let refused = ask("GET", "/orders", &[]).await;
    expect(&refused, 401, "credential_missing");
    assert!(refused.header("www-authenticate").is_some());
    let reading = format!("Bearer {}", fed.mint.token().claim("scope", "orders.read").sign());
    expect(&ask("DELETE", "/orders", &[("Authorization", &reading)]).await, 403, "scope_insufficient");
    expect(&ask("GET", "/healthz/..%2forders", &bearer).await, 400, "ambiguous_path");
    // A client's own word for the request beside Traefik's: two answers to one question.
    expect(&ask("GET", "/orders", &[("X-Original-Uri", "/healthz")]).await, 400, "malformed_request");
    // Without Traefik's headers there is no request to judge.
    let bare = http::request("GET", "/healthz", "orders.test", &[], "");
    expect(&http::exchange(fed.sidecar.address("http"), &bare).await.unwrap(), 400, "malformed_request");
}

/// `authResponseHeaders` of the shipped configuration, in lower case.
fn copied_headers() -> BTreeSet<String> {
    let file = programs::workspace().join("examples/traefik/dynamic.yaml");
    let text = std::fs::read_to_string(file).expect("examples/traefik/dynamic.yaml");
    let config: Value = serde_norway::from_str(&text).expect("YAML");
    let forward = &config["http"]["middlewares"]["atm"]["forwardAuth"];
    assert_eq!(forward["trustForwardHeader"], false, "a client's X-Forwarded-* would be believed");
    let headers = forward["authResponseHeaders"].as_array().expect("a list");
    headers.iter().map(|name| name.as_str().expect("a name").to_lowercase()).collect()
}
