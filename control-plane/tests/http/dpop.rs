//! DPoP at the token endpoint: RFC 9449 §4.3, §5, §8.

use serde_json::{Value, json};

use crate::harness::{ISSUER, Registered, Server, answer, assert_oauth_error, header, part};
use crate::keys::SigningKey;

const GRANT: [(&str, &str); 1] = [("grant_type", "client_credentials")];

fn ask(server: &Server, client: &Registered, proof: &str) -> reqwest::RequestBuilder {
    server.post("/oauth2/token", client, &GRANT).header("dpop", proof)
}

/// RFC 9449 §8: turned away once, with a nonce.
async fn nonce(server: &Server, client: &Registered, key: &SigningKey) -> String {
    let response = ask(server, client, &key.proof(None)).send().await.unwrap();
    let nonce = header(&response, "dpop-nonce").to_owned();
    assert_eq!(response.status(), 400);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"], "use_dpop_nonce");
    nonce
}

#[tokio::test]
async fn a_proof_binds_the_token_to_its_key() {
    let server = Server::start().await;
    let client = server.client().await;
    let key = SigningKey::new();
    let nonce = nonce(&server, &client, &key).await;
    let response = ask(&server, &client, &key.proof(Some(&nonce))).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!header(&response, "dpop-nonce").is_empty(), "the next one may have a nonce at once");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["token_type"], "DPoP");
    let token = body["access_token"].as_str().unwrap();
    assert_eq!(part(token, 1)["cnf"], json!({ "jkt": key.thumbprint() }));
    let described = server.introspect(&client, token).await;
    assert_eq!(
        (&described["token_type"], &described["cnf"]["jkt"]),
        (&json!("DPoP"), &json!(key.thumbprint()))
    );
}

#[tokio::test]
async fn each_proof_is_for_one_request_to_this_endpoint() {
    let server = Server::start().await;
    let client = server.client().await;
    let key = SigningKey::new();
    let nonce = nonce(&server, &client, &key).await;
    let proof = key.proof(Some(&nonce));
    assert_eq!(answer(ask(&server, &client, &proof)).await.0, 200);
    assert_oauth_error(ask(&server, &client, &proof), 400, "invalid_dpop_proof").await;
    let server = server.restarted().await;
    assert_oauth_error(ask(&server, &client, &proof), 400, "invalid_dpop_proof").await;
    for wrong in [
        key.proof_for(&format!("{ISSUER}/oauth2/introspect"), Some(&nonce)),
        key.proof_for("https://another.example/oauth2/token", Some(&nonce)),
        format!("{},{}", key.proof(Some(&nonce)), key.proof(Some(&nonce))),
        "x.y.z".to_owned(),
        String::new(),
    ] {
        assert_oauth_error(ask(&server, &client, &wrong), 400, "invalid_dpop_proof").await;
    }
    let twice = ask(&server, &client, &key.proof(Some(&nonce))).header("dpop", key.proof(Some(&nonce)));
    assert_oauth_error(twice, 400, "invalid_dpop_proof").await;
    assert_oauth_error(ask(&server, &client, &key.proof(Some("made-up"))), 400, "use_dpop_nonce").await;
    // Query and fragment of htu are not compared, its case and default port are.
    let same = key.proof_for(&format!("{ISSUER}/oauth2/token?a=b#c"), Some(&nonce));
    assert_eq!(answer(ask(&server, &client, &same)).await.0, 200);
}

#[tokio::test]
async fn a_client_may_be_registered_for_bound_tokens_only() {
    let server = Server::start().await;
    let client = server.register(json!({ "audiences": ["api"], "dpop_bound_access_tokens": true })).await;
    assert_oauth_error(server.post("/oauth2/token", &client, &GRANT), 400, "invalid_dpop_proof").await;
    let key = SigningKey::new();
    let nonce = nonce(&server, &client, &key).await;
    assert_eq!(answer(ask(&server, &client, &key.proof(Some(&nonce)))).await.0, 200);
}

/// RFC 9449 §5: a refresh token that is bound to a key is of use with it alone.
#[tokio::test]
async fn a_bound_session_is_refreshed_with_its_key_alone() {
    let server = Server::start().await;
    let fields = json!({
        "client_id": "app", "token_endpoint_auth_method": "none", "grant_types": ["refresh_token"],
        "audiences": ["api"],
    });
    assert_eq!(answer(server.admin("POST", "/admin/v1/clients").json(&fields)).await.0, 201);
    let (key, thief) = (SigningKey::new(), SigningKey::new());
    let body = json!({ "subject": "alice", "client_id": "app", "dpop_jkt": key.thumbprint() });
    let (status, opened) = answer(server.admin("POST", "/admin/v1/sessions").json(&body)).await;
    assert_eq!((status, &opened["token_type"]), (201, &json!("DPoP")), "{opened}");
    let form = format!(
        "grant_type=refresh_token&client_id=app&refresh_token={}",
        opened["refresh_token"].as_str().unwrap()
    );
    let refresh = |proof: Option<String>| {
        let request = server.form("/oauth2/token", &form);
        proof.into_iter().fold(request, |request, proof| request.header("dpop", proof))
    };
    let response = refresh(Some(key.proof(None))).send().await.unwrap();
    let nonce = header(&response, "dpop-nonce").to_owned();
    assert_oauth_error(refresh(None), 400, "invalid_grant").await;
    assert_oauth_error(refresh(Some(thief.proof(Some(&nonce)))), 400, "invalid_grant").await;
    let (status, body) = answer(refresh(Some(key.proof(Some(&nonce))))).await;
    assert_eq!((status, &body["token_type"]), (200, &json!("DPoP")), "{body}");
    assert_eq!(part(body["access_token"].as_str().unwrap(), 1)["cnf"]["jkt"], key.thumbprint());
}

#[tokio::test]
async fn nonces_can_be_turned_off() {
    let listen = crate::sessions::LISTEN;
    let server = Server::with(&format!("{listen}\ndpop: {{ nonce: false }}")).await;
    let client = server.client().await;
    let response = ask(&server, &client, &SigningKey::new().proof(None)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers().get("dpop-nonce").is_none());
}
