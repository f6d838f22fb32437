//! The control plane: issues tokens, owns keys and clients, revokes, and publishes the signed feed that every sidecar
//! follows. The store is the truth; NATS is an untrusted carrier that may be away.

pub mod admin_access;
pub mod anomalies;
pub mod api_keys;
pub mod app;
pub mod assertions;
pub mod audit;
pub mod authentication;
pub mod clock;
pub mod config;
pub mod events;
pub mod exchange;
pub mod feed;
pub mod http;
pub mod introspection;
pub mod issuance;
pub mod issuers;
pub mod keys;
pub mod lifecycle;
pub mod limits;
pub mod metrics;
pub mod nats_login;
pub mod policies;
pub mod realms;
pub mod registration;
pub mod registry;
pub mod retention;
pub mod revocation;
pub mod secret;
pub mod sessions;
pub mod store;
pub mod tls;
pub mod trace;
