//! What is broken. By the seed, either a laptop's stack (one control plane on its embedded store, one nats-server) or a
//! cluster's (two control planes on one PostgreSQL, three nats-servers), and three sidecars; each program in a network of its own.

use std::path::PathBuf;

use atm_test_postgres::Server;
use atm_tests::authority::FeedAuthority;
use atm_tests::clock::WallClock;
use atm_tests::disk::SmallDisk;
use atm_tests::nats::{NatsCluster, NatsServer, free_port};
use atm_tests::proxy::{Network, Proxy};
use atm_tests::sidecar::Sidecar;
use atm_tests::wait;
use serde_json::{Value, json};

use super::wiring::Wiring;

const POLICY: &str = include_str!("../requests/policy.yaml");
const SIDECARS: usize = 3;
const REPLICAS: usize = 2;
/// Room for a store of these sizes and for what RocksDB sets aside for its log.
const DISK_MEBIBYTES: u64 = 64;

/// A sidecar, its network, its clock and its disk.
pub(crate) struct Node {
    /// None where the machine lets nobody mount one. Unmounted before the directory goes.
    pub(crate) disk: Option<SmallDisk>,
    pub(crate) sidecar: Sidecar,
    pub(crate) wiring: Wiring,
    pub(crate) clock: WallClock,
    pub(crate) id: String,
    pub(crate) socket: PathBuf,
}

impl Node {
    pub(crate) async fn restart(&mut self) {
        self.sidecar.kill();
        self.sidecar.start().await;
    }
}

/// A control plane, its network and its clock.
pub(crate) struct Replica {
    /// Of the embedded store; none where the machine lets nobody mount one.
    pub(crate) disk: Option<SmallDisk>,
    pub(crate) control_plane: FeedAuthority,
    pub(crate) wiring: Wiring,
    /// The way to PostgreSQL.
    pub(crate) store: Option<Proxy>,
    pub(crate) clock: WallClock,
}

pub(crate) struct Stack {
    pub(crate) nodes: Vec<Node>,
    pub(crate) planes: Vec<Replica>,
    pub(crate) nats: Vec<NatsServer>,
    pub(crate) database: Option<Server>,
    /// Of the client that tokens are issued to.
    pub(crate) client: (String, String),
}

impl Stack {
    pub(crate) async fn start(cluster: bool) -> Self {
        let nats = if cluster { NatsCluster::start().await.servers } else { vec![NatsServer::start().await] };
        let database = if cluster {
            Some(tokio::task::spawn_blocking(Server::start).await.expect("PostgreSQL starts"))
        } else {
            None
        };
        let planes = planes(&nats, database.as_ref()).await;
        let first = &planes[0].control_plane;
        let client = json!({ "scopes": ["orders.read"], "audiences": ["orders-api"] });
        let client = first.admin("POST", "/admin/v1/clients", &client).await.json();
        let field = |name: &str| client[name].as_str().unwrap_or_else(|| panic!("{client}")).to_owned();
        let client = (field("client_id"), field("client_secret"));
        let applied = first.admin("PUT", "/admin/v1/policies", &json!({ "documents": [POLICY] })).await;
        assert_eq!(applied.status, 200, "{}", applied.text());
        let key = first.feed_key().await;
        let mut nodes = Vec::new();
        for number in 0..SIDECARS {
            nodes.push(node(number, &nats, &key).await);
        }
        Self { nodes, planes, nats, database, client }
    }

    /// What this is, in a few words.
    pub(crate) fn describe(&self) -> String {
        let islands = self.nodes.iter().all(|node| node.wiring.island.is_some());
        let disks = self.nodes.iter().all(|node| node.disk.is_some());
        format!(
            "{} control planes on {}, {} nats-servers, {} sidecars, {}, {}",
            self.planes.len(),
            if self.database.is_some() { "PostgreSQL" } else { "the embedded store" },
            self.nats.len(),
            self.nodes.len(),
            if islands { "network namespaces" } else { "proxies only: network namespaces are not permitted" },
            if disks { "small disks" } else { "file size limits only: mounting is not permitted" },
        )
    }

    /// No program ends by itself, whatever is done to the others.
    pub(crate) fn assert_all_run(&mut self) {
        self.planes.iter_mut().for_each(|plane| plane.control_plane.process().assert_running());
        self.nodes.iter_mut().for_each(|node| node.sidecar.process().assert_running());
    }

    /// Ends every fault that lasts.
    pub(crate) fn heal(&mut self) {
        for plane in &self.planes {
            plane.wiring.heal();
            plane.clock.step_to(0);
            if let Some(store) = &plane.store {
                store.set(Network::Whole);
            }
        }
        for node in &self.nodes {
            node.wiring.heal();
            node.clock.step_to(0);
        }
    }

    /// Waits until everybody has the newest revision and is ready, and nobody is said to differ.
    pub(crate) async fn until_level(&self, acknowledged: u64) {
        for plane in &self.planes {
            plane.control_plane.until_connected().await;
        }
        // A replica hears of what another one has sequenced with its next heartbeat.
        let what = format!("revision {acknowledged}, which was acknowledged, to be in the log");
        let revision = wait::until(&what, wait::USUAL, || async {
            let revision = self.planes[0].control_plane.feed().await["revision"].as_u64();
            revision.filter(|revision| *revision >= acknowledged).ok_or(revision)
        })
        .await;
        for node in &self.nodes {
            node.sidecar.until_applied_within(revision, wait::LONG).await;
            node.sidecar.until_ready_within(wait::LONG).await;
        }
        for plane in &self.planes {
            wait::until("the whole fleet to be in good order", wait::LONG, || async {
                let fleet = plane.control_plane.fleet().await;
                let states: Vec<_> = fleet["sidecars"].as_array().into_iter().flatten().collect();
                let good = states.iter().filter(|sidecar| sidecar["state"] == "live").count();
                if good == SIDECARS { Ok(()) } else { Err(fleet) }
            })
            .await;
        }
    }
}

async fn node(number: usize, nats: &[NatsServer], key: &str) -> Node {
    let wiring = Wiring::to(nats).await;
    let id = format!("chaos-{number}");
    let settings = json!({
        "id": id,
        "listen": { "grpc": null, "http": null, "admin": format!("{}:{}", wiring.inside(), free_port()), "adminAllowRemote": true },
    });
    let mut sidecar = Sidecar::configure_with(&wiring.nats_url(), key, &settings);
    if let Some(island) = &wiring.island {
        sidecar.put_in(island);
    }
    let disk = SmallDisk::mount(&sidecar.disk(), DISK_MEBIBYTES);
    let (clock, socket) = (sidecar.give_clock(), sidecar.socket());
    sidecar.start().await;
    sidecar.until_ready_within(wait::LONG).await;
    Node { disk, sidecar, wiring, clock, id, socket }
}

/// Control planes on one store, with one set of keys.
async fn planes(nats: &[NatsServer], database: Option<&Server>) -> Vec<Replica> {
    let url = database.map(|server| tokio::task::block_in_place(|| server.database("chaos")));
    let mut planes: Vec<Replica> = Vec::new();
    for _ in 0..if database.is_some() { REPLICAS } else { 1 } {
        let wiring = Wiring::to(nats).await;
        let store = match database {
            Some(server) => Some(wiring.also_to(server.port()).await),
            None => None,
        };
        let inside = wiring.inside();
        let listen = || format!("{inside}:{}", free_port());
        let mut settings = json!({
            "listen": { "oauth": listen(), "admin": listen(), "adminAllowRemote": true },
            "tokens": { "lifetimeSeconds": 36_000, "maxLifetimeSeconds": 36_000 },
            "feed": { "snapshots": { "everyRevisions": 20, "keepLogSeconds": 2 } },
            "nats": { "replicas": nats.len() },
        });
        if let (Some(url), Some(proxy), Some(server)) = (&url, &store, database) {
            let old = format!("127.0.0.1:{}", server.port());
            let url = url.replace(&old, &format!("{}:{}", wiring.outside(), proxy.port()));
            settings["store"] = json!({
                "path": null, "url": url, "tls": "disable", "maxConnections": 8,
                "acquireTimeoutMs": 1_000, "statementTimeoutMs": 3_000,
            });
        }
        if let Some(first) = planes.first() {
            share_keys(&mut settings, &first.control_plane);
        }
        let mut control_plane = FeedAuthority::configure(&wiring.nats_url(), &settings);
        let data = control_plane.path("data");
        control_plane
            .reconfigure(&json!({ "feed": { "snapshots": { "directory": data.join("snapshots") } } }));
        let mut disk = None;
        if database.is_none() {
            disk = SmallDisk::mount(&data, DISK_MEBIBYTES);
            control_plane.reconfigure(&json!({ "store": { "path": data.join("atm.db") } }));
        }
        if let Some(island) = &wiring.island {
            control_plane.put_in(island);
        }
        let clock = control_plane.give_clock();
        control_plane.start().await;
        control_plane.until_connected().await;
        planes.push(Replica { disk, control_plane, wiring, store, clock });
    }
    planes
}

/// The second one signs and wraps with what the first one does.
fn share_keys(settings: &mut Value, first: &FeedAuthority) {
    settings["keys"] = json!({ "wrappingKeyFile": first.path("wrapping.key") });
    settings["feed"]["signingKeyFile"] = json!(first.path("feed.key"));
}
