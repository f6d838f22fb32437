//! Snapshots: who is new or far behind takes one, verified and without a consumer; the log is pruned only behind it.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use async_nats::jetstream;
use atm_tests::authority::FeedAuthority;
use atm_tests::nats::NatsServer;
use atm_tests::proxy::{Network, Proxy};
use atm_tests::sidecar::Sidecar;
use atm_tests::token::now;
use atm_tests::wait;
use futures::TryStreamExt;
use serde_json::{Value, json};

/// Snapshots after every few revisions, and a log that is pruned as soon as it may be.
fn often() -> Value {
    json!({ "feed": { "snapshots": { "everyRevisions": 5, "everySeconds": 3600, "keepLogSeconds": 1 } } })
}

fn jtis(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// Waits until the sidecar holds exactly so many revoked tokens; ids that come again may count twice for a moment.
async fn until_held(sidecar: &Sidecar, tokens: usize) {
    wait::until(&format!("{tokens} revoked tokens"), wait::USUAL, || async {
        let held = sidecar.state().await["revocations"]["tokens"].clone();
        if held == tokens { Ok(()) } else { Err(held) }
    })
    .await;
}

/// Publishes `sets` revisions of `size` revocations each.
async fn fill(control_plane: &FeedAuthority, prefix: &str, sets: usize, size: usize) -> u64 {
    let mut revision = 0;
    for set in 0..sets {
        revision = control_plane.revoke(&jtis(&format!("{prefix}-{set}"), size), now() + 3_600).await;
    }
    revision
}

/// As [`fill`], three times nine revisions with a snapshot after each nine, until the log is pruned behind one of them.
async fn fill_and_prune(control_plane: &FeedAuthority, prefix: &str) -> u64 {
    let mut revision = 0;
    for round in 0..3 {
        revision = fill(control_plane, &format!("{prefix}-{round}"), 9, 50).await;
        wait::until("a snapshot of them", wait::LONG, || async {
            let feed = control_plane.feed().await;
            let built = feed["snapshot"]["built"].as_u64().unwrap_or_default();
            if built >= revision - 4 { Ok(()) } else { Err(feed) }
        })
        .await;
    }
    until_pruned(control_plane).await;
    revision
}

/// Waits until neither the store nor the stream, whose sequences are revisions here, has `revision` any more.
async fn until_gone(nats: &NatsServer, revision: u64) {
    wait::until(&format!("revision {revision} to be pruned"), wait::LONG, || async {
        let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
        let state = context.get_stream("ATM_FEED").await.unwrap().get_info().await.unwrap().state;
        if state.first_sequence > revision { Ok(()) } else { Err(state) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_sidecar_starts_from_a_snapshot_when_the_log_is_pruned() {
    let nats = NatsServer::start().await;
    let control_plane = FeedAuthority::start_connected(&nats.url(), &often()).await;
    fill(&control_plane, "first", 6, 200).await;
    control_plane.until_snapshot(5).await;
    let revision = fill(&control_plane, "second", 12, 200).await;
    control_plane.until_snapshot(revision - 5).await;
    until_gone(&nats, 1).await;
    let key = control_plane.feed_key().await;
    let sidecar = Sidecar::start_ready(&nats.url(), &key).await;
    sidecar.until_applied(revision).await;
    until_held(&sidecar, 18 * 200).await;
    assert!(sidecar.log().contains("the snapshot is in force"), "{}", sidecar.log());
    let more = control_plane.revoke(&jtis("after", 1), now() + 60).await;
    sidecar.until_applied(more).await;
    until_held(&sidecar, 18 * 200 + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_far_behind_takes_a_snapshot_and_goes_on_from_it_after_a_restart() {
    let nats = NatsServer::start().await;
    let control_plane = FeedAuthority::start_connected(&nats.url(), &often()).await;
    let first = fill(&control_plane, "first", 2, 50).await;
    let key = control_plane.feed_key().await;
    let mut sidecar = Sidecar::start_ready(&nats.url(), &key).await;
    sidecar.until_applied(first).await;
    sidecar.kill();
    let revision = fill_and_prune(&control_plane, "away").await;
    sidecar.start().await;
    sidecar.until_applied(revision).await;
    until_held(&sidecar, 29 * 50).await;
    sidecar.kill();
    sidecar.start().await;
    sidecar.until_ready().await;
    sidecar.until_applied(revision).await;
    until_held(&sidecar, 29 * 50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_jetstream_loses_of_a_snapshot_is_put_there_again() {
    let nats = NatsServer::start().await;
    let control_plane = FeedAuthority::start_connected(&nats.url(), &often()).await;
    let revision = fill(&control_plane, "first", 6, 50).await;
    control_plane.until_snapshot(revision - 5).await;
    let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    context.delete_stream("ATM_SNAPSHOTS").await.unwrap();
    wait::until("the snapshot to be there again", wait::LONG, || async {
        let stream = context.get_stream("ATM_SNAPSHOTS").await.map_err(|error| error.to_string())?;
        let message = stream.direct_get_last_for_subject("atm.default.snapshot.manifest").await;
        message.map(drop).map_err(|error| error.to_string())
    })
    .await;
    let sidecar = Sidecar::start_ready(&nats.url(), &control_plane.feed_key().await).await;
    sidecar.until_applied(revision).await;
    until_held(&sidecar, 300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_is_never_used() {
    let nats = NatsServer::start().await;
    let control_plane = FeedAuthority::start_connected(&nats.url(), &often()).await;
    let revision = fill_and_prune(&control_plane, "first").await;
    control_plane.until_snapshot(revision - 4).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let context = jetstream::new(client.clone());
    let stream = context.get_stream("ATM_SNAPSHOTS").await.unwrap();
    let mut subjects = stream.info_with_subjects("atm.default.snapshot.segment.*.*").await.unwrap();
    while let Some((subject, _)) = subjects.try_next().await.unwrap() {
        let mut bytes = stream.direct_get_last_for_subject(subject.as_str()).await.unwrap().payload.to_vec();
        bytes[0] ^= 1;
        context.publish(subject, bytes.into()).await.unwrap().await.unwrap();
    }
    let mut sidecar = Sidecar::configure(&nats.url(), &control_plane.feed_key().await);
    sidecar.start().await;
    wait::until("the damage to be seen", wait::LONG, || async {
        let log = sidecar.log();
        if log.contains("is not what the manifest says") { Ok(()) } else { Err(log) }
    })
    .await;
    until_held(&sidecar, 0).await; // nothing of it was used
    // A later snapshot replaces what was damaged; unchanged segments are looked at again, too.
    context.delete_stream("ATM_SNAPSHOTS").await.unwrap();
    sidecar.until_applied_within(revision, wait::LONG).await;
    until_held(&sidecar, 27 * 50).await;
}

/// As where a connection broke in the middle of a segment, or damaged it: what is there under a segment's name is read, not believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_replaces_what_jetstream_holds_of_a_snapshot_with_other_bytes() {
    let nats = NatsServer::start().await;
    let mut control_plane = FeedAuthority::start_connected(&nats.url(), &often()).await;
    let revision = fill_and_prune(&control_plane, "held").await;
    control_plane.until_snapshot(revision - 4).await;
    control_plane.kill();
    let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    let stream = context.get_stream("ATM_SNAPSHOTS").await.unwrap();
    let chunks = stream.info_with_subjects("atm.default.snapshot.segment.*.*").await.unwrap();
    let chunks: Vec<(String, usize)> = chunks.try_collect().await.unwrap();
    assert!(!chunks.is_empty());
    for (subject, _) in &chunks {
        let held = stream.direct_get_last_for_subject(subject.clone()).await.unwrap();
        let mut bytes = held.payload.to_vec();
        bytes[0] ^= 1;
        context.publish(subject.clone(), bytes.into()).await.unwrap().await.unwrap();
    }
    control_plane.start().await;
    let sidecar = Sidecar::start_ready(&nats.url(), &control_plane.feed_key().await).await;
    sidecar.until_applied(revision).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_come_by_http_where_that_is_configured() {
    let nats = NatsServer::start().await;
    let mut settings = often();
    settings["feed"]["snapshots"]["http"] = true.into();
    let control_plane = FeedAuthority::start_connected(&nats.url(), &settings).await;
    let revision = fill_and_prune(&control_plane, "first").await;
    let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    context.delete_stream("ATM_SNAPSHOTS").await.unwrap();
    let url = format!("{}/feed/snapshots", control_plane.oauth_url());
    let sidecar = Sidecar::start_ready_with(
        &nats.url(),
        &control_plane.feed_key().await,
        &json!({ "snapshots": { "url": url } }),
    )
    .await;
    sidecar.until_applied(revision).await;
    until_held(&sidecar, 27 * 50).await;
    assert!(sidecar.log().contains("the snapshot is in force"));
}

/// Ids whose segments are large enough to be staged on disk.
const MANY: usize = 20_000;

/// Where a sidecar has its ids.
async fn held(sidecar: &Sidecar) -> (u64, u64) {
    let revocations = &sidecar.state().await["revocations"];
    (revocations["tokens"].as_u64().unwrap(), revocations["settled"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_snapshot_goes_to_the_disk_and_outlasts_a_restart() {
    let nats = NatsServer::start().await;
    let control_plane = FeedAuthority::start_connected(&nats.url(), &often()).await;
    let all = control_plane.revoke(&jtis("first", MANY), now() + 3_600).await;
    fill(&control_plane, "small", 6, 1).await;
    control_plane.until_snapshot(all).await;
    let revision = fill(&control_plane, "behind", 2, 1).await;
    let key = control_plane.feed_key().await;
    let mut sidecar = Sidecar::start_ready(&nats.url(), &key).await;
    sidecar.until_applied(revision).await;
    assert!(sidecar.log().contains(r#""staged":true"#), "{}", sidecar.log());
    let (tokens, settled) = held(&sidecar).await;
    assert_eq!(tokens, MANY as u64 + 8, "each came once");
    assert!(settled >= MANY as u64, "{settled} behind filters");
    assert_eq!(sidecar.count(r#"atm_sidecar_snapshots_total{outcome="loaded"}"#).await, 1);
    until_level(&control_plane).await;

    // Killed, and behind by another large one: what is missing joins what is there.
    sidecar.kill();
    let second = control_plane.revoke(&jtis("second", MANY), now() + 3_600).await;
    fill(&control_plane, "later", 6, 1).await;
    let snapshot = control_plane.until_snapshot(second).await;
    let revision = fill(&control_plane, "latest", 6, 1).await;
    control_plane.until_snapshot(snapshot + 1).await;
    until_gone(&nats, second).await;
    sidecar.start().await;
    sidecar.until_applied_within(revision, wait::LONG).await;
    until_held(&sidecar, 2 * MANY + 20).await;
    assert_eq!(sidecar.count(r#"atm_sidecar_snapshots_total{outcome="loaded"}"#).await, 1);
    until_level(&control_plane).await;
    sidecar.kill();
    sidecar.start().await;
    sidecar.until_ready().await;
    until_held(&sidecar, 2 * MANY + 20).await;
    until_level(&control_plane).await;
}

/// Waits until the one sidecar reports a copy that is the log's.
async fn until_level(control_plane: &FeedAuthority) {
    wait::until("the sidecar to be level with the log", wait::LONG, || async {
        let fleet = control_plane.fleet().await;
        let live = fleet["states"]["live"] == 1 && fleet["in_force_on"] == 1;
        if live { Ok(()) } else { Err(fleet) }
    })
    .await;
}

async fn until_pruned(control_plane: &FeedAuthority) {
    wait::until("the log to be pruned", wait::LONG, || async {
        if control_plane.log().contains("pruned change sets") { Ok(()) } else { Err("not yet") }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_large_snapshot_is_in_force_from_memory() {
    let nats = NatsServer::start().await;
    let control_plane = FeedAuthority::start_connected(&nats.url(), &often()).await;
    let all = control_plane.revoke(&jtis("first", MANY), now() + 3_600).await;
    let revision = fill(&control_plane, "small", 6, 1).await;
    control_plane.until_snapshot(all).await;
    let network = Proxy::start(nats.port()).await;
    network.set(Network::Cut);
    let mut sidecar = Sidecar::configure(&network.nats_url(), &control_plane.feed_key().await);
    sidecar.start().await;
    // Less than the one segment of the ids takes.
    sidecar.limit_files(200 * 1024);
    network.set(Network::Whole);
    sidecar.until_applied_within(revision, wait::LONG).await;
    assert!(sidecar.log().contains(r#""staged":true"#), "it was tried");
    until_held(&sidecar, MANY + 6).await;
    let metrics = sidecar.admin("/metrics").await.unwrap().text();
    assert!(atm_tests::sidecar::count(&metrics, r#"atm_sidecar_snapshots_total{outcome="failed"}"#) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_that_was_away_for_longer_than_the_log_is_kept_gets_what_there_is() {
    let mut nats = NatsServer::start().await;
    let control_plane = FeedAuthority::start_connected(&nats.url(), &often()).await;
    let first = fill(&control_plane, "first", 2, 50).await;
    let sidecar = Sidecar::start_ready(&nats.url(), &control_plane.feed_key().await).await;
    sidecar.until_applied(first).await;
    let epoch = control_plane.feed().await["epoch"].clone();
    control_plane.until_connected().await;
    nats.kill();
    let revision = fill_and_prune(&control_plane, "away").await;
    nats.restart().await;
    control_plane.until_connected().await;
    sidecar.until_applied_within(revision, wait::LONG).await;
    until_held(&sidecar, 29 * 50).await;
    assert_eq!(control_plane.feed().await["epoch"], epoch, "the store is no older copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_snapshot_cannot_be_had_the_log_leads_on() {
    let nats = NatsServer::start().await;
    let settings = json!({ "feed": { "snapshots": { "everyRevisions": 5, "everySeconds": 3600 } } });
    let mut control_plane = FeedAuthority::start_connected(&nats.url(), &settings).await;
    let revision = fill(&control_plane, "first", 8, 50).await;
    control_plane.until_snapshot(1).await;
    let network = Proxy::start(nats.port()).await;
    network.set(Network::Cut);
    let mut sidecar = Sidecar::configure(&network.nats_url(), &control_plane.feed_key().await);
    sidecar.start().await;
    // Its segments are not where they were, so that the stream cannot be filled again.
    control_plane.kill();
    std::fs::remove_dir_all(control_plane.path("snapshots")).unwrap();
    std::fs::write(control_plane.path("snapshots"), "in the way").unwrap();
    control_plane.start().await;
    let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    context.delete_stream("ATM_SNAPSHOTS").await.unwrap();
    network.set(Network::Whole);
    sidecar.until_applied_within(revision, wait::LONG).await;
    until_held(&sidecar, 8 * 50).await;
    sidecar.until_ready().await;
}
