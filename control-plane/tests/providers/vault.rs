//! Vault's transit engine, as far as its documentation describes what is used of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::program::{Program, directory};

const TOKEN: &str = "hvs.token-of-the-tests";

struct Key {
    pair: EcdsaKeyPair,
    deletion_allowed: bool,
}

type Keys = Arc<Mutex<HashMap<String, Key>>>;

fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "errors": [text] }))).into_response()
}

/// Vault answers 403 to a token that it does not know, whatever the path.
fn refused(headers: &HeaderMap) -> Option<Response> {
    let token = headers.get("x-vault-token").and_then(|token| token.to_str().ok());
    (token != Some(TOKEN)).then(|| error(StatusCode::FORBIDDEN, "permission denied"))
}

async fn create(
    State(keys): State<Keys>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if let Some(response) = refused(&headers) {
        return response;
    }
    if body["type"] != "ecdsa-p256" || body["exportable"] != false {
        return error(StatusCode::BAD_REQUEST, "unknown key type");
    }
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    keys.lock().unwrap().entry(name).or_insert(Key { pair, deletion_allowed: false });
    StatusCode::NO_CONTENT.into_response()
}

async fn read(State(keys): State<Keys>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    if let Some(response) = refused(&headers) {
        return response;
    }
    let keys = keys.lock().unwrap();
    let Some(key) = keys.get(&name) else { return error(StatusCode::NOT_FOUND, "") };
    let der = key.pair.public_key().as_der().unwrap();
    let pem =
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der.as_ref()));
    Json(json!({ "data": { "name": name, "type": "ecdsa-p256", "keys": { "1": { "public_key": pem } } } }))
        .into_response()
}

async fn sign(
    State(keys): State<Keys>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if let Some(response) = refused(&headers) {
        return response;
    }
    let keys = keys.lock().unwrap();
    let Some(key) = keys.get(&name) else { return error(StatusCode::BAD_REQUEST, "signing key not found") };
    let input = body["input"].as_str().and_then(|input| STANDARD.decode(input).ok());
    let (Some(input), "sha2-256", "jws") = (
        input,
        body["hash_algorithm"].as_str().unwrap_or_default(),
        body["marshaling_algorithm"].as_str().unwrap_or_default(),
    ) else {
        return error(StatusCode::BAD_REQUEST, "unable to sign");
    };
    let signature = key.pair.sign(&SystemRandom::new(), &input).unwrap();
    let signature = format!("vault:v1:{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
    Json(json!({ "data": { "signature": signature, "key_version": 1 } })).into_response()
}

async fn configure(
    State(keys): State<Keys>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if let Some(response) = refused(&headers) {
        return response;
    }
    match keys.lock().unwrap().get_mut(&name) {
        Some(key) => key.deletion_allowed = body["deletion_allowed"] == true,
        None => {
            return error(StatusCode::BAD_REQUEST, &format!("no existing key named {name} could be found"));
        }
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn delete(State(keys): State<Keys>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    if let Some(response) = refused(&headers) {
        return response;
    }
    let mut keys = keys.lock().unwrap();
    if keys.get(&name).is_some_and(|key| !key.deletion_allowed) {
        return error(StatusCode::BAD_REQUEST, "deletion is not allowed for this key");
    }
    keys.remove(&name);
    StatusCode::NO_CONTENT.into_response()
}

/// A Vault that can be stopped and started at the same address.
struct Vault {
    keys: Keys,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Vault {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, Keys::default())
    }

    fn on(listener: tokio::net::TcpListener, keys: Keys) -> Self {
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/v1/transit/keys/{name}", get(read).post(create).delete(delete))
            .route("/v1/transit/keys/{name}/config", post(configure))
            .route("/v1/transit/sign/{name}", post(sign))
            .with_state(Arc::clone(&keys));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { keys, address, task }
    }

    async fn stopped(self) -> (Keys, SocketAddr) {
        self.task.abort();
        let _ = self.task.await;
        (self.keys, self.address)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transit_signs_and_its_outage_is_bounded_and_passes() {
    let vault = Vault::start().await;
    let dir = directory();
    std::fs::write(dir.path().join("vault.token"), format!("{TOKEN}\n")).unwrap();
    let keys = format!(
        "  provider: vault\n  signingTimeoutMs: 500\n  vault: {{ address: 'http://{}', tokenFile: {} }}",
        vault.address,
        dir.path().join("vault.token").display()
    );
    let program = Program::start(dir.path(), &keys, &[]).await;
    let client = program.client().await;
    let kid = program.verified_token(&client).await;
    let (stored, address) = vault.stopped().await;
    program.assert_outage(&client).await;
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let _vault = Vault::on(listener, stored);
    assert_eq!(program.verified_token(&client).await, kid);
    let ready = program.readiness().await;
    assert!(!ready["degraded"].as_str().unwrap_or_default().contains("signed"), "{ready}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_vault_does_not_know_is_an_outage_that_names_no_token() {
    let vault = Vault::start().await;
    let dir = directory();
    let file = dir.path().join("vault.token");
    std::fs::write(&file, TOKEN).unwrap();
    let keys = format!(
        "  provider: vault\n  vault: {{ address: 'http://{}', tokenFile: {} }}",
        vault.address,
        file.display()
    );
    let program = Program::start(dir.path(), &keys, &[]).await;
    let client = program.client().await;
    program.verified_token(&client).await;
    std::fs::write(&file, "hvs.another-secret").unwrap();
    program.assert_outage(&client).await;
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains("permission denied") && !log.contains("hvs."), "{log}");
    std::fs::write(&file, TOKEN).unwrap();
    program.verified_token(&client).await;
}
