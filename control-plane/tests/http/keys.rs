//! What clients sign with: assertions (RFC 7523) and proofs (RFC 9449).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use atm_core::key::Algorithm;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::harness::ISSUER;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Seconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// A text that no other call returns.
pub(crate) fn unique() -> String {
    format!("unique-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A P-256 key of a client.
pub(crate) struct SigningKey {
    pair: EcdsaKeyPair,
    pub(crate) jwk: Value,
}

impl SigningKey {
    pub(crate) fn new() -> Self {
        Self::named("k1")
    }

    pub(crate) fn named(kid: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let spki = pair.public_key().as_der().unwrap().as_ref().to_vec();
        let full = atm_core::jwk::jwk_from_spki(kid, Algorithm::ES256, &spki).unwrap();
        Self { pair, jwk: full }
    }

    pub(crate) fn jwks(&self) -> Value {
        json!({ "keys": [self.jwk] })
    }

    pub(crate) fn thumbprint(&self) -> String {
        atm_core::jwk::thumbprint(&self.jwk).unwrap()
    }

    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", encode(header), encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    /// A good assertion of `issuer` about `subject`, with changes; null removes a claim.
    pub(crate) fn assertion(&self, issuer: &str, subject: &str, changes: &Value) -> String {
        let mut claims = json!({
            "iss": issuer, "sub": subject, "aud": ISSUER, "exp": now() + 60, "iat": now(), "jti": unique(),
        });
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        self.sign(&json!({ "alg": "ES256", "kid": self.jwk["kid"], "typ": "JWT" }), &claims)
    }

    /// A good proof for the token endpoint.
    pub(crate) fn proof(&self, nonce: Option<&str>) -> String {
        self.proof_for(&format!("{ISSUER}/oauth2/token"), nonce)
    }

    pub(crate) fn proof_for(&self, uri: &str, nonce: Option<&str>) -> String {
        let jwk = json!({ "kty": "EC", "crv": "P-256", "x": self.jwk["x"], "y": self.jwk["y"] });
        let mut claims = json!({ "htm": "POST", "htu": uri, "iat": now(), "jti": unique() });
        if let Some(nonce) = nonce {
            claims["nonce"] = nonce.into();
        }
        self.sign(&json!({ "alg": "ES256", "typ": "dpop+jwt", "jwk": jwk }), &claims)
    }
}
