//! How often a check of a token that was seen allocates at the server, HTTP/2 and all: counted, not timed.
//!
//! The server is this program in a second process, so that the client's allocations do not count.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests fail the test

use std::alloc::System;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use fixture::{Held, Mint, check_request};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tonic::transport::{Channel, Endpoint};

#[path = "../benches/ext_authz/fixture.rs"]
mod fixture;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Names the directory that the server is to serve in.
const SERVE: &str = "ATM_SERVE_IN";
const CHECKS: usize = 4_000;
/// tonic's own server with the full decoder needs 77.
const BOUND: usize = 40;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_check_of_a_token_that_was_seen_allocates_at_most_forty_times() {
    if let Some(directory) = std::env::var_os(SERVE) {
        return serve(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let mint = Mint::new(directory.path());
    let name = "a_check_of_a_token_that_was_seen_allocates_at_most_forty_times";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(SERVE, directory.path());
    let _server = Server(command.spawn().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let count = runtime.block_on(async {
        let client = connect(directory.path()).await;
        let request = check_request(&mint.token(0));
        let check = async |times: usize| {
            let one = || async {
                let answer = client.clone().check(request.clone()).await.unwrap().into_inner();
                assert_eq!(answer.status.unwrap().code, 0);
            };
            for _ in 0..times / 64 {
                futures::future::join_all((0..64).map(|_| one())).await;
            }
        };
        check(CHECKS).await; // the token, the buffers and HPACK's tables
        let before = allocations(directory.path());
        check(CHECKS).await;
        allocations(directory.path()) - before
    });
    let each = count / (CHECKS / 64 * 64);
    println!("{each} allocations a check");
    assert!(each > 0, "nothing was counted");
    assert!(each <= BOUND, "{each} allocations a check");
}

fn serve(directory: &Path) {
    let counter = UnixListener::bind(directory.join("count")).unwrap();
    std::thread::spawn(move || {
        for stream in counter.incoming() {
            let count = INSTRUMENTED_SYSTEM.stats();
            let count = count.allocations + count.reallocations;
            stream.unwrap().write_all(count.to_string().as_bytes()).unwrap();
        }
    });
    let listener = UnixListener::bind(directory.join("checks")).unwrap();
    listener.set_nonblocking(true).unwrap();
    fixture::serve(listener, directory, Held { cache: 16 << 20, revocations: 1_000 });
}

fn allocations(directory: &Path) -> usize {
    let mut text = String::new();
    UnixStream::connect(directory.join("count")).unwrap().read_to_string(&mut text).unwrap();
    text.parse().unwrap()
}

async fn connect(directory: &Path) -> AuthorizationClient<Channel> {
    let socket = directory.join("checks");
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let begun = std::time::Instant::now();
    loop {
        match Endpoint::from_static("http://sidecar").connect_with_connector(connector.clone()).await {
            Ok(channel) => return AuthorizationClient::new(channel),
            Err(error) => {
                assert!(begun.elapsed() < Duration::from_secs(30), "the server does not listen: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
