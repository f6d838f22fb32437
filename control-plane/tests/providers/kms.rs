//! AWS KMS: the JSON protocol, with every request's Signature Version 4 checked as AWS does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use atm_control_plane::keys::provider::sigv4::{Credentials, Request, authorization};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::program::{Program, directory};

const SECRET: &str = "secret/of/the+tests";

#[derive(Default)]
struct Kms {
    keys: HashMap<String, EcdsaKeyPair>,
    /// Answers everything with a fault of its own.
    is_out: bool,
}

type Shared = Arc<Mutex<Kms>>;

fn fault(status: StatusCode, kind: &str, message: &str) -> Response {
    (status, Json(json!({ "__type": kind, "message": message }))).into_response()
}

/// Whether the request is signed as the client claims.
fn is_signed(headers: &HeaderMap, body: &[u8]) -> bool {
    let text =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let given = text("authorization");
    let Some(signed) = given.split("SignedHeaders=").nth(1).and_then(|rest| rest.split(',').next()) else {
        return false;
    };
    let values: Vec<(String, String)> = signed.split(';').map(|name| (name.to_owned(), text(name))).collect();
    let values: Vec<(&str, &str)> =
        values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let required = ["host", "x-amz-date", "x-amz-target", "x-amz-security-token"];
    let time = text("x-amz-date");
    let credentials = Credentials {
        access_key_id: "AKIATESTS".into(),
        secret_access_key: Zeroizing::new(SECRET.into()),
        session_token: None,
    };
    let request = Request {
        method: "POST",
        path: "/",
        query: "",
        headers: &values,
        body,
        time: &time,
        region: "eu-central-1",
        service: "kms",
    };
    required.iter().all(|name| signed.split(';').any(|signed| signed == *name))
        && text("x-amz-security-token") == "session-of-the-tests"
        && given == authorization(&credentials, &request)
}

async fn answer(State(kms): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    if !is_signed(&headers, &body) {
        return fault(
            StatusCode::BAD_REQUEST,
            "IncompleteSignatureException",
            "the signature does not match",
        );
    }
    let mut kms = kms.lock().unwrap();
    if kms.is_out {
        return fault(StatusCode::INTERNAL_SERVER_ERROR, "KMSInternalException", "");
    }
    let request: Value = serde_json::from_slice(&body).unwrap();
    let id = request["KeyId"].as_str().unwrap_or_default().to_owned();
    match headers["x-amz-target"].to_str().unwrap() {
        "TrentService.CreateKey" => {
            assert_eq!(
                (&request["KeySpec"], &request["KeyUsage"]),
                (&json!("ECC_NIST_P256"), &json!("SIGN_VERIFY"))
            );
            let arn = format!("arn:aws:kms:eu-central-1:1:key/{}", kms.keys.len());
            kms.keys.insert(arn.clone(), EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap());
            Json(json!({ "KeyMetadata": { "Arn": arn } })).into_response()
        }
        "TrentService.GetPublicKey" => {
            let der = kms.keys[&id].public_key().as_der().unwrap();
            Json(json!({ "KeyId": id, "PublicKey": STANDARD.encode(der.as_ref()) })).into_response()
        }
        "TrentService.Sign" => {
            assert_eq!(
                (&request["SigningAlgorithm"], &request["MessageType"]),
                (&json!("ECDSA_SHA_256"), &json!("DIGEST"))
            );
            let Some(key) = kms.keys.get(&id) else {
                return fault(StatusCode::BAD_REQUEST, "NotFoundException", "no such key");
            };
            let digest = STANDARD.decode(request["Message"].as_str().unwrap()).unwrap();
            let digest =
                aws_lc_rs::digest::Digest::import_less_safe(&digest, &aws_lc_rs::digest::SHA256).unwrap();
            let signature = key.sign_digest(&digest).unwrap();
            Json(json!({ "KeyId": id, "Signature": STANDARD.encode(signature.as_ref()) })).into_response()
        }
        other => fault(StatusCode::BAD_REQUEST, "UnknownOperationException", other),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kms_signs_and_its_outage_is_bounded_and_passes() {
    let kms = Shared::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", post(answer)).with_state(Arc::clone(&kms));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let dir = directory();
    let credentials = json!({
        "Version": 1, "AccessKeyId": "AKIATESTS", "SecretAccessKey": SECRET, "SessionToken": "session-of-the-tests",
    });
    let file = dir.path().join("aws.json");
    std::fs::write(&file, credentials.to_string()).unwrap();
    let keys = format!(
        "  provider: awsKms\n  awsKms: {{ region: eu-central-1, endpoint: 'http://{address}', credentialsFile: {} }}",
        file.display()
    );
    let program = Program::start(dir.path(), &keys, &[]).await;
    let client = program.client().await;
    let kid = program.verified_token(&client).await;
    kms.lock().unwrap().is_out = true;
    program.assert_outage(&client).await;
    kms.lock().unwrap().is_out = false;
    assert_eq!(program.verified_token(&client).await, kid);
}
