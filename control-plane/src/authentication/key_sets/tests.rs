use std::sync::atomic::{AtomicUsize, Ordering};

use atm_core::jwk;
use atm_core::key::Algorithm;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::*;
use crate::keys::Signer;

/// Where a client publishes its keys.
#[derive(Clone)]
struct Publisher {
    uri: String,
    state: Arc<PublisherState>,
}

#[derive(Default)]
struct PublisherState {
    /// None: it is away.
    keys: Mutex<Option<Value>>,
    fetches: AtomicUsize,
}

impl Publisher {
    async fn start(kids: &[&str]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/keys", listener.local_addr().unwrap());
        let publisher = Self { uri, state: Arc::default() };
        publisher.publish(kids);
        let router = Router::new().route("/keys", get(serve)).with_state(publisher.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        publisher
    }

    fn publish(&self, kids: &[&str]) {
        let key = |kid: &&str| {
            let signer = Signer::generate(Algorithm::ES256).unwrap();
            jwk::jwk_from_spki(kid, Algorithm::ES256, signer.spki()).unwrap()
        };
        let keys: Vec<Value> = kids.iter().map(key).collect();
        *self.state.keys.lock().unwrap() = Some(json!({ "keys": keys }));
    }

    fn is_away(&self) {
        *self.state.keys.lock().unwrap() = None;
    }

    fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::SeqCst)
    }
}

async fn serve(State(publisher): State<Publisher>) -> Result<Json<Value>, StatusCode> {
    publisher.state.fetches.fetch_add(1, Ordering::SeqCst);
    publisher.state.keys.lock().unwrap().clone().map(Json).ok_or(StatusCode::SERVICE_UNAVAILABLE)
}

fn key_sets(shortest: Duration, first_retry: Duration) -> KeySets {
    let settings = KeySetSettings { allow_private_addresses: true, ca_certificate: None };
    let intervals = RefreshIntervals { shortest, first_retry, ..RefreshIntervals::default() };
    KeySets::with_intervals(settings, intervals)
}

const LONG: Duration = Duration::from_hours(1);

fn kids(keys: &[VerificationKey]) -> Vec<&str> {
    keys.iter().map(VerificationKey::kid).collect()
}

#[tokio::test]
async fn many_assertions_are_one_fetch() {
    let publisher = Publisher::start(&["one"]).await;
    let sets = key_sets(LONG, LONG);
    let asking = (0..20).map(|_| sets.keys(&publisher.uri, Some("one"), true));
    for keys in futures::future::join_all(asking).await {
        assert_eq!(kids(&keys.unwrap()), ["one"]);
    }
    // Nor does a name that nobody published cost more than one a while.
    for _ in 0..5 {
        assert_eq!(kids(&sets.keys(&publisher.uri, Some("forged"), true).await.unwrap()), ["one"]);
    }
    assert_eq!(publisher.fetches(), 1);
}

#[tokio::test]
async fn a_new_key_is_looked_for_and_an_outage_keeps_the_last_good_set() {
    let publisher = Publisher::start(&["one"]).await;
    let sets = key_sets(Duration::ZERO, Duration::ZERO);
    sets.keys(&publisher.uri, Some("one"), true).await.unwrap();
    publisher.publish(&["one", "two"]);
    assert_eq!(kids(&sets.keys(&publisher.uri, Some("two"), true).await.unwrap()), ["one", "two"]);
    publisher.is_away();
    for _ in 0..3 {
        assert_eq!(kids(&sets.keys(&publisher.uri, Some("three"), true).await.unwrap()), ["one", "two"]);
    }
    publisher.publish(&["three"]);
    assert_eq!(
        kids(&sets.keys(&publisher.uri, Some("three"), true).await.unwrap()),
        ["three"],
        "and no other"
    );
}

#[tokio::test]
async fn keys_that_were_never_had_are_away_and_asked_for_later_and_later() {
    let publisher = Publisher::start(&["one"]).await;
    publisher.is_away();
    let sets = key_sets(Duration::ZERO, LONG);
    for _ in 0..5 {
        assert_eq!(sets.keys(&publisher.uri, Some("one"), true).await.unwrap_err(), KeysAway);
    }
    assert_eq!(publisher.fetches(), 1);
}

#[tokio::test]
async fn a_client_that_registered_itself_reaches_no_private_address() {
    let publisher = Publisher::start(&["one"]).await;
    let sets = key_sets(LONG, LONG);
    assert!(sets.keys(&publisher.uri, None, false).await.is_err());
    assert_eq!(publisher.fetches(), 0);
    assert!(sets.keys(&publisher.uri, None, true).await.is_ok(), "known apart from the operator's");
}
