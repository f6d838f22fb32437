//! Revocation: RFC 7009.

use serde_json::{Value, json};

use crate::harness::{Server, answer, assert_oauth_error, header};

#[tokio::test]
async fn a_client_revokes_its_own_token() {
    let server = Server::start().await;
    let client = server.client().await;
    let (token, other) = (server.token(&client).await, server.token(&client).await);
    let response = server.post("/oauth2/revoke", &client, &[("token", &token)]).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "cache-control"), "no-store");
    assert!(!server.is_active(&client, &token).await);
    assert!(server.is_active(&client, &other).await);
    // Again is no error, and leaves no second record.
    assert_eq!(
        answer(server.post("/oauth2/revoke", &client, &[("token", &token)])).await,
        (200, Value::Null)
    );
    let (_, records) = answer(server.admin("GET", "/admin/v1/revocations")).await;
    assert_eq!(records["items"].as_array().unwrap().len(), 1);
    assert_eq!(records["items"][0]["actor"], format!("client:{}", client.id));
}

#[tokio::test]
async fn an_unknown_token_is_no_error() {
    let server = Server::start().await;
    let client = server.client().await;
    for token in ["x", "a.b.c", "atm_rt_unknown"] {
        for hint in ["access_token", "refresh_token", "unknown"] {
            let form = [("token", token), ("token_type_hint", hint)];
            assert_eq!(answer(server.post("/oauth2/revoke", &client, &form)).await, (200, Value::Null));
        }
    }
}

#[tokio::test]
async fn a_wrong_hint_hides_nothing() {
    let server = Server::start().await;
    let client = server.client().await;
    let token = server.token(&client).await;
    let form = [("token", &*token), ("token_type_hint", "refresh_token")];
    assert_eq!(answer(server.post("/oauth2/revoke", &client, &form)).await.0, 200);
    assert!(!server.is_active(&client, &token).await);
}

#[tokio::test]
async fn another_clients_token_is_an_error_and_lives() {
    let server = Server::start().await;
    let (client, other) = (server.client().await, server.client().await);
    let token = server.token(&client).await;
    assert_oauth_error(server.post("/oauth2/revoke", &other, &[("token", &token)]), 400, "invalid_grant")
        .await;
    assert!(server.is_active(&client, &token).await);
}

#[tokio::test]
async fn a_token_within_the_skew_of_its_expiry_is_still_revoked() {
    let server = Server::start().await;
    let client = server.register(json!({ "audiences": ["a"], "access_token_lifetime_seconds": 1 })).await;
    let token = server.token(&client).await;
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    assert_eq!(answer(server.post("/oauth2/revoke", &client, &[("token", &token)])).await.0, 200);
    let (_, records) = answer(server.admin("GET", "/admin/v1/revocations")).await;
    assert_eq!(records["items"].as_array().unwrap().len(), 1, "a policy may forgive up to 300 seconds");
}

#[tokio::test]
async fn the_caller_is_authenticated_and_the_token_is_there() {
    let server = Server::start().await;
    let client = server.client().await;
    assert_oauth_error(server.form("/oauth2/revoke", "token=x"), 401, "invalid_client").await;
    assert_oauth_error(server.post("/oauth2/revoke", &client, &[]), 400, "invalid_request").await;
}

/// A failure must never look like success (RFC 7009 §2.2.1).
#[tokio::test]
async fn a_store_that_fails_is_503() {
    let server = Server::start().await;
    let client = server.client().await;
    let token = server.token(&client).await;
    let store = server.dir.path().join("atm.db");
    // Another connection takes away what the revocation is written to.
    let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", store.display())).await.unwrap();
    sqlx::query("ALTER TABLE revoked_tokens RENAME TO elsewhere").execute(&pool).await.unwrap();
    for path in ["/oauth2/revoke", "/oauth2/introspect"] {
        let request = server.post(path, &client, &[("token", &token)]);
        assert_oauth_error(request, 503, "temporarily_unavailable").await;
    }
    sqlx::query("ALTER TABLE elsewhere RENAME TO revoked_tokens").execute(&pool).await.unwrap();
    assert!(server.is_active(&client, &token).await);
    pool.close().await;
}
