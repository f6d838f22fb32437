//! The token endpoint: RFC 6749 §3.2, §4.4 and §5, RFC 8707, RFC 9068.

use atm_core::claims::Expectations;
use atm_core::jws::UnverifiedToken;
use atm_core::key::{Issuer, Issuers, KeyState, VerificationKey};
use atm_core::time::UnixMillis;
use atm_core::token::KeyedToken;
use serde_json::{Value, json};

use crate::harness::{ISSUER, Server, answer, assert_oauth_error, header, part};

const GRANT: (&str, &str) = ("grant_type", "client_credentials");

#[tokio::test]
async fn a_client_gets_a_token_as_rfc_9068_has_it() {
    let server = Server::start().await;
    let client = server.client().await;
    let response = server.post("/oauth2/token", &client, &[GRANT]).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "cache-control"), "no-store");
    assert_eq!(header(&response, "pragma"), "no-cache");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["expires_in"], 300);
    assert_eq!(body["scope"], "orders.read orders.write");

    let token = body["access_token"].as_str().unwrap();
    assert_eq!(part(token, 0)["typ"], "at+jwt");
    let claims = part(token, 1);
    assert_eq!(claims["iss"], ISSUER);
    assert_eq!(claims["aud"], "orders-api");
    assert_eq!(
        (claims["sub"].as_str(), claims["client_id"].as_str()),
        (Some(&*client.id), Some(&*client.id))
    );
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300);
    assert_eq!(claims["atm_iat_ms"].as_i64().unwrap() / 1000, claims["iat"].as_i64().unwrap());
    assert!(claims["jti"].as_str().unwrap().len() >= 22);
    assert!(claims.get("nbf").is_none());
}

/// What a validator does with nothing but the published key set.
#[tokio::test]
async fn the_published_keys_verify_the_token() {
    let server = Server::start().await;
    let client = server.client().await;
    let token = server.token(&client).await;
    let (_, jwks) = answer(server.http.get(server.oauth("/oauth2/jwks"))).await;
    let keys = jwks["keys"].as_array().unwrap().iter().map(|jwk| {
        let key = atm_core::jwk::spki_from_jwk(jwk).unwrap();
        VerificationKey::from_spki(&key.kid.unwrap(), key.algorithm, &key.spki, KeyState::Active).unwrap()
    });
    let mut issuers = Issuers::default();
    issuers.set(Issuer::new(ISSUER, None, keys.collect()));
    let signed =
        KeyedToken::select(UnverifiedToken::parse(&token).unwrap(), &issuers).unwrap().verify().unwrap();
    let audiences = ["orders-api".to_owned()];
    let now = UnixMillis(signed.claims.issued_at.0 + 1);
    let expected = Expectations { issuers: &[], audiences: &audiences, clock_skew: 0, now };
    assert!(signed.claims.validate(expected).is_ok());
}

#[tokio::test]
async fn credentials_may_be_in_the_body_instead() {
    let server = Server::start().await;
    let client = server.client().await;
    let form =
        format!("grant_type=client_credentials&client_id={}&client_secret={}", client.id, client.secret);
    assert_eq!(answer(server.form("/oauth2/token", &form)).await.0, 200);
}

#[tokio::test]
async fn scope_and_audience_are_granted_as_registered_and_never_wider() {
    let server = Server::start().await;
    let client = server.register(json!({ "scopes": ["a", "b"], "audiences": ["one", "https://two"] })).await;
    let ask = |form: &[(&str, &str)]| server.post("/oauth2/token", &client, form);

    let (_, body) = answer(ask(&[GRANT, ("scope", "b"), ("audience", "one")])).await;
    assert_eq!(body["scope"], "b");
    assert_eq!(part(body["access_token"].as_str().unwrap(), 1)["aud"], "one");
    let (_, body) = answer(ask(&[GRANT, ("resource", "https://two"), ("audience", "one")])).await;
    assert_eq!(part(body["access_token"].as_str().unwrap(), 1)["aud"], json!(["one", "https://two"]));

    assert_oauth_error(ask(&[GRANT, ("scope", "a c"), ("audience", "one")]), 400, "invalid_scope").await;
    assert_oauth_error(ask(&[GRANT, ("scope", "a  b"), ("audience", "one")]), 400, "invalid_scope").await;
    assert_oauth_error(ask(&[GRANT, ("audience", "three")]), 400, "invalid_target").await;
    assert_oauth_error(ask(&[GRANT, ("resource", "one")]), 400, "invalid_target").await;
    assert_oauth_error(ask(&[GRANT, ("resource", "https://two#x")]), 400, "invalid_target").await;
    assert_oauth_error(ask(&[GRANT]), 400, "invalid_target").await;
}

#[tokio::test]
async fn a_life_is_the_clients_own_within_the_maximum() {
    let listen = "listen: { oauth: '127.0.0.1:0', admin: '127.0.0.1:0' }";
    let server =
        Server::with(&format!("{listen}\ntokens: {{ lifetimeSeconds: 60, maxLifetimeSeconds: 120 }}")).await;
    for (own, expected) in [(json!(null), 60), (json!(90), 90), (json!(600), 120)] {
        let client =
            server.register(json!({ "audiences": ["api"], "access_token_lifetime_seconds": own })).await;
        let (_, body) = answer(server.post("/oauth2/token", &client, &[GRANT])).await;
        assert_eq!(body["expires_in"], expected);
        assert!(body.get("scope").is_none());
    }
}

#[tokio::test]
async fn other_grants_are_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    let ask = |form: &[(&str, &str)]| server.post("/oauth2/token", &client, form);
    for grant in ["password", "authorization_code", "CLIENT_CREDENTIALS"] {
        assert_oauth_error(ask(&[("grant_type", grant)]), 400, "unsupported_grant_type").await;
    }
    assert_oauth_error(ask(&[]), 400, "invalid_request").await;
    assert_oauth_error(ask(&[("grant_type", "")]), 400, "invalid_request").await;
}

#[tokio::test]
async fn a_wrong_credential_is_one_answer_whatever_is_wrong() {
    let server = Server::start().await;
    let client = server.client().await;
    let other = server.client().await;
    let body = "grant_type=client_credentials";
    let path = "/oauth2/token";
    assert_oauth_error(server.form(path, body), 401, "invalid_client").await;
    let basic = |id: &str, secret: &str| server.form(path, body).basic_auth(id, Some(secret));
    assert_oauth_error(basic(&client.id, &other.secret), 401, "invalid_client").await;
    assert_oauth_error(basic(&client.id, "short"), 401, "invalid_client").await;
    assert_oauth_error(basic("unknown", &client.secret), 401, "invalid_client").await;
    assert_oauth_error(server.form(path, body).bearer_auth("x"), 401, "invalid_client").await;
    assert_oauth_error(server.form(path, &format!("{body}&client_id={}", client.id)), 401, "invalid_client")
        .await;
}

#[tokio::test]
async fn more_than_one_way_to_authenticate_is_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    let path = "/oauth2/token";
    let with = |form: String| server.form(path, &form).basic_auth(&client.id, Some(&client.secret));
    let body = "grant_type=client_credentials";
    assert_oauth_error(
        with(format!("{body}&client_id={}&client_secret={}", client.id, client.secret)),
        400,
        "invalid_request",
    )
    .await;
    assert_oauth_error(with(format!("{body}&client_secret={}", client.secret)), 400, "invalid_request").await;
    assert_oauth_error(with(format!("{body}&client_id=another")), 400, "invalid_request").await;
    assert_oauth_error(with(body.to_owned()).header("authorization", "Basic eDp5"), 400, "invalid_request")
        .await;
    // Naming itself beside its credentials is no second way.
    assert_eq!(answer(with(format!("{body}&client_id={}", client.id))).await.0, 200);
}

#[tokio::test]
async fn a_parameter_is_there_once_and_in_the_body() {
    let server = Server::start().await;
    let client = server.client().await;
    let with = |body: &str| server.form("/oauth2/token", body).basic_auth(&client.id, Some(&client.secret));
    let body = "grant_type=client_credentials";
    assert_oauth_error(with(&format!("{body}&{body}")), 400, "invalid_request").await;
    assert_oauth_error(with(&format!("{body}&scope=orders.read&scope=orders.read")), 400, "invalid_request")
        .await;
    assert_oauth_error(with(&format!("{body}&unknown=1&unknown=2")), 400, "invalid_request").await;
    // An unknown parameter is ignored, one without content counts as left out (RFC 6749 §3.1, §3.2).
    assert_eq!(answer(with(&format!("{body}&unknown=1&scope="))).await.0, 200);

    let in_uri = format!("/oauth2/token?client_id={}&client_secret={}", client.id, client.secret);
    assert_oauth_error(server.form(&in_uri, body), 400, "invalid_request").await;
    let json =
        server.http.post(server.oauth("/oauth2/token")).json(&json!({ "grant_type": "client_credentials" }));
    assert_oauth_error(json, 400, "invalid_request").await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let server = Server::start().await;
    let large = format!("grant_type=client_credentials&scope={}", "a".repeat(70_000));
    assert_oauth_error(server.form("/oauth2/token", &large), 413, "invalid_request").await;
}

#[tokio::test]
async fn only_post_is_taken_and_no_answer_is_kept() {
    let server = Server::start().await;
    let response = server.http.get(server.oauth("/oauth2/token")).send().await.unwrap();
    assert_eq!(response.status(), 405);
    assert_eq!(header(&response, "allow"), "POST");
    assert_eq!(header(&response, "cache-control"), "no-store");
}

#[tokio::test]
async fn a_disabled_client_is_refused_everywhere_and_its_tokens_end() {
    let server = Server::start().await;
    let (client, other) =
        (server.client().await, server.register(json!({ "client_id": "orders-api" })).await);
    let token = server.token(&client).await;
    assert!(server.is_active(&other, &token).await);
    let path = format!("/admin/v1/clients/{}", client.id);
    let (status, body) = answer(server.admin("PATCH", &path).json(&json!({ "status": "disabled" }))).await;
    assert_eq!((status, body["status"].as_str()), (200, Some("disabled")));

    assert_oauth_error(server.post("/oauth2/token", &client, &[GRANT]), 401, "invalid_client").await;
    for path in ["/oauth2/introspect", "/oauth2/revoke"] {
        assert_oauth_error(server.post(path, &client, &[("token", &token)]), 401, "invalid_client").await;
    }
    assert!(!server.is_active(&other, &token).await);

    let (status, _) = answer(server.admin("PATCH", &path).json(&json!({ "status": "active" }))).await;
    assert_eq!(status, 200);
    assert!(!server.is_active(&other, &token).await, "what was revoked stays revoked");
    let again = server.token(&client).await;
    assert!(server.is_active(&other, &again).await);
}
