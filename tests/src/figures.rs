//! What benchmarks are asked for, and how they answer.

use std::time::Duration;

/// How many, by an environment variable.
///
/// # Panics
/// Where it is set to anything but a whole number.
pub fn size(variable: &str, default: usize) -> usize {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a whole number")))
}

/// One line: how many, median, 99th percentile and maximum.
#[expect(clippy::print_stdout, reason = "a benchmark's figures")]
pub fn row(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 1000).min(times.len() - 1)].as_secs_f64() * 1e3;
    println!(
        "{name:<66} n {:>6}  median {:>7.2} ms  p99 {:>7.2} ms  max {:>7.2} ms",
        times.len(),
        at(500),
        at(990),
        at(1000)
    );
}
