//! Token exchange: RFC 8693 §2 and §4.

use serde_json::{Value, json};

use crate::harness::{Registered, Server, answer, assert_oauth_error, part};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

async fn gateway(server: &Server) -> Registered {
    let fields = json!({
        "scopes": ["orders.read"], "audiences": ["orders-api"], "grant_types": ["client_credentials", EXCHANGE],
        "exchange": { "impersonation": true, "delegation": true },
    });
    server.register(fields).await
}

fn exchange(
    server: &Server,
    client: &Registered,
    token: &str,
    more: &[(&str, &str)],
) -> reqwest::RequestBuilder {
    let mut form =
        vec![("grant_type", EXCHANGE), ("subject_token", token), ("subject_token_type", ACCESS_TOKEN)];
    form.extend(more);
    server.post("/oauth2/token", client, &form)
}

async fn exchanged(server: &Server, client: &Registered, token: &str, more: &[(&str, &str)]) -> Value {
    let (status, body) = answer(exchange(server, client, token, more)).await;
    assert_eq!(status, 200, "{body}");
    body
}

fn access(body: &Value) -> &str {
    body["access_token"].as_str().unwrap()
}

#[tokio::test]
async fn a_token_is_exchanged_for_a_narrower_one_that_ends_with_it() {
    let server = Server::start().await;
    let (app, gateway) = (server.client().await, gateway(&server).await);
    let token = server.token(&app).await;
    let body = exchanged(&server, &gateway, &token, &[]).await;
    assert_eq!(body["issued_token_type"], ACCESS_TOKEN);
    assert_eq!((&body["token_type"], &body["scope"]), (&json!("Bearer"), &json!("orders.read")));
    assert!(body.get("refresh_token").is_none());
    let (parent, child) = (part(&token, 1), part(access(&body), 1));
    assert_eq!((&child["sub"], child["client_id"].as_str()), (&parent["sub"], Some(&*gateway.id)));
    assert_eq!(
        child["atm_ancestors"],
        json!([{ "jti": parent["jti"], "exp": parent["exp"], "client_id": app.id }])
    );
    assert!(child["exp"].as_i64() <= parent["exp"].as_i64());
    // A child of the child ends with its grandparent, too.
    let grandchild = exchanged(&server, &gateway, access(&body), &[]).await;
    assert_eq!(part(access(&grandchild), 1)["atm_ancestors"].as_array().unwrap().len(), 2);
    assert!(server.is_active(&gateway, access(&grandchild)).await);
    server.revoke(json!({ "token": token })).await;
    for dead in [access(&body), access(&grandchild)] {
        assert!(!server.is_active(&gateway, dead).await);
        assert_oauth_error(exchange(&server, &gateway, dead, &[]), 400, "invalid_request").await;
    }
}

#[tokio::test]
async fn delegation_names_the_actor() {
    let server = Server::start().await;
    let (app, gateway) = (server.client().await, gateway(&server).await);
    let (token, own) = (server.token(&app).await, server.token(&gateway).await);
    let actor = [("actor_token", own.as_str()), ("actor_token_type", ACCESS_TOKEN)];
    let body = exchanged(&server, &gateway, &token, &actor).await;
    let claims = part(access(&body), 1);
    assert_eq!(claims["sub"], app.id);
    assert_eq!(claims["act"], json!({ "sub": gateway.id, "client_id": gateway.id }));
    assert_eq!(server.introspect(&gateway, access(&body)).await["act"]["sub"], gateway.id);
    server.revoke(json!({ "token": own })).await;
    assert!(!server.is_active(&gateway, access(&body)).await, "the actor's token is a parent, too");
}

#[tokio::test]
async fn a_session_that_ends_takes_what_was_derived_with_it() {
    let server = Server::start().await;
    let gateway = gateway(&server).await;
    let fields =
        json!({ "scopes": ["orders.read"], "audiences": ["orders-api"], "grant_types": ["refresh_token"] });
    let app = server.register(fields).await;
    let body = json!({ "subject": "alice", "client_id": app.id });
    let (_, opened) = answer(server.admin("POST", "/admin/v1/sessions").json(&body)).await;
    let body = exchanged(&server, &gateway, access(&opened), &[]).await;
    assert_eq!(part(access(&body), 1)["sid"], opened["id"]);
    let path = format!("/admin/v1/sessions/{}", opened["id"].as_str().unwrap());
    assert_eq!(answer(server.admin("DELETE", &path)).await.0, 200);
    assert!(!server.is_active(&gateway, access(&body)).await);
}

/// RFC 8693 §2.1 and §2.2.2.
#[tokio::test]
async fn what_cannot_be_exchanged_is_refused_by_its_code() {
    let server = Server::start().await;
    let (app, gateway) = (server.client().await, gateway(&server).await);
    let token = server.token(&app).await;
    let ask = |token: &str, more: &[(&str, &str)]| exchange(&server, &gateway, token, more);
    assert_oauth_error(ask("x.y.z", &[]), 400, "invalid_request").await;
    assert_oauth_error(ask(&token, &[("audience", "payroll")]), 400, "invalid_target").await;
    assert_oauth_error(ask(&token, &[("scope", "orders.write")]), 400, "invalid_scope").await;
    assert_oauth_error(ask(&token, &[("actor_token", &token)]), 400, "invalid_request").await;
    let saml = [("requested_token_type", "urn:ietf:params:oauth:token-type:saml2")];
    assert_oauth_error(ask(&token, &saml), 400, "invalid_request").await;
    let form = [("grant_type", EXCHANGE), ("subject_token", &token)];
    assert_oauth_error(server.post("/oauth2/token", &gateway, &form), 400, "invalid_request").await;
    assert_oauth_error(exchange(&server, &app, &token, &[]), 400, "unauthorized_client").await;
    let refresh = [("subject_token_type", "urn:ietf:params:oauth:token-type:refresh_token")];
    let form = [("grant_type", EXCHANGE), ("subject_token", token.as_str()), refresh[0]];
    assert_oauth_error(server.post("/oauth2/token", &gateway, &form), 400, "invalid_request").await;
    // A disabled subject gets none.
    let disable = json!({ "subject": app.id });
    assert_eq!(answer(server.admin("POST", "/admin/v1/subjects/disable").json(&disable)).await.0, 200);
    let later = server.token(&app).await;
    assert_oauth_error(ask(&later, &[]), 400, "invalid_grant").await;
}
