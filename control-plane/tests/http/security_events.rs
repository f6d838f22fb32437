//! Security event tokens (RFC 8417), pushed as RFC 8935 has it.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::harness::{Server, answer};

const IDP: &str = "https://idp.test";
const AUDIENCE: &str = "https://atm.test";
const BEARER: &str = "token-of-the-transmitter";
const DISABLED: &str = "https://schemas.openid.net/secevent/risc/event-type/account-disabled";

/// An identity provider that we trust, and that may push events.
struct Idp {
    server: Server,
    key: EcdsaKeyPair,
}

impl Idp {
    async fn start() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let hash = hex::encode(digest(&SHA256, BEARER.as_bytes()));
        let text = format!(
            "transmitters:\n- {{ name: idp, issuer: '{IDP}', audience: '{AUDIENCE}', tokenSha256: {hash} }}\n"
        );
        std::fs::write(file.path(), text).unwrap();
        let more = format!("securityEvents: {{ transmittersFile: {} }}\n", file.path().display());
        let server = Server::changed(|text| text + &more).await;
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = key.public_key().as_ref();
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1",
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..]),
        });
        let issuer = json!({ "issuer": IDP, "jwks": { "keys": [jwk] } });
        let (status, body) = answer(server.admin("POST", "/admin/v1/issuers").json(&issuer)).await;
        assert_eq!(status, 201, "{body}");
        Self { server, key }
    }

    fn token(&self, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({ "alg": "ES256", "kid": "k1", "typ": "secevent+jwt" });
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn push(&self, bearer: &str, token: String) -> RequestBuilder {
        let request = self.server.http.post(self.server.oauth("/security-events")).bearer_auth(bearer);
        request.header("content-type", "application/secevent+jwt").body(token)
    }

    /// The refusal's code.
    async fn refusal(&self, request: RequestBuilder) -> String {
        let (status, body) = answer(request).await;
        assert_eq!(status, 400, "{body}");
        assert!(body["description"].is_string(), "{body}");
        body["err"].as_str().unwrap().to_owned()
    }
}

/// What says that the account `subject` is disabled.
fn claims(jti: &str, subject: &str) -> Value {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    json!({
        "iss": IDP, "aud": AUDIENCE, "iat": now, "jti": jti,
        "sub_id": { "format": "iss_sub", "iss": IDP, "sub": subject },
        "events": { DISABLED: {} },
    })
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

#[tokio::test]
async fn a_disabled_account_ends_with_its_tokens_and_the_event_counts_once() {
    let idp = Idp::start().await;
    let client = idp.server.client().await;
    let token = idp.server.token(&client).await;
    let set = idp.token(&claims("e1", &client.id));
    let (status, body) = answer(idp.push(BEARER, set.clone())).await;
    assert_eq!((status, body), (202, Value::Null), "RFC 8935 §2.2: accepted, and an empty body");
    assert!(!idp.server.is_active(&client, &token).await);
    let later = idp.server.token(&client).await;
    assert_eq!(answer(idp.push(BEARER, set)).await.0, 202, "again: accepted (RFC 8935 §2.2)");
    assert!(idp.server.is_active(&client, &later).await, "and without effect");
    let (_, list) = answer(idp.server.admin("GET", "/admin/v1/revocations?actor=idp")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
}

#[tokio::test]
async fn events_that_ask_for_nothing_are_taken() {
    let idp = Idp::start().await;
    let verification = "https://schemas.openid.net/secevent/ssf/event-type/verification";
    let claims = with(claims("e1", "u"), "events", json!({ verification: { "state": "x" } }));
    assert_eq!(answer(idp.push(BEARER, idp.token(&claims))).await.0, 202);
    let (_, list) = answer(idp.server.admin("GET", "/admin/v1/revocations")).await;
    assert!(list["items"].as_array().unwrap().is_empty(), "{list}");
}

#[tokio::test]
async fn a_refusal_has_the_code_of_rfc_8935_and_changes_nothing() {
    let idp = Idp::start().await;
    let good = claims("e1", "u");
    let refused = async |claims: &Value| idp.refusal(idp.push(BEARER, idp.token(claims))).await;
    assert_eq!(idp.refusal(idp.push("another", idp.token(&good))).await, "authentication_failed");
    assert_eq!(refused(&with(good.clone(), "aud", json!("https://other.test"))).await, "invalid_audience");
    assert_eq!(refused(&with(good.clone(), "aud", Value::Null)).await, "invalid_audience");
    assert_eq!(refused(&with(good.clone(), "iss", json!("https://other.test"))).await, "invalid_issuer");
    for (name, value) in [
        ("exp", json!(4_000_000_000_i64)),
        ("iat", json!(1)),
        ("iat", json!("1")),
        ("jti", json!("")),
        ("events", json!({})),
        ("sub_id", json!({ "format": "email", "email": "a@b.test" })),
    ] {
        assert_eq!(refused(&with(good.clone(), name, value)).await, "invalid_request", "{name}");
    }
    let (message, signature) = {
        let token = idp.token(&good);
        let (message, signature) = token.rsplit_once('.').unwrap();
        (message.to_owned(), signature.to_owned())
    };
    let flipped = if signature.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{message}.{flipped}{}", &signature[1..]);
    assert_eq!(idp.refusal(idp.push(BEARER, forged)).await, "invalid_key");
    let url = idp.server.oauth("/security-events");
    let plain = idp.server.http.post(url).bearer_auth(BEARER).body(idp.token(&good));
    assert_eq!(idp.refusal(plain).await, "invalid_request");
    assert_eq!(idp.refusal(idp.push(BEARER, "no token".to_owned())).await, "invalid_request");
    let (_, list) = answer(idp.server.admin("GET", "/admin/v1/revocations")).await;
    assert!(list["items"].as_array().unwrap().is_empty(), "{list}");
}
