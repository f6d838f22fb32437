//! A JWK set (RFC 7517 §5) as its issuer publishes it, and what of it can be used.

use std::collections::BTreeSet;

use atm_core::base64url;
use atm_core::json;
use atm_core::jwk;
use atm_core::key::{Algorithm, KeyState, VerificationKey, is_kid};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::secret::sha256;

/// Keys that a set may have, used or not.
pub const MAX_KEYS: usize = 64;

/// The usable keys in the order of their ids, and why others are not used.
#[derive(Debug, Clone)]
pub struct KeySet {
    /// One or more.
    pub keys: Vec<VerificationKey>,
    /// Keys that were passed over.
    pub skipped: Vec<SkippedKey>,
}

/// A key that verifies nothing here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedKey {
    /// Its place in the set, from 0.
    pub index: usize,
    /// Its id, where it has one that could be used.
    pub kid: Option<String>,
    /// Why; holds nothing of the key.
    pub reason: String,
}

/// Why a whole set is refused. Nothing of it is used then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not JSON, ambiguous, or without an array `keys`.
    #[error("is no JWK set: {0}")]
    Malformed(String),
    /// More than [`MAX_KEYS`].
    #[error("has {0} keys, at most {MAX_KEYS} are read")]
    TooMany(usize),
    /// Two keys that could be used have one id, so a token names neither.
    #[error("has two keys with the kid {0}")]
    DuplicateKid(String),
    /// None of the keys can be used.
    #[error("has no usable signature key{}", reasons(.0))]
    Unusable(Vec<SkippedKey>),
}

fn reasons(skipped: &[SkippedKey]) -> String {
    let reasons: BTreeSet<&str> = skipped.iter().map(|key| key.reason.as_str()).collect();
    if reasons.is_empty() { String::new() } else { format!(" ({})", Vec::from_iter(reasons).join("; ")) }
}

/// Reads a set. With `algorithms`, only keys of these are used, and an RSA key without `alg` is pinned to the first RSA one of
/// them; without, to RS256.
pub fn parse(document: &[u8], algorithms: &[Algorithm]) -> Result<KeySet, KeySetError> {
    let malformed = |problem: &str| KeySetError::Malformed(problem.to_owned());
    let set = json::parse_object(document).map_err(|error| malformed(&error.to_string()))?;
    let entries = set.get("keys").and_then(Value::as_array).ok_or(malformed("it has no array \"keys\""))?;
    if entries.len() > MAX_KEYS {
        return Err(KeySetError::TooMany(entries.len()));
    }
    let (mut keys, mut skipped): (Vec<VerificationKey>, Vec<SkippedKey>) = (Vec::new(), Vec::new());
    for (index, entry) in entries.iter().enumerate() {
        let kid = entry.get("kid").and_then(Value::as_str).filter(|kid| is_kid(kid)).map(str::to_owned);
        // Without an id a key is found only where it is the only one.
        let read = if entry.get("kid").is_none() && entries.len() > 1 {
            Err("has no kid beside other keys".to_owned())
        } else {
            key_from(entry, algorithms)
        };
        match read {
            Ok(key) if keys.iter().any(|other| other.kid() == key.kid()) => {
                return Err(KeySetError::DuplicateKid(key.kid().to_owned()));
            }
            Ok(key) => keys.push(key),
            Err(reason) => skipped.push(SkippedKey { index, kid, reason }),
        }
    }
    if keys.is_empty() {
        return Err(KeySetError::Unusable(skipped));
    }
    // The order in the document means nothing (RFC 7517 §5), so it makes no change either.
    keys.sort_by(|a, b| a.kid().cmp(b.kid()));
    Ok(KeySet { keys, skipped })
}

fn key_from(entry: &Value, algorithms: &[Algorithm]) -> Result<VerificationKey, String> {
    let read = jwk::spki_from_jwk(entry).map_err(|error| error.to_string())?;
    let pinned = if entry.get("alg").is_none() && entry.get("kty").is_some_and(|kty| kty == "RSA") {
        algorithms.iter().copied().find(|algorithm| is_rsa(*algorithm)).unwrap_or(read.algorithm)
    } else {
        read.algorithm
    };
    if !algorithms.is_empty() && !algorithms.contains(&pinned) {
        return Err(format!("alg: {pinned} is none of the issuer's registered algorithms"));
    }
    let kid = read.kid.unwrap_or_else(|| base64url::encode(&sha256(&read.spki)));
    VerificationKey::from_spki(&kid, pinned, &read.spki, KeyState::Active).map_err(|error| error.to_string())
}

fn is_rsa(algorithm: Algorithm) -> bool {
    !matches!(algorithm, Algorithm::ES256 | Algorithm::ES384 | Algorithm::ES512 | Algorithm::EdDSA)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::keys::Signer;

    fn jwk(kid: &str, algorithm: Algorithm) -> Value {
        let signer = Signer::generate(algorithm).unwrap();
        jwk::jwk_from_spki(kid, algorithm, signer.spki()).unwrap()
    }

    fn without(mut jwk: Value, member: &str) -> Value {
        jwk.as_object_mut().unwrap().remove(member);
        jwk
    }

    fn read(keys: &[Value], algorithms: &[Algorithm]) -> Result<KeySet, KeySetError> {
        parse(json!({ "keys": keys }).to_string().as_bytes(), algorithms)
    }

    #[test]
    fn what_cannot_be_used_is_skipped_with_its_reason() {
        let mut encryption = jwk("enc", Algorithm::ES256);
        encryption["use"] = "enc".into();
        let mut private = jwk("private", Algorithm::ES256);
        private["d"] = "AQ".into();
        let keys = [
            jwk("z", Algorithm::ES256),
            encryption,
            private,
            json!({"kty": "oct", "kid": "sym", "k": "AQ"}),
            json!({"kty": "quantum", "kid": "new"}),
            jwk("../../etc", Algorithm::ES256),
            without(jwk("x", Algorithm::ES256), "kid"),
            json!("no object"),
            jwk("a", Algorithm::EdDSA),
        ];
        let set = read(&keys, &[]).unwrap();
        assert_eq!(set.keys.iter().map(VerificationKey::kid).collect::<Vec<_>>(), ["a", "z"]);
        assert_eq!(set.skipped.iter().map(|key| key.index).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(set.skipped[0].kid.as_deref(), Some("enc"));
        assert_eq!(set.skipped[4].kid, None, "an id that could not be used is not repeated");
    }

    #[test]
    fn a_set_without_a_usable_key_or_with_an_ambiguous_one_is_refused() {
        let twice = [jwk("a", Algorithm::ES256), jwk("a", Algorithm::ES256)];
        assert_eq!(read(&twice, &[]).unwrap_err(), KeySetError::DuplicateKid("a".into()));
        assert!(matches!(read(&[], &[]), Err(KeySetError::Unusable(_))));
        let symmetric = json!({"kty": "oct", "kid": "sym", "k": "AQ"});
        let error = read(std::slice::from_ref(&symmetric), &[]).unwrap_err();
        assert!(error.to_string().contains("symmetric"), "{error}");
        assert_eq!(read(&vec![symmetric; 65], &[]).unwrap_err(), KeySetError::TooMany(65));
        for document in ["", "[]", "{}", r#"{"keys": {}}"#, r#"{"keys": [], "keys": []}"#, "<html>"] {
            assert!(matches!(parse(document.as_bytes(), &[]), Err(KeySetError::Malformed(_))), "{document}");
        }
    }

    #[test]
    fn a_key_is_pinned_to_one_allowed_algorithm() {
        let rsa = without(jwk("r", Algorithm::RS256), "alg");
        let pinned = |algorithms: &[Algorithm]| {
            read(std::slice::from_ref(&rsa), algorithms).map(|set| set.keys[0].algorithm())
        };
        assert_eq!(pinned(&[]).unwrap(), Algorithm::RS256);
        assert_eq!(
            pinned(&[Algorithm::ES256, Algorithm::PS256, Algorithm::RS256]).unwrap(),
            Algorithm::PS256
        );
        assert!(pinned(&[Algorithm::ES256]).is_err());
        assert!(read(&[jwk("e", Algorithm::ES256)], &[Algorithm::RS256]).is_err());
    }

    #[test]
    fn a_key_alone_needs_no_id() {
        let alone = without(jwk("x", Algorithm::ES256), "kid");
        let first = read(std::slice::from_ref(&alone), &[]).unwrap();
        assert_eq!(first.keys[0].kid(), read(&[alone], &[]).unwrap().keys[0].kid());
    }
}
