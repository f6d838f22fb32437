use std::sync::atomic::{AtomicUsize, Ordering};

use atm_core::jwk;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::*;
use crate::feed::tests::Fixture;
use crate::keys::tests::ISSUER;

/// An issuer on this machine, whose answers the test changes.
#[derive(Clone)]
struct Idp {
    name: String,
    state: Arc<IdpState>,
}

#[derive(Default)]
struct IdpState {
    jwks: Mutex<Option<Value>>,
    fetches: AtomicUsize,
    slow: Mutex<bool>,
}

impl Idp {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = format!("http://{}", listener.local_addr().unwrap());
        let idp = Self { name, state: Arc::default() };
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(metadata))
            .route("/keys", get(keys))
            .with_state(idp.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        idp.publish(Some(&["one"]));
        idp
    }

    fn publish(&self, kids: Option<&[&str]>) {
        let keys = kids.map(|kids| json!({ "keys": kids.iter().map(|kid| jwk_of(kid)).collect::<Vec<_>>() }));
        *self.state.jwks.lock().unwrap() = keys;
    }

    fn settings(&self) -> IssuerSettings {
        settings(&self.name)
    }
}

async fn metadata(State(idp): State<Idp>) -> impl IntoResponse {
    Json(json!({ "issuer": idp.name, "jwks_uri": format!("{}/keys", idp.name) }))
}

async fn keys(State(idp): State<Idp>) -> impl IntoResponse {
    idp.state.fetches.fetch_add(1, Ordering::SeqCst);
    if *idp.state.slow.lock().unwrap() {
        std::future::pending::<()>().await;
    }
    let jwks = idp.state.jwks.lock().unwrap().clone();
    jwks.map(Json).ok_or(StatusCode::SERVICE_UNAVAILABLE)
}

fn jwk_of(kid: &str) -> Value {
    let pair = Ed25519KeyPair::generate().unwrap();
    jwk::jwk_from_spki(kid, Algorithm::EdDSA, pair.public_key().as_der().unwrap().as_ref()).unwrap()
}

fn settings(issuer: &str) -> IssuerSettings {
    IssuerSettings {
        issuer: issuer.to_owned(),
        jwks_uri: None,
        jwks: None,
        algorithms: Vec::new(),
        token_types: Vec::new(),
        allow_private_addresses: true,
        ca_certificate: None,
    }
}

fn issuers(fixture: &Fixture) -> Issuers {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let intervals = RefreshIntervals { first_retry: Duration::ZERO, ..RefreshIntervals::default() };
    Issuers::new(fixture.store.clone(), fixture.feed.clone(), Arc::clone(&fixture.clock), ISSUER, intervals)
}

fn kids(issuer: &TrustedIssuer) -> Vec<String> {
    let Some(bytes) = &issuer.published else { return Vec::new() };
    let Change::IssuerKeys { keys, .. } = Change::decode(bytes).unwrap() else { panic!("a key set") };
    keys.iter().map(|key| key.kid().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_published_and_an_outage_keeps_the_last_good_set() {
    let (fixture, idp) = (Fixture::start().await, Idp::start().await);
    let issuers = issuers(&fixture);
    let first = issuers.register(idp.settings()).await.unwrap();
    assert_eq!((kids(&first), first.last_error.as_deref()), (vec!["one".to_owned()], None));
    assert!(matches!(issuers.register(idp.settings()).await, Err(IssuersError::Exists)));
    // The same keys are no change.
    let before = fixture.feed.position().revision;
    let again = issuers.refresh(&first.id).await.unwrap();
    assert_eq!(again.published, first.published);
    idp.publish(Some(&["one", "two"]));
    let rotated = issuers.refresh(&first.id).await.unwrap();
    assert_eq!(kids(&rotated), ["one", "two"]);
    assert!(fixture.feed.position().revision >= before);
    // An outage, and sets that cannot be used.
    idp.publish(None);
    for _ in 0..2 {
        let failed = issuers.refresh(&first.id).await.unwrap();
        assert_eq!(kids(&failed), ["one", "two"]);
        assert!(failed.last_error.as_ref().unwrap().contains("503"), "{:?}", failed.last_error);
    }
    *idp.state.jwks.lock().unwrap() = Some(json!({"keys": []}));
    let failed = issuers.refresh(&first.id).await.unwrap();
    assert_eq!((kids(&failed), failed.failures), (vec!["one".to_owned(), "two".to_owned()], 3));
    idp.publish(Some(&["three"]));
    let back = issuers.refresh(&first.id).await.unwrap();
    assert_eq!((kids(&back), back.failures, back.last_error), (vec!["three".to_owned()], 0, None));
    // Its end goes through the feed.
    assert!(issuers.remove(&first.id).await.unwrap().is_some());
    assert!(matches!(issuers.get(&first.id).await, Err(IssuersError::NotFound)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_cannot_be_reached_is_trusted_by_nobody_and_kept() {
    let (fixture, idp) = (Fixture::start().await, Idp::start().await);
    let issuers = issuers(&fixture);
    idp.publish(None);
    let pending = issuers.register(idp.settings()).await.unwrap();
    assert_eq!(pending.published, None);
    assert!(pending.last_error.is_some());
    assert_eq!(issuers.remove(&pending.id).await.unwrap(), None);
    // One that is away for now is fetched again by itself.
    let waiting = issuers.register(idp.settings()).await.unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(issuers.clone().run(shutdown.clone()));
    idp.publish(Some(&["late"]));
    let found = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let issuer = issuers.get(&waiting.id).await.unwrap();
            if issuer.published.is_some() {
                return issuer;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(kids(&found.await.expect("it is fetched again")), ["late"]);
    shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_issuer_holds_up_no_other_and_is_asked_once() {
    let (fixture, slow, quick) = (Fixture::start().await, Idp::start().await, Idp::start().await);
    let issuers = issuers(&fixture);
    let registered = issuers.register(slow.settings()).await.unwrap();
    *slow.state.slow.lock().unwrap() = true;
    let fetches = slow.state.fetches.load(Ordering::SeqCst);
    let stuck = tokio::spawn({
        let (issuers, id) = (issuers.clone(), registered.id.clone());
        async move { issuers.refresh(&id).await }
    });
    while slow.state.fetches.load(Ordering::SeqCst) == fetches {
        tokio::task::yield_now().await;
    }
    assert!(matches!(issuers.refresh(&registered.id).await, Err(IssuersError::UnderWay)));
    assert!(issuers.register(quick.settings()).await.unwrap().published.is_some());
    assert_eq!(slow.state.fetches.load(Ordering::SeqCst), fetches + 1);
    stuck.abort();
    let _ = stuck.await;
    // Whoever gave up has given its turn back.
    *slow.state.slow.lock().unwrap() = false;
    assert!(issuers.refresh(&registered.id).await.unwrap().last_error.is_none());
}

/// More issuers hang than may be fetched at once, and one that answers is still kept up to date.
#[tokio::test(flavor = "multi_thread")]
async fn many_bad_issuers_hold_up_no_good_one() {
    let (fixture, bad, good) = (Fixture::start().await, Idp::start().await, Idp::start().await);
    let issuers = issuers(&fixture);
    bad.publish(None);
    for number in 0..CONCURRENCY + CONCURRENCY_OF_FAILING {
        let name = format!("https://bad-{number}.example");
        let jwks_uri = Some(format!("{}/keys", bad.name));
        let registered = issuers.register(IssuerSettings { jwks_uri, ..settings(&name) }).await.unwrap();
        assert_eq!(registered.failures, 1);
    }
    *bad.state.slow.lock().unwrap() = true;
    good.publish(None);
    let waiting = issuers.register(good.settings()).await.unwrap();
    let fetches = bad.state.fetches.load(Ordering::SeqCst);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(issuers.clone().run(shutdown.clone()));
    // The failing ones take all of their slots and no more.
    let until = async |reached: &(dyn Fn() -> bool + Sync)| {
        let wait = async {
            while !reached() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it comes to that");
    };
    until(&|| bad.state.fetches.load(Ordering::SeqCst) == fetches + CONCURRENCY_OF_FAILING).await;
    // An administrator's look is not held up, nor is what is due by itself once it has answered.
    good.publish(Some(&["one"]));
    assert_eq!(kids(&issuers.refresh(&waiting.id).await.unwrap()), ["one"]);
    let asked = good.state.fetches.load(Ordering::SeqCst);
    let made_due = transact!(fixture.store, |transaction| -> Result<(), StoreError> {
        let mut issuer = trusted_issuers::locked(transaction, &waiting.id).await?.unwrap();
        issuer.next_fetch = 0;
        trusted_issuers::update(transaction, &issuer).await
    });
    made_due.unwrap();
    until(&|| good.state.fetches.load(Ordering::SeqCst) > asked).await;
    assert_eq!(bad.state.fetches.load(Ordering::SeqCst), fetches + CONCURRENCY_OF_FAILING);
    shutdown.cancel();
    running.await.unwrap();
}

/// An issuer that answers in turns with its keys, with an error and with nonsense.
#[tokio::test(flavor = "multi_thread")]
async fn a_flapping_issuer_stays_trusted_and_changes_nothing() {
    let (fixture, idp) = (Fixture::start().await, Idp::start().await);
    let issuers = issuers(&fixture);
    let first = issuers.register(idp.settings()).await.unwrap();
    let keys = idp.state.jwks.lock().unwrap().clone();
    let sequenced = fixture.feed.position().revision;
    for round in 0..3 {
        idp.publish(None);
        let failed = issuers.refresh(&first.id).await.unwrap();
        assert_eq!((failed.failures, &failed.published), (1, &first.published), "round {round}");
        *idp.state.jwks.lock().unwrap() = Some(json!({"keys": [{"kty": "oct", "kid": "one", "k": "AQ"}]}));
        let useless = issuers.refresh(&first.id).await.unwrap();
        assert_eq!((useless.failures, &useless.published), (2, &first.published));
        assert!(useless.last_error.as_ref().unwrap().contains("no usable signature key"), "{useless:?}");
        (*idp.state.jwks.lock().unwrap()).clone_from(&keys);
        let back = issuers.refresh(&first.id).await.unwrap();
        assert_eq!((back.failures, &back.published, back.last_error), (0, &first.published, None));
    }
    assert!(fixture.feed.position().revision <= sequenced.max(1), "the same keys are no change");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_can_be_given_and_settings_are_checked() {
    let fixture = Fixture::start().await;
    let issuers = issuers(&fixture);
    let given = IssuerSettings {
        jwks: Some(json!({"keys": [jwk_of("static")]})),
        token_types: vec!["JWT".into()],
        allow_private_addresses: false,
        ..settings("https://kubernetes.default.svc")
    };
    let issuer = issuers.register(given).await.unwrap();
    assert_eq!((kids(&issuer), issuer.next_fetch), (vec!["static".to_owned()], NEVER));
    assert_eq!(issuers.refresh(&issuer.id).await.unwrap().published, issuer.published);
    let wrong = IssuerSettings {
        jwks_uri: Some("http://10.0.0.1/keys".into()),
        jwks: Some(json!({})),
        algorithms: vec!["HS256".into()],
        token_types: vec!["a b".into()],
        allow_private_addresses: false,
        ca_certificate: Some("x".into()),
        issuer: ISSUER.to_owned(),
    };
    let Err(IssuersError::Invalid(errors)) = issuers.register(wrong).await else {
        panic!("it was registered")
    };
    let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["issuer", "jwks_uri", "jwks", "ca_certificate", "token_types[0]", "algorithms[0]"]);
    let unusable = IssuerSettings { jwks: Some(json!({"keys": []})), ..settings("https://x.example") };
    assert!(
        matches!(issuers.register(unusable).await, Err(IssuersError::Invalid(errors)) if errors[0].field == "jwks")
    );
}
