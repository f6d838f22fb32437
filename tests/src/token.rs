//! Tokens made by hand: any header, any claims, any signature.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use atm_core::id::{Id, IdKind};
use atm_proto::wire;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

/// Seconds since the Unix epoch.
pub fn now() -> i64 {
    now_ms() / 1000
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("before the year 292 million")
}

/// Base64url without padding.
pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[derive(Debug)]
enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    RsaPkcs1(RsaKeyPair),
    RsaPss(RsaKeyPair),
}

/// A private key of the test, under a `kid` and a JWA name.
#[derive(Debug)]
pub struct SigningKey {
    kid: String,
    algorithm: &'static str,
    pair: Pair,
}

impl SigningKey {
    /// A new key for `algorithm`: ES256, ES384, EdDSA, RS256 or PS256.
    pub fn generate(kid: &str, algorithm: &'static str) -> Self {
        let rsa = || RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let pair = match algorithm {
            "ES256" => Pair::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
            "ES384" => Pair::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap()),
            "EdDSA" => Pair::Ed25519(Ed25519KeyPair::generate().unwrap()),
            "RS256" => Pair::RsaPkcs1(rsa()),
            "PS256" => Pair::RsaPss(rsa()),
            other => panic!("no key of {other} is made here"),
        };
        Self { kid: kid.to_owned(), algorithm, pair }
    }

    /// The key's id.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The JWA name.
    pub fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// The public half: DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = match &self.pair {
            Pair::Ecdsa(pair) => pair.public_key().as_der().unwrap(),
            Pair::Ed25519(pair) => pair.public_key().as_der().unwrap(),
            Pair::RsaPkcs1(pair) | Pair::RsaPss(pair) => pair.public_key().as_der().unwrap(),
        };
        der.as_ref().to_vec()
    }

    /// The public half as the feed carries it, active.
    pub fn to_wire(&self) -> wire::VerificationKey {
        wire::VerificationKey {
            kid: self.kid.clone(),
            algorithm: self.algorithm.to_owned(),
            spki: self.spki(),
            state: wire::KeyState::Active.into(),
        }
    }

    /// The signature over `message`, in JOSE's form.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ecdsa(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::RsaPkcs1(pair) => sign_rsa(pair, &RSA_PKCS1_SHA256, message),
            Pair::RsaPss(pair) => sign_rsa(pair, &RSA_PSS_SHA256, message),
        }
    }
}

fn sign_rsa(
    pair: &RsaKeyPair,
    padding: &'static dyn aws_lc_rs::signature::RsaEncoding,
    message: &[u8],
) -> Vec<u8> {
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

/// An issuer of the test: its name, realm and keys.
#[derive(Debug)]
pub struct TokenMint {
    issuer: String,
    realm: String,
    keys: Vec<SigningKey>,
}

static NEXT_TOKEN: AtomicU64 = AtomicU64::new(1);

impl TokenMint {
    /// An issuer with these keys, given as (kid, JWA name); the first one signs unless told otherwise.
    pub fn new(issuer: &str, realm: &str, keys: &[(&str, &'static str)]) -> Self {
        let keys = keys.iter().map(|(kid, algorithm)| SigningKey::generate(kid, algorithm)).collect();
        Self { issuer: issuer.to_owned(), realm: realm.to_owned(), keys }
    }

    /// The `iss`.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The realm's name.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// The key of that id.
    pub fn key(&self, kid: &str) -> &SigningKey {
        self.keys.iter().find(|key| key.kid == kid).unwrap_or_else(|| panic!("no key {kid}"))
    }

    /// The change that makes a sidecar trust this issuer.
    pub fn to_change(&self) -> wire::change::Kind {
        wire::change::Kind::IssuerKeys(wire::IssuerKeys {
            issuer: self.issuer.clone(),
            realm: self.realm.clone(),
            keys: self.keys.iter().map(SigningKey::to_wire).collect(),
            token_types: vec![],
        })
    }

    /// As [`Self::to_change`], without one of the keys.
    pub fn to_change_without(&self, kid: &str) -> wire::change::Kind {
        wire::change::Kind::IssuerKeys(wire::IssuerKeys {
            issuer: self.issuer.clone(),
            realm: self.realm.clone(),
            keys: self.keys.iter().filter(|key| key.kid() != kid).map(SigningKey::to_wire).collect(),
            token_types: vec![],
        })
    }

    /// The 16-byte id of a thing that belongs to this issuer; realms and issuers are global.
    pub fn id(&self, kind: IdKind, value: &str) -> Id {
        let issuer = if matches!(kind, IdKind::Realm | IdKind::Issuer) { "" } else { &self.issuer };
        Id::of(kind, issuer, value)
    }

    /// A valid RFC 9068 access token of a fresh `jti`, to be changed as the test likes.
    pub fn token(&self) -> TokenBuilder<'_> {
        let number = NEXT_TOKEN.fetch_add(1, Ordering::Relaxed);
        let key = &self.keys[0];
        let claims = json!({
            "iss": self.issuer, "sub": "alice", "aud": "orders-api", "client_id": "shop",
            "exp": now() + 600, "iat": now() - 10, "jti": format!("jti-{number}"),
            "sid": format!("session-{number}"), "scope": "orders.read orders.write",
        });
        let header = json!({ "alg": key.algorithm, "typ": "at+jwt", "kid": key.kid });
        TokenBuilder { mint: self, key, header: object(header), claims: object(claims) }
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => panic!("an object literal"),
    }
}

/// A token under construction.
#[derive(Debug, Clone)]
pub struct TokenBuilder<'a> {
    mint: &'a TokenMint,
    key: &'a SigningKey,
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl<'a> TokenBuilder<'a> {
    /// Sets a claim.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.to_owned(), value.into());
        self
    }

    /// Removes a claim.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.claims.remove(name);
        self
    }

    /// Sets a header parameter.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header.insert(name.to_owned(), value.into());
        self
    }

    /// Removes a header parameter.
    #[must_use]
    pub fn without_header(mut self, name: &str) -> Self {
        self.header.remove(name);
        self
    }

    /// Signs with another of the issuer's keys, and says so in `alg` and `kid`.
    #[must_use]
    pub fn with_key(self, kid: &str) -> Self {
        let key = self.mint.key(kid);
        Self { key, ..self }.header("alg", key.algorithm).header("kid", kid)
    }

    /// Signs with any key and leaves the header as it is.
    #[must_use]
    pub fn forged_by(self, key: &'a SigningKey) -> Self {
        Self { key, ..self }
    }

    /// The token's `jti`.
    pub fn jti(&self) -> String {
        self.claims.get("jti").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// The signed token.
    pub fn sign(&self) -> String {
        self.sign_texts(&Value::from(self.header.clone()).to_string(), &self.claims_text())
    }

    /// The claims' JSON text, for tests that change it as text.
    pub fn claims_text(&self) -> String {
        Value::from(self.claims.clone()).to_string()
    }

    /// The signed token with this JSON text as claims.
    pub fn sign_claims_text(&self, claims: &str) -> String {
        self.sign_texts(&Value::from(self.header.clone()).to_string(), claims)
    }

    /// The signed token with this JSON text as header.
    pub fn sign_header_text(&self, header: &str) -> String {
        self.sign_texts(header, &self.claims_text())
    }

    fn sign_texts(&self, header: &str, claims: &str) -> String {
        let input = format!("{}.{}", base64url(header), base64url(claims));
        let signature = self.key.sign(input.as_bytes());
        format!("{input}.{}", base64url(signature))
    }

    /// The token with an HMAC-SHA-256 over it in place of a signature.
    pub fn sign_hmac(&self, secret: &[u8]) -> String {
        let header = Value::from(self.header.clone()).to_string();
        let input = format!("{}.{}", base64url(header), base64url(self.claims_text()));
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        let tag = aws_lc_rs::hmac::sign(&key, input.as_bytes());
        format!("{input}.{}", base64url(tag.as_ref()))
    }

    /// The token with an empty signature.
    pub fn unsigned(&self) -> String {
        let header = Value::from(self.header.clone()).to_string();
        format!("{}.{}.", base64url(header), base64url(self.claims_text()))
    }
}
