//! Realms: each with its own issuer, keys, clients, sessions; nothing of one is worth anything in another.

use serde_json::{Value, json};

use crate::harness::{ISSUER, Registered, Server, answer, assert_oauth_error, assert_problem, part};

async fn admin(server: &Server, method: &str, path: &str, body: Value) -> (u16, Value) {
    answer(server.admin(method, path).json(&body)).await
}

async fn make(server: &Server, name: &str) -> Value {
    let (status, realm) = admin(server, "POST", "/admin/v1/realms", json!({ "name": name })).await;
    assert_eq!(status, 201, "{realm}");
    realm
}

async fn register(server: &Server, realm: &str, mut members: Value) -> Registered {
    members["scopes"] = json!(["orders.read"]);
    members["audiences"] = json!(["orders-api"]);
    let path = format!("/admin/v1/realms/{realm}/clients");
    let (status, created) = admin(server, "POST", &path, members).await;
    assert_eq!(status, 201, "{created}");
    let text = |name: &str| created[name].as_str().unwrap().to_owned();
    Registered { id: text("client_id"), secret: text("client_secret") }
}

fn post(
    server: &Server,
    place: &str,
    client: &Registered,
    path: &str,
    form: &[(&str, &str)],
) -> reqwest::RequestBuilder {
    let url = server.oauth(&format!("{place}{path}"));
    server.http.post(url).basic_auth(&client.id, Some(&client.secret)).form(form)
}

fn ask(server: &Server, place: &str, client: &Registered) -> reqwest::RequestBuilder {
    post(server, place, client, "/oauth2/token", &[("grant_type", "client_credentials")])
}

async fn token(server: &Server, place: &str, client: &Registered) -> String {
    let (status, body) = answer(ask(server, place, client)).await;
    assert_eq!(status, 200, "{body}");
    body["access_token"].as_str().unwrap().to_owned()
}

async fn is_active(server: &Server, place: &str, client: &Registered, token: &str) -> bool {
    let (status, body) = answer(post(server, place, client, "/oauth2/introspect", &[("token", token)])).await;
    assert_eq!(status, 200, "{body}");
    body["active"].as_bool().unwrap()
}

/// The ids of the keys that the issuer at `place` publishes.
async fn kids(server: &Server, place: &str) -> Vec<Value> {
    let (_, jwks) = answer(server.http.get(server.oauth(&format!("{place}/oauth2/jwks")))).await;
    jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone()).collect()
}

#[tokio::test]
async fn a_realm_has_its_own_issuer_keys_and_clients() {
    let server = Server::start().await;
    let issuer = format!("{ISSUER}/realms/acme");
    assert_eq!(make(&server, "acme").await["issuer"], issuer);
    make(&server, "other").await;
    // RFC 8414 §3.1, OpenID Connect Discovery §4.
    for path in [
        "/.well-known/oauth-authorization-server/realms/acme",
        "/realms/acme/.well-known/openid-configuration",
    ] {
        let (status, document) = answer(server.http.get(server.oauth(path))).await;
        assert_eq!((status, &document["issuer"]), (200, &json!(issuer)), "{document}");
        assert_eq!(document["token_endpoint"], format!("{issuer}/oauth2/token"));
    }
    let client = register(&server, "acme", json!({ "client_id": "app" })).await;
    let namesake = register(&server, "other", json!({ "client_id": "app" })).await;
    let token = token(&server, "/realms/acme", &client).await;
    let claims = part(&token, 1);
    assert_eq!((&claims["iss"], &claims["client_id"]), (&json!(issuer), &json!("app")));
    assert_eq!(kids(&server, "/realms/acme").await, [part(&token, 0)["kid"].clone()]);
    assert_ne!(kids(&server, "/realms/acme").await, kids(&server, "").await);
    // A client is one of its realm alone, and so is a token.
    for place in ["", "/realms/other"] {
        assert_oauth_error(ask(&server, place, &client), 401, "invalid_client").await;
    }
    assert!(is_active(&server, "/realms/acme", &client, &token).await);
    assert!(!is_active(&server, "/realms/other", &namesake, &token).await);
    // Through a restart.
    let server = server.restarted().await;
    assert!(is_active(&server, "/realms/acme", &client, &token).await);
    assert_eq!(kids(&server, "/realms/acme").await.len(), 1);
}

#[tokio::test]
async fn sessions_and_opaque_tokens_stay_in_their_realm() {
    let server = Server::start().await;
    for name in ["acme", "other"] {
        make(&server, name).await;
    }
    let members = json!({
        "client_id": "app", "grant_types": ["refresh_token"], "access_token_format": "opaque",
    });
    let app = register(&server, "acme", members.clone()).await;
    let namesake = register(&server, "other", members).await;
    let open = json!({ "subject": "alice", "client_id": "app" });
    let (status, opened) = admin(&server, "POST", "/admin/v1/realms/acme/sessions", open).await;
    assert_eq!(status, 201, "{opened}");
    let text = |name: &str| opened[name].as_str().unwrap();
    let refresh = [("grant_type", "refresh_token"), ("refresh_token", text("refresh_token"))];
    let elsewhere = post(&server, "/realms/other", &namesake, "/oauth2/token", &refresh);
    assert_oauth_error(elsewhere, 400, "invalid_grant").await;
    assert!(is_active(&server, "/realms/acme", &app, text("access_token")).await);
    assert!(!is_active(&server, "/realms/other", &namesake, text("access_token")).await);
    // Another realm's revocations name its own sessions and subjects.
    let path = format!("/sessions/{}", text("id"));
    for place in ["/admin/v1", "/admin/v1/realms/other"] {
        assert_problem(server.admin("DELETE", &format!("{place}{path}")), 404).await;
        for selector in [json!({ "session": text("id") }), json!({ "subject": "alice" })] {
            let body = json!({ "selector": selector });
            assert_eq!(admin(&server, "POST", &format!("{place}/revocations"), body).await.0, 200);
        }
    }
    let (status, refreshed) = answer(post(&server, "/realms/acme", &app, "/oauth2/token", &refresh)).await;
    assert_eq!(status, 200, "{refreshed}");
    let (status, _) = answer(server.admin("DELETE", &format!("/admin/v1/realms/acme{path}"))).await;
    assert_eq!(status, 200);
    assert!(!is_active(&server, "/realms/acme", &app, refreshed["access_token"].as_str().unwrap()).await);
}

#[tokio::test]
async fn a_disabled_realm_is_not_there_and_what_it_issued_is_dead() {
    let server = Server::start().await;
    make(&server, "acme").await;
    let client = register(&server, "acme", json!({})).await;
    let before = token(&server, "/realms/acme", &client).await;
    let path = "/admin/v1/realms/acme";
    let (status, realm) = admin(&server, "PATCH", path, json!({ "status": "disabled" })).await;
    assert_eq!((status, &realm["status"]), (200, &json!("disabled")), "{realm}");
    assert_oauth_error(ask(&server, "/realms/acme", &client), 404, "invalid_request").await;
    assert_eq!(admin(&server, "PATCH", path, json!({ "status": "active" })).await.0, 200);
    assert!(!is_active(&server, "/realms/acme", &client, &before).await);
    let after = token(&server, "/realms/acme", &client).await;
    assert!(is_active(&server, "/realms/acme", &client, &after).await);
    // Its settings are those of its tokens from the next request on.
    let settings = json!({ "access_token_lifetime_seconds": 77 });
    assert_eq!(admin(&server, "PATCH", path, settings).await.1["access_token_lifetime_seconds"], 77);
    let claims = part(&token(&server, "/realms/acme", &client).await, 1);
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 77);
}

#[tokio::test]
async fn retention_is_set_reset_and_kept_through_a_restart() {
    let server = Server::start().await;
    make(&server, "acme").await;
    let path = "/admin/v1/realms/acme";
    let change = json!({ "session_retention_days": 30, "revocation_retention_days": 0, "audit_retention_days": 2_555 });
    assert_eq!(admin(&server, "PATCH", path, change).await.0, 200);
    let server = server.restarted().await;
    let reset = json!({ "session_retention_days": null });
    let (status, realm) = admin(&server, "PATCH", path, reset).await;
    let days = ["session", "revocation", "audit"].map(|kind| realm[format!("{kind}_retention_days")].clone());
    assert_eq!((status, days), (200, [json!(null), json!(0), json!(2_555)]), "{realm}");
    let wrong = json!({ "revocation_retention_days": 40_000 });
    let (status, problem) = admin(&server, "PATCH", path, wrong).await;
    assert_eq!(status, 422);
    assert_eq!(problem["errors"][0]["field"], "revocation_retention_days", "{problem}");
    // A realm's list has its own calls alone.
    let body = json!({ "selector": { "subject": "alice" } });
    assert_eq!(admin(&server, "POST", &format!("{path}/revocations"), body).await.0, 200);
    for (place, number) in [(path, 1), ("/admin/v1", 0)] {
        let (status, listed) = answer(server.admin("GET", &format!("{place}/revocations"))).await;
        assert_eq!((status, listed["items"].as_array().unwrap().len()), (200, number), "{listed}");
    }
}

#[tokio::test]
async fn bad_realms_are_refused() {
    let server = Server::start().await;
    make(&server, "acme").await;
    for (body, status) in [
        (json!({ "name": "default" }), 422),
        (json!({ "name": "Acme" }), 422),
        (json!({ "name": "a/b" }), 422),
        (json!({ "name": "-a" }), 422),
        (json!({ "name": "b", "algorithm": "none" }), 422),
        (json!({ "name": "b", "access_token_lifetime_seconds": 0 }), 422),
        (json!({ "name": "b", "session_retention_days": 36_501 }), 422),
        (json!({ "name": "b", "audit_retention_days": -1 }), 400),
        (json!({ "name": "b", "colour": "red" }), 400),
        (json!({ "name": "acme" }), 409),
    ] {
        assert_problem(server.admin("POST", "/admin/v1/realms").json(&body), status).await;
    }
    for path in ["/admin/v1/realms/b", "/admin/v1/realms/b/clients", "/admin/v1/realms/acme/policies"] {
        assert_problem(server.admin("GET", path), 404).await;
    }
    let (status, listed) = answer(server.admin("GET", "/admin/v1/realms?limit=1")).await;
    assert_eq!((status, &listed["next"]), (200, &json!("acme")), "{listed}");
    let without =
        server.http.get(format!("http://{}/admin/v1/realms/acme/clients", server.app.bound().admin));
    assert_problem(without, 401).await;
    let nobody = Registered { id: "x".into(), secret: "y".into() };
    assert_oauth_error(ask(&server, "/realms/b", &nobody), 404, "invalid_request").await;
    // An issuer that is not ours cannot take a realm's place.
    let body = json!({ "issuer": format!("{ISSUER}/realms/acme"), "jwks": { "keys": [] } });
    assert_problem(server.admin("POST", "/admin/v1/issuers").json(&body), 422).await;
}
