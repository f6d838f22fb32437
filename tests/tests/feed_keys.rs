//! The trust in feed keys is handed over from one key to the next, without a moment in which a sidecar hears nobody, and never back.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use atm_proto::change::{Digest, Epoch, Heartbeat};
use atm_proto::signature::{Domain, FeedSigner};
use atm_tests::authority::FeedAuthority;
use atm_tests::nats::NatsServer;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::{base64url, now, now_ms};
use atm_tests::wait;
use serde_json::{Value, json};

const REFUSED: &str = r#"atm_sidecar_change_sets_refused_total{cause="signature"}"#;

/// A signer whose seed lies in a file beside the control plane's own.
fn new_key(control_plane: &FeedAuthority, file: &str) -> FeedSigner {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).unwrap();
    std::fs::write(control_plane.path(file), base64url(seed)).unwrap();
    FeedSigner::from_seed(&seed).unwrap()
}

/// The signer that the control plane began with.
fn first_key(control_plane: &FeedAuthority) -> FeedSigner {
    use base64::Engine;
    let text = std::fs::read_to_string(control_plane.path("feed.key")).unwrap();
    let seed = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text.trim()).unwrap();
    FeedSigner::from_seed(&seed.try_into().unwrap()).unwrap()
}

async fn change(control_plane: &FeedAuthority, change: &Value) -> Value {
    let answer = control_plane.admin("POST", "/admin/v1/feed/keys", change).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn restart_with(control_plane: &mut FeedAuthority, file: &str) {
    control_plane.kill();
    let path = control_plane.path(file).display().to_string();
    control_plane.reconfigure(&json!({ "feed": { "signingKeyFile": path } }));
    control_plane.start().await;
    control_plane.until_connected().await;
}

async fn assert_in_force(control_plane: &FeedAuthority, sidecar: &Sidecar, jti: &str) {
    let revision = control_plane.revoke(&[jti.to_owned()], now() + 3_600).await;
    sidecar.until_applied_within(revision, wait::LONG).await;
    wait::until("the feed to be fresh", wait::USUAL, || async {
        let state = sidecar.state().await;
        if state["freshness"] == "fresh" { Ok(()) } else { Err(state) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_is_handed_over_step_by_step_and_the_old_key_says_nothing_any_more() {
    let nats = NatsServer::start().await;
    let mut control_plane = FeedAuthority::start_connected(&nats.url(), &json!({})).await;
    let (old, old_signer) = (control_plane.feed_key().await, first_key(&control_plane));
    let mut sidecar = Sidecar::start_ready(&nats.url(), &old).await;
    let mut away = Sidecar::start_ready(&nats.url(), &old).await;
    assert_in_force(&control_plane, &sidecar, "before").await;
    away.until_applied(control_plane.feed().await["revision"].as_u64().unwrap()).await;
    away.kill();

    let new = new_key(&control_plane, "new.key").public_key().to_string();
    // A control plane that signs with a key nobody was told of does not start.
    let told = change(&control_plane, &json!({ "add": new })).await;
    assert_eq!(told["rotation"], 1);
    let mut stranger = FeedAuthority::configure(&nats.url(), &json!({}));
    let path = |name: &str| control_plane.path(name).display().to_string();
    new_key(&control_plane, "unknown.key");
    stranger.reconfigure(&json!({
        "store": { "path": path("atm.db") }, "feed": { "signingKeyFile": path("unknown.key") },
        "keys": { "wrappingKeyFile": path("wrapping.key") },
    }));
    control_plane.kill();
    let ended = stranger.start_and_end().await;
    assert!(!ended.success());
    assert!(stranger.log().contains("sidecars are not told to trust"), "{}", stranger.log());

    restart_with(&mut control_plane, "new.key").await;
    assert_eq!(control_plane.feed_key().await, new);
    assert_in_force(&control_plane, &sidecar, "signed by the new key").await;
    let told = change(&control_plane, &json!({ "retire": old })).await;
    assert_eq!((told["rotation"].as_u64(), &told["trusted_keys"]), (Some(2), &json!([new])));
    assert_in_force(&control_plane, &sidecar, "with the old key retired").await;

    // Whoever has the old key's seed is nobody now: also for a sidecar that pins that key, and for one that was away.
    sidecar.kill();
    sidecar.start().await;
    sidecar.until_ready().await;
    away.start().await;
    assert_in_force(&control_plane, &away, "after a restart").await;
    let fresh = Sidecar::start_ready(&nats.url(), &old).await;
    assert_in_force(&control_plane, &fresh, "at one that begins with the old key").await;
    for sidecar in [&sidecar, &away, &fresh] {
        forged_by(&old_signer, &control_plane, &nats, sidecar).await;
    }
    // And a control plane with the old key does not start either.
    let path = control_plane.path("feed.key").display().to_string();
    control_plane.kill();
    control_plane.reconfigure(&json!({ "feed": { "signingKeyFile": path } }));
    assert!(!control_plane.start_and_end().await.success());
}

/// A heartbeat of `signer` that tells of a revision to come is refused.
async fn forged_by(signer: &FeedSigner, control_plane: &FeedAuthority, nats: &NatsServer, sidecar: &Sidecar) {
    let feed = control_plane.feed().await;
    let mut epoch = [0; 16];
    hex::decode_to_slice(feed["epoch"].as_str().unwrap(), &mut epoch).unwrap();
    let heartbeat = Heartbeat {
        realm_group: "default".into(),
        epoch: Epoch::from_bytes(epoch),
        revision: feed["revision"].as_u64().unwrap() + 100,
        oldest_revision: 1,
        time: atm_core::time::UnixMillis(now_ms() + 1_000),
        digest: Digest::ZERO,
        snapshot_revision: 0,
        state: None,
        report_pause_ms: 5,
        rotation: 0,
    };
    let before = sidecar.count(REFUSED).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let signed = signer.sign(Domain::Heartbeat, &heartbeat.encode());
    client.publish("atm.default.heartbeat", signed.into()).await.unwrap();
    client.flush().await.unwrap();
    wait::until("the forged heartbeat to be refused", wait::USUAL, || async {
        let refused = sidecar.count(REFUSED).await;
        if refused > before { Ok(()) } else { Err(refused) }
    })
    .await;
    // A change set of the control plane's own may just be on its way; what the forged one tells of would be a hundred.
    assert!(sidecar.count("atm_sidecar_feed_behind").await < 100, "it is believed");
}
