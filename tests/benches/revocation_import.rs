//! A file of revocations: imported by `atmctl revoke --file`, sequenced, published, and in force at a sidecar; how soon a revocation
//! is in force at that sidecar then; and a sidecar that has nothing takes the snapshot, and is started again. Real programs, a real
//! nats-server.
//!
//! Run by `make bench` with release builds (`ATM_BIN_DIR`). `ATM_BENCH_IMPORTED` (1000000) and `ATM_BENCH_REVOCATIONS` (1000) set the
//! sizes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a benchmark that cannot go on stops

use std::fmt::Write;
use std::time::{Duration, Instant};

use atm_tests::authz::Authz;
use atm_tests::dev::DevStack;
use atm_tests::figures::size;
use atm_tests::process::{self, peak_mib, resident_mib};
use atm_tests::propagation::Propagation;
use atm_tests::sidecar::Sidecar;
use atm_tests::{programs, wait};
use serde_json::{Value, json};

#[tokio::main]
async fn main() {
    let count = size("ATM_BENCH_IMPORTED", 1_000_000);
    let stack = DevStack::up().await;
    let client = stack.client();
    client.until_settled().await;
    let pid =
        stack.info["pids"]["control_plane"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
    let before = resident_mib(pid);
    // Ids as ours are, spread over a day of expiry hours.
    let mut file = String::new();
    for number in 0..count {
        writeln!(file, "{number:022},{}", 4_000_000_000_i64 + i64::try_from(number % 24).unwrap() * 3_600)
            .unwrap();
    }
    let path = stack.path().join("ids");
    std::fs::write(&path, file).expect("the file is written");
    let directory = stack.path().display().to_string();
    let arguments = ["--output", "json", "revoke", "--file", path.to_str().expect("UTF-8"), "--wait=30"];
    let started = Instant::now();
    let environment = [("ATM_DEV_DIR", directory.as_str())];
    let output =
        process::run_with(&programs::ours("atmctl"), &arguments, &environment, Duration::from_mins(10)).await;
    let taken = started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{}{}", process::stdout(&output), process::stderr(&output));
    let answer: Value = serde_json::from_str(&process::stdout(&output)).expect("JSON");
    println!("{:<60} {taken:>8.1} s", format!("{count} revocations: file to every sidecar"));
    println!("{:<60} {:>8.0} a second", "", f64::from(u32::try_from(count).unwrap()) / taken);
    println!("{:<60} {before:>8.1} MiB", "control plane's memory: before");
    println!("{:<60} {:>8.1} MiB", "control plane's memory: most", peak_mib(pid));
    println!("{:<60} {}", "receipt", answer["receipt"]);
    let again = Instant::now();
    let output =
        process::run_with(&programs::ours("atmctl"), &arguments, &environment, Duration::from_mins(10)).await;
    assert!(output.status.success(), "{}", process::stderr(&output));
    println!("{:<60} {:>8.1} s", "the same file again", again.elapsed().as_secs_f64());
    let authz = Authz::connect(stack.field("sidecar_grpc")).await;
    let measured = Propagation::measure(&client, &authz, size("ATM_BENCH_REVOCATIONS", 1_000)).await;
    measured.print(&format!("a sidecar with {count}"));
    fresh_sidecar(&stack, count).await;
}

/// A sidecar that has nothing: by the snapshot, and started again with what it has.
async fn fresh_sidecar(stack: &DevStack, held: usize) {
    let client = stack.client();
    let feed = async || {
        let answer = client.admin("GET", "/admin/v1/feed", &Value::Null).await;
        answer.map(|answer| answer.json()).map_err(|error| error.to_string())
    };
    let feed = wait::until("a snapshot to be published", Duration::from_mins(10), async || {
        let feed = feed().await?;
        // A snapshot is made for every 64 MiB of the log: of so many, the newest holds more than half of what there is.
        let revision = feed["revision"].as_u64().unwrap_or_default();
        let least = if held >= 8_000_000 { revision / 2 } else { 1 };
        let published = feed["snapshot"]["published"].as_u64().unwrap_or_default();
        if published >= least { Ok(feed) } else { Err(feed.to_string()) }
    })
    .await;
    let (revision, key) = (feed["revision"].as_u64().expect("a revision"), feed["feed_public_key"].as_str());
    let key = key.expect("a key");
    let mut sidecar =
        Sidecar::configure_with(stack.field("nats_url"), key, &json!({ "store": { "blockCacheMiB": 64 } }));
    for name in ["fresh sidecar to ready, by the snapshot and what is behind it", "the same, started again"] {
        let started = Instant::now();
        sidecar.start().await;
        sidecar.until_ready_within(Duration::from_mins(10)).await;
        sidecar.until_applied_within(revision, Duration::from_mins(10)).await;
        println!("{name:<60} {:>8.2} s", started.elapsed().as_secs_f64());
        println!("{:<60} {:>8.1} MiB", "its memory then", resident_mib(sidecar.process().id()));
        sidecar.kill();
    }
}
