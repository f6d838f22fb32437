//! Where a request came from and who sent it, for every event that is recorded while it is answered.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use super::Actor;

/// What is known of a request's sender. Events take it over.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The peer's address.
    pub address: Option<IpAddr>,
    /// The trace that the request belongs to (W3C Trace Context): 32 hexadecimal digits.
    pub trace_id: Option<String>,
    /// Who sent it, once that is known.
    actor: Arc<OnceLock<Actor>>,
}

impl Origin {
    /// A request from `address`, with its `traceparent` header.
    pub fn new(address: Option<IpAddr>, traceparent: Option<&str>) -> Self {
        Self {
            address,
            trace_id: traceparent.and_then(trace_id).map(ToOwned::to_owned),
            actor: Arc::default(),
        }
    }

    pub(super) fn actor(&self) -> Option<&Actor> {
        self.actor.get()
    }
}

tokio::task_local! {
    static ORIGIN: Origin;
}

/// Answers a request: events recorded by `answer` come from `origin`.
pub async fn scope<F: Future>(origin: Origin, answer: F) -> F::Output {
    ORIGIN.scope(origin, answer).await
}

/// Notes who sent the request that is being answered. The first one counts.
pub fn scoped_actor(actor: Actor) {
    let _ = ORIGIN.try_with(|origin| origin.actor.set(actor));
}

/// The id of whoever sent the request that is being answered, once that is known.
pub fn scoped_actor_id() -> Option<String> {
    ORIGIN.try_with(|origin| origin.actor().map(|actor| actor.id.clone())).ok().flatten()
}

pub(super) fn current() -> Origin {
    ORIGIN.try_with(Clone::clone).unwrap_or_default()
}

/// The trace id of a `traceparent` header of version 00; all zeros are none.
fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, id) = (parts.next()?, parts.next()?);
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    (version.len() == 2 && hex(version) && version != "ff" && id.len() == 32 && hex(id))
        .then_some(id)
        .filter(|id| id.bytes().any(|byte| byte != b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_traceparent_names_a_trace() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(&format!("00-{id}-00f067aa0ba902b7-01")), Some(id));
        for bad in ["", "00", "00-xyz-1-1", &format!("ff-{id}-1-1"), &format!("00-{}-1-1", "0".repeat(32))] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn the_first_actor_counts_and_outside_there_is_none() {
        let origin = Origin::new("10.0.0.1".parse().ok(), None);
        scope(origin, async {
            scoped_actor(Actor::client("a"));
            scoped_actor(Actor::client("b"));
            assert_eq!(current().actor(), Some(&Actor::client("a")));
        })
        .await;
        scoped_actor(Actor::client("c"));
        assert!(current().actor().is_none() && current().address.is_none());
    }
}
