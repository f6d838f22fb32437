//! The wire contracts, and their conversions to [`atm_core`] types: the feed's, what sidecars send back, and Envoy's checks.
//!
//! The control plane publishes; sidecars verify and apply. What arrives passes three gates, in this order:
//! [`signature`] (who says so, over the exact bytes), [`change`] (do we understand every part of it), and
//! [`change::apply`] (what it changes in a view). A message that fails a gate changes nothing. [`check`] reads what Envoy asks.

pub mod audit;
pub mod change;
pub mod check;
pub mod command;
mod convert;
pub mod digests;
pub mod introspection;
pub mod report;
pub mod rotation;
pub mod signature;
pub mod snapshot;
pub mod subject;

/// The generated protobuf messages, as they travel. Use the types of [`change`] instead, which refuse what they do not
/// understand.
#[allow(missing_docs, clippy::pedantic, unreachable_pub)] // generated; documented in feed.proto
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/atm.feed.v1.rs"));
}
