//! Opaque access tokens: issued, introspected (RFC 7662, RFC 9701), revoked, refreshed.

use serde_json::json;

use crate::harness::{ISSUER, Registered, Server, answer, header, part};

async fn client(server: &Server) -> Registered {
    let fields = json!({
        "scopes": ["orders.read"], "audiences": ["orders-api"], "access_token_format": "opaque",
        "grant_types": ["client_credentials", "refresh_token"], "claims": { "tenant": "acme" },
    });
    server.register(fields).await
}

#[tokio::test]
async fn an_opaque_token_stands_for_the_same_claims() {
    let server = Server::start().await;
    let client = client(&server).await;
    let token = server.token(&client).await;
    assert!(token.starts_with("atm_at_") && !token.contains('.'));
    let described = server.introspect(&client, &token).await;
    assert_eq!((&described["active"], &described["iss"]), (&json!(true), &json!(ISSUER)));
    assert_eq!((&described["sub"], &described["scope"]), (&json!(client.id), &json!("orders.read")));
    assert_eq!(described["exp"].as_i64().unwrap() - described["iat"].as_i64().unwrap(), 300);
    // Through a restart, and for nobody else.
    let server = server.restarted().await;
    assert!(server.is_active(&client, &token).await);
    let stranger = server.client().await;
    assert_eq!(server.introspect(&stranger, &token).await, json!({ "active": false }));
    let resource = server.register(json!({ "client_id": "orders-api", "audiences": ["x"] })).await;
    assert!(server.is_active(&resource, &token).await, "its audience may ask");
}

#[tokio::test]
async fn it_ends_by_itself_by_its_client_and_by_its_session() {
    let server = Server::start().await;
    let client = client(&server).await;
    let token = server.token(&client).await;
    assert_eq!(answer(server.post("/oauth2/revoke", &client, &[("token", &token)])).await.0, 200);
    assert_eq!(server.introspect(&client, &token).await, json!({ "active": false }));
    let token = server.token(&client).await;
    server.revoke(json!({ "token": token })).await;
    assert!(!server.is_active(&client, &token).await, "by an operator");
    let token = server.token(&client).await;
    server.revoke(json!({ "selector": { "client": client.id } })).await;
    assert!(!server.is_active(&client, &token).await);
    let body = json!({ "subject": "alice", "client_id": client.id });
    let (_, opened) = answer(server.admin("POST", "/admin/v1/sessions").json(&body)).await;
    let token = opened["access_token"].as_str().unwrap();
    assert!(server.is_active(&client, token).await);
    server.revoke(json!({ "selector": { "session": opened["id"] } })).await;
    assert!(!server.is_active(&client, token).await);
    for unknown in [&token[..token.len() - 1], "atm_at_", &token.replace("atm_at_", "atm_ak_")] {
        assert_eq!(server.introspect(&client, unknown).await, json!({ "active": false }));
    }
}

#[tokio::test]
async fn its_text_is_not_in_the_store() {
    let server = Server::start().await;
    let client = client(&server).await;
    let token = server.token(&client).await;
    for name in ["atm.db", "atm.db-wal"] {
        let file = std::fs::read(server.dir.path().join(name)).unwrap_or_default();
        let body = &token.as_bytes()[7..];
        assert!(!file.windows(body.len()).any(|window| window == body), "{name}");
    }
}

/// RFC 9701 §4 and §5.
#[tokio::test]
async fn a_signed_answer_says_whom_it_is_for() {
    let server = Server::start().await;
    let client = client(&server).await;
    let token = server.token(&client).await;
    let ask = |token: &str| {
        let request = server.post("/oauth2/introspect", &client, &[("token", token)]);
        request.header("accept", "application/token-introspection+jwt")
    };
    let response = ask(&token).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "content-type"), "application/token-introspection+jwt");
    assert_eq!(header(&response, "cache-control"), "no-store");
    let signed = response.text().await.unwrap();
    assert_eq!(part(&signed, 0)["typ"], "token-introspection+jwt");
    let claims = part(&signed, 1);
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!(ISSUER), &json!(client.id)));
    assert!(claims["iat"].is_i64() && claims.get("sub").is_none() && claims.get("exp").is_none());
    assert_eq!(claims["token_introspection"]["sub"], client.id);
    assert_eq!(claims["token_introspection"]["active"], true);
    // It is none of our access tokens, whatever it holds.
    assert_eq!(server.introspect(&client, &signed).await, json!({ "active": false }));
    let signed = ask("unknown").send().await.unwrap().text().await.unwrap();
    assert_eq!(part(&signed, 1)["token_introspection"], json!({ "active": false }));
}
