//! What is broken: a nats-server, a control plane and two sidecars, each behind a network of its own.

use atm_tests::authority::FeedAuthority;
use atm_tests::clock::WallClock;
use atm_tests::nats::{NatsServer, free_port};
use atm_tests::proxy::{Network, Proxy};
use atm_tests::sidecar::Sidecar;
use atm_tests::wait;
use serde_json::json;

const POLICY: &str = include_str!("../requests/policy.yaml");

/// A sidecar and its network.
pub(crate) struct Node {
    pub(crate) sidecar: Sidecar,
    pub(crate) network: Proxy,
    pub(crate) clock: WallClock,
    pub(crate) grpc: String,
    pub(crate) id: String,
    /// Whether its process was given a limit that only a restart takes away.
    pub(crate) limited: bool,
}

pub(crate) struct Stack {
    pub(crate) nodes: Vec<Node>,
    pub(crate) control_plane: FeedAuthority,
    pub(crate) control_network: Proxy,
    pub(crate) control_clock: WallClock,
    pub(crate) nats: NatsServer,
    /// Of the client that tokens are issued to.
    pub(crate) client: (String, String),
}

impl Stack {
    pub(crate) async fn start() -> Self {
        let nats = NatsServer::start().await;
        let control_network = Proxy::start(nats.port()).await;
        let settings = json!({
            "listen": { "oauth": format!("127.0.0.1:{}", free_port()), "admin": format!("127.0.0.1:{}", free_port()) },
            "tokens": { "lifetimeSeconds": 36_000, "maxLifetimeSeconds": 36_000 },
            "feed": { "snapshots": { "everyRevisions": 20, "keepLogSeconds": 2 } },
        });
        let mut control_plane = FeedAuthority::configure(&control_network.nats_url(), &settings);
        let control_clock = control_plane.give_clock();
        control_plane.start().await;
        control_plane.until_connected().await;
        let client = json!({ "scopes": ["orders.read"], "audiences": ["orders-api"] });
        let client = control_plane.admin("POST", "/admin/v1/clients", &client).await.json();
        let field = |name: &str| client[name].as_str().unwrap_or_else(|| panic!("{client}")).to_owned();
        let client = (field("client_id"), field("client_secret"));
        let applied =
            control_plane.admin("PUT", "/admin/v1/policies", &json!({ "documents": [POLICY] })).await;
        assert_eq!(applied.status, 200, "{}", applied.text());
        let key = control_plane.feed_key().await;
        let mut nodes = Vec::new();
        for number in 0..2 {
            let network = Proxy::start(nats.port()).await;
            let (grpc, id) = (format!("127.0.0.1:{}", free_port()), format!("chaos-{number}"));
            let settings = json!({
                "id": id,
                "listen": { "grpc": grpc, "admin": format!("127.0.0.1:{}", free_port()) },
            });
            let mut sidecar = Sidecar::configure_with(&network.nats_url(), &key, &settings);
            let clock = sidecar.give_clock();
            sidecar.start().await;
            sidecar.until_ready().await;
            nodes.push(Node { sidecar, network, clock, grpc, id, limited: false });
        }
        Self { nodes, control_plane, control_network, control_clock, nats, client }
    }

    /// Ends every fault that lasts, and starts what is down.
    pub(crate) async fn heal(&mut self) {
        self.control_network.set(Network::Whole);
        self.control_clock.step_to(0);
        if self.nats.pid().is_none() {
            self.nats.restart().await;
        }
        for node in &mut self.nodes {
            node.network.set(Network::Whole);
            node.clock.step_to(0);
            if node.limited {
                node.sidecar.kill();
                node.sidecar.start().await;
                node.limited = false;
            }
        }
    }

    /// Waits until everybody has the newest revision and is ready.
    pub(crate) async fn until_level(&self, acknowledged: u64) {
        self.control_plane.until_connected().await;
        let revision = self.control_plane.feed().await["revision"].as_u64().unwrap();
        assert!(
            revision >= acknowledged,
            "revision {acknowledged} was acknowledged and is lost; the log is at {revision}"
        );
        for node in &self.nodes {
            node.sidecar.until_applied_within(revision, wait::LONG).await;
            node.sidecar.until_ready_within(wait::LONG).await;
        }
    }
}
