//! A network namespace with one link to the rest: programs in it can be cut off as a machine is, with packets that vanish.
//!
//! Needs root and the kernel's leave. Where either is missing there is none, and [`crate::proxy::Proxy`] breaks connections instead.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

/// A namespace, and the address of either end of its link. Deleted with everything in it on drop.
#[derive(Debug)]
pub struct Island {
    name: String,
    interface: String,
    subnet: String,
}

impl Island {
    /// A new one; none where the machine does not allow it.
    pub fn create() -> Option<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        // A subnet a namespace, told apart by process and number, of the block that nobody routes (RFC 6598).
        let (process, number) = (std::process::id() % 512, NEXT.fetch_add(1, Ordering::Relaxed) % 32);
        let name = format!("atm-{process}-{number}");
        // A namespace that is there already is somebody else's.
        if !ip(&["netns", "add", &name]) {
            return None;
        }
        let subnet = format!("100.{}.{}", 64 + process / 8, (process % 8) * 32 + u32::from(number));
        let island = Self { name, interface: format!("atm{process}x{number}"), subnet };
        // What was made so far goes by being dropped.
        island.link().then_some(island)
    }

    fn link(&self) -> bool {
        let Self { name, interface, subnet } = self;
        let (here, there) = (format!("{subnet}.1/24"), format!("{subnet}.2/24"));
        ip(&["link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", name])
            && ip(&["address", "add", &here, "dev", interface])
            && ip(&["-n", name, "address", "add", &there, "dev", "eth0"])
            && ip(&["-n", name, "link", "set", "lo", "up"])
            && ip(&["-n", name, "link", "set", "eth0", "up"])
            && ip(&["link", "set", interface, "up"])
            // While the link is down nothing of ours leaves by another way.
            && ip(&["route", "add", "blackhole", &format!("{subnet}.0/24"), "metric", "9999"])
    }

    /// The address of this end: where programs in it find what listens here.
    pub fn outside(&self) -> String {
        format!("{}.1", self.subnet)
    }

    /// The address of the other end: where programs in it listen.
    pub fn inside(&self) -> String {
        format!("{}.2", self.subnet)
    }

    /// What a program is started behind to be in it.
    pub fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(ToOwned::to_owned).to_vec()
    }

    /// Takes the link down, or up: packets vanish, connections stay as they are.
    pub fn set_link(&self, up: bool) {
        let state = if up { "up" } else { "down" };
        assert!(ip(&["link", "set", &self.interface, state]), "link of {} {state}", self.name);
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        ip(&["route", "del", "blackhole", &format!("{}.0/24", self.subnet), "metric", "9999"]);
        ip(&["link", "del", &self.interface]);
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    let status = Command::new("ip").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
