//! Dynamic client registration: RFC 7591 §3, RFC 7592 §2.

use serde_json::{Value, json};

use crate::harness::{Registered, Server, answer, header, part};
use crate::sessions::LISTEN;

const TOKEN: &str = "initial-access-token-of-the-tests";

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("registration.token");
    std::fs::write(&file, TOKEN).unwrap();
    let registration = format!(
        "registration: {{ tokenFile: {}, scopes: 'orders.read orders.write', audiences: orders-api }}",
        file.display()
    );
    Server::with(&format!("{LISTEN}\n{registration}")).await
}

fn register(server: &Server, token: &str, metadata: &Value) -> reqwest::RequestBuilder {
    server.http.post(server.oauth("/oauth2/register")).bearer_auth(token).json(metadata)
}

fn manage(server: &Server, method: &str, registration: &Value, token: &str) -> reqwest::RequestBuilder {
    let id = registration["client_id"].as_str().unwrap();
    let url = server.oauth(&format!("/oauth2/register/{id}"));
    server.http.request(method.parse().unwrap(), url).bearer_auth(token)
}

async fn refused(request: reqwest::RequestBuilder, status: u16, error: &str) {
    let response = request.send().await.unwrap();
    assert_eq!(header(&response, "cache-control"), "no-store");
    let found = response.status().as_u16();
    if found == 401 {
        assert!(header(&response, "www-authenticate").starts_with("Bearer "));
    }
    let body: Value = response.json().await.unwrap();
    assert_eq!((found, body["error"].as_str()), (status, Some(error)), "{body}");
}

#[tokio::test]
async fn nobody_registers_itself_unless_that_is_configured() {
    let server = Server::start().await;
    refused(register(&server, TOKEN, &json!({})), 404, "invalid_request").await;
    let (_, metadata) =
        answer(server.http.get(server.oauth("/.well-known/oauth-authorization-server"))).await;
    assert!(metadata.get("registration_endpoint").is_none());
}

#[tokio::test]
async fn a_client_registers_itself_and_gets_tokens() {
    let server = server().await;
    let (_, metadata) =
        answer(server.http.get(server.oauth("/.well-known/oauth-authorization-server"))).await;
    assert_eq!(metadata["registration_endpoint"], format!("{}/oauth2/register", crate::harness::ISSUER));
    let asked = json!({ "client_name": "n", "scope": "orders.read", "software_id": "passed over" });
    let (status, body) = answer(register(&server, TOKEN, &asked)).await;
    assert_eq!(status, 201, "{body}");
    // RFC 7591 §3.2.1: what was registered, in full.
    assert_eq!((&body["client_name"], &body["scope"]), (&json!("n"), &json!("orders.read")));
    assert_eq!(
        (&body["client_secret_expires_at"], &body["grant_types"]),
        (&json!(0), &json!(["client_credentials"]))
    );
    assert!(body["client_id_issued_at"].is_i64() && body.get("software_id").is_none());
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    let client = Registered { id: text("client_id"), secret: text("client_secret") };
    let claims = part(&server.token(&client).await, 1);
    assert_eq!((&claims["aud"], &claims["scope"]), (&json!("orders-api"), &json!("orders.read")));
}

#[tokio::test]
async fn the_initial_access_token_is_asked_for_and_the_metadata_is_checked() {
    let server = server().await;
    refused(register(&server, "wrong", &json!({})), 401, "invalid_token").await;
    refused(server.http.post(server.oauth("/oauth2/register")).json(&json!({})), 401, "invalid_token").await;
    for wrong in [
        json!({ "scope": "admin" }),
        json!({ "grant_types": ["urn:ietf:params:oauth:grant-type:token-exchange"] }),
        json!({ "grant_types": ["implicit"] }),
        json!({ "response_types": ["code"] }),
        json!({ "token_endpoint_auth_method": "private_key_jwt" }),
        json!({ "token_endpoint_auth_method": "none" }),
        json!({ "jwks_uri": "https://client.example/jwks" }),
        json!({ "token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "ftp://client.example/jwks" }),
        json!({ "client_name": 1 }),
    ] {
        refused(register(&server, TOKEN, &wrong), 400, "invalid_client_metadata").await;
    }
    let text = server.http.post(server.oauth("/oauth2/register")).bearer_auth(TOKEN).body("x");
    refused(text, 400, "invalid_client_metadata").await;
}

/// RFC 7592 §2.1 to §2.3.
#[tokio::test]
async fn a_registration_is_read_replaced_and_removed_by_its_own_token() {
    let server = server().await;
    let (_, made) = answer(register(&server, TOKEN, &json!({ "client_name": "n" }))).await;
    let (_, other) = answer(register(&server, TOKEN, &json!({}))).await;
    let token = made["registration_access_token"].as_str().unwrap();
    let others = other["registration_access_token"].as_str().unwrap();
    let (status, read) = answer(manage(&server, "GET", &made, token)).await;
    assert_eq!((status, &read["client_name"]), (200, &json!("n")), "{read}");
    assert!(read.get("client_secret").is_none(), "shown once");
    for wrong in [others, TOKEN, ""] {
        for method in ["GET", "DELETE"] {
            refused(manage(&server, method, &made, wrong), 401, "invalid_token").await;
        }
    }
    let replace = |body: Value| manage(&server, "PUT", &made, token).json(&body);
    let (status, replaced) =
        answer(replace(json!({ "client_id": made["client_id"], "scope": "orders.read" }))).await;
    assert_eq!((status, &replaced["scope"]), (200, &json!("orders.read")), "{replaced}");
    assert!(replaced.get("client_name").is_none(), "what is left out is removed");
    for wrong in [
        json!({}),
        json!({ "client_id": "another" }),
        json!({ "client_id": made["client_id"], "registration_access_token": token }),
        json!({ "client_id": made["client_id"], "token_endpoint_auth_method": "none" }),
    ] {
        refused(replace(wrong), 400, "invalid_client_metadata").await;
    }
    // An operator's client is not managed by anybody's token.
    let operators = server.client().await;
    refused(manage(&server, "GET", &json!({ "client_id": operators.id }), token), 401, "invalid_token").await;
    let client = Registered {
        id: made["client_id"].as_str().unwrap().to_owned(),
        secret: made["client_secret"].as_str().unwrap().to_owned(),
    };
    server.token(&client).await;
    assert_eq!(answer(manage(&server, "DELETE", &made, token)).await.0, 204);
    refused(manage(&server, "GET", &made, token), 401, "invalid_token").await;
    let grant = server.post("/oauth2/token", &client, &[("grant_type", "client_credentials")]);
    refused_client(grant).await;
}

async fn refused_client(request: reqwest::RequestBuilder) {
    crate::harness::assert_oauth_error(request, 401, "invalid_client").await;
}
