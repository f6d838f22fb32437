//! What one replica changes, the others act on: nothing is issued from a copy in memory that was stale when the request came.

use atm_tests::control_plane::ControlPlane;
use atm_tests::http;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::fleet::Replicas;

/// A token's header and claims.
async fn issue(plane: &ControlPlane, client: &Value) -> (Value, Value) {
    let pair =
        format!("{}:{}", client["client_id"].as_str().unwrap(), client["client_secret"].as_str().unwrap());
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    let headers = [("authorization", basic.as_str()), ("content-type", "application/x-www-form-urlencoded")];
    let body = "grant_type=client_credentials";
    let request = http::request("POST", "/oauth2/token", plane.oauth(), &headers, body);
    let answer = http::exchange(plane.oauth(), &request).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let token = answer.json()["access_token"].as_str().unwrap().to_owned();
    let part = |at: usize| {
        let part = token.split('.').nth(at).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    (part(0), part(1))
}

async fn admin(plane: &ControlPlane, method: &str, path: &str, body: Value) -> Value {
    let answer = plane.client().call(method, path, &body).await.unwrap();
    assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_one_replica_revoked_signs_at_no_other_one() {
    let url = tokio::task::spawn_blocking(atm_test_postgres::database).await.unwrap();
    let replicas = Replicas::start(2, &url).await;
    let (one, other) = (&replicas.planes[0], &replicas.planes[1]);
    let client = admin(one, "POST", "/admin/v1/clients", json!({ "audiences": ["api"] })).await;
    let (first, _) = issue(other, &client).await;
    assert_eq!(issue(one, &client).await.0, first, "replicas that start together have one key");
    for (here, there) in [(one, other), (other, one), (one, other), (other, one)] {
        let (header, before) = issue(there, &client).await;
        let kid = header["kid"].as_str().unwrap();
        let body = json!({ "selector": { "key": kid } });
        admin(here, "POST", "/admin/v1/revocations", body).await;
        let (next, after) = issue(there, &client).await;
        assert_ne!(next["kid"].as_str(), Some(kid));
        assert!(after["atm_iat_ms"].as_i64() > before["atm_iat_ms"].as_i64());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_from_another_replica_is_on_the_right_side_of_a_revocation() {
    let url = tokio::task::spawn_blocking(atm_test_postgres::database).await.unwrap();
    let replicas = Replicas::start(2, &url).await;
    let (one, other) = (&replicas.planes[0], &replicas.planes[1]);
    let client = admin(one, "POST", "/admin/v1/clients", json!({ "audiences": ["api"] })).await;
    for (here, there) in [(one, other), (other, one), (one, other)] {
        let (_, before) = issue(there, &client).await;
        let body = json!({ "selector": { "client": client["client_id"] } });
        admin(here, "POST", "/admin/v1/revocations", body).await;
        let (_, after) = issue(there, &client).await;
        let records = admin(here, "GET", "/admin/v1/revocations?limit=1", Value::Null).await;
        let watermark = records["items"][0]["not_after"].as_i64().unwrap();
        assert!(before["atm_iat_ms"].as_i64().unwrap() <= watermark, "{before} {watermark}");
        assert!(after["atm_iat_ms"].as_i64().unwrap() > watermark, "{after} {watermark}");
    }
}
