//! The admin API.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::harness::{Server, answer, assert_problem, header, part};

const POLICY: &str = "apiVersion: atm.dev/v1
kind: TokenPolicy
metadata: { name: orders }
spec:
  audiences: [orders-api]
  rules:
    - name: read
      methods: [GET]
      paths: [/orders]
      scopes: { all: [orders.read] }
";

#[tokio::test]
async fn only_the_bearer_token_opens_it() {
    let server = Server::start().await;
    let url = format!("http://{}/admin/v1/clients", server.app.bound().admin);
    for request in [
        server.http.get(&url),
        server.http.get(&url).bearer_auth("admin-token-of-the-testz"),
        server.http.get(&url).basic_auth("admin", Some(crate::harness::ADMIN_TOKEN)),
        server.admin("GET", "/admin/v1/clients").header("authorization", "Bearer x"),
        server.http.get(format!("{url}?access_token={}", crate::harness::ADMIN_TOKEN)),
    ] {
        let again = request.try_clone().unwrap().send().await.unwrap();
        assert!(header(&again, "www-authenticate").starts_with("Bearer"));
        assert_problem(request, 401).await;
    }
    // Not on the other listener, whatever the credential.
    let elsewhere =
        server.http.get(server.oauth("/admin/v1/clients")).bearer_auth(crate::harness::ADMIN_TOKEN);
    assert_problem(elsewhere, 404).await;
}

#[tokio::test]
async fn a_client_lives_through_its_life() {
    let server = Server::start().await;
    let new = json!({ "client_id": "orders", "name": "Orders", "scopes": ["a"], "audiences": ["api"] });
    let response = server.admin("POST", "/admin/v1/clients").json(&new).send().await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(header(&response, "location"), "/admin/v1/clients/orders");
    assert_eq!(header(&response, "cache-control"), "no-store");
    let created: Value = response.json().await.unwrap();
    assert!(created["client_secret"].as_str().unwrap().starts_with("atm_cs_"));

    assert_problem(server.admin("POST", "/admin/v1/clients").json(&new), 409).await;
    let (_, shown) = answer(server.admin("GET", "/admin/v1/clients/orders")).await;
    assert_eq!(shown["name"], "Orders");
    assert!(shown.get("client_secret").is_none() && shown.get("secret_hash").is_none());
    let (_, list) = answer(server.admin("GET", "/admin/v1/clients")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);

    let change = json!({ "scopes": ["a", "b"] });
    let (_, changed) = answer(server.admin("PATCH", "/admin/v1/clients/orders").json(&change)).await;
    assert_eq!((&changed["scopes"], &changed["name"]), (&json!(["a", "b"]), &json!("Orders")));
    assert_eq!(answer(server.admin("DELETE", "/admin/v1/clients/orders")).await.0, 200);
    assert_problem(server.admin("GET", "/admin/v1/clients/orders"), 404).await;
    assert_problem(server.admin("DELETE", "/admin/v1/clients/orders"), 404).await;
}

#[tokio::test]
async fn pages_follow_each_other() {
    let server = Server::start().await;
    for id in ["c1", "c2", "c3"] {
        server.register(json!({ "client_id": id })).await;
    }
    let (_, first) = answer(server.admin("GET", "/admin/v1/clients?limit=2")).await;
    assert_eq!(first["next"], "c2");
    let (_, second) = answer(server.admin("GET", "/admin/v1/clients?limit=2&after=c2")).await;
    assert_eq!(second["items"][0]["client_id"], "c3");
    assert!(second.get("next").is_none());
    assert_problem(server.admin("GET", "/admin/v1/clients?limit=0"), 422).await;
    assert_problem(server.admin("GET", "/admin/v1/clients?page=2"), 400).await;
}

#[tokio::test]
async fn mistakes_in_a_body_are_told_all_at_once() {
    let server = Server::start().await;
    let post = |body: Value| server.admin("POST", "/admin/v1/clients").json(&body);
    let problem =
        assert_problem(post(json!({ "client_id": "a b", "scopes": ["x y"], "name": "\u{7}" })), 422).await;
    let fields: HashSet<_> =
        problem["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    assert!(fields.contains("client_id") && fields.contains("name") && fields.len() == 3, "{problem}");
    assert_problem(post(json!({ "clientId": "a" })), 422).await;
    assert_problem(server.admin("POST", "/admin/v1/clients").body("{"), 415).await;
    let broken =
        server.admin("POST", "/admin/v1/clients").header("content-type", "application/json").body("{");
    assert_problem(broken, 400).await;
    let large = json!({ "name": "x".repeat(1_100_000) });
    assert_problem(post(large), 413).await;
    assert_problem(server.admin("GET", "/admin/v1/nothing"), 404).await;
    assert_problem(server.admin("PUT", "/admin/v1/clients"), 405).await;
}

#[tokio::test]
async fn a_revocation_says_its_revision_and_where_it_is_in_force() {
    let server = Server::start().await;
    let client = server.client().await;
    let before = answer(server.admin("GET", "/admin/v1/feed")).await.1["revision"].as_u64().unwrap();
    let wait = json!({ "share": 1.0, "timeout_ms": 50 });
    let body =
        server.revoke(json!({ "selector": { "client": client.id }, "reason": "leaked", "wait": wait })).await;
    assert!(body["revision"].as_u64().unwrap() > before, "{body}");
    assert_eq!(body["revoked"], 1);
    assert_eq!(body["receipt"]["revision"], body["revision"]);
    assert_eq!(body["receipt"]["complete"], false, "without NATS nobody can know");

    let (_, list) = answer(server.admin("GET", "/admin/v1/revocations?limit=1")).await;
    assert_eq!(list["items"][0]["kind"], "client");
    assert_eq!(list["items"][0]["value"], client.id);
    assert_eq!(list["items"][0]["reason"], "leaked");
}

#[tokio::test]
async fn a_batch_is_revoked_in_one_call() {
    let server = Server::start().await;
    let expires_at = 4_000_000_000_i64;
    let tokens: Vec<Value> =
        (0..100_000).map(|n| json!({ "jti": format!("token-{n}"), "expires_at": expires_at })).collect();
    let body = server.revoke(json!({ "tokens": tokens })).await;
    assert_eq!(body["revoked"], 100_000);
}

#[tokio::test]
async fn a_revocation_that_cannot_be_meant_changes_nothing() {
    let server = Server::start().await;
    let foreign = Server::start().await;
    let foreign_token = foreign.token(&foreign.client().await).await;
    for body in [
        json!({}),
        json!({ "selector": { "client": "a" }, "token": "b" }),
        json!({ "selector": { "nobody": "a" } }),
        json!({ "selector": { "client": "" } }),
        json!({ "selector": { "client": "a" }, "wait": { "share": 0 } }),
        json!({ "selector": { "client": "a" }, "wait": { "timeout_ms": 600_000 } }),
        json!({ "tokens": [] }),
        json!({ "tokens": [{ "jti": "a", "expires_at": -1 }] }),
        json!({ "token": "no token" }),
        json!({ "token": foreign_token }),
    ] {
        assert_problem(server.admin("POST", "/admin/v1/revocations").json(&body), 422).await;
    }
    assert_eq!(answer(server.admin("GET", "/admin/v1/revocations")).await.1["items"], json!([]));
}

#[tokio::test]
async fn policies_are_applied_shown_and_rolled_back() {
    let server = Server::start().await;
    let (_, none) = answer(server.admin("GET", "/admin/v1/policies")).await;
    assert_eq!((&none["version"], &none["documents"]), (&json!(0), &json!([])));
    let put = |documents: &[&str]| {
        server.admin("PUT", "/admin/v1/policies").json(&json!({ "documents": documents }))
    };
    let (status, first) = answer(put(&[POLICY])).await;
    assert_eq!((status, &first["version"]), (200, &json!(1)), "{first}");
    let renamed = POLICY.replace("name: orders", "name: other");
    assert_eq!(answer(put(&[&renamed])).await.1["version"], 2);

    let (status, back) = answer(server.admin("POST", "/admin/v1/policies/rollback")).await;
    assert_eq!((status, &back["version"]), (200, &json!(3)));
    let (_, current) = answer(server.admin("GET", "/admin/v1/policies")).await;
    assert_eq!(current["documents"], json!([POLICY]));
    assert_eq!(current["history"].as_array().unwrap().len(), 3);
    assert_eq!(current["history"][0]["restored_from"], 1);
    let (_, second) = answer(server.admin("GET", "/admin/v1/policies/2")).await;
    assert_eq!(second["documents"], json!([renamed]));
    assert_problem(server.admin("GET", "/admin/v1/policies/9"), 404).await;
    assert_problem(server.admin("POST", "/admin/v1/policies/rollback").json(&json!({ "version": 9 })), 404)
        .await;
}

#[tokio::test]
async fn a_bad_policy_is_refused_with_its_place_and_displaces_nothing() {
    let server = Server::start().await;
    let put = |documents: &[&str]| {
        server.admin("PUT", "/admin/v1/policies").json(&json!({ "documents": documents }))
    };
    assert_eq!(answer(put(&[POLICY])).await.0, 200);
    let bad = POLICY.replace("methods:", "method:");
    let problem = assert_problem(put(&[POLICY, &bad]), 422).await;
    let error = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|error| error["line"] == 8)
        .unwrap_or_else(|| panic!("{problem}"));
    assert_eq!(error["field"], "documents[1]");
    assert!(error["column"].as_u64().unwrap() >= 1 && error["message"].is_string());
    assert_eq!(answer(server.admin("GET", "/admin/v1/policies")).await.1["version"], 1);
}

#[tokio::test]
async fn without_nats_a_rotation_publishes_and_the_old_key_goes_on() {
    let server = Server::start().await;
    let client = server.client().await;
    let kid = |token: &str| part(token, 0)["kid"].clone();
    let before = kid(&server.token(&client).await);
    let (status, rotation) = answer(server.admin("POST", "/admin/v1/keys/rotate")).await;
    assert_eq!(status, 202, "{rotation}");
    assert_eq!(rotation["active"], before);
    assert_eq!(kid(&server.token(&client).await), before);
    let (_, keys) = answer(server.admin("GET", "/admin/v1/keys")).await;
    assert_eq!(keys["items"].as_array().unwrap().len(), 2);
    assert_eq!(keys["rotation"]["pending"], rotation["pending"]);
    assert!(!keys.to_string().contains("wrapped"));
    let (_, jwks) = answer(server.http.get(server.oauth("/oauth2/jwks"))).await;
    assert_eq!(jwks["keys"].as_array().unwrap().len(), 2, "published before its first use");
    assert_problem(server.admin("POST", "/admin/v1/keys/rotate"), 409).await;
}

#[tokio::test]
async fn feed_and_fleet_are_shown() {
    let server = Server::start().await;
    let (_, feed) = answer(server.admin("GET", "/admin/v1/feed")).await;
    assert_eq!(feed["realm_group"], "default");
    assert_eq!(feed["feed_public_key"].as_str().unwrap().len(), 43);
    assert_eq!(feed["epoch"].as_str().unwrap().len(), 32);
    assert!(feed["degraded"].is_string());
    let (_, fleet) = answer(server.admin("GET", "/admin/v1/fleet")).await;
    assert_eq!((&fleet["sidecars"], &fleet["live"]), (&json!([]), &json!(0)));
    assert_eq!(fleet["epoch"], feed["epoch"]);
}
