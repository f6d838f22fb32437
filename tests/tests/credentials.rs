//! Every kind of credential and binding through a real Envoy: where it is read from, what it must be bound to, what the
//! upstream service learns, and what the control plane says of an opaque one.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atm_core::id::IdKind;
use atm_core::jwk;
use atm_core::key::Algorithm;
use atm_tests::dev::DevStack;
use atm_tests::envoy::Envoy;
use atm_tests::feed::{FeedAuthor, policies, revoked_tokens};
use atm_tests::http::{self, Answer};
use atm_tests::nats::NatsServer;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::{SigningKey, TokenMint, base64url, now};
use atm_tests::upstream::Upstream;
use atm_tests::{process, wait};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

const POLICY: &str = include_str!("credentials/policy.yaml");
const HOST: &str = "api.orders.test";

struct Mesh {
    envoy: Envoy,
    sidecar: Sidecar,
    author: FeedAuthor,
    mint: TokenMint,
    _upstream: Upstream,
    _nats: NatsServer,
}

impl Mesh {
    async fn start() -> Self {
        let mint = TokenMint::new("https://issuer.test", "main", &[("one", "ES256")]);
        let nats = NatsServer::start().await;
        let author = FeedAuthor::start(&nats).await;
        let revision = author.publish(vec![mint.to_change(), policies(1, &[POLICY])]).await;
        let sidecar = Sidecar::start_ready(&nats.url(), &author.public_key()).await;
        sidecar.until_applied(revision).await;
        let upstream = Upstream::start().await;
        let envoy = Envoy::start(upstream.address(), &sidecar.socket()).await;
        Self { envoy, sidecar, author, mint, _upstream: upstream, _nats: nats }
    }

    async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        http::exchange(self.envoy.address(), &http::request("GET", target, HOST, headers, "")).await.unwrap()
    }

    async fn expect(&self, target: &str, headers: &[(&str, &str)], expected: &str) -> Answer {
        let answer = self.get(target, headers).await;
        let found = answer.header("x-atm-reason").unwrap_or("permit");
        assert_eq!(found, expected, "{target} {headers:?}: {} {}", answer.status, answer.text());
        assert_eq!(answer.reached_upstream(), expected == "permit", "{target}");
        answer
    }
}

/// A client with a DPoP key.
struct Prover(SigningKey);

impl Prover {
    fn new() -> Self {
        Self(SigningKey::generate("proof", "ES256"))
    }

    fn jwk(&self) -> Value {
        let full = jwk::jwk_from_spki("proof", Algorithm::ES256, &self.0.spki()).unwrap();
        json!({"kty": "EC", "crv": "P-256", "x": full["x"], "y": full["y"]})
    }

    fn thumbprint(&self) -> String {
        jwk::thumbprint(&self.jwk()).unwrap()
    }

    fn proof(&self, path: &str, token: &str, nonce: Option<&str>) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk()});
        let mut claims = json!({
            "jti": format!("proof-{}", NEXT.fetch_add(1, Ordering::Relaxed)), "htm": "GET",
            "htu": format!("https://{HOST}{path}"), "iat": now(),
            "ath": base64url(digest(&SHA256, token.as_bytes())),
        });
        if let Some(nonce) = nonce {
            claims["nonce"] = nonce.into();
        }
        let input = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        format!("{input}.{}", base64url(self.0.sign(input.as_bytes())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_of_possession_is_checked_and_taken_once() {
    let mesh = Mesh::start().await;
    let prover = Prover::new();
    let token = mesh.mint.token().claim("cnf", json!({"jkt": prover.thumbprint()})).sign();
    let authorization = format!("DPoP {token}");
    let with = |proof: &str| [("authorization", authorization.clone()), ("dpop", proof.to_owned())];
    let send = async |target: &str, proof: &str, expected: &str| {
        let headers = with(proof);
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        mesh.expect(target, &headers, expected).await
    };
    let proof = prover.proof("/proof", &token, None);
    send("/proof?page=1", &proof, "permit").await;
    let again = send("/proof", &proof, "dpop_proof_replayed").await;
    let challenge = again.header("www-authenticate").unwrap();
    assert!(
        challenge.starts_with("DPoP ") && challenge.contains("error=\"invalid_dpop_proof\""),
        "{challenge}"
    );
    assert!(challenge.contains("algs=\"ES256 "), "{challenge}");
    send("/proof", &prover.proof("/orders/1", &token, None), "dpop_request_mismatch").await;
    send("/proof", &prover.proof("/proof", "another token", None), "dpop_token_mismatch").await;
    send("/proof", &Prover::new().proof("/proof", &token, None), "dpop_token_mismatch").await;
    send("/proof", "garbage", "dpop_proof_malformed").await;
    mesh.expect("/proof", &[("authorization", &authorization)], "dpop_proof_missing").await;
    let two = [("authorization", &*authorization), ("dpop", &*proof), ("dpop", &*proof)];
    mesh.expect("/proof", &two, "dpop_proof_multiple").await;
    // A bound token is no bearer token, a bearer token no bound one, and the rule takes bound ones only.
    let bearer = format!("Bearer {token}");
    mesh.expect("/proof", &[("authorization", &bearer)], "scheme_mismatch").await;
    let unbound = mesh.mint.token().sign();
    mesh.expect("/proof", &[("authorization", &format!("Bearer {unbound}"))], "binding_required").await;
    mesh.expect("/orders/1", &[("authorization", &format!("DPoP {unbound}"))], "scheme_mismatch").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_is_handed_out_and_asked_for() {
    let mesh = Mesh::start().await;
    let prover = Prover::new();
    let token = mesh.mint.token().claim("cnf", json!({"jkt": prover.thumbprint()})).sign();
    let authorization = format!("DPoP {token}");
    let first = prover.proof("/nonce", &token, None);
    let answer = mesh
        .expect("/nonce", &[("authorization", &authorization), ("dpop", &first)], "dpop_nonce_required")
        .await;
    assert_eq!(answer.status, 401);
    assert!(answer.header("www-authenticate").unwrap().contains("error=\"use_dpop_nonce\""));
    let nonce = answer.header("dpop-nonce").expect("a nonce comes with the challenge");
    let second = prover.proof("/nonce", &token, Some(nonce));
    mesh.expect("/nonce", &[("authorization", &authorization), ("dpop", &second)], "permit").await;
    let guessed = prover.proof("/nonce", &token, Some("guess"));
    mesh.expect("/nonce", &[("authorization", &authorization), ("dpop", &guessed)], "dpop_nonce_required")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_is_read_where_the_rule_says_and_nowhere_else() {
    let mesh = Mesh::start().await;
    let token = mesh.mint.token().sign();
    let bearer = format!("Bearer {token}");
    let cookie = format!("theme=dark; session={token}");
    let query = format!("/query?a=1&access_token={token}");
    mesh.expect("/header", &[("x-api-token", &token)], "permit").await;
    mesh.expect("/header", &[("authorization", &bearer)], "credential_missing").await;
    mesh.expect("/cookie", &[("cookie", &cookie)], "permit").await;
    mesh.expect("/cookie", &[("cookie", &format!("{cookie}; session=x"))], "credential_multiple").await;
    mesh.expect(&query, &[], "permit").await;
    mesh.expect(&format!("{query}&%61ccess_token=x"), &[], "credential_multiple").await;
    // Two places, two candidates: whoever is behind us might take the other.
    let both = [("authorization", &*bearer), ("cookie", &*cookie)];
    mesh.expect("/stripped", &both, "credential_multiple").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_learns_claims_and_not_the_credential() {
    let mesh = Mesh::start().await;
    let token =
        mesh.mint.token().claim("org", json!({"tenant": "acme"})).claim("roles", json!(["admin", "audit"]));
    let bearer = format!("Bearer {}", token.sign());
    let spoofed = [("authorization", &*bearer), ("x-tenant", "evil"), ("x-roles", "root")];
    let seen = mesh.expect("/orders/1", &spoofed, "permit").await.json()["headers"].clone();
    assert_eq!((&seen["x-tenant"], &seen["x-roles"]), (&json!(["acme"]), &json!(["admin,audit"])));
    // A claim that is missing or cannot be a header takes the client's own with it.
    let odd = mesh.mint.token().claim("org", json!({"tenant": "a\r\nx-admin: 1"})).sign();
    let spoofed = [("authorization", &*format!("Bearer {odd}")), ("x-tenant", "evil"), ("x-roles", "root")];
    let seen = mesh.expect("/orders/1", &spoofed, "permit").await.json()["headers"].clone();
    assert_eq!(
        (&seen["x-tenant"], &seen["x-roles"], &seen["x-admin"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );

    let token = mesh.mint.token().sign();
    let bearer = format!("Bearer {token}");
    let seen = mesh.expect("/stripped", &[("authorization", &*bearer)], "permit").await.json();
    assert_eq!(seen["headers"]["authorization"], Value::Null, "{seen}");
    let cookie = format!("theme=dark; session={token}; lang=en");
    let seen = mesh.expect("/stripped", &[("cookie", &*cookie)], "permit").await.json();
    assert_eq!(seen["headers"]["cookie"], json!(["theme=dark; lang=en"]), "{seen}");
    let seen = mesh.expect(&format!("/stripped?a=1&access_token={token}"), &[], "permit").await.json();
    assert_eq!(seen["target"], "/stripped?a=1", "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_and_ancestors_decide_at_every_request() {
    let mesh = Mesh::start().await;
    let expires = now() + 600;
    let token = mesh
        .mint
        .token()
        .claim("org", json!({"tenant": "acme"}))
        .claim("roles", json!(["admin"]))
        .claim("atm_ancestors", json!([{"jti": "parent", "exp": expires}]));
    let bearer = format!("Bearer {}", token.clone().sign());
    let headers = [("authorization", &*bearer)];
    mesh.expect("/tenants/acme", &headers, "permit").await;
    mesh.expect("/tenants/other", &headers, "condition_false").await;
    let without = format!("Bearer {}", token.without("org").sign());
    mesh.expect("/tenants/acme", &[("authorization", &*without)], "condition_fault").await;
    let parent = mesh.mint.id(IdKind::Token, "parent");
    let revision = mesh.author.publish(vec![revoked_tokens(expires, [parent])]).await;
    mesh.sidecar.until_applied(revision).await;
    mesh.expect("/tenants/acme", &headers, "revoked_ancestor").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_policy_counts_what_it_would_change_and_changes_nothing() {
    let mesh = Mesh::start().await;
    let bearer = format!("Bearer {}", mesh.mint.token().sign());
    let audit = format!("Bearer {}", mesh.mint.token().claim("scope", "orders.audit").sign());
    mesh.expect("/orders/1", &[("authorization", &*bearer)], "permit").await;
    mesh.expect("/orders/1", &[("authorization", &*audit)], "permit").await;
    let metrics = http::get(mesh.sidecar.address("admin"), "/metrics").await.unwrap().text();
    for line in [
        "atm_sidecar_shadow_decisions_total{outcome=\"would_deny\",policy=\"stricter\"} 1",
        "atm_sidecar_shadow_decisions_total{outcome=\"same\",policy=\"stricter\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in\n{metrics}");
    }
    // The record of the difference names the policy, and nothing of the credential.
    let log = wait::until_some("the record of the difference", wait::USUAL, || {
        let log = mesh.sidecar.log();
        log.lines().find(|line| line.contains("\"event\":\"shadow\"")).map(str::to_owned)
    })
    .await;
    let record: Value = serde_json::from_str(&log).unwrap();
    assert_eq!((&record["policy"], &record["reason"]), (&json!("stricter"), &json!("scope_insufficient")));
    assert_eq!(record["enforced_reason"], "permit");
    let token = bearer.trim_start_matches("Bearer ");
    assert!(!mesh.sidecar.log().contains(token.rsplit('.').next().unwrap()), "a token is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_key_lives_and_dies_everywhere_at_once() {
    let mut stack = DevStack::up().await;
    let policy = stack.path().join("keys.yaml");
    let text = include_str!("../../examples/policies/api-keys.yaml");
    std::fs::write(&policy, text).unwrap();
    let atmctl = async |stack: &DevStack, arguments: &[&str]| {
        let output = stack.atmctl(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", process::stderr(&output));
        serde_json::from_str::<Value>(&process::stdout(&output)).unwrap()
    };
    atmctl(&stack, &["--output", "json", "policy", "apply", policy.to_str().unwrap()]).await;
    let create = [
        "--output",
        "json",
        "api-key",
        "create",
        "--subject",
        "robot",
        "--audience",
        "orders-api",
        "--scope",
        "orders.read",
    ];
    let created = atmctl(&stack, &create).await;
    let (id, key) =
        (created["id"].as_str().unwrap().to_owned(), created["api_key"].as_str().unwrap().to_owned());
    let other = atmctl(&stack, &create).await["api_key"].as_str().unwrap().to_owned();
    stack.client().until_settled().await;

    let envoy = http::authority(stack.field("envoy_url")).to_owned();
    let send = async |key: &str| {
        let request = http::request("GET", "/orders/1", "orders.test", &[("x-api-key", key)], "");
        http::exchange(&envoy, &request).await.unwrap()
    };
    let passed = send(&key).await;
    assert_eq!(passed.status, 200, "{}", passed.text());
    assert_eq!(passed.json()["headers"]["x-atm-subject"], json!(["robot"]));
    assert_eq!(passed.json()["headers"]["x-api-key"], Value::Null, "the key went upstream");
    // A typo is refused without a question, a stranger after one.
    let typo = format!("{}{}", &key[..key.len() - 1], if key.ends_with('a') { 'b' } else { 'a' });
    assert_eq!(send(&typo).await.header("x-atm-reason"), Some("token_malformed"));
    let unknown = format!("atm_ak_{}", "0".repeat(43));
    let unknown = format!("{unknown}{}", atm_core::opaque::checksum(&unknown));
    assert_eq!(send(&unknown).await.header("x-atm-reason"), Some("token_inactive"));
    // A change is in force with the next revision, though the sidecar knew the key.
    atmctl(&stack, &["--output", "json", "api-key", "restrict", &id, "--scope", "orders.none"]).await;
    wait::until("the restriction", wait::USUAL, || async {
        let answer = send(&key).await;
        if answer.header("x-atm-reason") == Some("scope_insufficient") { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    // So is its end.
    atmctl(&stack, &["--output", "json", "api-key", "revoke", &id]).await;
    wait::until("the end of the key", wait::USUAL, || async {
        let answer = send(&key).await;
        let reason = answer.header("x-atm-reason").unwrap_or_default();
        if matches!(reason, "revoked_token" | "token_inactive") { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    // What is known stays known without a control plane; what is not ends in a bounded refusal with its own reason.
    assert_eq!(send(&other).await.status, 200);
    stack.kill("control_plane");
    assert_eq!(send(&other).await.status, 200);
    let unasked = format!("atm_ak_{}", "1".repeat(43));
    let unasked = format!("{unasked}{}", atm_core::opaque::checksum(&unasked));
    let began = std::time::Instant::now();
    let refused = send(&unasked).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    let reason = refused.header("x-atm-reason").unwrap_or_default();
    assert!(matches!(reason, "introspection_unavailable" | "introspection_timeout"), "{reason}");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "bounded by the time-out, with room for a loaded machine"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_explains_and_forgets() {
    let mesh = Mesh::start().await;
    let token = mesh.mint.token().sign();
    let body = json!({"method": "GET", "host": HOST, "target": "/tenants/acme", "headers": [["Authorization", format!("Bearer {token}")]]});
    let answer = http::json("POST", mesh.sidecar.address("admin"), "/explain", "", &body).await.unwrap();
    let explained = answer.json();
    assert_eq!((answer.status, &explained["reason"]), (200, &json!("condition_fault")), "{explained}");
    let steps: Vec<_> =
        explained["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["route", "credential", "authenticity", "claims", "revocation", "binding", "policy"]);
    assert!(!explained.to_string().contains(&token), "the credential is in the explanation");
    let metrics = http::get(mesh.sidecar.address("admin"), "/metrics").await.unwrap().text();
    assert!(
        metrics.contains("atm_sidecar_decisions_total{reason=\"condition_fault\"} 0"),
        "an explanation is no decision"
    );
    let wrong = http::json("POST", mesh.sidecar.address("admin"), "/explain", "", &json!({"method": "GET"}))
        .await
        .unwrap();
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("host"), "{}", wrong.text());
}
