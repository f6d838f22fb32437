//! Any text as a DPoP proof: refused with its reason, never a panic. What fits the expected key by chance cannot be signed by it.
#![no_main]

use atm_core::base64url;
use atm_core::binding::dpop::{self, Expected, NonceCheck};
use atm_core::time::UnixMillis;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: (&str, &str, &[u8])| {
    let (header, payload, signature) = parts;
    let proof = format!(
        "{}.{}.{}",
        base64url::encode(header.as_bytes()),
        base64url::encode(payload.as_bytes()),
        base64url::encode(signature)
    );
    let origins = [("https".to_owned(), "api.example.com".to_owned())];
    for text in [proof.as_str(), header] {
        let expected = Expected {
            method: "GET",
            origins: &origins,
            target: payload,
            access_token: Some("token"),
            thumbprint: Some("0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"),
            now: UnixMillis::from_seconds(1_763_942_400),
            max_age_seconds: 60,
            clock_skew_seconds: 5,
            nonce: NonceCheck::NotAsked,
        };
        assert!(dpop::verify(text, &expected).is_err());
    }
});
