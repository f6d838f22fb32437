//! Three real nats-servers that keep the streams together, and what can happen to them: killed, wiped, the stream deleted,
//! truncated, restored from an old copy. Whatever NATS loses is found, repaired and reported; nothing that was revoked comes
//! back.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use async_nats::jetstream::{self, stream};
use atm_tests::authority::FeedAuthority;
use atm_tests::nats::{NatsCluster, NatsServer};
use atm_tests::sidecar::Sidecar;
use atm_tests::token::now;
use atm_tests::wait;
use serde_json::json;

struct Stack {
    sidecar: Sidecar,
    control_plane: FeedAuthority,
    cluster: NatsCluster,
    revoked: usize,
}

impl Stack {
    async fn start() -> Self {
        let cluster = NatsCluster::start().await;
        let changes = json!({ "nats": { "replicas": 3 } });
        let control_plane = FeedAuthority::start_connected(&cluster.url(), &changes).await;
        let sidecar = Sidecar::start_ready(&cluster.url(), &control_plane.feed_key().await).await;
        Self { sidecar, control_plane, cluster, revoked: 0 }
    }

    async fn revoke(&mut self) -> u64 {
        self.revoked += 1;
        self.control_plane.revoke(&[format!("jti-{}", self.revoked)], now() + 3_600).await
    }

    /// One more revocation reaches the sidecar, and everything before it is still there.
    async fn assert_goes_on(&mut self, what: &str) {
        let revision = self.revoke().await;
        self.sidecar.until_applied_within(revision, wait::LONG).await;
        let held = self.sidecar.state().await["revocations"]["tokens"].as_u64().unwrap();
        assert_eq!(held, self.revoked as u64, "{what}");
        self.control_plane.until_connected().await;
    }

    fn context(client: async_nats::Client) -> jetstream::Context {
        jetstream::new(client)
    }

    async fn client(&self) -> async_nats::Client {
        let url = self.cluster.url();
        let urls: Vec<String> = url.split(',').map(ToOwned::to_owned).collect();
        wait::until("a client to connect", wait::LONG, || async_nats::connect(urls.clone())).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_be_killed_and_wiped_one_after_the_other() {
    let mut stack = Stack::start().await;
    stack.assert_goes_on("at the start").await;
    let config = {
        let context = Stack::context(stack.client().await);
        context.get_stream("ATM_FEED").await.unwrap().get_info().await.unwrap().config
    };
    assert_eq!(config.num_replicas, 3);
    for node in 0..3 {
        stack.cluster.servers[node].kill();
        stack.assert_goes_on("with a node down").await;
        stack.cluster.servers[node].restart().await;
        stack.cluster.until_jetstream().await;
    }
    stack.cluster.servers[0].kill();
    stack.cluster.servers[0].wipe();
    stack.cluster.servers[0].restart().await;
    stack.cluster.until_jetstream().await;
    stack.assert_goes_on("with a node wiped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_deleted_or_truncated_is_filled_again_from_the_store() {
    let mut stack = Stack::start().await;
    for _ in 0..5 {
        stack.assert_goes_on("at the start").await;
    }
    let client = stack.client().await;
    let context = Stack::context(client);
    let held = || async {
        let stream = context.get_stream("ATM_FEED").await.map_err(|error| error.to_string())?;
        let info = stream.get_info().await.map_err(|error| error.to_string())?;
        Ok::<_, String>(info.state.messages)
    };
    let whole = held().await.unwrap();
    context.get_stream("ATM_FEED").await.unwrap().purge().keep(2).await.unwrap();
    // Its end is there, so nothing is published again: readers find the rest at the control plane.
    stack.assert_goes_on("with the stream's beginning gone").await;
    let late = Sidecar::start_ready(&stack.cluster.url(), &stack.control_plane.feed_key().await).await;
    late.until_applied(stack.control_plane.feed().await["revision"].as_u64().unwrap()).await;
    context.get_stream("ATM_FEED").await.unwrap().purge().await.unwrap();
    wait::until("the stream to be filled again", wait::LONG, || async {
        match held().await {
            Ok(messages) if messages >= whole => Ok(()),
            other => Err(other),
        }
    })
    .await;
    stack.assert_goes_on("with the stream purged").await;
    context.delete_stream("ATM_FEED").await.unwrap();
    stack.assert_goes_on("with the stream deleted").await;
    let again = held().await.unwrap();
    assert!(again > whole, "{again} of {whole}");
    assert!(stack.control_plane.log().contains("jetstream had lost a change set"), "it is reported");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_wiped_at_once_lose_nothing_that_the_store_has() {
    let mut stack = Stack::start().await;
    for _ in 0..3 {
        stack.assert_goes_on("at the start").await;
    }
    for server in &mut stack.cluster.servers {
        server.kill();
    }
    for server in &stack.cluster.servers {
        server.wipe();
    }
    for server in &mut stack.cluster.servers {
        server.restart().await;
    }
    stack.cluster.until_jetstream().await;
    stack.assert_goes_on("with everything wiped").await;
    let fresh = Sidecar::start_ready(&stack.cluster.url(), &stack.control_plane.feed_key().await).await;
    fresh.until_applied(stack.control_plane.feed().await["revision"].as_u64().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_restored_from_an_old_copy_is_brought_up_to_date() {
    let mut nats = NatsServer::start().await;
    let control_plane = FeedAuthority::start_connected(&nats.url(), &json!({})).await;
    let mut sidecar = Sidecar::start_ready(&nats.url(), &control_plane.feed_key().await).await;
    let first = control_plane.revoke(&["old".into()], now() + 3_600).await;
    sidecar.until_applied(first).await;
    control_plane.until_connected().await;
    nats.kill();
    let copy = tempfile::tempdir().unwrap();
    copy_tree(&nats.store(), copy.path());
    nats.restart().await;
    control_plane.until_connected().await;
    let second = control_plane.revoke(&["new".into()], now() + 3_600).await;
    sidecar.until_applied(second).await;
    control_plane.until_connected().await;
    nats.kill();
    nats.wipe();
    copy_tree(copy.path(), &nats.store());
    nats.restart().await;
    let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    wait::until("the stream to hold the second one", wait::LONG, || async {
        let stream: stream::Stream =
            context.get_stream("ATM_FEED").await.map_err(|error| error.to_string())?;
        let last = stream
            .direct_get_last_for_subject("atm.default.feed")
            .await
            .map_err(|error| error.to_string())?;
        let revision = last.headers.get("Atm-Revision").map(ToString::to_string).unwrap_or_default();
        if revision == second.to_string() { Ok(()) } else { Err(revision) }
    })
    .await;
    let third = control_plane.revoke(&["newest".into()], now() + 3_600).await;
    sidecar.until_applied(third).await;
    assert_eq!(sidecar.state().await["revocations"]["tokens"], 3);
    sidecar.process().assert_running();
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
