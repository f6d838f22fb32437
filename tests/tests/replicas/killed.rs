//! Replicas are killed at any instant while all of them revoke.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use atm_tests::control_plane::{AdminClient, ControlPlane};
use atm_tests::sidecar::Sidecar;
use atm_tests::wait;
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use super::fleet::{Replicas, assert_contiguous, revoke, revoked_tokens, token_id};

const REPLICAS: usize = 3;
const KILLS: usize = 12;
const WRITERS: usize = 6;

/// Revocations that are acknowledged between two kills at least.
const BETWEEN: usize = 6;

/// Where the replicas are now; a killed one comes back with another address.
type Clients = Arc<RwLock<Vec<AdminClient>>>;

/// Revokes unique tokens at one replica after the other, each once. Returns what was acknowledged, with the revision.
async fn write(
    writer: usize,
    clients: Clients,
    end: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
) -> HashMap<String, Option<u64>> {
    let mut outcomes = HashMap::new();
    let mut number = 0;
    while !end.load(Ordering::SeqCst) {
        number += 1;
        let jti = format!("w{writer}-{number}");
        let client = {
            let clients = clients.read().await;
            clients[(writer + number) % clients.len()].clone()
        };
        let revision = revoke(&client, &jti).await;
        outcomes.insert(jti, revision);
        if revision.is_some() {
            acknowledged.fetch_add(1, Ordering::SeqCst);
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await; // its peer is being started again
        }
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_revision_is_skipped_or_doubled_and_no_acknowledged_revocation_is_lost() {
    let url = tokio::task::spawn_blocking(atm_test_postgres::database).await.unwrap();
    survive(Replicas::start(REPLICAS, &url).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_keeps_what_it_acknowledged_through_every_kill() {
    let directory = tempfile::tempdir().unwrap();
    let store = serde_json::json!({ "path": directory.path().join("atm.db") });
    survive(Replicas::over(1, &store).await).await;
}

/// Kills them while they are written to, and reads what came of it.
async fn survive(mut replicas: Replicas) {
    let feed_key = replicas.feed_key().await;
    let sidecar = Sidecar::start_ready(&replicas.nats.url(), &feed_key).await;
    let clients: Clients = Arc::new(RwLock::new(replicas.planes.iter().map(ControlPlane::client).collect()));
    let end = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(writer, Arc::clone(&clients), Arc::clone(&end), Arc::clone(&acknowledged)));
    }
    let mut random: usize = 7;
    for _ in 0..KILLS {
        let enough = acknowledged.load(Ordering::SeqCst) + BETWEEN;
        wait::until_some("some revocations to be acknowledged", wait::LONG, || {
            (acknowledged.load(Ordering::SeqCst) >= enough).then_some(())
        })
        .await;
        // Any instant: the pause differs from kill to kill, and what runs meanwhile is what the scheduler made of it.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_millis((random >> 33) as u64 % 200)).await;
        let victim = (random >> 17) % replicas.planes.len();
        replicas.planes[victim].kill();
        replicas.planes[victim].start().await;
        clients.write().await[victim] = replicas.planes[victim].client();
    }
    end.store(true, Ordering::SeqCst);
    let mut outcomes = HashMap::new();
    for written in writers.join_all().await {
        outcomes.extend(written);
    }

    let sets = replicas.published_log().await;
    assert_contiguous(&sets);
    let found = revoked_tokens(&sets);
    for (jti, revision) in &outcomes {
        let times = found.get(&token_id(jti)).copied().unwrap_or_default();
        if let Some(revision) = revision {
            assert_eq!(times, 1, "{jti} was acknowledged with revision {revision}");
            let set = &sets[usize::try_from(*revision).unwrap() - 1];
            assert!(revoked_tokens(std::slice::from_ref(set)).contains_key(&token_id(jti)), "{jti}");
        } else {
            assert!(times <= 1, "{jti}");
        }
    }
    sidecar.until_applied(sets.len() as u64).await;
    let refused = sidecar.metric("atm_sidecar_change_sets_refused_total{cause=\"conflict\"}").await;
    assert!(refused.abs() < f64::EPSILON, "{refused} change sets were refused");
    wait::until("every replica to be level with the log", wait::USUAL, || async {
        for plane in &replicas.planes {
            let feed = plane.client().call("GET", "/admin/v1/feed", &serde_json::Value::Null).await;
            let revision = feed.map(|answer| answer.json()["revision"].as_u64()).ok().flatten();
            if revision != Some(sets.len() as u64) {
                return Err(revision);
            }
        }
        Ok(())
    })
    .await;
}
