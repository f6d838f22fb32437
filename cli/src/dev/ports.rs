//! Ports that a program can be restarted on.

use std::net::TcpListener;

use anyhow::{Context, Result};

/// Below this are the well-known ports of other programs.
const LOWEST: u16 = 18_000;
/// Where Linux begins to hand out ports to outgoing connections, unless told otherwise.
const USUAL_EPHEMERAL: u16 = 32_768;

/// Free loopback ports below the range that the kernel hands out by itself, so that none is taken by an outgoing connection
/// while its program is down.
#[derive(Debug)]
pub(crate) struct Ports {
    next: u16,
    end: u16,
}

impl Ports {
    /// Starts at a random place, so that stacks that come up side by side do not meet.
    pub(crate) fn new() -> Result<Self> {
        let end = ephemeral_start().filter(|start| *start > LOWEST + 1_000).unwrap_or(USUAL_EPHEMERAL);
        let mut random = [0; 2];
        aws_lc_rs::rand::fill(&mut random).ok().context("the system has no randomness")?;
        Ok(Self { next: LOWEST + u16::from_be_bytes(random) % (end - LOWEST), end })
    }

    /// A port that nobody listens on just now.
    pub(crate) fn take(&mut self) -> Result<u16> {
        for _ in LOWEST..self.end {
            let port = self.next;
            self.next = if port + 1 < self.end { port + 1 } else { LOWEST };
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(port);
            }
        }
        anyhow::bail!("no port from {LOWEST} to {} is free on 127.0.0.1", self.end)
    }
}

fn ephemeral_start() -> Option<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_differ() {
        let mut ports = Ports::new().unwrap();
        let (first, second) = (ports.take().unwrap(), ports.take().unwrap());
        assert_ne!(first, second);
        let held = TcpListener::bind(("127.0.0.1", second)).unwrap();
        let mut again = Ports { next: second, end: ports.end };
        assert_ne!(again.take().unwrap(), second);
        drop(held);
    }
}
