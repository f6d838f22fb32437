//! Opaque credentials that a sidecar does not know: one question each, bounded in time and number, believed only if signed, kept
//! over a restart. The control plane is a test's own, so that it can be slow, wrong and silent.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use atm_core::id::IdKind;
use atm_core::opaque;
use atm_core::time::UnixMillis;
use atm_proto::introspection::{IntrospectionReply, IntrospectionRequest};
use atm_proto::signature::{Domain, FeedSigner};
use atm_proto::subject::Subjects;
use atm_tests::authz::{Authz, Verdict};
use atm_tests::feed::{FeedAuthor, REALM_GROUP, policies, revoked_tokens, watermark};
use atm_tests::nats::NatsServer;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::{TokenMint, now, now_ms};
use atm_tests::wait;
use futures::StreamExt;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

const POLICY: &str = include_str!("../../examples/policies/api-keys.yaml");

/// What the test's control plane does with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// The key is active; the answer may be kept for a minute.
    Active,
    /// It is not; the answer may be kept for so many seconds.
    Inactive(u32),
    /// Nothing, for as long as this stands.
    Nothing,
    /// An answer that another key has signed.
    Forged,
    /// A good answer to another question.
    Replayed,
    /// The header that says that it is busy.
    Busy,
}

struct ControlPlane {
    says: watch::Sender<Says>,
    /// Questions so far, by the credential's digest.
    asked: Arc<Mutex<HashMap<[u8; 32], usize>>>,
}

impl ControlPlane {
    async fn start(nats: &NatsServer, author: Arc<FeedAuthor>, issuer: String) -> Self {
        let (says, heard) = watch::channel(Says::Active);
        let asked = Arc::<Mutex<HashMap<[u8; 32], usize>>>::default();
        let client = async_nats::connect(nats.url()).await.unwrap();
        let mut questions = client.subscribe(Subjects::new(REALM_GROUP).unwrap().introspect()).await.unwrap();
        client.flush().await.unwrap();
        let counts = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Some(message) = questions.next().await {
                let question = IntrospectionRequest::decode(&message.payload).unwrap();
                *counts.lock().unwrap().entry(question.token_digest).or_default() += 1;
                let (client, author, mut heard) = (client.clone(), Arc::clone(&author), heard.clone());
                let (issuer, to) = (issuer.clone(), message.reply.unwrap());
                tokio::spawn(async move {
                    let says = *heard.wait_for(|says| *says != Says::Nothing).await.unwrap();
                    let reply = reply(&question, says, &issuer);
                    let signed = match says {
                        Says::Forged => {
                            FeedSigner::generate().unwrap().0.sign(Domain::IntrospectionReply, &reply)
                        }
                        _ => author.sign(Domain::IntrospectionReply, &reply),
                    };
                    if says == Says::Busy {
                        let mut headers = async_nats::HeaderMap::new();
                        headers.insert("Atm-Error", "busy");
                        client.publish_with_headers(to, headers, "".into()).await.unwrap();
                    } else {
                        client.publish(to, signed.into()).await.unwrap();
                    }
                });
            }
        });
        Self { says, asked }
    }

    fn says(&self, says: Says) {
        self.says.send_replace(says);
    }

    fn asked(&self, key: &str) -> usize {
        self.asked.lock().unwrap().get(&opaque::digest(key)).copied().unwrap_or_default()
    }
}

/// The encoded answer. A key's `jti` is its own first characters, so that tests can revoke it.
fn reply(question: &IntrospectionRequest, says: Says, issuer: &str) -> Vec<u8> {
    let jti = hex::encode(&question.token_digest[..8]);
    let claims = json!({
        "iss": issuer, "sub": "robot", "aud": ["orders-api"], "client_id": "robot", "jti": jti, "iat": now() - 10,
        "exp": now() + 3_600, "atm_iat_ms": (now() - 10) * 1_000, "scope": "orders.read",
    });
    let claims: Map<String, Value> = claims.as_object().unwrap().clone();
    IntrospectionReply {
        realm_group: REALM_GROUP.to_owned(),
        token_digest: question.token_digest,
        nonce: if says == Says::Replayed { [0; 16] } else { question.nonce },
        time: UnixMillis(now_ms()),
        claims: (!matches!(says, Says::Inactive(_))).then_some(claims),
        cache_seconds: if let Says::Inactive(seconds) = says { seconds } else { 60 },
    }
    .encode()
}

struct Mesh {
    sidecar: Sidecar,
    control_plane: ControlPlane,
    author: Arc<FeedAuthor>,
    mint: TokenMint,
    _nats: NatsServer,
}

impl Mesh {
    async fn start(introspection: Value) -> Self {
        let mint = TokenMint::new("https://issuer.test", "default", &[("one", "EdDSA")]);
        let nats = NatsServer::start().await;
        let author = Arc::new(FeedAuthor::start(&nats).await);
        let revision = author.publish(vec![mint.to_change(), policies(1, &[POLICY])]).await;
        let control_plane = ControlPlane::start(&nats, Arc::clone(&author), mint.issuer().to_owned()).await;
        let mut sidecar = Sidecar::configure(&nats.url(), &author.public_key());
        sidecar.set("introspection", introspection);
        sidecar.start().await;
        sidecar.until_ready().await;
        sidecar.until_applied(revision).await;
        Self { sidecar, control_plane, author, mint, _nats: nats }
    }

    async fn check(&self, key: &str) -> Verdict {
        check(&self.sidecar.authz().await, key).await
    }

    async fn expect(&self, key: &str, reason: &str) {
        assert_eq!(self.check(key).await.reason, reason);
    }

    async fn outcomes(&self, outcome: &str) -> u64 {
        self.sidecar.count(&format!("atm_sidecar_introspections_total{{outcome=\"{outcome}\"}}")).await
    }
}

async fn check(authz: &Authz, key: &str) -> Verdict {
    authz.check("GET", "/orders", HashMap::from([("x-api-key".to_owned(), key.to_owned())])).await
}

/// A well formed API key.
fn key(number: usize) -> String {
    let body = format!("atm_ak_{number:043}");
    format!("{body}{}", opaque::checksum(&body))
}

/// Longer than any answer takes on a loaded machine.
fn patient() -> Value {
    json!({ "timeoutMs": 10_000 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_with_one_credential_are_one_question() {
    let mesh = Mesh::start(patient()).await;
    mesh.control_plane.says(Says::Nothing);
    let authz = mesh.sidecar.authz().await;
    let key = key(1);
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let (authz, key) = (authz.clone(), key.clone());
            tokio::spawn(async move { check(&authz, &key).await })
        })
        .collect();
    mesh.sidecar.until_metric("atm_sidecar_introspection_cache_misses_total", 20.0).await;
    assert_eq!(mesh.sidecar.count("atm_sidecar_introspections_under_way").await, 1);
    mesh.control_plane.says(Says::Active);
    for verdict in waiting {
        assert!(verdict.await.unwrap().is_permit());
    }
    assert_eq!(mesh.control_plane.asked(&key), 1);
    mesh.expect(&key, "permit").await;
    assert_eq!((mesh.control_plane.asked(&key), mesh.outcomes("active").await), (1, 1), "it is known now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_is_not_active_is_remembered_for_as_long_as_the_answer_says() {
    let mesh = Mesh::start(patient()).await;
    mesh.control_plane.says(Says::Inactive(60));
    mesh.expect(&key(1), "token_inactive").await;
    mesh.expect(&key(1), "token_inactive").await;
    assert_eq!(mesh.control_plane.asked(&key(1)), 1);
    mesh.control_plane.says(Says::Inactive(0));
    mesh.expect(&key(2), "token_inactive").await;
    mesh.control_plane.says(Says::Active);
    mesh.expect(&key(2), "permit").await;
    assert_eq!(mesh.control_plane.asked(&key(2)), 2, "made after it was asked about, and known at once");
    mesh.expect(&key(1), "token_inactive").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_come_ends_in_a_refusal_of_its_own() {
    let mesh = Mesh::start(json!({ "timeoutMs": 50 })).await;
    mesh.expect(&key(1), "permit").await;
    mesh.control_plane.says(Says::Nothing);
    let verdict = mesh.check(&key(2)).await;
    assert_eq!((verdict.status, verdict.reason.as_str()), (503, "introspection_timeout"));
    assert_eq!(mesh.sidecar.count("atm_sidecar_introspections_under_way").await, 0, "nothing goes on");
    mesh.expect(&key(1), "permit").await;
    mesh.control_plane.says(Says::Active);
    wait::until("the credential to be learnt", wait::USUAL, || async {
        let verdict = mesh.check(&key(2)).await;
        if verdict.is_permit() { Ok(()) } else { Err(verdict) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_questions_than_allowed_are_shed() {
    let mesh = Mesh::start(json!({ "timeoutMs": 10_000, "concurrency": 1 })).await;
    mesh.expect(&key(1), "permit").await;
    mesh.control_plane.says(Says::Nothing);
    let (authz, held) = (mesh.sidecar.authz().await, key(2));
    let held = tokio::spawn(async move { check(&authz, &held).await });
    mesh.sidecar.until_metric("atm_sidecar_introspections_under_way", 1.0).await;
    for number in 3..10 {
        let verdict = mesh.check(&key(number)).await;
        assert_eq!((verdict.status, verdict.reason.as_str()), (503, "introspection_overload"));
        assert_eq!(mesh.control_plane.asked(&key(number)), 0);
    }
    mesh.expect(&key(1), "permit").await;
    assert_eq!(mesh.outcomes("overload").await, 7);
    mesh.control_plane.says(Says::Busy);
    assert_eq!(held.await.unwrap().reason, "introspection_overload", "the control plane sheds, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_no_pinned_key_signed_for_this_question_is_not_believed() {
    let mesh = Mesh::start(patient()).await;
    for (number, says) in [(1, Says::Forged), (2, Says::Replayed)] {
        mesh.control_plane.says(says);
        let verdict = mesh.check(&key(number)).await;
        assert_eq!((verdict.status, verdict.reason.as_str()), (503, "introspection_unavailable"), "{says:?}");
        mesh.control_plane.says(Says::Active);
        mesh.expect(&key(number), "permit").await;
    }
    assert_eq!(mesh.outcomes("refused").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_outlives_the_process_and_what_changed_meanwhile_is_asked_anew() {
    let mut mesh = Mesh::start(json!({ "timeoutMs": 300 })).await;
    for number in 1..=3 {
        mesh.expect(&key(number), "permit").await;
    }
    mesh.control_plane.says(Says::Inactive(60));
    mesh.expect(&key(4), "token_inactive").await;
    mesh.sidecar.until_metric("atm_sidecar_introspections_kept_total", 3.0).await;
    mesh.sidecar.kill();
    // While it is away one key is changed and another ends.
    let id = |number| mesh.mint.id(IdKind::Token, &hex::encode(&opaque::digest(&key(number))[..8]));
    let changes =
        vec![watermark(IdKind::Introspection, id(2), now_ms() + 1), revoked_tokens(now() + 3_600, [id(3)])];
    let revision = mesh.author.publish(changes).await;
    mesh.control_plane.says(Says::Nothing);
    mesh.sidecar.start().await;
    mesh.sidecar.until_ready().await;
    mesh.sidecar.until_applied(revision).await;
    mesh.expect(&key(1), "permit").await;
    mesh.expect(&key(2), "introspection_timeout").await;
    mesh.expect(&key(3), "revoked_token").await;
    mesh.expect(&key(4), "introspection_timeout").await;
    assert_eq!([1, 2, 3, 4].map(|number| mesh.control_plane.asked(&key(number))), [1, 2, 1, 2]);
    assert_eq!(
        mesh.sidecar.count("atm_sidecar_introspections_kept_total").await,
        0,
        "what was kept is not kept again"
    );

    let mut found = false;
    for entry in std::fs::read_dir(mesh.sidecar.store()).unwrap().flatten() {
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(!holds(key(1).as_bytes()), "{} holds a credential", entry.path().display());
        found |= holds(&opaque::digest(&key(1)));
    }
    assert!(found, "the digest is what it is kept by");
}
