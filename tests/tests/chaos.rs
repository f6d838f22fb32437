//! The failure suite: real programs, and from a printed seed everything that can happen to them: killed, stopped, cut off,
//! stalled, wiped, out of disk, with clocks stepped and bytes flipped on theirs. An oracle knows what was revoked when:
//!
//! 1. no revoked token is accepted by a sidecar after it reported the revision;
//! 2. no revocation that was acknowledged is lost;
//! 3. no valid token is refused, except as stale or not ready, as the rules say;
//! 4. everything recovers by itself.
//!
//! `ATM_CHAOS_SEED` repeats a run, `ATM_CHAOS_SECONDS` (30) sets how long faults are made; `make chaos` runs it for hours.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stderr)] // helpers of tests fail the test

mod chaos {
    pub(crate) mod faults;
    pub(crate) mod oracle;
    pub(crate) mod random;
    pub(crate) mod stack;
    pub(crate) mod wiring;
}

use std::process::Command;
use std::time::{Duration, Instant};

use atm_tests::wait;
use chaos::faults::Faults;
use chaos::oracle::{Summary, Traffic};
use chaos::random::Random;
use chaos::stack::Stack;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_happens_lets_a_revoked_token_in_or_keeps_a_valid_one_out() {
    let seed = number("ATM_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 ^ now_nanos());
    let seconds = number("ATM_CHAOS_SECONDS").unwrap_or(30);
    eprintln!("ATM_CHAOS_SEED={seed} ATM_CHAOS_SECONDS={seconds}");
    let mut random = Random::new(seed);
    // Two of three runs on what a cluster has.
    let mut stack = Stack::start(!random.one_in(3)).await;
    let description = stack.describe();
    eprintln!("{description}");
    let traffic = Traffic::start(&stack).await;
    let mut faults = Faults::new(random);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        faults.one(&mut stack).await;
        stack.assert_all_run();
    }
    stack.heal();
    stack.until_level(traffic.newest()).await;
    let summary = traffic.settle(&stack).await;
    stack.assert_all_run();
    eprintln!("{summary}; stood still for {:.0} s", wait::stood_still().as_secs_f64());
    eprintln!("{}", row(seed, seconds, &description, &faults, &summary));
    assert!(summary.violations.is_empty(), "seed {seed}: {:#?}", summary.violations);
    assert!(
        summary.acknowledged > 5 && summary.permits > 50,
        "too little traffic to prove anything: {summary}"
    );
}

/// A row for the table in `docs/reliability.md`.
fn row(seed: u64, seconds: u64, stack: &str, faults: &Faults, summary: &Summary) -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output =
            Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
        output.map_or_else(
            || "unknown".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    format!(
        "| {} | {} | {seed} | {stack} | {seconds} s | {faults} | {} | {} | {} |",
        said("date", &["-u", "+%F"]),
        said("git", &["rev-parse", "--short", "HEAD"]),
        summary.acknowledged,
        summary.decisions(),
        summary.violations.len(),
    )
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a whole number")))
}

fn now_nanos() -> u64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::from(elapsed.subsec_nanos())
}
