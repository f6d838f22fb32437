//! How one program reaches the others: its own network namespace where the machine allows one, and a proxy for each server.

use atm_tests::island::Island;
use atm_tests::nats::NatsServer;
use atm_tests::proxy::{Network, Proxy};

/// The network of one program.
pub(crate) struct Wiring {
    /// None where namespaces are not allowed.
    pub(crate) island: Option<Island>,
    /// To each nats-server.
    pub(crate) nats: Vec<Proxy>,
}

impl Wiring {
    pub(crate) async fn to(servers: &[NatsServer]) -> Self {
        let island = Island::create();
        let mut nats = Vec::new();
        for server in servers {
            nats.push(Proxy::start_at(&outside(island.as_ref()), server.port()).await);
        }
        Self { island, nats }
    }

    /// A proxy to another port of this machine.
    pub(crate) async fn also_to(&self, port: u16) -> Proxy {
        Proxy::start_at(&self.outside(), port).await
    }

    /// The address that its servers are at.
    pub(crate) fn outside(&self) -> String {
        outside(self.island.as_ref())
    }

    /// The address that it listens at.
    pub(crate) fn inside(&self) -> String {
        self.island.as_ref().map_or_else(|| "127.0.0.1".to_owned(), Island::inside)
    }

    pub(crate) fn nats_url(&self) -> String {
        let outside = self.outside();
        let urls: Vec<_> =
            self.nats.iter().map(|proxy| format!("nats://{outside}:{}", proxy.port())).collect();
        urls.join(",")
    }

    pub(crate) fn set(&self, network: Network) {
        self.nats.iter().for_each(|proxy| proxy.set(network));
    }

    /// Everything passes again.
    pub(crate) fn heal(&self) {
        self.set(Network::Whole);
        if let Some(island) = &self.island {
            island.set_link(true);
        }
    }
}

fn outside(island: Option<&Island>) -> String {
    island.map_or_else(|| "127.0.0.1".to_owned(), Island::outside)
}
