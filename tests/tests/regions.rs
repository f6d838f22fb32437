//! A hub and a region: sidecars of the region hear the feed through a leaf node and read mirrored streams. Cut off, the region
//! goes on deciding and says how old its knowledge is; then it catches up.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::path::Path;

use async_nats::jetstream::{self, stream};
use atm_tests::authority::FeedAuthority;
use atm_tests::nats::{NatsServer, free_port};
use atm_tests::programs;
use atm_tests::proxy::{Network, Proxy};
use atm_tests::sidecar::Sidecar;
use atm_tests::token::now;
use atm_tests::wait;
use serde_json::json;

fn shipped(file: &str, values: &[(&str, String)]) -> String {
    let path = programs::workspace().join("examples/nats").join(file);
    let mut text =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for (name, value) in values {
        text = text.replace(&format!("${{{name}}}"), value);
    }
    assert!(!text.contains("${"), "{text}");
    text
}

fn store(directory: &Path) -> String {
    directory.join("jetstream").display().to_string()
}

async fn mirror(url: &str, name: &str) {
    let context = jetstream::new(async_nats::connect(url).await.unwrap());
    let config = stream::Config {
        name: name.to_owned(),
        mirror: Some(stream::Source {
            name: name.to_owned(),
            external: Some(stream::External { api_prefix: "$JS.hub.API".into(), delivery_prefix: None }),
            ..Default::default()
        }),
        allow_direct: true,
        mirror_direct: true,
        storage: stream::StorageType::File,
        ..Default::default()
    };
    wait::until("the mirror to be made", wait::LONG, || context.create_stream(config.clone())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_cut_off_decides_on_says_its_age_and_catches_up_from_its_mirror() {
    let leaf_port = free_port();
    let hub = NatsServer::start_configured(|port, directory| {
        shipped(
            "hub.conf",
            &[
                ("LISTEN", format!("127.0.0.1:{port}")),
                ("LEAF_LISTEN", format!("127.0.0.1:{leaf_port}")),
                ("STORE", store(directory)),
            ],
        )
    })
    .await;
    let between = Proxy::start(leaf_port).await;
    let region = NatsServer::start_configured(|port, directory| {
        shipped(
            "leaf.conf",
            &[
                ("NAME", "region".into()),
                ("DOMAIN", "region".into()),
                ("LISTEN", format!("127.0.0.1:{port}")),
                ("STORE", store(directory)),
                ("HUB", format!("nats-leaf://127.0.0.1:{}", between.port())),
            ],
        )
    })
    .await;
    let control_plane = FeedAuthority::start_connected(&hub.url(), &json!({})).await;
    let first = control_plane.revoke(&["first".into()], now() + 3_600).await;
    control_plane.until_snapshot(1).await;
    mirror(&region.url(), "ATM_FEED").await;
    mirror(&region.url(), "ATM_SNAPSHOTS").await;
    let changes = json!({ "freshness": { "degradedAfterMs": 1_000, "staleAfterMs": 2_500 } });
    let sidecar = Sidecar::start_ready_with(&region.url(), &control_plane.feed_key().await, &changes).await;
    sidecar.until_applied_within(first, wait::LONG).await;
    let second = control_plane.revoke(&["second".into()], now() + 3_600).await;
    sidecar.until_applied(second).await;

    between.set(Network::Cut);
    wait::until("the region to say that it is stale", wait::LONG, || async {
        let state = sidecar.state().await;
        if state["freshness"] == "stale" { Ok(()) } else { Err(state) }
    })
    .await;
    let away = control_plane.revoke(&["while-cut-off".into()], now() + 3_600).await;
    assert_eq!(sidecar.admin("/readyz").await.unwrap().status, 200, "it goes on deciding");
    assert_eq!(sidecar.applied().await, second);

    between.set(Network::Whole);
    sidecar.until_applied_within(away, wait::LONG).await;
    wait::until("the region to be fresh", wait::LONG, || async {
        let state = sidecar.state().await;
        if state["freshness"] == "fresh" { Ok(()) } else { Err(state) }
    })
    .await;
    // Both of its mirrors serve: a new sidecar of the region needs nobody else.
    let receipt = control_plane
        .admin(
            "POST",
            "/admin/v1/revocations",
            &json!({
                "selector": { "subject": "alice" }, "wait": { "share": 1.0, "timeout_ms": 10_000 }
            }),
        )
        .await
        .json();
    assert_eq!(receipt["receipt"]["complete"], true, "{receipt}");
}
