//! Replicas, and the log that they wrote together.

use std::collections::HashMap;
use std::str::FromStr;

use async_nats::jetstream;
use atm_core::id::{Id, IdKind};
use atm_proto::change::{Change, ChangeSet, Digest};
use atm_proto::signature::{Domain, FeedPublicKey, TrustedFeedKeys};
use atm_proto::subject::STREAM;
use atm_tests::control_plane::{AdminClient, ControlPlane, ISSUER};
use atm_tests::nats::NatsServer;
use atm_tests::wait;
use serde_json::{Value, json};

/// Control planes over one store.
pub(crate) struct Replicas {
    pub(crate) nats: NatsServer,
    pub(crate) planes: Vec<ControlPlane>,
}

impl Replicas {
    /// Starts `number` of them at once, over the empty database at `url`.
    pub(crate) async fn start(number: usize, url: &str) -> Self {
        let store = json!({ "url": url, "maxConnections": 8, "acquireTimeoutMs": 1_000, "statementTimeoutMs": 3_000 });
        Self::over(number, &store).await
    }

    /// As [`Self::start`], over `store`: the section of that name.
    pub(crate) async fn over(number: usize, store: &Value) -> Self {
        let nats = NatsServer::start().await;
        let mut planes: Vec<_> = (0..number).map(|_| ControlPlane::configure(store, &nats.url())).collect();
        futures::future::join_all(planes.iter_mut().map(ControlPlane::start)).await;
        Self { nats, planes }
    }

    /// The key that sidecars pin.
    pub(crate) async fn feed_key(&self) -> String {
        feed(&self.planes[0].client()).await["feed_public_key"].as_str().unwrap().to_owned()
    }

    /// Waits until JetStream holds the whole log, and gives it: verified, and in the order of the stream.
    pub(crate) async fn published_log(&self) -> Vec<ChangeSet> {
        let client = self.planes[0].client();
        let trusted = TrustedFeedKeys::new(vec![FeedPublicKey::from_str(&self.feed_key().await).unwrap()]);
        let nats = async_nats::connect(self.nats.url()).await.unwrap();
        let stream = jetstream::new(nats).get_stream(STREAM).await.unwrap();
        // Calls that a kill has cut off may still be sequenced, by another one.
        let (revision, state) = wait::until("the whole log to be published, once", wait::USUAL, || async {
            let feed = feed(&client).await;
            let state = stream.get_info().await.unwrap().state;
            let settled = feed["published"] == feed["revision"] && feed["degraded"].is_null();
            let revision = feed["revision"].as_u64().unwrap();
            if settled && state.messages == revision { Ok((revision, state)) } else { Err((feed, state)) }
        })
        .await;
        let mut sets = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            let payload = trusted.verify(Domain::ChangeSet, &message.payload).unwrap();
            sets.push(ChangeSet::decode(&payload).unwrap());
        }
        assert_eq!(sets.len() as u64, revision, "the stream holds each revision once");
        sets
    }
}

async fn feed(client: &AdminClient) -> Value {
    wait::until("the feed to be shown", wait::USUAL, || client.call("GET", "/admin/v1/feed", &Value::Null))
        .await
        .json()
}

/// Revisions follow each other and each set names the one before.
pub(crate) fn assert_contiguous(sets: &[ChangeSet]) {
    let mut before = Digest::ZERO;
    for (set, revision) in sets.iter().zip(1..) {
        assert_eq!(set.revision, revision);
        assert_eq!(set.previous_digest, before, "revision {revision} does not follow the one before");
        before = Digest::of(&set.encode());
    }
}

/// How often each token is in the log.
pub(crate) fn revoked_tokens(sets: &[ChangeSet]) -> HashMap<Id, usize> {
    let mut found = HashMap::new();
    for change in sets.iter().flat_map(|set| &set.changes) {
        if let Change::RevokedTokens { ids, .. } = change {
            for id in ids {
                *found.entry(*id).or_default() += 1;
            }
        }
    }
    found
}

/// The id of a token of ours.
pub(crate) fn token_id(jti: &str) -> Id {
    Id::of(IdKind::Token, ISSUER, jti)
}

/// Revokes one token. None: it is not known whether it is.
pub(crate) async fn revoke(client: &AdminClient, jti: &str) -> Option<u64> {
    let body = json!({ "selector": { "token": { "jti": jti } } });
    let answer = client.call("POST", "/admin/v1/revocations", &body).await.ok()?;
    match answer.status {
        200 => Some(answer.json()["revision"].as_u64().expect("a revision")),
        503 => None,
        other => panic!("{other}: {}", answer.text()),
    }
}
