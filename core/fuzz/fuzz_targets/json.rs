//! What is read agrees with serde_json, and typing it as claims never panics.
#![no_main]

use atm_core::claims::Claims;
use atm_core::json;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(object) = json::parse_object(bytes) {
        let lax: Value = serde_json::from_slice(bytes).expect("the strict parser is stricter");
        assert_eq!(Value::Object(object.clone()), lax);
        let _ = Claims::from_object(object);
    }
});
