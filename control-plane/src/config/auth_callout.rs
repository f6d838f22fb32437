//! The section `nats.authCallout`: who is let in to NATS by the token of its platform.

use std::path::PathBuf;
use std::time::Duration;

use super::Reader;
use crate::nats_login::{LoginSettings, ServiceAccounts};

/// How NATS's auth callout is answered.
#[derive(Debug, Clone)]
pub struct AuthCalloutConfig {
    /// File with the seed of the account nkey that signs the answers.
    pub seed_file: PathBuf,
    /// Who is let in.
    pub settings: LoginSettings,
}

pub(super) fn read(reader: &Reader<'_>) -> Option<AuthCalloutConfig> {
    let section = reader.root().section("nats").section("authCallout");
    if !section.is_present() {
        return None;
    }
    let entries = section.list("serviceAccounts");
    if entries.is_empty() {
        section.mistake("serviceAccounts", "names nobody; list namespace/name, with * for any");
    }
    let mut service_accounts = Vec::with_capacity(entries.len());
    for entry in entries {
        match entry.parse::<ServiceAccounts>() {
            Ok(accounts) => service_accounts.push(accounts),
            Err(problem) => section.mistake("serviceAccounts", problem),
        }
    }
    Some(AuthCalloutConfig {
        seed_file: section.required("seedFile").into(),
        settings: LoginSettings {
            account: section.text("account").unwrap_or_else(|| "ATM".to_owned()),
            issuer: section.required("issuer"),
            audience: section.text("audience").unwrap_or_else(|| "atm-nats".to_owned()),
            service_accounts,
            lifetime: Duration::from_secs(section.number("lifetimeSeconds", 900, 5..=86_400)),
        },
    })
}
