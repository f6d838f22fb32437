//! Ten thousand sidecars at one control plane, through a real nats-server: who is how is told, stragglers are named, and what they
//! cost (memory, answers, messages) has bounds.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stderr)] // helpers of tests fail the test

use std::collections::BTreeSet;

use atm_proto::change::Heartbeat;
use atm_proto::report::SidecarCondition;
use atm_proto::signature::{Domain, TrustedFeedKeys};
use atm_tests::authority::FeedAuthority;
use atm_tests::http::Answer;
use atm_tests::leases::Leases;
use atm_tests::nats::NatsServer;
use atm_tests::process::resident_mib;
use atm_tests::token::now;
use atm_tests::wait;
use futures::StreamExt;
use serde_json::{Value, json};

const SIDECARS: usize = 10_000;
/// As the control plane limits them.
const KNOWN_AT_MOST: usize = 20_000;
const NAMED_AT_MOST: usize = 100;

struct Stack {
    leases: Leases,
    control_plane: FeedAuthority,
    nats: NatsServer,
}

impl Stack {
    async fn start() -> Self {
        let nats = NatsServer::start().await;
        let control_plane = FeedAuthority::start_connected(&nats.url(), &json!({})).await;
        control_plane.revoke(&["first".into()], now() + 3_600).await;
        let feed = control_plane.feed().await;
        let epoch = hex::decode(feed["epoch"].as_str().unwrap()).expect("an epoch in hexadecimal");
        let revision = feed["revision"].as_u64().unwrap();
        let leases = Leases::start(&nats.url(), SIDECARS, &epoch, revision).await;
        let stack = Self { leases, control_plane, nats };
        stack.until_states(&[("live", SIDECARS)]).await;
        stack
    }

    async fn get(&self, path: &str) -> Answer {
        let answer = self.control_plane.admin("GET", path, &Value::Null).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    }

    async fn states(&self) -> Value {
        self.get("/admin/v1/fleet?limit=0").await.json()["states"].clone()
    }

    /// Waits until so many stand so.
    async fn until_states(&self, wanted: &[(&str, usize)]) {
        wait::until(&format!("the fleet to stand {wanted:?}"), wait::LONG, || async {
            let states = self.states().await;
            let reached = wanted.iter().all(|(state, number)| states[state] == *number);
            if reached { Ok(()) } else { Err(states) }
        })
        .await;
    }

    async fn listed(&self, state: &str) -> BTreeSet<String> {
        let answer = self.get(&format!("/admin/v1/fleet?state={state}")).await.json();
        let sidecars = answer["sidecars"].as_array().unwrap();
        sidecars.iter().map(|sidecar| sidecar["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn names(which: std::ops::Range<usize>) -> BTreeSet<String> {
    which.map(Leases::id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_sidecars_are_told_apart_and_cost_little() {
    let nats = NatsServer::start().await;
    let mut idle = FeedAuthority::start_connected(&nats.url(), &json!({})).await;
    let before = resident_mib(idle.process().id());
    drop(idle);
    let mut stack = Stack::start().await;

    // What they cost: memory, answers, and messages, which the heartbeat has them space.
    let memory = resident_mib(stack.control_plane.process().id()) - before;
    assert!(memory < 64.0, "{SIDECARS} sidecars take {memory:.1} MiB");
    let shown = stack.get("/admin/v1/fleet").await;
    assert!(shown.body.len() < 600_000, "a listing has {} bytes", shown.body.len());
    assert_eq!(shown.json()["left_out"], SIDECARS - 1_000);
    let whole = stack.get("/admin/v1/fleet?limit=10000").await;
    assert!(whole.body.len() < 6_000_000, "the whole listing has {} bytes", whole.body.len());
    assert_eq!(whole.json()["sidecars"].as_array().unwrap().len(), SIDECARS);
    assert!(stack.get("/admin/v1/fleet?limit=0").await.body.len() < 1_000);
    let bytes = stack.leases.report_bytes();
    eprintln!(
        "{SIDECARS} sidecars: {memory:.1} MiB; listing of 1,000 {} bytes, of all {} bytes; a report {bytes} bytes",
        shown.body.len(),
        whole.body.len()
    );
    assert!(bytes < 128, "a report has {bytes} bytes");
    assert_eq!(
        heartbeat(&stack).await.report_pause_ms,
        500,
        "10,000 of them send 20,000 reports a second at most"
    );

    told_apart(&stack).await;
    strangers_are_limited(&mut stack, before).await;
}

/// Stragglers are named in a receipt; whoever is gone, new, behind, diverged or refusing is listed as that.
async fn told_apart(stack: &Stack) {
    let (diverged, refusing, new, behind, gone) = (0..5, 5..12, 12..15, 15..26, 26..39);
    stack
        .leases
        .change(diverged.clone(), |report| report.condition = SidecarCondition::Diverged.into())
        .await;
    stack
        .leases
        .change(refusing.clone(), |report| report.condition = SidecarCondition::Refusing.into())
        .await;
    stack
        .leases
        .change(new.clone(), |report| {
            report.epoch.clear();
            report.applied_revision = 0;
        })
        .await;
    stack.leases.silence(gone.clone());
    let revision = stack.control_plane.revoke(&["second".into()], now() + 3_600).await;
    // They have the next two as well: those whose receipts are asked for below.
    stack.leases.change(gone.end..SIDECARS, |report| report.applied_revision = revision + 2).await;
    stack
        .until_states(&[
            ("live", SIDECARS - gone.end),
            ("diverged", diverged.len()),
            ("refusing", refusing.len()),
            ("new", new.len()),
            ("behind", behind.len()),
            ("gone", gone.len()),
        ])
        .await;
    for (state, which) in [
        ("diverged", &diverged),
        ("refusing", &refusing),
        ("new", &new),
        ("behind", &behind),
        ("gone", &gone),
    ] {
        assert_eq!(stack.listed(state).await, names(which.clone()), "{state}");
    }
    let applied = SIDECARS - gone.end;
    let receipt = receipt(stack, 1.0).await;
    assert_eq!(receipt["complete"], false, "{receipt}");
    assert_eq!(
        (&receipt["live"], &receipt["applied"]),
        (&json!(SIDECARS - gone.len()), &json!(applied)),
        "{receipt}"
    );
    assert_eq!(receipt["gone"], gone.len());
    let missing: BTreeSet<String> = serde_json::from_value(receipt["missing"].clone()).unwrap();
    assert_eq!(missing, names(0..behind.end), "stragglers are named");
    // A share of the fleet is enough where the call says so.
    assert_eq!(self::receipt(stack, 0.99).await["complete"], true);
    // Nobody has this one: no more are named than an answer should hold.
    let receipt = self::receipt(stack, 1.0).await;
    assert_eq!(receipt["applied"], 0, "{receipt}");
    assert_eq!(receipt["missing"].as_array().unwrap().len(), NAMED_AT_MOST);
    assert!(receipt.to_string().len() < 4_096);
}

/// The receipt of one more revocation.
async fn receipt(stack: &Stack, share: f64) -> Value {
    let body = json!({
        "tokens": [{ "jti": "one more", "expires_at": now() + 3_600 }],
        "wait": { "share": share, "timeout_ms": 500 },
    });
    let answer = stack.control_plane.admin("POST", "/admin/v1/revocations", &body).await;
    answer.json()["receipt"].clone()
}

/// Somebody reports under ever new names: no more are kept than there may be.
async fn strangers_are_limited(stack: &mut Stack, before: f64) {
    let flood = Leases::start(&stack.nats.url(), 0, &[], 0).await;
    flood.flood(KNOWN_AT_MOST + 1_000).await;
    wait::until("more reports to be refused than there is room for", wait::LONG, || async {
        let metrics = stack.get("/metrics").await.text();
        let refused = atm_tests::sidecar::count(&metrics, "atm_control_plane_sidecar_reports_refused_total");
        if refused >= 1_000 { Ok(()) } else { Err(refused) }
    })
    .await;
    let states = stack.states().await;
    let known: u64 = states.as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert!(known <= KNOWN_AT_MOST as u64, "{states}");
    let memory = resident_mib(stack.control_plane.process().id()) - before;
    assert!(memory < 96.0, "a flood of names takes {memory:.1} MiB");
}

async fn heartbeat(stack: &Stack) -> Heartbeat {
    let key = stack.control_plane.feed_key().await.parse().unwrap();
    let client = async_nats::connect(stack.nats.url()).await.unwrap();
    let mut heartbeats = client.subscribe("atm.default.heartbeat").await.unwrap();
    let message = tokio::time::timeout(wait::USUAL, heartbeats.next()).await.expect("in time").unwrap();
    let payload = TrustedFeedKeys::new(vec![key]).verify(Domain::Heartbeat, &message.payload).unwrap();
    Heartbeat::decode(&payload).unwrap()
}
