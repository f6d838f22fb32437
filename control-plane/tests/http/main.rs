//! The HTTP interfaces as their callers see them: a control plane on free ports, without NATS, and `reqwest`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and helpers of tests")]

mod admin;
mod discovery;
mod harness;
mod introspect;
mod operations;
mod revoke;
mod token;
