//! Introspection: RFC 7662.

use serde_json::json;

use crate::harness::{ISSUER, Server, answer, assert_oauth_error, header};

#[tokio::test]
async fn an_active_token_is_described_to_its_client_and_its_audience() {
    let server = Server::start().await;
    let client = server.client().await;
    let audience = server.register(json!({ "client_id": "orders-api" })).await;
    let token = server.token(&client).await;
    for caller in [&client, &audience] {
        let body = server.introspect(caller, &token).await;
        assert_eq!(body["active"], true);
        assert_eq!(body["iss"], ISSUER);
        assert_eq!(body["client_id"], *client.id);
        assert_eq!(body["sub"], *client.id);
        assert_eq!(body["aud"], "orders-api");
        assert_eq!(body["scope"], "orders.read orders.write");
        assert_eq!(body["token_type"], "Bearer");
        assert!(body["exp"].is_i64() && body["iat"].is_i64() && body["jti"].is_string());
    }
}

#[tokio::test]
async fn inactive_is_this_and_nothing_else() {
    let server = Server::start().await;
    let client = server.client().await;
    let stranger = server.register(json!({ "audiences": ["orders-api"] })).await;
    let token = server.token(&client).await;
    let inactive = json!({ "active": false });

    assert_eq!(server.introspect(&stranger, &token).await, inactive, "neither client nor audience");
    let (head, signature) = token.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    for broken in [
        "x",
        "a.b.c",
        &format!("{head}."),
        &format!("{head}.{flipped}{}", &signature[1..]),
        &"x".repeat(20_000),
    ] {
        assert_eq!(server.introspect(&client, broken).await, inactive);
    }
    let another = Server::start().await;
    assert_eq!(
        another.introspect(&another.client().await, &token).await,
        inactive,
        "of another issuer's key"
    );
    let request = server.post(
        "/oauth2/introspect",
        &client,
        &[("token", &token), ("token_type_hint", "refresh_token")],
    );
    assert_eq!(answer(request).await.1["active"], true, "the hint is only a hint");
}

#[tokio::test]
async fn an_expired_token_is_inactive() {
    let server = Server::start().await;
    let client = server.register(json!({ "audiences": ["a"], "access_token_lifetime_seconds": 1 })).await;
    let token = server.token(&client).await;
    assert!(server.is_active(&client, &token).await);
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    assert_eq!(server.introspect(&client, &token).await, json!({ "active": false }));
}

#[tokio::test]
async fn a_token_revoked_by_any_selector_is_inactive() {
    let server = Server::start().await;
    let client = server.client().await;
    let claims = |token: &str| crate::harness::part(token, 1);
    for kind in ["token", "jwt", "tokens", "subject", "client", "realm", "issuer", "key"] {
        let token = server.token(&client).await;
        assert!(server.is_active(&client, &token).await, "{kind}");
        let claims = claims(&token);
        server
            .revoke(match kind {
                "token" => json!({ "selector": { "token": { "jti": claims["jti"] } } }),
                "jwt" => json!({ "token": token }),
                "tokens" => json!({ "tokens": [{ "jti": claims["jti"], "expires_at": claims["exp"] }] }),
                "subject" => json!({ "selector": { "subject": claims["sub"] } }),
                "client" => json!({ "selector": { "client": client.id } }),
                "realm" => json!({ "selector": { "realm": "default" } }),
                "issuer" => json!({ "selector": { "issuer": ISSUER } }),
                _ => json!({ "selector": { "key": crate::harness::part(&token, 0)["kid"] } }),
            })
            .await;
        assert!(!server.is_active(&client, &token).await, "{kind}");
        // Issued after the call has returned, even in the same millisecond, it lives.
        let later = server.token(&client).await;
        assert!(server.is_active(&client, &later).await, "{kind}");
    }
}

#[tokio::test]
async fn the_caller_is_authenticated_and_the_token_is_there() {
    let server = Server::start().await;
    let client = server.client().await;
    let token = server.token(&client).await;
    let path = "/oauth2/introspect";
    assert_oauth_error(server.form(path, &format!("token={token}")), 401, "invalid_client").await;
    assert_oauth_error(
        server.form(path, &format!("token={token}")).bearer_auth(&token),
        401,
        "invalid_client",
    )
    .await;
    assert_oauth_error(server.post(path, &client, &[]), 400, "invalid_request").await;
    let twice = format!("token={token}&token={token}");
    let twice = server.form(path, &twice).basic_auth(&client.id, Some(&client.secret));
    assert_oauth_error(twice, 400, "invalid_request").await;
    let response = server.post(path, &client, &[("token", &token)]).send().await.unwrap();
    assert_eq!(header(&response, "cache-control"), "no-store");
}
