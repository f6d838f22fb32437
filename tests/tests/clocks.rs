//! Knowledge that grows old, and clocks that are stepped: what is served then is what the rules say. The clocks are the tests';
//! nobody waits for an hour.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::collections::HashMap;

use atm_core::id::IdKind;
use atm_tests::authority::FeedAuthority;
use atm_tests::feed::{FeedAuthor, policies, revoked_tokens};
use atm_tests::nats::NatsServer;
use atm_tests::proxy::{Network, Proxy};
use atm_tests::sidecar::Sidecar;
use atm_tests::token::{TokenMint, now};
use atm_tests::wait;
use serde_json::json;

const POLICY: &str = r#"
apiVersion: atm.dev/v1
kind: TokenPolicy
metadata: { name: orders }
spec:
  audiences: ["orders-api"]
  rules:
    - { name: strict, hosts: ["*"], paths: ["/strict"], onStale: deny, scopes: { all: [orders.read] } }
    - { name: bounded, hosts: ["*"], paths: ["/bounded"], onStale: allow, allowStaleSeconds: 60, scopes: { all: [orders.read] } }
    - { name: lenient, hosts: ["*"], paths: ["/lenient"], onStale: allow, scopes: { all: [orders.read] } }
"#;

const RULES: [&str; 3] = ["/strict", "/bounded", "/lenient"];

/// What the sidecar says of `token` at each rule.
async fn asked(sidecar: &Sidecar, token: &str) -> [String; 3] {
    let authz = sidecar.authz().await;
    let mut reasons = Vec::new();
    for path in RULES {
        let headers = HashMap::from([("authorization".to_owned(), format!("Bearer {token}"))]);
        reasons.push(authz.check("GET", path, headers).await.reason);
    }
    reasons.try_into().unwrap()
}

async fn until_freshness(sidecar: &Sidecar, freshness: &str) {
    wait::until(&format!("the feed to be {freshness}"), wait::USUAL, || async {
        let state = sidecar.state().await;
        if state["freshness"] == freshness { Ok(()) } else { Err(state) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn knowledge_of_seconds_and_of_an_hour_ago_is_used_as_the_rules_say() {
    let nats = NatsServer::start().await;
    let author = FeedAuthor::start(&nats).await;
    let network = Proxy::start(nats.port()).await;
    let settings = json!({ "startup": { "waitForFeedMs": 100 } });
    let mut sidecar = Sidecar::configure_with(&network.nats_url(), &author.public_key(), &settings);
    let clock = sidecar.give_clock();
    let mint = TokenMint::new("https://issuer.test", "default", &[("k1", "ES256")]);
    let lives_on = || mint.token().claim("exp", now() + 36_000);
    let (valid, revoked) = (lives_on(), lives_on());
    let id = mint.id(IdKind::Token, &revoked.jti());
    let revision = author
        .publish(vec![mint.to_change(), policies(1, &[POLICY]), revoked_tokens(now() + 36_000, [id])])
        .await;
    let (valid, revoked) = (valid.sign(), revoked.sign());

    // Seconds since the newest heartbeat, what the feed is called then, and what the three rules say.
    let ages = [
        (8, "degraded", ["permit", "permit", "permit"]),
        (30, "stale", ["stale", "permit", "permit"]),
        (3_600, "stale", ["stale", "stale", "permit"]),
    ];
    for (age, freshness, reasons) in ages {
        clock.step_to(0);
        network.set(Network::Whole);
        sidecar.start().await;
        sidecar.until_applied(revision).await;
        wait::until("a heartbeat to be heard in this life", wait::USUAL, || async {
            let state = sidecar.state().await;
            let heard = state["ready"] == true && state["feed_age_ms"].as_u64().is_some_and(|age| age < 300);
            if heard { Ok(()) } else { Err(state) }
        })
        .await;
        assert_eq!(asked(&sidecar, &valid).await, ["permit"; 3]);
        sidecar.kill();
        // Nobody tells it anything, and its clock says that so much time has passed.
        network.set(Network::Cut);
        clock.step_to(age);
        sidecar.start().await;
        sidecar.until_ready().await;
        let state = sidecar.state().await;
        let told = state["feed_age_ms"].as_i64().unwrap() / 1_000;
        assert!((age - 3..age + 7).contains(&told), "{age} s: {state}");
        assert_eq!(state["freshness"], freshness, "{age} s: {state}");
        assert_eq!(asked(&sidecar, &valid).await, reasons, "{age} s");
        assert_eq!(asked(&sidecar, &revoked).await, ["revoked_token"; 3], "{age} s");
        sidecar.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_whose_clock_is_stepped_goes_on_hearing_the_feed() {
    let nats = NatsServer::start().await;
    let control_plane = FeedAuthority::start_connected(&nats.url(), &json!({})).await;
    let mut sidecar = Sidecar::configure(&nats.url(), &control_plane.feed_key().await);
    let clock = sidecar.give_clock();
    sidecar.start().await;
    sidecar.until_ready().await;
    for (number, step) in [3_600, -3_600, 40_000_000, 0].into_iter().enumerate() {
        clock.step_to(step);
        let revision = control_plane.revoke(&[format!("at-{number}")], now() + 60).await;
        sidecar.until_applied(revision).await;
        until_freshness(&sidecar, "fresh").await;
        // By one clock alone no bucket ends: what is revoked stays so.
        assert_eq!(sidecar.state().await["revocations"]["tokens"], number as u64 + 1, "{step} s");
    }
    // What the store remembers is of a time to come: it is of no known age, until the feed is heard.
    let network = Proxy::start(nats.port()).await;
    network.set(Network::Cut);
    sidecar.kill();
    sidecar.set("nats.url", json!(network.nats_url()));
    clock.step_to(-7_200);
    sidecar.start().await;
    sidecar.until_ready().await;
    let state = sidecar.state().await;
    assert_eq!((&state["freshness"], &state["feed_age_ms"]), (&json!("stale"), &json!(null)), "{state}");
    network.set(Network::Whole);
    until_freshness(&sidecar, "fresh").await;
    assert_eq!(sidecar.state().await["revocations"]["tokens"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_whose_clock_is_stepped_is_believed_all_the_time() {
    let nats = NatsServer::start().await;
    let mut control_plane = FeedAuthority::configure(&nats.url(), &json!({}));
    let clock = control_plane.give_clock();
    control_plane.start().await;
    control_plane.until_connected().await;
    let sidecar = Sidecar::start_ready(&nats.url(), &control_plane.feed_key().await).await;
    for (number, step) in [600, -600, 0, -600].into_iter().enumerate() {
        clock.step_to(step);
        if number == 3 {
            control_plane.kill();
            control_plane.start().await;
            control_plane.until_connected().await;
        }
        let revision = control_plane.revoke(&[format!("at-{number}")], now() + 3_600).await;
        sidecar.until_applied(revision).await;
        // Its heartbeats are taken for newer ones still: a sidecar that believed in the time ahead would be stale by now.
        let heard = control_plane.feed().await;
        let age = sidecar.state().await["feed_age_ms"].as_u64().unwrap();
        wait::until("a later heartbeat to count", wait::USUAL, || async {
            let state = sidecar.state().await;
            let newer = state["feed_age_ms"].as_u64().is_some_and(|now| now < age.max(1_000));
            if newer && state["freshness"] == "fresh" { Ok(()) } else { Err((state, heard.clone())) }
        })
        .await;
        assert_eq!(sidecar.state().await["revocations"]["tokens"], number as u64 + 1, "{step} s");
    }
    let receipt = control_plane
        .admin(
            "POST",
            "/admin/v1/revocations",
            &json!({ "selector": { "subject": "alice" }, "wait": { "timeout_ms": 10_000 } }),
        )
        .await
        .json();
    assert_eq!(receipt["receipt"]["complete"], true, "{receipt}");
}
