//! A network that fails when a test says so: a TCP proxy that can be cut, stalled and healed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Everything passes.
    Whole,
    /// Connections are closed, and new ones too.
    Cut,
    /// Connections stay open and nothing passes, as behind a firewall that drops packets.
    Stalled,
    /// A bit of one in [`GARBLE_ONE_OF`] reads from the server is flipped; of those from the client too, where it says so.
    Garbled {
        /// Whether what the client sends is damaged as well.
        both_ways: bool,
    },
}

/// Of so many reads one is damaged.
const GARBLE_ONE_OF: usize = 5;

/// A proxy on a free port in front of one address.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    network: watch::Sender<Network>,
    target: Arc<AtomicU16>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// In front of `127.0.0.1:target`.
    pub async fn start(target: u16) -> Self {
        Self::start_at("127.0.0.1", target).await
    }

    /// As [`Self::start`], listening at an address of this machine.
    pub async fn start_at(address: &str, target: u16) -> Self {
        let listener = TcpListener::bind((address, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let network = watch::Sender::new(Network::Whole);
        let target = Arc::new(AtomicU16::new(target));
        let task = tokio::spawn(accept(listener, network.clone(), Arc::clone(&target)));
        Self { port, network, target, task }
    }

    /// The URL of a NATS behind it.
    pub fn nats_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the network, for connections that are open too.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Points new connections elsewhere.
    pub fn point_to(&self, target: u16) {
        self.target.store(target, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, network: watch::Sender<Network>, target: Arc<AtomicU16>) {
    while let Ok((client, _)) = listener.accept().await {
        if *network.borrow() == Network::Cut {
            continue; // closed by being dropped
        }
        let network = network.subscribe();
        let target = target.load(Ordering::Relaxed);
        tokio::spawn(async move {
            if let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await {
                connection(client, server, network).await;
            }
        });
    }
}

async fn connection(client: TcpStream, server: TcpStream, mut network: watch::Receiver<Network>) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (up, down) = (network.clone(), network.clone());
    tokio::select! {
        _ = network.wait_for(|network| *network == Network::Cut) => {}
        () = pass(from_client, to_server, up, true) => {}
        () = pass(from_server, to_client, down, false) => {}
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
    upwards: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut garbled = 0_usize;
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if network.wait_for(|network| *network != Network::Stalled).await.is_err() {
            return;
        }
        if let Network::Garbled { both_ways } = *network.borrow()
            && (both_ways || !upwards)
        {
            garbled += 1;
            if garbled.is_multiple_of(GARBLE_ONE_OF) {
                // Another place each time, all over what was read.
                let at = garbled.wrapping_mul(2_654_435_761) % length;
                buffer[at] ^= 1 << (garbled % 8);
            }
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
