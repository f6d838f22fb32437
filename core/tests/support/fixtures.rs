//! A signer, claims and policies for the tests of this directory.
#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used)] // a test that cannot build its fixture fails

use atm_core::key::{Algorithm, KeyState, VerificationKey};
use atm_core::policy::{self, PolicySet};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// The issuer of the tests' tokens.
pub const ISSUER: &str = "https://issuer.example";
/// Their audience.
pub const AUDIENCE: &str = "orders-api";
/// The second in which the tests happen.
pub const NOW: i64 = 1_763_942_400;

/// An ES256 key.
pub struct Signer {
    kid: String,
    pair: EcdsaKeyPair,
}

impl Signer {
    pub fn new(kid: &str) -> Self {
        Self { kid: kid.to_owned(), pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
    }

    pub fn key(&self, state: KeyState) -> VerificationKey {
        let spki: PublicKeyX509Der<'_> = self.pair.public_key().as_der().unwrap();
        VerificationKey::from_spki(&self.kid, Algorithm::ES256, spki.as_ref(), state).unwrap()
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(&json!({"alg": "ES256", "typ": "at+jwt", "kid": self.kid}), claims)
    }

    pub fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", encode(header), encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Good claims, with changes; null removes one.
pub fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "sub": "alice", "aud": AUDIENCE, "client_id": "shop", "jti": "jti-1", "sid": "session-1",
        "iat": NOW - 10, "exp": NOW + 300, "scope": "orders.read orders.write",
    });
    let Value::Object(changes) = changes else { panic!("changes are an object") };
    for (name, value) in changes {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(&name);
        } else {
            claims[name] = value;
        }
    }
    claims
}

/// A policy `orders` for [`AUDIENCE`] with these rules, indented by four.
pub fn policies(rules: &str) -> PolicySet {
    let document = format!(
        "apiVersion: atm.dev/v1\nkind: TokenPolicy\nmetadata: {{ name: orders }}\nspec:\n  audiences: [{AUDIENCE}]\n  rules:\n{rules}\n"
    );
    policy::compile(&[document]).unwrap_or_else(|errors| panic!("{errors:?}"))
}
