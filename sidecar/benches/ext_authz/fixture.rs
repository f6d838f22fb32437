//! A sidecar's ext_authz server over a state of its own making, the tokens that it takes, and a check as Envoy sends it. Shared by the
//! benchmark and by the test that counts allocations.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)] // what cannot go on stops; each user takes its part

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atm_core::binding::NonceKey;
use atm_core::id::{Id, IdKind};
use atm_core::key::{Algorithm, Issuer, KeyState, VerificationKey};
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_proto::change::{Change, apply};
use atm_proto::signature::TrustedFeedKeys;
use atm_sidecar::config::FreshnessSettings;
use atm_sidecar::decision_log::{self, DecisionLogSettings};
use atm_sidecar::ext_authz::{Judge, JudgeParts, grpc};
use atm_sidecar::feed::FeedTrust;
use atm_sidecar::introspection::{IntrospectionSettings, Introspector};
use atm_sidecar::memory::{Limits, Memory};
use atm_sidecar::metrics::DecisionMetrics;
use atm_sidecar::state::{self, Position, State};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request as Attributes};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Rules of the policies in force.
const RULES: usize = 20;
/// Revocations of one bucket, as a change set brings them.
const IDS_A_CHANGE: usize = 4_096;

/// What the server holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    /// Bytes of verified tokens that are remembered.
    pub(crate) cache: u64,
    /// Revoked tokens.
    pub(crate) revocations: usize,
}

/// Serves from the calling thread on, for ever; checks are answered by one thread of their own.
pub(crate) fn serve(listener: UnixListener, directory: &Path, held: Held) {
    let now = now();
    let (publisher, reader) = state::channel(state(directory, held.revocations), Some(now), now);
    publisher.caught_up(Instant::now()); // ready from the first check on
    let metrics = DecisionMetrics::register(&prometheus::Registry::new()).unwrap();
    let freshness = FreshnessSettings { degraded_after_ms: 3_000, stale_after_ms: 15_000 };
    let stop = CancellationToken::new();
    // Neither is used: no credential is opaque, and nothing is recorded but the sampled permits, which go nowhere.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
    let client = runtime.block_on(options.connect("nats://127.0.0.1:1")).unwrap();
    let settings = DecisionLogSettings {
        sidecar: "bench".to_owned(),
        permit_sample: 100,
        shadow_sample: 10,
        stdout: false,
        subject: None,
    };
    let (log, _writing) = decision_log::start(client.clone(), settings, stop.clone());
    let limits = Limits { verified_bytes: held.cache, introspected_bytes: 1 << 20, proofs: 1_000 };
    let memory = Arc::new(Memory::new(limits, NonceKey::new(&[1; 32])));
    let settings = IntrospectionSettings {
        subject: "introspect".into(),
        realm_group: "default".into(),
        sidecar_id: "bench".into(),
        trust: FeedTrust::open("default", TrustedFeedKeys::new(Vec::new()), None),
        timeout: Duration::from_millis(500),
        concurrency: 1,
    };
    let judge = Judge::new(JudgeParts {
        reader: reader.clone(),
        introspector: Introspector::new(client, settings, Arc::clone(&memory), reader, None),
        memory,
        metrics,
        log,
        tracing: None,
        freshness,
        trust_forwarded_certificate: false,
    });
    let (_reporter, health) = tonic_health::server::health_reporter();
    let _workers =
        grpc::serve(&grpc::Listener::Unix(listener), &Arc::clone(&judge), &health, 1, &stop).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        publisher.caught_up(Instant::now());
    }
}

fn state(directory: &Path, revocations: usize) -> State {
    let spki = std::fs::read(directory.join("spki")).unwrap();
    let key = VerificationKey::from_spki("k1", Algorithm::ES256, &spki, KeyState::Active).unwrap();
    let position = Position { revision: 1, ..Position::START };
    let mut state = State { position, verified: true, ..State::default() };
    state.view.issuers.set(Issuer::new("https://issuer.test", Some("default".into()), vec![key]));
    apply(&Change::Policies { version: 1, documents: vec![policy()] }, &mut state.view).unwrap();
    let hour = now().seconds() / 3_600;
    for first in (0..revocations).step_by(IDS_A_CHANGE) {
        let numbers = first..(first + IDS_A_CHANGE).min(revocations);
        let mut ids: Vec<Id> = numbers
            .map(|number| Id::of(IdKind::Token, "https://issuer.test", &format!("revoked-{number}")))
            .collect();
        ids.sort_unstable();
        // Over the 24 hours in which the tokens expire.
        let hours = i64::try_from(first / IDS_A_CHANGE % 24).unwrap();
        let bucket = Bucket::of_expiry((hour + hours) * 3_600);
        apply(&Change::RevokedTokens { bucket, ids }, &mut state.view).unwrap();
    }
    state
}

/// The rules that the check takes its way through, and others around them.
fn policy() -> String {
    let mut text = String::from(
        "apiVersion: atm.dev/v1\nkind: TokenPolicy\nmetadata: { name: orders }\nspec:\n  audiences: [\"orders-api\"]\n  rules:\n\
         \x20   - { name: list, methods: [GET], paths: [\"/orders\"], scopes: { all: [\"orders.read\"] } }\n\
         \x20   - { name: read, methods: [GET], paths: [\"/orders/{id}\"], scopes: { all: [\"orders.read\"] } }\n\
         \x20   - { name: write, methods: [POST, PUT], paths: [\"/orders/{id}\"], scopes: { all: [\"orders.write\"] } }\n",
    );
    for rule in 3..RULES {
        text.push_str(&format!(
            "    - {{ name: other-{rule}, paths: [\"/service-{rule}/{{id}}\"], scopes: {{ all: [\"service-{rule}\"] }} }}\n"
        ));
    }
    text
}

pub(crate) fn now() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    UnixMillis(i64::try_from(since.as_millis()).unwrap())
}

/// Signs tokens of some 900 bytes.
pub(crate) struct Mint(EcdsaKeyPair);

impl Mint {
    /// A new key, whose public part is written to `directory` for the server.
    pub(crate) fn new(directory: &Path) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        std::fs::write(directory.join("spki"), spki.as_ref()).unwrap();
        Self(pair)
    }

    /// The public key as RFC 5280 has it.
    pub(crate) fn spki(directory: &Path) -> Vec<u8> {
        std::fs::read(directory.join("spki")).unwrap()
    }

    /// A token that no other number gives.
    pub(crate) fn token(&self, number: usize) -> String {
        let issued = now().seconds();
        let claims = json!({
            "iss": "https://issuer.test", "sub": "service-account-7f3a9c", "aud": "orders-api",
            "client_id": "3q2x8Jf0bKc1", "jti": format!("9dFh2kLm5Q-{number:08}"), "sid": "Zx81hGkQe0Pv", "iat": issued,
            "exp": issued + 3_600, "atm_iat_ms": issued * 1_000, "scope": "orders.read orders.write", "tenant": "acme",
            "padding": "x".repeat(200),
        });
        let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input =
            format!("{}.{}", encode(json!({"alg": "ES256", "kid": "k1", "typ": "at+jwt"})), encode(claims));
        let signature = self.0.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// As Envoy sends it for a browser's request: four pseudo-headers and eleven others.
pub(crate) fn check_request(token: &str) -> CheckRequest {
    let headers = [
        (":method", "GET"),
        (":path", "/orders/4711?expand=lines"),
        (":authority", "orders.example.com"),
        (":scheme", "https"),
        ("authorization", &format!("Bearer {token}")),
        ("accept", "application/json, text/plain, */*"),
        ("accept-encoding", "gzip, deflate, br"),
        ("accept-language", "en-GB,en;q=0.9"),
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36",
        ),
        ("cookie", "session=8c1f0e7d5b; theme=dark"),
        ("referer", "https://shop.example.com/orders"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "8f9c7b1e-51f4-4f0e-9f0a-2b7f5f0c9d11"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let headers: HashMap<String, String> =
        headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let http = HttpRequest {
        id: "8f9c7b1e".into(),
        method: "GET".into(),
        path: "/orders/4711?expand=lines".into(),
        host: "orders.example.com".into(),
        scheme: "https".into(),
        protocol: "HTTP/2".into(),
        size: -1,
        headers,
        ..HttpRequest::default()
    };
    let attributes = AttributeContext {
        request: Some(Attributes { time: None, http: Some(http) }),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }
}
