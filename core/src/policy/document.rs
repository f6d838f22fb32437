//! A policy document as written. Unknown keys are errors everywhere.

use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::OnStale;

/// The only `apiVersion`.
pub const API_VERSION: &str = "atm.dev/v1";
/// The only `kind`.
pub const KIND: &str = "TokenPolicy";
/// `clockSkewSeconds` at most, in seconds.
pub const MAX_CLOCK_SKEW_SECONDS: u32 = 300;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(default)]
    pub(super) issuers: Vec<String>,
    #[serde(default)]
    pub(super) audiences: Vec<String>,
    #[serde(default = "default_clock_skew")]
    pub(super) clock_skew_seconds: u32,
    pub(super) on_stale: Option<OnStale>,
    #[serde(default)]
    pub(super) credential: Credential,
    #[serde(default = "default_forward_token")]
    pub(super) forward_token: bool,
    pub(super) rules: Vec<RuleDocument>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Credential {
    pub(super) header: Option<String>,
    pub(super) scheme: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RuleDocument {
    pub(super) name: Option<String>,
    pub(super) hosts: Option<Vec<String>>,
    pub(super) methods: Option<Vec<String>>,
    pub(super) paths: Vec<String>,
    #[serde(default)]
    pub(super) extensions: Extensions,
    pub(super) issuers: Option<Vec<String>>,
    pub(super) audiences: Option<Vec<String>>,
    pub(super) scopes: Option<Scopes>,
    pub(super) on_stale: Option<OnStale>,
    #[serde(default)]
    pub(super) allow_anonymous: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Scopes {
    #[serde(default)]
    pub(super) all: Vec<String>,
    #[serde(default)]
    pub(super) any: Vec<String>,
}

/// A map that refuses a key given twice, where a standard one would keep the last.
#[derive(Debug, Default)]
pub(super) struct Extensions(pub(super) Vec<(String, String)>);

impl<'de> Deserialize<'de> for Extensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Extensions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of context extensions")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Extensions, M::Error> {
                let mut entries: Vec<(String, String)> = Vec::new();
                while let Some((name, value)) = map.next_entry()? {
                    if entries.iter().any(|(known, _)| *known == name) {
                        return Err(M::Error::custom(format_args!("duplicate extension `{name}`")));
                    }
                    entries.push((name, value));
                }
                Ok(Extensions(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

fn default_clock_skew() -> u32 {
    30
}

fn default_forward_token() -> bool {
    true
}
