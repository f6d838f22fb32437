//! What happens, drawn from a seed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use atm_tests::proxy::{Network, Proxy};
use atm_tests::wait;

use super::stack::Stack;

/// A small generator (SplitMix64): the same seed gives the same faults in the same order.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }
}

/// Makes faults and counts them.
pub(crate) struct Faults {
    random: Random,
    made: BTreeMap<&'static str, u64>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: u64 = self.made.values().sum();
        write!(f, "{total}")?;
        self.made.iter().try_for_each(|(name, number)| write!(f, ", {number} {name}"))
    }
}

impl Faults {
    pub(crate) fn new(random: Random) -> Self {
        Self { random, made: BTreeMap::new() }
    }

    /// One fault, to its end, and some time without any.
    pub(crate) async fn one(&mut self, stack: &mut Stack) {
        let name = match self.random.below(12) {
            0 => self.kill_sidecar(stack).await,
            1 => self.kill_control_plane(stack).await,
            2 => self.kill_nats(stack, false).await,
            3 => self.kill_nats(stack, true).await,
            4 => self.stop_sidecar(stack).await,
            5 => self.stop_control_plane(stack).await,
            6 => self.cut_sidecar(stack).await,
            7 => self.cut_control_plane(stack).await,
            8 => self.fill_disk(stack).await,
            9 => self.flip_byte(stack).await,
            10 => self.step_clock(stack),
            _ => self.kill_everything(stack).await,
        };
        *self.made.entry(name).or_default() += 1;
        tokio::time::sleep(self.random.millis(50, 600)).await;
    }

    async fn kill_sidecar(&mut self, stack: &mut Stack) -> &'static str {
        let node = self.random.index(stack.nodes.len());
        let node = &mut stack.nodes[node];
        node.sidecar.kill();
        tokio::time::sleep(self.random.millis(0, 800)).await;
        node.sidecar.start().await;
        node.limited = false;
        "sidecars killed"
    }

    async fn kill_control_plane(&mut self, stack: &mut Stack) -> &'static str {
        stack.control_plane.kill();
        tokio::time::sleep(self.random.millis(0, 800)).await;
        stack.control_plane.start().await;
        "control planes killed"
    }

    async fn kill_nats(&mut self, stack: &mut Stack, wipe: bool) -> &'static str {
        stack.nats.kill();
        if wipe {
            stack.nats.wipe();
        }
        tokio::time::sleep(self.random.millis(0, 1_500)).await;
        stack.nats.restart().await;
        if wipe { "NATS wiped" } else { "NATS killed" }
    }

    async fn stop_sidecar(&mut self, stack: &mut Stack) -> &'static str {
        let node = self.random.index(stack.nodes.len());
        let pid = stack.nodes[node].sidecar.process().id();
        self.stop(pid).await;
        "sidecars stopped"
    }

    async fn stop_control_plane(&mut self, stack: &mut Stack) -> &'static str {
        let pid = stack.control_plane.process().id();
        self.stop(pid).await;
        "control planes stopped"
    }

    /// SIGSTOP, and SIGCONT after a while: a machine that stands still.
    async fn stop(&mut self, pid: u32) {
        signal(pid, "STOP");
        tokio::time::sleep(self.random.millis(100, 3_000)).await;
        signal(pid, "CONT");
    }

    async fn cut_sidecar(&mut self, stack: &mut Stack) -> &'static str {
        let node = self.random.index(stack.nodes.len());
        self.cut(&stack.nodes[node].network).await;
        "sidecars cut off"
    }

    async fn cut_control_plane(&mut self, stack: &mut Stack) -> &'static str {
        self.cut(&stack.control_network).await;
        "control planes cut off"
    }

    async fn cut(&mut self, network: &Proxy) {
        network.set(if self.random.below(2) == 0 { Network::Cut } else { Network::Stalled });
        tokio::time::sleep(self.random.millis(200, 4_000)).await;
        network.set(Network::Whole);
    }

    /// The sidecar's disk takes no more, until it is started again.
    async fn fill_disk(&mut self, stack: &mut Stack) -> &'static str {
        let node = self.random.index(stack.nodes.len());
        let node = &mut stack.nodes[node];
        node.sidecar.limit_files(4_096);
        node.limited = true;
        tokio::time::sleep(self.random.millis(500, 2_000)).await;
        // Killed with the full disk, started with an empty one.
        node.sidecar.kill();
        node.sidecar.start().await;
        node.limited = false;
        "full disks"
    }

    /// A byte of a sidecar's database changes while it is down. It may start with less than it had, so it is not ready
    /// before the feed has told it the rest; that is waited for, because a cut network would be a second fault.
    async fn flip_byte(&mut self, stack: &mut Stack) -> &'static str {
        let node = self.random.index(stack.nodes.len());
        let node = &mut stack.nodes[node];
        node.sidecar.kill();
        let files = database_files(&node.sidecar.store());
        if !files.is_empty() {
            let file = &files[self.random.index(files.len())];
            let mut bytes = std::fs::read(file).unwrap_or_default();
            if !bytes.is_empty() {
                let at = self.random.index(bytes.len());
                bytes[at] ^= 1 << self.random.below(8);
                std::fs::write(file, bytes).unwrap();
            }
        }
        node.sidecar.start().await;
        node.limited = false;
        node.sidecar.until_ready_within(wait::LONG).await;
        "bytes flipped"
    }

    /// Somebody's wall clock is stepped, within what policies allow for between two of them.
    fn step_clock(&mut self, stack: &Stack) -> &'static str {
        let clocks = stack.nodes.iter().map(|node| &node.clock).chain([&stack.control_clock]);
        let clocks: Vec<_> = clocks.collect();
        let at = self.random.index(clocks.len());
        clocks[at].step_to(i64::try_from(self.random.below(25)).unwrap() - 12);
        "clocks stepped"
    }

    async fn kill_everything(&mut self, stack: &mut Stack) -> &'static str {
        stack.control_plane.kill();
        stack.nats.kill();
        for node in &mut stack.nodes {
            node.sidecar.kill();
        }
        stack.nats.restart().await;
        stack.control_plane.start().await;
        for node in &mut stack.nodes {
            node.sidecar.start().await;
            node.limited = false;
        }
        "everything killed"
    }
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
    assert!(status.unwrap().success(), "kill -{name} {pid}");
}

/// What a disk may damage: table files and the write-ahead log.
fn database_files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst" || extension == "log"))
        .collect();
    files.sort();
    files
}
