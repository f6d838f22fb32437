//! How soon a revocation is in force, and what a sidecar's memory holds it in: real programs, a real nats-server.
//!
//! Run by `make bench` with release builds (`ATM_BIN_DIR`). `ATM_BENCH_REVOCATIONS` (1000) and `ATM_BENCH_HELD` (1000000)
//! set the sizes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a benchmark that cannot go on stops

use std::time::Instant;

use atm_core::id::{Id, IdKind};
use atm_tests::authz::Authz;
use atm_tests::dev::DevStack;
use atm_tests::feed::{FeedAuthor, policies, revoked_tokens};
use atm_tests::figures::size;
use atm_tests::nats::NatsServer;
use atm_tests::process::resident_mib;
use atm_tests::propagation::Propagation;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::{TokenMint, now};

const POLICY: &str = include_str!("../tests/requests/policy.yaml");
/// Ids of one change set.
const IDS_A_SET: usize = 4_096;

#[tokio::main]
async fn main() {
    propagation(size("ATM_BENCH_REVOCATIONS", 1_000)).await;
    memory(size("ATM_BENCH_HELD", 1_000_000)).await;
}

/// From the revocation call and from its return to the first refusal at the sidecar, one token after the other.
async fn propagation(count: usize) {
    let stack = DevStack::up().await;
    let authz = Authz::connect(stack.field("sidecar_grpc")).await;
    Propagation::measure(&stack.client(), &authz, count).await.print("revocation");
}

/// Resident memory of a sidecar: idle, after the revocations came in, and after a restart that loaded them.
async fn memory(count: usize) {
    let nats = NatsServer::start().await;
    let author = FeedAuthor::start(&nats).await;
    let mint = TokenMint::new("https://issuer.test", "main", &[("one", "ES256")]);
    author.publish(vec![mint.to_change(), policies(1, &[POLICY])]).await;
    let mut sidecar = Sidecar::start_ready(&nats.url(), &author.public_key()).await;
    println!("{:<50} {:>8.1} MiB", "memory: idle", resident_mib(sidecar.process().id()));

    let ids: Vec<Id> =
        (0..count).map(|n| Id::of(IdKind::Token, "https://issuer.test", &n.to_string())).collect();
    // Spread over a day of expiry hours, as real tokens are.
    let first_expiry = now() + 86_400;
    let expires_at = |set: usize| first_expiry + i64::try_from(set % 24).unwrap() * 3600;
    let started = Instant::now();
    let mut revision = 0;
    for (set, ids) in ids.chunks(IDS_A_SET).enumerate() {
        revision = author.publish(vec![revoked_tokens(expires_at(set), ids.iter().copied())]).await;
        if set % 50 == 49 {
            sidecar.until_applied(revision).await;
            eprintln!("revocations held: {} of {count}", (set + 1) * IDS_A_SET);
        }
    }
    sidecar.until_applied(revision).await;
    let taken = started.elapsed().as_secs_f64();
    println!(
        "{:<50} {:>8.1} MiB",
        format!("memory: {count} revocations"),
        resident_mib(sidecar.process().id())
    );
    println!("{:<50} {:>8.1} s", format!("publishing and applying {count} revocations"), taken);

    let last = ids.len() - 1;
    let started = Instant::now();
    sidecar.kill();
    sidecar.start().await;
    sidecar.until_ready().await;
    let taken = started.elapsed().as_secs_f64();
    let token = mint.token().claim("jti", last.to_string()).claim("exp", expires_at(last / IDS_A_SET)).sign();
    assert!(!sidecar.authz().await.check_token(&token).await.is_permit(), "the last revocation is in force");
    println!("{:<50} {:>8.1} MiB", "memory: the same after a restart", resident_mib(sidecar.process().id()));
    println!("{:<50} {:>8.2} s", "restart until ready with them", taken);
}
