//! How much each client may ask: a rate with a burst, and requests under way at one time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::registry::ClientLimits;

/// Clients that are kept in mind; above it those that ask for nothing are forgotten.
const MAX_CLIENTS: usize = 65_536;

/// What holds for clients that have no limits of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultLimits {
    /// Requests a second in the long run.
    pub requests_per_second: u32,
    /// Requests at once before the rate counts.
    pub burst: u32,
    /// Requests under way at one time.
    pub concurrency: u32,
}

/// A client has asked for too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client asks too often, or for too much at once; come again after the time in Retry-After")]
pub struct LimitReached {
    /// When to come again.
    pub retry_after: Duration,
}

/// The limits of all clients in this process; clones share them.
#[derive(Debug, Clone)]
pub struct Limits {
    defaults: DefaultLimits,
    clients: Arc<Mutex<HashMap<String, Usage>>>,
}

/// How much of its limits a client uses.
#[derive(Debug, Clone, Copy)]
struct Usage {
    /// When the bucket is full again: the theoretical arrival time of the generic cell rate algorithm (ITU-T I.371).
    full_at: Instant,
    under_way: u32,
}

/// A request that was admitted, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    clients: Arc<Mutex<HashMap<String, Usage>>>,
    client_id: String,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = clients.get_mut(&self.client_id) {
            usage.under_way = usage.under_way.saturating_sub(1);
        }
    }
}

impl Limits {
    /// With `defaults` where a client has none of its own.
    pub fn new(defaults: DefaultLimits) -> Self {
        Self { defaults, clients: Arc::default() }
    }

    /// Admits a request of `client_id`, or says when to come again.
    pub fn admit(&self, client_id: &str, own: &ClientLimits) -> Result<Permit, LimitReached> {
        self.admit_at(client_id, own, Instant::now())
    }

    fn admit_at(&self, client_id: &str, own: &ClientLimits, now: Instant) -> Result<Permit, LimitReached> {
        let rate = own.requests_per_second.unwrap_or(self.defaults.requests_per_second).max(1);
        let burst = own.burst.unwrap_or(self.defaults.burst).max(1);
        let concurrency = own.concurrency.unwrap_or(self.defaults.concurrency).max(1);
        let interval = Duration::from_secs(1) / rate;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(client_id) {
            clients.retain(|_, usage| usage.under_way > 0 || usage.full_at > now);
            if clients.len() >= MAX_CLIENTS {
                // Whoever has a request under way is still known; their number is bounded by that of the connections.
                clients.retain(|_, usage| usage.under_way > 0);
            }
        }
        let usage = clients.entry(client_id.to_owned()).or_insert(Usage { full_at: now, under_way: 0 });
        if usage.under_way >= concurrency {
            return Err(LimitReached { retry_after: Duration::from_secs(1) });
        }
        let full_at = usage.full_at.max(now);
        let allowed = interval * (burst - 1);
        if let Some(too_early) = full_at.duration_since(now).checked_sub(allowed)
            && !too_early.is_zero()
        {
            return Err(LimitReached { retry_after: too_early });
        }
        usage.full_at = full_at + interval;
        usage.under_way += 1;
        Ok(Permit { clients: Arc::clone(&self.clients), client_id: client_id.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::new(DefaultLimits { requests_per_second: 10, burst: 3, concurrency: 5 })
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (limits, own, start) = (limits(), ClientLimits::default(), Instant::now());
        let admitted =
            |after: u64| limits.admit_at("c", &own, start + Duration::from_millis(after)).map(drop);
        for _ in 0..3 {
            assert!(admitted(0).is_ok());
        }
        let refused = admitted(0).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_millis(100));
        assert!(admitted(100).is_ok() && admitted(100).is_err());
        assert!(limits.admit_at("another", &own, start).is_ok(), "each client has its own");
        for _ in 0..3 {
            assert!(admitted(10_000).is_ok(), "the burst is back after a rest");
        }
        assert!(admitted(10_000).is_err());
    }

    #[test]
    fn no_more_under_way_than_allowed() {
        let limits = limits();
        let own = ClientLimits { burst: Some(100), concurrency: Some(2), ..ClientLimits::default() };
        let first = limits.admit("c", &own).unwrap();
        let _second = limits.admit("c", &own).unwrap();
        assert!(limits.admit("c", &own).is_err());
        drop(first);
        assert!(limits.admit("c", &own).is_ok());
    }

    #[test]
    fn a_flood_of_clients_is_forgotten() {
        let (limits, own) = (limits(), ClientLimits::default());
        let _kept = limits.admit("kept", &own).unwrap();
        for number in 0..MAX_CLIENTS + 10 {
            drop(limits.admit(&format!("c{number}"), &own).unwrap());
        }
        let clients = limits.clients.lock().unwrap();
        assert!(clients.len() <= MAX_CLIENTS && clients.contains_key("kept"));
    }
}
