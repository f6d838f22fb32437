//! Three parts of any bytes, and any text: no panic, and nothing passes unsigned.
#![no_main]

use std::sync::LazyLock;

use atm_core::base64url;
use atm_core::jwk::spki_from_jwk;
use atm_core::jws::UnverifiedToken;
use atm_core::key::{Issuer, Issuers, KeyState, VerificationKey};
use atm_core::token::KeyedToken;
use libfuzzer_sys::fuzz_target;

/// RFC 8037 §A.2, under the name `i`, so that a fuzzer finds the way to the signature.
static ISSUERS: LazyLock<Issuers> = LazyLock::new(|| {
    let jwk = serde_json::json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let key = spki_from_jwk(&jwk).expect("the key of the RFC");
    let key = VerificationKey::from_spki("k", key.algorithm, &key.spki, KeyState::Active).expect("a key");
    let mut issuers = Issuers::default();
    issuers.set(Issuer::new("i", None, vec![key]));
    issuers
});

fn check(token: &str) {
    if let Ok(keyed) = UnverifiedToken::parse(token).and_then(|token| KeyedToken::select(token, &ISSUERS)) {
        assert!(keyed.verify().is_err(), "a forged token");
    }
}

fuzz_target!(|input: (&str, &[u8], &[u8], &[u8])| {
    let (text, header, payload, signature) = input;
    check(text);
    check(&[header, payload, signature].map(base64url::encode).join("."));
});
