//! Mints tokens for tests, well and badly: header and claims are whatever the test says.

use atm_core::base64url;
use atm_core::jwk::jwk_from_spki;
use atm_core::key::{Algorithm, Issuer, Issuers, KeyState, VerificationKey};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding};
use base64::Engine;
use serde_json::{Value, json};

/// The issuer of every token here.
pub(crate) const ISSUER: &str = "https://issuer.example";
/// Now, in seconds since the Unix epoch.
pub(crate) const NOW: i64 = 1_763_942_400;

enum Private {
    Elliptic(EcdsaKeyPair),
    Edwards(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

/// A private key and the algorithm that it signs with.
pub(crate) struct Minter {
    pub(crate) algorithm: Algorithm,
    private: Private,
}

impl Minter {
    /// A fresh key.
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        let private = match algorithm {
            Algorithm::EdDSA => Private::Edwards(Ed25519KeyPair::generate().unwrap()),
            _ => match elliptic(algorithm) {
                Some(curve) => Private::Elliptic(EcdsaKeyPair::generate(curve).unwrap()),
                None => Private::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
            },
        };
        Self { algorithm, private }
    }

    /// The same key, signing with another algorithm of its family.
    pub(crate) fn with_algorithm(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    pub(crate) fn spki(&self) -> Vec<u8> {
        let der = match &self.private {
            Private::Elliptic(key) => key.public_key().as_der(),
            Private::Edwards(key) => key.public_key().as_der(),
            Private::Rsa(key) => key.public_key().as_der(),
        };
        der.unwrap().as_ref().to_vec()
    }

    pub(crate) fn jwk(&self) -> Value {
        jwk_from_spki("k1", self.algorithm, &self.spki()).unwrap()
    }

    /// The private key in PEM (RFC 7468 §10).
    pub(crate) fn pem(&self) -> String {
        let der = match &self.private {
            Private::Elliptic(key) => key.to_pkcs8v1().unwrap().as_ref().to_vec(),
            Private::Edwards(key) => key.to_pkcs8v1().unwrap().as_ref().to_vec(),
            Private::Rsa(key) => AsDer::<Pkcs8V1Der>::as_der(key).unwrap().as_ref().to_vec(),
        };
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
    }

    pub(crate) fn key(&self, kid: &str) -> VerificationKey {
        VerificationKey::from_spki(kid, self.algorithm, &self.spki(), KeyState::Active).unwrap()
    }

    /// Trust in [`ISSUER`], of the default realm, with this key as `k1`.
    pub(crate) fn issuers(&self) -> Issuers {
        let mut issuers = Issuers::default();
        issuers.set(Issuer::new(ISSUER, Some("default".into()), vec![self.key("k1")]));
        issuers
    }

    pub(crate) fn signature(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.private {
            Private::Elliptic(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Private::Edwards(key) => key.sign(message).as_ref().to_vec(),
            Private::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(rsa_encoding(self.algorithm), &random, message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// Signs exactly these bytes as header and payload.
    pub(crate) fn sign(&self, header: &[u8], payload: &[u8]) -> String {
        let input = format!("{}.{}", base64url::encode(header), base64url::encode(payload));
        let signature = base64url::encode(&self.signature(input.as_bytes()));
        format!("{input}.{signature}")
    }

    /// A good token but for these members of header and claims; null removes one.
    pub(crate) fn token(&self, header: &Value, claims: &Value) -> String {
        let header = changed(json!({"alg": self.algorithm.as_str(), "typ": "at+jwt", "kid": "k1"}), header);
        self.sign(header.to_string().as_bytes(), changed(good_claims(), claims).to_string().as_bytes())
    }

    /// A good token.
    pub(crate) fn good(&self) -> String {
        self.token(&json!({}), &json!({}))
    }
}

/// The claims of a good token.
pub(crate) fn good_claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "alice", "aud": "orders-api", "client_id": "shop", "jti": "t-1", "sid": "s-1",
        "iat": NOW - 10, "exp": NOW + 60, "scope": "orders.read orders.write",
    })
}

fn changed(mut object: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(name);
        } else {
            object[name] = value.clone();
        }
    }
    object
}

fn elliptic(algorithm: Algorithm) -> Option<&'static EcdsaSigningAlgorithm> {
    match algorithm {
        Algorithm::ES256 => Some(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        Algorithm::ES384 => Some(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        Algorithm::ES512 => Some(&signature::ECDSA_P521_SHA512_FIXED_SIGNING),
        _ => None,
    }
}

fn rsa_encoding(algorithm: Algorithm) -> &'static dyn RsaEncoding {
    match algorithm {
        Algorithm::RS256 => &signature::RSA_PKCS1_SHA256,
        Algorithm::RS384 => &signature::RSA_PKCS1_SHA384,
        Algorithm::RS512 => &signature::RSA_PKCS1_SHA512,
        Algorithm::PS256 => &signature::RSA_PSS_SHA256,
        Algorithm::PS384 => &signature::RSA_PSS_SHA384,
        Algorithm::PS512 => &signature::RSA_PSS_SHA512,
        other => panic!("{other} takes no RSA key"),
    }
}
