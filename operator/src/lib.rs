//! ATM in Kubernetes.
//!
//! - [`policies`]: `TokenPolicy` resources are the set of policies of a control plane, each with its status.
//! - [`issuers`]: `TrustedIssuer` resources are its trusted issuers.
//! - [`injection`], [`webhook`]: a mutating admission webhook puts a sidecar into pods, with a certificate that
//!   [`certificate`] makes and renews.
//! - [`crds`]: the definitions, from the code's own schema.
//!
//! It holds no state: what it needs to know is in Kubernetes and in the control plane, so it may be restarted, or run
//! twice, at any time.

pub mod admin_api;
pub mod app;
pub mod certificate;
pub mod config;
pub mod crds;
pub mod health;
pub mod injection;
pub mod issuers;
pub mod policies;
pub mod resource;
pub mod webhook;
