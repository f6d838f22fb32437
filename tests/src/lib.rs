//! What the end-to-end suites stand on: the built programs, a real nats-server and a real Envoy, each on free ports and
//! killed on drop, and a test control plane that can also lie.
//!
//! Nothing here sleeps for a fixed time: a condition is awaited with a bound ([`wait::until`]), and when the bound passes the
//! panic names the condition. A test that fails prints the logs of its programs.

// The whole crate is test code: a failed expectation is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

pub mod authority;
pub mod authz;
pub mod clock;
pub mod collector;
pub mod control_plane;
pub mod dev;
pub mod disk;
pub mod envoy;
pub mod feed;
pub mod figures;
pub mod http;
pub mod island;
pub mod kubernetes;
pub mod leases;
pub mod nats;
pub mod nginx;
pub mod process;
pub mod programs;
pub mod propagation;
pub mod proxy;
pub mod python;
pub mod sidecar;
pub mod simulation;
pub mod token;
pub mod upstream;
pub mod wait;
