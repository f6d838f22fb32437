//! The 16-byte ids by which revocations name what they hit.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

/// What an [`Id`] names. The numbers are those of the wire and of stored keys; they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum IdKind {
    /// One token; the value is its `jti`.
    Token = 0,
    /// A session (token family); the value is its `sid`.
    Session = 1,
    /// A subject; the value is its `sub`.
    Subject = 2,
    /// A client; the value is its `client_id`.
    Client = 3,
    /// A realm; the value is its name and the issuer is empty.
    Realm = 4,
    /// An issuer; the value is its `iss` and the issuer is empty.
    Issuer = 5,
    /// A signing key; the value is its `kid`.
    Key = 6,
    /// What was learnt of an opaque token. The ids are those of kind [`IdKind::Token`]; their watermarks revoke nothing, but
    /// say since when another answer may be had.
    Introspection = 7,
}

impl IdKind {
    /// Every kind, by its number.
    pub const ALL: [Self; 8] = [
        Self::Token,
        Self::Session,
        Self::Subject,
        Self::Client,
        Self::Realm,
        Self::Issuer,
        Self::Key,
        Self::Introspection,
    ];

    /// The kind of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// A domain-separated hash over (kind, issuer, value): 128 bits, so that ten million of them collide with a probability
/// of about 10^-25, and none can be computed for another kind or issuer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id([u8; 16]);

impl Id {
    /// The id of `value` within `issuer`; see [`IdKind`] for what stands for what.
    pub fn of(kind: IdKind, issuer: &str, value: &str) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(b"atm-id-v1");
        context.update(&[kind as u8]);
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        context.update(&(issuer.len() as u64).to_be_bytes());
        context.update(issuer.as_bytes());
        context.update(value.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&context.finish().as_ref()[..16]);
        Self(id)
    }

    /// From the bytes on the wire or in a store.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_issuer_and_value_are_kept_apart() {
        let ids = [
            Id::of(IdKind::Token, "ab", "c"),
            Id::of(IdKind::Token, "a", "bc"),
            Id::of(IdKind::Session, "ab", "c"),
            Id::of(IdKind::Token, "ab", "d"),
        ];
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids[at + 1..].contains(id));
        }
    }

    #[test]
    fn numbers_name_their_kinds() {
        for kind in IdKind::ALL {
            assert_eq!(IdKind::from_number(kind as u8), Some(kind));
        }
        assert_eq!(IdKind::from_number(8), None);
    }
}
