//! What happens, drawn from a seed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use atm_tests::proxy::Network;
use atm_tests::wait;

use super::random::Random;
use super::stack::Stack;
use super::wiring::Wiring;

/// Makes faults and counts them.
pub(crate) struct Faults {
    random: Random,
    made: BTreeMap<&'static str, u64>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: u64 = self.made.values().sum();
        write!(f, "{total}: ")?;
        let kinds: Vec<_> = self.made.iter().map(|(name, number)| format!("{number} {name}")).collect();
        f.write_str(&kinds.join(", "))
    }
}

impl Faults {
    pub(crate) fn new(random: Random) -> Self {
        Self { random, made: BTreeMap::new() }
    }

    /// One fault, to its end, and some time without any.
    pub(crate) async fn one(&mut self, stack: &mut Stack) {
        let name = match self.random.below(17) {
            0 => self.kill_sidecar(stack).await,
            1 => self.kill_control_plane(stack).await,
            2 => self.kill_nats(stack, false).await,
            3 => self.kill_nats(stack, true).await,
            4 => self.stop_sidecar(stack).await,
            5 => self.stop_control_plane(stack).await,
            6 => self.stop_nats(stack).await,
            7 | 8 => self.cut_sidecar(stack).await,
            9 | 10 => self.cut_control_plane(stack).await,
            11 => self.fill_disk(stack).await,
            12 => self.limit_files(stack).await,
            13 => self.flip_byte(stack).await,
            14 => self.step_clock(stack),
            15 => self.break_store(stack).await,
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
        "sidecars killed"
    }

    async fn kill_control_plane(&mut self, stack: &mut Stack) -> &'static str {
        let plane = self.random.index(stack.planes.len());
        let plane = &mut stack.planes[plane];
        plane.control_plane.kill();
        tokio::time::sleep(self.random.millis(0, 800)).await;
        plane.control_plane.start().await;
        "control planes killed"
    }

    /// One nats-server, or each of them.
    async fn kill_nats(&mut self, stack: &mut Stack, wipe: bool) -> &'static str {
        let one = self.random.index(stack.nats.len());
        let all = self.random.one_in(4);
        let hit = |number: usize| all || number == one;
        for (_, server) in stack.nats.iter_mut().enumerate().filter(|(number, _)| hit(*number)) {
            server.kill();
            if wipe {
                server.wipe();
            }
        }
        tokio::time::sleep(self.random.millis(0, 1_500)).await;
        for (_, server) in stack.nats.iter_mut().enumerate().filter(|(number, _)| hit(*number)) {
            server.restart().await;
        }
        match (wipe, all) {
            (false, false) => "nats-servers killed",
            (true, false) => "nats-servers wiped",
            (false, true) => "times all of NATS killed",
            (true, true) => "times all of NATS wiped",
        }
    }

    async fn stop_sidecar(&mut self, stack: &mut Stack) -> &'static str {
        let node = self.random.index(stack.nodes.len());
        let pid = stack.nodes[node].sidecar.process().id();
        self.stop(pid).await;
        "sidecars stopped"
    }

    async fn stop_control_plane(&mut self, stack: &mut Stack) -> &'static str {
        let plane = self.random.index(stack.planes.len());
        let pid = stack.planes[plane].control_plane.process().id();
        self.stop(pid).await;
        "control planes stopped"
    }

    async fn stop_nats(&mut self, stack: &mut Stack) -> &'static str {
        let server = self.random.index(stack.nats.len());
        let pid = stack.nats[server].pid().expect("it runs between faults");
        self.stop(pid).await;
        "nats-servers stopped"
    }

    /// SIGSTOP, and SIGCONT after a while: a machine that stands still.
    async fn stop(&mut self, pid: u32) {
        signal(pid, "STOP");
        tokio::time::sleep(self.random.millis(100, 3_000)).await;
        signal(pid, "CONT");
    }

    async fn cut_sidecar(&mut self, stack: &mut Stack) -> &'static str {
        let node = self.random.index(stack.nodes.len());
        // What it reports is what the oracle judges by: only what it hears is damaged.
        self.disturb(&stack.nodes[node].wiring, Network::Garbled { both_ways: false }).await
    }

    async fn cut_control_plane(&mut self, stack: &mut Stack) -> &'static str {
        let plane = self.random.index(stack.planes.len());
        self.disturb(&stack.planes[plane].wiring, Network::Garbled { both_ways: true }).await
    }

    /// The network of one program: its link down, its connections to NATS closed or stalled or damaged, or one of them alone.
    async fn disturb(&mut self, wiring: &Wiring, garbled: Network) -> &'static str {
        let (kind, one) = (self.random.below(5), self.random.index(wiring.nats.len()));
        let duration = self.random.millis(200, 4_000);
        let name = match kind {
            0 | 1 if wiring.island.is_some() => {
                wiring.island.iter().for_each(|island| island.set_link(false));
                "links down"
            }
            0 | 2 => {
                wiring.set(Network::Cut);
                "times connections to NATS closed"
            }
            1 => {
                wiring.set(Network::Stalled);
                "times connections to NATS stalled"
            }
            3 => {
                wiring.nats[one].set(Network::Stalled);
                "times the connection to one nats-server stalled"
            }
            _ => {
                wiring.set(garbled);
                "times bytes flipped on the wire"
            }
        };
        tokio::time::sleep(duration).await;
        wiring.heal();
        name
    }

    /// The sidecar's disk takes no more, for a while; it goes on by itself, or is started again.
    async fn fill_disk(&mut self, stack: &mut Stack) -> &'static str {
        let node = self.random.index(stack.nodes.len());
        let Some(disk) = &stack.nodes[node].disk else { return self.limit_files(stack).await };
        disk.fill();
        tokio::time::sleep(self.random.millis(500, 3_000)).await;
        disk.free();
        if self.random.one_in(2) {
            stack.nodes[node].restart().await;
        }
        "full disks of sidecars"
    }

    /// No file of the sidecar's may grow, until it is started again.
    async fn limit_files(&mut self, stack: &mut Stack) -> &'static str {
        let node = self.random.index(stack.nodes.len());
        let node = &mut stack.nodes[node];
        node.sidecar.limit_files(4_096);
        tokio::time::sleep(self.random.millis(500, 2_000)).await;
        // Killed with the full disk, started with an empty one.
        node.restart().await;
        "file size limits of sidecars"
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
        node.sidecar.until_ready_within(wait::LONG).await;
        "bytes flipped in databases"
    }

    /// Somebody's wall clock is stepped, within what policies allow for between two of them.
    fn step_clock(&mut self, stack: &Stack) -> &'static str {
        let planes = stack.planes.iter().map(|plane| &plane.clock);
        let clocks: Vec<_> = stack.nodes.iter().map(|node| &node.clock).chain(planes).collect();
        let at = self.random.index(clocks.len());
        clocks[at].step_to(i64::try_from(self.random.below(25)).unwrap() - 12);
        "clocks stepped"
    }

    /// PostgreSQL is killed, stands still or cannot be reached by one control plane; the embedded store's disk is full.
    async fn break_store(&mut self, stack: &mut Stack) -> &'static str {
        let (kind, plane) = (self.random.below(3), self.random.index(stack.planes.len()));
        let duration = self.random.millis(200, 3_000);
        let Some(database) = &mut stack.database else {
            let Some(disk) = &stack.planes[plane].disk else { return self.stop_control_plane(stack).await };
            disk.fill();
            tokio::time::sleep(duration).await;
            disk.free();
            return "full disks of control planes";
        };
        match kind {
            0 => {
                tokio::task::block_in_place(|| database.kill());
                tokio::time::sleep(duration).await;
                tokio::task::block_in_place(|| database.restart());
                "times PostgreSQL killed"
            }
            1 => {
                database.pause();
                tokio::time::sleep(duration).await;
                database.resume();
                "times PostgreSQL stopped"
            }
            _ => {
                let store = stack.planes[plane].store.as_ref().expect("there is a database");
                store.set(if self.random.one_in(2) { Network::Cut } else { Network::Stalled });
                tokio::time::sleep(duration).await;
                store.set(Network::Whole);
                "times PostgreSQL out of a control plane's reach"
            }
        }
    }

    async fn kill_everything(&mut self, stack: &mut Stack) -> &'static str {
        stack.planes.iter_mut().for_each(|plane| plane.control_plane.kill());
        stack.nats.iter_mut().for_each(atm_tests::nats::NatsServer::kill);
        stack.nodes.iter_mut().for_each(|node| node.sidecar.kill());
        if let Some(database) = &mut stack.database {
            tokio::task::block_in_place(|| database.restart());
        }
        for server in &mut stack.nats {
            server.restart().await;
        }
        for plane in &mut stack.planes {
            plane.control_plane.start().await;
        }
        for node in &mut stack.nodes {
            node.sidecar.start().await;
        }
        "times everything killed"
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
