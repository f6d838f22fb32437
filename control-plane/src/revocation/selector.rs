//! What a revocation call names.

use atm_core::id::{Id, IdKind};
use serde::{Deserialize, Serialize};

/// What is to be revoked. All but [`Selector::Token`] revoke what was issued until now; later tokens live, except those of
/// a revoked key, which is dead for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Selector {
    /// One token.
    Token {
        /// Its `jti`.
        jti: String,
        /// Its `iss`; none: the control plane's own.
        #[serde(default)]
        issuer: Option<String>,
        /// Its `exp`, in seconds. Give it where it is known: the entry is then forgotten in time. It must be the token's
        /// own, because it says where sidecars look.
        #[serde(default)]
        expires_at: Option<i64>,
    },
    /// Everything of one session (`sid`).
    Session(String),
    /// Everything of one subject (`sub`).
    Subject(String),
    /// Everything of one client (`client_id`).
    Client(String),
    /// Everything of one realm.
    Realm(String),
    /// Everything of one issuer (`iss`).
    Issuer(String),
    /// A signing key (`kid`), compromised: whatever it signed or will sign.
    Key(String),
}

impl Selector {
    pub(super) fn kind(&self) -> IdKind {
        match self {
            Self::Token { .. } => IdKind::Token,
            Self::Session(_) => IdKind::Session,
            Self::Subject(_) => IdKind::Subject,
            Self::Client(_) => IdKind::Client,
            Self::Realm(_) => IdKind::Realm,
            Self::Issuer(_) => IdKind::Issuer,
            Self::Key(_) => IdKind::Key,
        }
    }

    /// The name in records: `token`, `session` ...
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Token { .. } => "token",
            Self::Session(_) => "session",
            Self::Subject(_) => "subject",
            Self::Client(_) => "client",
            Self::Realm(_) => "realm",
            Self::Issuer(_) => "issuer",
            Self::Key(_) => "key",
        }
    }

    /// What is named.
    pub fn value(&self) -> &str {
        match self {
            Self::Token { jti, .. } => jti,
            Self::Session(value)
            | Self::Subject(value)
            | Self::Client(value)
            | Self::Realm(value)
            | Self::Issuer(value)
            | Self::Key(value) => value,
        }
    }

    pub(super) fn id(&self, default_issuer: &str) -> Id {
        let issuer = match self {
            Self::Token { issuer: Some(issuer), .. } => issuer,
            Self::Realm(_) | Self::Issuer(_) => "",
            _ => default_issuer,
        };
        Id::of(self.kind(), issuer, self.value())
    }
}
