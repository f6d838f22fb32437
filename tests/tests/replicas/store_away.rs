//! PostgreSQL is killed, or hangs, while requests run.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use atm_tests::control_plane::AdminClient;
use atm_tests::wait;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::fleet::{Replicas, assert_contiguous, revoke, revoked_tokens, token_id};

async fn readiness(client: &AdminClient) -> u16 {
    client.call("GET", "/readyz", &Value::Null).await.map_or(0, |answer| answer.status)
}

async fn until_readiness(client: &AdminClient, status: u16) {
    wait::until(&format!("readiness {status}"), wait::USUAL, || async {
        let found = readiness(client).await;
        if found == status { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_dies_costs_503_and_leaves_nothing_half_done() {
    let mut server = tokio::task::spawn_blocking(atm_test_postgres::Server::start).await.unwrap();
    let url = server.database("atm");
    let replicas = Replicas::start(2, &url).await;
    let end = Arc::new(AtomicBool::new(false));
    let progress = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for writer in 0..6 {
        let client = replicas.planes[writer % 2].client();
        let (end, progress) = (Arc::clone(&end), Arc::clone(&progress));
        writers.spawn(async move {
            let mut outcomes = HashMap::new();
            for number in 0.. {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                let jti = format!("w{writer}-{number}");
                let acknowledged = revoke(&client, &jti).await.is_some();
                progress.fetch_add(usize::from(acknowledged), Ordering::SeqCst);
                outcomes.insert(jti, acknowledged);
            }
            outcomes
        });
    }
    for _ in 0..3 {
        let before = progress.load(Ordering::SeqCst);
        wait::until("traffic", wait::USUAL, || async {
            let done = progress.load(Ordering::SeqCst) - before;
            if done >= 20 { Ok(()) } else { Err(done) }
        })
        .await;
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server
        })
        .await
        .unwrap();
        for plane in &replicas.planes {
            until_readiness(&plane.client(), 503).await;
        }
        server = tokio::task::spawn_blocking(move || {
            server.restart();
            server
        })
        .await
        .unwrap();
        for plane in &replicas.planes {
            until_readiness(&plane.client(), 200).await;
        }
    }
    end.store(true, Ordering::SeqCst);
    let mut outcomes: HashMap<String, bool> = HashMap::new();
    for written in writers.join_all().await {
        outcomes.extend(written);
    }
    let sets = replicas.published_log().await;
    assert_contiguous(&sets);
    let found = revoked_tokens(&sets);
    let client = replicas.planes[0].client();
    let records = client.call("GET", "/admin/v1/revocations?limit=1000", &Value::Null).await.unwrap().json();
    let recorded: Vec<&str> =
        records["items"].as_array().unwrap().iter().filter_map(|record| record["value"].as_str()).collect();
    let complete = recorded.len() < 1_000;
    for (jti, acknowledged) in &outcomes {
        let in_log = found.get(&token_id(jti)).copied().unwrap_or_default();
        if *acknowledged {
            assert_eq!(in_log, 1, "{jti} was acknowledged");
        }
        if complete {
            assert_eq!(recorded.contains(&jti.as_str()), in_log == 1, "{jti} is half-done");
        }
    }
    assert!(outcomes.values().any(|acknowledged| *acknowledged));
    assert!(outcomes.values().any(|acknowledged| !acknowledged), "no request met an outage");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_costs_503_within_its_bound_and_comes_back() {
    let server = tokio::task::spawn_blocking(atm_test_postgres::Server::start).await.unwrap();
    let url = server.database("atm");
    let replicas = Replicas::start(1, &url).await;
    let client = replicas.planes[0].client();
    assert!(revoke(&client, "before").await.is_some());
    server.pause();
    let calls = (0..12).map(|number| {
        let client = client.clone();
        async move {
            let body = json!({ "selector": { "token": { "jti": format!("during-{number}") } } });
            client.call("POST", "/admin/v1/revocations", &body).await.map_or(0, |answer| answer.status)
        }
    });
    let statuses = futures::future::join_all(calls).await;
    assert!(statuses.iter().all(|status| *status == 503), "{statuses:?}");
    assert_eq!(readiness(&client).await, 503);
    server.resume();
    wait::until("the control plane to be back", Duration::from_secs(40), || async {
        revoke(&client, "after").await.ok_or("503")
    })
    .await;
    until_readiness(&client, 200).await;
    assert_contiguous(&replicas.published_log().await);
}

/// Forwards to a server, until its connections go silent: as a host that has vanished, while its successor has its address.
struct Proxy {
    port: u16,
    /// Connections that were accepted before the current generation are forwarded no more.
    generation: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let generation = Arc::new(AtomicUsize::new(0));
        let current = Arc::clone(&generation);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (current, mine) = (Arc::clone(&current), current.load(Ordering::SeqCst));
                tokio::spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    tokio::join!(
                        forward(from_client, to_server, Arc::clone(&current), mine),
                        forward(from_server, to_client, current, mine),
                    );
                });
            }
        });
        Self { port, generation }
    }

    fn go_silent(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, generation: Arc<AtomicUsize>, mine: usize) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if generation.load(Ordering::SeqCst) != mine {
            // Neither an answer nor an end, for as long as the test lasts.
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_host_that_has_vanished_are_given_up() {
    let url = tokio::task::spawn_blocking(atm_test_postgres::database).await.unwrap();
    let (address, database) = url.rsplit_once('/').unwrap();
    let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let proxy = Proxy::start(port).await;
    let replicas = Replicas::start(1, &format!("postgres://atm@127.0.0.1:{}/{database}", proxy.port)).await;
    let client = replicas.planes[0].client();
    assert!(revoke(&client, "before").await.is_some());
    proxy.go_silent();
    wait::until("connections to the successor", Duration::from_secs(40), || async {
        revoke(&client, "after").await.ok_or("503")
    })
    .await;
    until_readiness(&client, 200).await;
}
