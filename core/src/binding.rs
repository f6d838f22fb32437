//! Proof of possession: what a token is bound to (RFC 7800), DPoP proofs (RFC 9449) and client certificates (RFC 8705). Pure:
//! whoever remembers used proofs and holds the nonce key lends them.

use serde_json::Value;

use crate::base64url;

pub mod certificate;
pub mod dpop;
mod forwarded;
mod nonce;

pub use certificate::{CertificateDetails, CertificateError, ClientCertificate};
pub use dpop::{DpopError, VerifiedProof};
pub use nonce::NonceKey;

/// What a token is bound to: its `cnf` claim (RFC 7800 §3.1), typed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confirmation {
    /// `jkt`: the thumbprint of a DPoP key (RFC 9449 §6.1).
    pub jkt: Option<String>,
    /// `x5t#S256`: the thumbprint of a client certificate (RFC 8705 §3.1).
    pub x5t_s256: Option<String>,
    /// Whether it binds in a way that is not known here, or in none.
    pub unsupported: bool,
}

/// A `cnf` claim that is not well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a confirmation is an object whose thumbprints are the base64url of 32 bytes")]
pub struct ConfirmationError;

impl Confirmation {
    /// Reads the claim. An empty one counts as unsupported: it was meant to bind.
    pub fn from_value(value: &Value) -> Result<Self, ConfirmationError> {
        let members = value.as_object().ok_or(ConfirmationError)?;
        let mut confirmation = Self { unsupported: members.is_empty(), ..Self::default() };
        for (name, value) in members {
            match name.as_str() {
                "jkt" => confirmation.jkt = Some(thumbprint(value)?),
                "x5t#S256" => confirmation.x5t_s256 = Some(thumbprint(value)?),
                _ => confirmation.unsupported = true,
            }
        }
        Ok(confirmation)
    }
}

fn thumbprint(value: &Value) -> Result<String, ConfirmationError> {
    let text = value.as_str().ok_or(ConfirmationError)?;
    let is_digest = base64url::decode(text).is_ok_and(|bytes| bytes.len() == 32);
    if is_digest { Ok(text.to_owned()) } else { Err(ConfirmationError) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_binds_is_told_from_what_is_not_understood() {
        let digest = base64url::encode(&[7; 32]);
        let read = |value: &Value| Confirmation::from_value(value);
        let both = read(&json!({"jkt": digest, "x5t#S256": digest})).unwrap();
        assert_eq!((both.jkt.as_deref(), both.x5t_s256.as_deref()), (Some(&*digest), Some(&*digest)));
        assert!(!both.unsupported);
        for value in [json!({}), json!({"jwk": {}}), json!({"jkt": digest, "kid": "a"})] {
            assert!(read(&value).unwrap().unsupported, "{value}");
        }
        for value in [
            json!(null),
            json!("a"),
            json!({"jkt": 1}),
            json!({"jkt": "AQ"}),
            json!({"jkt": format!("{digest}=")}),
        ] {
            assert_eq!(read(&value), Err(ConfirmationError), "{value}");
        }
    }
}
