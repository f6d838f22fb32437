//! A policy document as written. Unknown keys are errors everywhere. The JSON Schema for editors is made from these types,
//! so their comments are written for who writes policies.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{BindingNeed, CredentialKind, Mode, OnStale};

/// The only `apiVersion`.
pub const API_VERSION: &str = "atm.dev/v1";
/// The only `kind`.
pub const KIND: &str = "TokenPolicy";
/// `clockSkewSeconds` at most, in seconds.
pub const MAX_CLOCK_SKEW_SECONDS: u32 = 300;

/// The JSON Schema (2020-12) of a policy document, for editors. It describes the shape; `atmctl policy check` says more.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(Document).to_value()
}

/// Which requests pass, with which credential. A request that no rule of any policy covers is refused.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "TokenPolicy")]
pub(super) struct Document {
    /// Always `atm.dev/v1`.
    #[schemars(extend("const" = API_VERSION))]
    pub(super) api_version: String,
    /// Always `TokenPolicy`.
    #[schemars(extend("const" = KIND))]
    pub(super) kind: String,
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
}

/// What the policy is called.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Metadata {
    /// Unique in the set: 1 to 63 small letters, digits, `-`, `.` and `_`.
    pub(super) name: String,
    /// For people and tools; without effect.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted as Kubernetes has it, and without effect")]
    labels: BTreeMap<String, String>,
    /// For people and tools; without effect.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted as Kubernetes has it, and without effect")]
    annotations: BTreeMap<String, String>,
}

/// What all rules of the policy have in common, and the rules.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    /// `enforce` decides. `shadow` decides nothing: what it would have decided is compared, counted and sampled.
    #[serde(default)]
    pub(super) mode: Mode,
    /// Enforces the policy for a share of the requests only; the others see the set without it.
    pub(super) rollout: Option<Rollout>,
    /// Accepted issuers, exactly as in `iss`; every trusted one when left out.
    #[serde(default)]
    pub(super) issuers: Vec<String>,
    /// Accepted audiences, of which the token must name one.
    #[serde(default)]
    pub(super) audiences: Vec<String>,
    /// Every scope that the service knows. A rule that asks for another one is a mistake; not checked when left out.
    pub(super) known_scopes: Option<Vec<String>>,
    /// Difference between clocks that is forgiven, in seconds.
    #[serde(default = "default_clock_skew")]
    #[schemars(range(max = MAX_CLOCK_SKEW_SECONDS))]
    pub(super) clock_skew_seconds: u32,
    /// What happens while nothing is heard from the control plane.
    pub(super) on_stale: Option<OnStale>,
    /// With `onStale: allow`, for how many seconds of silence at most; without a bound when left out.
    pub(super) allow_stale_seconds: Option<u32>,
    /// Where the credential is: one place or several. `authorization` with `Bearer` or `DPoP` when left out.
    pub(super) credential: Option<OneOrMany<Source>>,
    /// Kinds of credentials: `jwt` and `opaque` when left out.
    pub(super) accepts: Option<Vec<CredentialKind>>,
    /// Proof of possession.
    pub(super) binding: Option<Binding>,
    /// Whether the credential goes upstream.
    #[serde(default = "default_forward_token")]
    pub(super) forward_token: bool,
    /// Headers for the upstream service, made from claims; a client's own of these names are removed.
    #[serde(default)]
    pub(super) upstream_headers: Vec<UpstreamHeader>,
    /// Claims that Envoy's dynamic metadata gets, under `claims`.
    #[serde(default)]
    pub(super) metadata_claims: Vec<ClaimPath>,
    /// The rules. Of several that fit a request, the most specific applies.
    pub(super) rules: Vec<RuleDocument>,
}

/// A share of the requests, chosen by a stable hash.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Rollout {
    /// More than 0, at most 100; hundredths count.
    #[schemars(range(max = 100))]
    pub(super) percent: f64,
    /// What the share is chosen by: `credential` (the default), `address`, or the name of a header.
    #[serde(default)]
    pub(super) by: Option<String>,
}

/// One place where a credential may be.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Source {
    /// A header's name.
    pub(super) header: Option<String>,
    /// The authentication scheme before the token; `Bearer` and `DPoP` in `authorization` when left out, none elsewhere.
    pub(super) scheme: Option<String>,
    /// What stands before the token in that header, exactly.
    pub(super) prefix: Option<String>,
    /// A cookie's name.
    pub(super) cookie: Option<String>,
    /// A query parameter's name. It ends up in access logs: only where nothing else is possible (RFC 6750 §2.3).
    pub(super) query: Option<String>,
}

/// Proof of possession. A bound token is always checked, whatever stands here.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Binding {
    /// Which binding a token must have.
    #[serde(default)]
    pub(super) require: BindingNeed,
    /// DPoP proofs.
    #[serde(default)]
    pub(super) dpop: Dpop,
}

/// How DPoP proofs are judged (RFC 9449).
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Dpop {
    /// Whether a proof needs a nonce of this sidecar.
    #[serde(default)]
    pub(super) nonce: bool,
    /// Age of a proof at most, in seconds; 60 when left out.
    #[schemars(range(min = 1, max = 300))]
    pub(super) max_age_seconds: Option<u32>,
    /// Origins that clients address, as in `https://api.example.com`; the request's own scheme and host when left out.
    #[serde(default)]
    pub(super) origins: Vec<String>,
}

/// A header made from a claim.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct UpstreamHeader {
    /// The header's name.
    pub(super) name: String,
    /// The claim: a name, or a list of names that leads into objects.
    pub(super) claim: ClaimPath,
    /// How an array or object is written; without it only texts, numbers and booleans become a header.
    pub(super) encode: Option<super::Encoding>,
}

/// The name of a claim, or the names that lead to it.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(untagged)]
pub(super) enum ClaimPath {
    /// A top-level claim.
    Name(String),
    /// The names from the top-level claim inwards.
    Path(Vec<String>),
}

/// One value or a list of them.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(untagged)]
pub(super) enum OneOrMany<T> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

/// Which requests, and what is asked of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RuleDocument {
    /// Unique in the policy; `rule-0`, `rule-1` and so on when left out.
    pub(super) name: Option<String>,
    /// `api.example.com`, `*.example.com`, or `*` for any, which is meant when left out.
    pub(super) hosts: Option<Vec<String>>,
    /// Methods in capitals; any when left out.
    pub(super) methods: Option<Vec<String>>,
    /// `/orders`, `/orders/{id}` for one segment, `/files/{rest...}` for one or more at the end.
    pub(super) paths: Vec<String>,
    /// Context extensions that Envoy's route must have.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub(super) extensions: Extensions,
    /// As in `spec`, for this rule.
    pub(super) issuers: Option<Vec<String>>,
    /// As in `spec`, for this rule.
    pub(super) audiences: Option<Vec<String>>,
    /// Scopes that the token must have.
    pub(super) scopes: Option<Scopes>,
    /// A CEL expression over `request`, `token`, `client_certificate` and `now`, which must be true.
    pub(super) condition: Option<String>,
    /// As in `spec`, for this rule.
    pub(super) credential: Option<OneOrMany<Source>>,
    /// As in `spec`, for this rule.
    pub(super) accepts: Option<Vec<CredentialKind>>,
    /// As in `spec`, for this rule.
    pub(super) binding: Option<Binding>,
    /// As in `spec`, for this rule.
    pub(super) on_stale: Option<OnStale>,
    /// As in `spec`, for this rule.
    pub(super) allow_stale_seconds: Option<u32>,
    /// Lets requests through without a token.
    #[serde(default)]
    pub(super) allow_anonymous: bool,
}

/// Scopes that a token must have.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Scopes {
    /// Every one of these.
    #[serde(default)]
    pub(super) all: Vec<String>,
    /// One of these.
    #[serde(default)]
    pub(super) any: Vec<String>,
}

impl<T> OneOrMany<T> {
    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl ClaimPath {
    pub(super) fn as_slice(&self) -> &[String] {
        match self {
            Self::Name(name) => std::slice::from_ref(name),
            Self::Path(names) => names,
        }
    }
}

// Written by hand: an untagged enum would say of every mistake inside that nothing matched.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map or a list of maps")
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(OneOrMany::One)
            }

            fn visit_seq<S: SeqAccess<'de>>(self, seq: S) -> Result<Self::Value, S::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(OneOrMany::Many)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

impl<'de> Deserialize<'de> for ClaimPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = ClaimPath;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a claim's name, or a list of names that leads into objects")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<ClaimPath, E> {
                Ok(ClaimPath::Name(name.to_owned()))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, seq: S) -> Result<ClaimPath, S::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(ClaimPath::Path)
            }
        }

        deserializer.deserialize_any(Names)
    }
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
