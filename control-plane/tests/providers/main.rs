//! Key providers: the whole program over SoftHSM, and over servers that speak Vault's and KMS's protocols as the originals do.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "tests, and helpers of tests")]

mod kms;
mod program;
mod softhsm;
mod vault;
