//! The pure heart of ATM: tokens, keys, claims, the revocation index, policies, and **the decision** over them.
//!
//! Nothing here does I/O, awaits, locks or reads a clock: state and time are parameters, so that every outcome can be
//! reproduced from its inputs. [`decision::decide`] is the way in; it reads top to bottom like its specification.

pub mod base64url;
pub mod binding;
pub mod claims;
pub mod decision;
pub mod freshness;
pub mod id;
pub mod json;
pub mod jwk;
pub mod jws;
pub mod key;
pub mod opaque;
pub mod path;
pub mod policy;
pub mod reason;
pub mod request;
pub mod revocation;
pub mod settings;
pub mod time;
pub mod token;
pub mod view;
