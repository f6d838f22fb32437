//! The HTTP interfaces as their callers see them: a control plane on free ports, without NATS, and `reqwest`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests, and helpers of tests")]

mod admin;
mod audit;
mod client_auth;
mod discovery;
mod dpop;
mod engine;
mod exchange;
mod harness;
mod introspect;
mod jwt_bearer;
mod keys;
mod opaque;
mod operations;
mod realms;
mod register;
mod revoke;
mod roles;
mod security_events;
mod sessions;
mod token;
