//! The ATM sidecar: answers Envoy's external authorization from its own copy of the feed.
//!
//! A request's way: [`ext_authz`] → [`atm_core::decision::decide`] over [`state::StateReader::load`] → answer. A
//! revocation's way: [`feed`] → [`state::StatePublisher`] → the next decision, and [`store`] for the next start.

pub mod admin;
pub mod app;
pub mod config;
pub mod decision_log;
pub mod ext_authz;
pub mod feed;
pub mod introspection;
pub mod lifecycle;
pub mod memory;
pub mod metrics;
pub mod report;
pub mod state;
pub mod store;
