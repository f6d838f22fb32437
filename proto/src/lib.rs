//! The wire contract of the feed, and its conversions to [`atm_core`] types.
//!
//! The control plane publishes; sidecars verify and apply. What arrives passes three gates, in this order:
//! [`signature`] (who says so, over the exact bytes), [`change`] (do we understand every part of it), and
//! [`change::apply`] (what it changes in a view). A message that fails a gate changes nothing.

pub mod change;
mod convert;
pub mod introspection;
pub mod report;
pub mod signature;
pub mod subject;

/// The generated protobuf messages, as they travel. Use the types of [`change`] instead, which refuse what they do not
/// understand.
#[allow(missing_docs, clippy::pedantic, unreachable_pub)] // generated; documented in feed.proto
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/atm.feed.v1.rs"));
}
