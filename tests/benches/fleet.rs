//! How soon a revocation reaches the last of a large fleet, and what that costs: a real control plane, a real nats-server, and
//! simulated sidecars that verify signatures and order. Part of `make bench`; use it to size your own.
//!
//! Small by default. A large one: `ulimit -n 20000; ATM_FLEET_SUBSCRIBERS=1000 ATM_FLEET_REVOCATIONS=200 ATM_FLEET_BATCH=1000000`.
//!
//! `ATM_FLEET_SUBSCRIBERS` (100), `ATM_FLEET_REVOCATIONS` (50), `ATM_FLEET_BATCH` (20000), `ATM_FLEET_LOSE_ONE_OF` (0: none), `ATM_FLEET_DELAY_MS` (0).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a benchmark that cannot go on stops
#![allow(clippy::cast_precision_loss)] // numbers to be read, far below 2^52

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use atm_proto::signature::TrustedFeedKeys;
use atm_tests::authz::Authz;
use atm_tests::dev::{DevClient, DevStack};
use atm_tests::figures::{row, size};
use atm_tests::sidecar::Sidecar;
use atm_tests::simulation::{FleetSettings, SimulatedFleet};
use atm_tests::token::now;
use futures::StreamExt;
use serde_json::json;
use tokio::task::JoinHandle;

/// For how long decisions are timed before the batch.
const USUAL: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() {
    let subscribers = size("ATM_FLEET_SUBSCRIBERS", 100);
    let revocations = size("ATM_FLEET_REVOCATIONS", 50);
    let stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;
    let feed = client.admin("GET", "/admin/v1/feed", &json!(null)).await.expect("an answer").json();
    let settings = FleetSettings {
        nats_url: stack.field("nats_url").to_owned(),
        realm_group: "default".into(),
        trusted: TrustedFeedKeys::new(vec![feed["feed_public_key"].as_str().unwrap().parse().unwrap()]),
        subscribers,
        lose_one_of: size("ATM_FLEET_LOSE_ONE_OF", 0) as u64,
        delay: Duration::from_millis(size("ATM_FLEET_DELAY_MS", 0) as u64),
    };
    let fleet = SimulatedFleet::start(settings.clone()).await;
    // One revocation that nobody counts: after it everyone knows where the log is.
    let first = revoke(&client, 0).await;
    fleet.until_applied(first, Instant::now(), LIMIT).await.expect("the fleet hears the feed");
    propagation(&client, &fleet, revocations).await;
    outage(&client, &fleet, subscribers).await;
    fleet.stop();
    if settings.lose_one_of == 0 {
        lost_message(&client, &settings).await;
    }
    drop(fleet);
    batch(&client, &stack, size("ATM_FLEET_BATCH", 20_000)).await;
}

async fn revoke(client: &DevClient, number: usize) -> u64 {
    let body = json!({ "selector": { "token": { "jti": format!("simulated-{number}"), "expires_at": 4_000_000_000u64 } } });
    let answer = client.admin("POST", "/admin/v1/revocations", &body).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["revision"].as_u64().expect("a revision")
}

/// From the call's return to each subscriber, and to the last of them.
async fn propagation(client: &DevClient, fleet: &SimulatedFleet, revocations: usize) {
    let (mut each, mut last) = (Vec::new(), Vec::new());
    let bytes = fleet.counters.bytes.load(Ordering::Relaxed);
    for number in 1..=revocations {
        let revision = revoke(client, number).await;
        let times = fleet.until_applied(revision, Instant::now(), LIMIT).await.expect("everyone has it");
        last.push(times.iter().max().copied().unwrap_or_default());
        each.extend(times);
    }
    let bytes = fleet.counters.bytes.load(Ordering::Relaxed) - bytes;
    row("revocation call returned: at a simulated sidecar", &mut each);
    row("revocation call returned: at the last of them", &mut last);
    println!("{:<50} {:>8} bytes", "received by all for each revocation", bytes / revocations as u64);
    let violations = fleet.counters.violations.load(Ordering::Relaxed);
    let (lost, asked) =
        (fleet.counters.lost.load(Ordering::Relaxed), fleet.counters.resyncs.load(Ordering::Relaxed));
    println!("{:<50} {violations}, lost {lost}, asked {asked}", "violations of signature or order");
    assert_eq!(violations, 0);
}

/// A tenth of the fleet is cut off, ten revocations pass, it comes back.
async fn outage(client: &DevClient, fleet: &SimulatedFleet, subscribers: usize) {
    let cut = 0..subscribers.div_ceil(10);
    cut.clone().for_each(|subscriber| fleet.set_online(subscriber, false));
    let mut revision = 0;
    for number in 0..10 {
        revision = revoke(client, 1_000_000 + number).await;
    }
    let back = Instant::now();
    cut.for_each(|subscriber| fleet.set_online(subscriber, true));
    let mut times = fleet.until_applied(revision, back, LIMIT).await.expect("everyone catches up");
    row("a tenth cut off for ten revisions: level again", &mut times);
}

/// Every live message is lost, nothing else is published: the heartbeat shows it.
async fn lost_message(client: &DevClient, settings: &FleetSettings) {
    let settings =
        FleetSettings { subscribers: settings.subscribers.min(100), lose_one_of: 1, ..settings.clone() };
    let fleet = SimulatedFleet::start(settings).await;
    tokio::time::sleep(Duration::from_secs(2)).await; // everyone has heard a heartbeat
    let mut all = Vec::new();
    for number in 0..10 {
        let revision = revoke(client, 2_000_000 + number).await;
        all.extend(fleet.until_applied(revision, Instant::now(), LIMIT).await.expect("the gap is found"));
    }
    row("its message lost, nothing else published", &mut all);
}

/// Many revocations at once, as after a breach: sequenced, sent, and in force on five real sidecars.
async fn batch(client: &DevClient, stack: &DevStack, revocations: usize) {
    const CALL: usize = 100_000;
    let nats_url = stack.field("nats_url");
    let feed = client.admin("GET", "/admin/v1/feed", &json!(null)).await.expect("an answer").json();
    let key = feed["feed_public_key"].as_str().unwrap();
    let mut sidecars = Vec::new();
    for _ in 0..4 {
        sidecars.push(Sidecar::start_ready(nats_url, key).await);
    }
    let decisions = Decisions::start(client, stack).await;
    tokio::time::sleep(USUAL).await; // decisions with nothing else to do
    decisions.next("decisions at one sidecar, usually");
    let nats = async_nats::connect(nats_url).await.expect("NATS is there");
    let mut live = nats.subscribe("atm.default.live").await.expect("subscribed");
    nats.flush().await.expect("flushed");
    let bytes = tokio::spawn(async move {
        let mut bytes = 0;
        while let Ok(Some(message)) = tokio::time::timeout(Duration::from_secs(5), live.next()).await {
            bytes += message.payload.len();
        }
        bytes
    });
    let expires_at = now() + 86_400;
    let started = Instant::now();
    let mut revision = 0;
    for call in 0..revocations.div_ceil(CALL) {
        let tokens: Vec<_> = (0..CALL.min(revocations - call * CALL))
            .map(|number| json!({ "jti": format!("batch-{call}-{number}"), "expires_at": expires_at + i64::try_from(number % 24).unwrap() * 3_600 }))
            .collect();
        let body = json!({ "tokens": tokens });
        let answer = client.admin("POST", "/admin/v1/revocations", &body).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        revision = answer.json()["revision"].as_u64().expect("a revision");
    }
    let sequenced = started.elapsed();
    for sidecar in &sidecars {
        sidecar.until_applied_within(revision, Duration::from_mins(5)).await;
    }
    client.until_settled().await;
    let everywhere = started.elapsed();
    decisions.next("the same during the batch");
    println!(
        "{:<50} {:>8.0} a second",
        format!("{revocations} revocations in calls of {CALL}: sequenced"),
        revocations as f64 / sequenced.as_secs_f64()
    );
    println!("{:<50} {:>8.2} s", "the same, in force on 5 sidecars", everywhere.as_secs_f64());
    let bytes = bytes.await.expect("counted");
    println!("{:<50} {:>8.2} bytes", "wire bytes a revocation", bytes as f64 / revocations as f64);
}

/// One decision after the other at the local stack's sidecar, as a gateway asks for them.
struct Decisions {
    times: Arc<Mutex<Vec<Duration>>>,
    task: JoinHandle<()>,
}

impl Decisions {
    async fn start(client: &DevClient, stack: &DevStack) -> Self {
        let token = client.issue().await.expect("a token");
        let authz = Authz::connect(stack.field("sidecar_grpc")).await;
        let times = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&times);
        let task = tokio::spawn(async move {
            loop {
                let asked = Instant::now();
                assert!(
                    authz.check_token(&token).await.is_permit(),
                    "a token that nobody revoked is let through"
                );
                taken.lock().unwrap().push(asked.elapsed());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Self { times, task }
    }

    /// A row of those since the last one.
    fn next(&self, name: &str) {
        row(name, &mut std::mem::take(&mut *self.times.lock().unwrap()));
    }
}

impl Drop for Decisions {
    fn drop(&mut self) {
        self.task.abort();
    }
}
