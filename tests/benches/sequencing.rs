//! How many revocations a second one control plane commits, sequences and publishes, on the embedded store and on PostgreSQL. Real
//! programs, a real nats-server, and a PostgreSQL that writes what it acknowledges.
//!
//! Run by `make bench` with release builds (`ATM_BIN_DIR`). `ATM_BENCH_SEQUENCED` (200000) sets how many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a benchmark that cannot go on stops
#![allow(clippy::cast_precision_loss)] // numbers to be read, far below 2^52

use std::time::Instant;

use atm_test_postgres::Server;
use atm_tests::authority::FeedAuthority;
use atm_tests::figures::size;
use atm_tests::nats::NatsServer;
use atm_tests::token::now;
use serde_json::{Value, json};

/// Revocations of one call.
const CALL: usize = 20_000;

#[tokio::main]
async fn main() {
    let count = size("ATM_BENCH_SEQUENCED", 200_000);
    sequence("embedded store", &json!({}), count).await;
    let server = tokio::task::spawn_blocking(Server::start).await.expect("PostgreSQL starts");
    let segments = tempfile::tempdir().expect("a directory");
    let changes = json!({
        "store": { "path": null, "url": server.database("sequencing"), "tls": "disable" },
        "feed": { "snapshots": { "directory": segments.path() } },
    });
    sequence("PostgreSQL", &changes, count).await;
}

async fn sequence(store: &str, changes: &Value, count: usize) {
    let nats = NatsServer::start().await;
    let control_plane = FeedAuthority::start_connected(&nats.url(), changes).await;
    let expires_at = now() + 86_400;
    let started = Instant::now();
    for call in 0..count.div_ceil(CALL) {
        let jtis: Vec<String> =
            (0..CALL.min(count - call * CALL)).map(|number| format!("{call}-{number}")).collect();
        // Spread over a day of expiry hours, as real tokens are.
        control_plane.revoke(&jtis, expires_at + i64::try_from(call % 24).unwrap() * 3_600).await;
    }
    let sequenced = started.elapsed().as_secs_f64();
    control_plane.until_connected().await;
    let published = started.elapsed().as_secs_f64();
    let name = format!("{store}: {count} revocations in calls of {CALL}");
    println!("{name:<60} {:>8.0} a second sequenced", count as f64 / sequenced);
    println!("{:<60} {:>8.0} a second published", "", count as f64 / published);
}
