//! What is decoded has exactly one text.
#![no_main]

use atm_core::base64url;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(bytes) = base64url::decode(text) {
        assert_eq!(base64url::encode(&bytes), text);
    }
});
