//! Assertions of trusted issuers as grants: RFC 7523 §2.1 and §3, with Kubernetes service-account tokens.

use serde_json::{Value, json};

use crate::harness::{Server, answer, assert_oauth_error, assert_problem, part};
use crate::keys::{SigningKey, now};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const CLUSTER: &str = "https://kubernetes.default.svc";
const ACCOUNT: &str = "system:serviceaccount:prod:orders";

async fn cluster(server: &Server, key: &SigningKey) {
    let issuer = json!({ "issuer": CLUSTER, "jwks": key.jwks(), "token_types": ["JWT", "none"] });
    let (status, body) = answer(server.admin("POST", "/admin/v1/issuers").json(&issuer)).await;
    assert_eq!(status, 201, "{body}");
}

async fn workload(server: &Server, id: &str) {
    let fields = json!({
        "client_id": id, "scopes": ["orders.read"], "audiences": ["orders-api"], "grant_types": [GRANT],
        "subject": "${assertion.sub}", "claims": { "cluster": "${assertion.iss}" },
    });
    server.register(fields).await;
}

fn rule(client: &str, more: &Value) -> Value {
    let mut rule = json!({
        "issuer": CLUSTER, "client_id": client, "claims": { "/sub": ACCOUNT, "/kubernetes.io/namespace": "prod" },
    });
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    rule
}

async fn make(server: &Server, rule: &Value) -> String {
    let (status, body) = answer(server.admin("POST", "/admin/v1/assertion-rules").json(rule)).await;
    assert_eq!(status, 201, "{body}");
    body["id"].as_str().unwrap().to_owned()
}

fn ask(server: &Server, assertion: &str, more: &str) -> reqwest::RequestBuilder {
    server.form("/oauth2/token", &format!("grant_type={GRANT}&assertion={assertion}{more}"))
}

/// As the API server makes them: no `typ`, a list of one audience.
fn account_token(key: &SigningKey, changes: &Value) -> String {
    let mut all = json!({ "aud": ["http://127.0.0.1:8080"], "kubernetes.io": { "namespace": "prod" } });
    all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    key.assertion(CLUSTER, ACCOUNT, &all)
}

#[tokio::test]
async fn a_service_account_gets_what_its_client_may_have() {
    let server = Server::start().await;
    let key = SigningKey::new();
    cluster(&server, &key).await;
    workload(&server, "orders").await;
    let id = make(&server, &rule("orders", &json!({ "reusable": true }))).await;
    let token = account_token(&key, &json!({ "exp": now() + 120 }));
    for _ in 0..2 {
        let (status, body) = answer(ask(&server, &token, "")).await;
        assert_eq!(status, 200, "{body}");
        let claims = part(body["access_token"].as_str().unwrap(), 1);
        assert_eq!((&claims["sub"], &claims["client_id"]), (&json!(ACCOUNT), &json!("orders")));
        assert_eq!((&claims["cluster"], &claims["aud"]), (&json!(CLUSTER), &json!("orders-api")));
        assert!(claims["exp"].as_i64().unwrap() <= now() + 120, "it ends with the assertion");
    }
    assert_eq!(answer(ask(&server, &token, "&client_id=orders")).await.0, 200);
    assert_oauth_error(ask(&server, &token, "&client_id=another"), 400, "invalid_grant").await;
    assert_eq!(answer(server.admin("DELETE", &format!("/admin/v1/assertion-rules/{id}"))).await.0, 204);
    assert_oauth_error(ask(&server, &token, ""), 400, "invalid_grant").await;
}

/// RFC 7523 §3, over the wire.
#[tokio::test]
async fn an_assertion_is_for_us_in_time_and_taken_once() {
    let server = Server::start().await;
    let (key, other) = (SigningKey::new(), SigningKey::new());
    cluster(&server, &key).await;
    workload(&server, "orders").await;
    make(&server, &rule("orders", &json!({}))).await;
    let good = account_token(&key, &json!({}));
    assert_eq!(answer(ask(&server, &good, "")).await.0, 200);
    assert_oauth_error(ask(&server, &good, ""), 400, "invalid_grant").await;
    for changes in [
        json!({ "aud": "https://kubernetes.default.svc" }),
        json!({ "aud": ["http://127.0.0.1:8080", "https://kubernetes.default.svc"] }),
        json!({ "exp": now() - 600 }),
        json!({ "exp": now() + 90_000 }),
        json!({ "jti": null }),
        json!({ "sub": "system:serviceaccount:prod:another" }),
        json!({ "kubernetes.io": { "namespace": "test" } }),
        json!({ "iss": "https://unknown.example" }),
    ] {
        assert_oauth_error(ask(&server, &account_token(&key, &changes), ""), 400, "invalid_grant").await;
    }
    assert_oauth_error(ask(&server, &account_token(&other, &json!({})), ""), 400, "invalid_grant").await;
    assert_oauth_error(ask(&server, "x", ""), 400, "invalid_grant").await;
    assert_oauth_error(ask(&server, "", ""), 400, "invalid_request").await;
    let wide = ask(&server, &account_token(&key, &json!({})), "&scope=admin");
    assert_oauth_error(wide, 400, "invalid_scope").await;
}

#[tokio::test]
async fn rules_name_what_exists_and_conditions_that_mean_something() {
    let server = Server::start().await;
    cluster(&server, &SigningKey::new()).await;
    workload(&server, "orders").await;
    let other = server.client().await;
    for (rule, field) in [
        (rule("none", &json!({})), "client_id"),
        (rule(&other.id, &json!({})), "client_id"),
        (rule("orders", &json!({ "issuer": "https://unknown.example" })), "issuer"),
        (rule("orders", &json!({ "claims": {} })), "claims"),
        (rule("orders", &json!({ "claims": { "sub": "a" } })), "claims.sub"),
        (rule("orders", &json!({ "max_lifetime_seconds": 0 })), "max_lifetime_seconds"),
    ] {
        let problem =
            assert_problem(server.admin("POST", "/admin/v1/assertion-rules").json(&rule), 422).await;
        assert_eq!(problem["errors"][0]["field"], field, "{rule}");
    }
    assert_problem(server.admin("DELETE", "/admin/v1/assertion-rules/none"), 404).await;
    make(&server, &rule("orders", &json!({}))).await;
    let (_, listed) = answer(server.admin("GET", "/admin/v1/assertion-rules")).await;
    assert_eq!(listed["items"][0]["client_id"], "orders");
}

/// A disabled client is refused on every grant.
#[tokio::test]
async fn a_disabled_client_or_subject_gets_nothing() {
    let server = Server::start().await;
    let key = SigningKey::new();
    cluster(&server, &key).await;
    workload(&server, "orders").await;
    make(&server, &rule("orders", &json!({ "reusable": true }))).await;
    let token = account_token(&key, &json!({}));
    let subject = json!({ "subject": ACCOUNT });
    assert_eq!(answer(server.admin("POST", "/admin/v1/subjects/disable").json(&subject)).await.0, 200);
    assert_oauth_error(ask(&server, &token, ""), 400, "invalid_grant").await;
    assert_eq!(answer(server.admin("POST", "/admin/v1/subjects/enable").json(&subject)).await.0, 204);
    assert_eq!(answer(ask(&server, &token, "")).await.0, 200);
    let change = json!({ "status": "disabled" });
    assert_eq!(answer(server.admin("PATCH", "/admin/v1/clients/orders").json(&change)).await.0, 200);
    assert_oauth_error(ask(&server, &token, ""), 400, "invalid_grant").await;
}
