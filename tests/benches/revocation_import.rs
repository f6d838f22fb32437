//! A file of revocations: imported by `atmctl revoke --file`, sequenced, published, and in force at a sidecar. Real programs, a real
//! nats-server.
//!
//! Run by `make bench` with release builds (`ATM_BIN_DIR`). `ATM_BENCH_IMPORTED` (1000000) sets the size.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a benchmark that cannot go on stops

use std::fmt::Write;
use std::time::{Duration, Instant};

use atm_tests::dev::DevStack;
use atm_tests::process::{self, peak_mib, resident_mib};
use atm_tests::programs;
use serde_json::Value;

#[tokio::main]
async fn main() {
    let count: usize =
        std::env::var("ATM_BENCH_IMPORTED").map_or(1_000_000, |text| text.parse().expect("a number"));
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
    let arguments = ["--output", "json", "revoke", "--file", path.to_str().expect("UTF-8"), "--wait=60"];
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
}
