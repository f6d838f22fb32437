//! Any text as a condition over any claims: refused with a place in it, or evaluated to an outcome within its budget.
#![no_main]

use atm_core::policy::{CertificateFacts, Condition, Facts};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

struct Claims(Map<String, Value>);

impl Facts for Claims {
    fn method(&self) -> &str {
        "GET"
    }
    fn host(&self) -> &str {
        "api.example.com"
    }
    fn path(&self) -> &str {
        "/orders/42"
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn scheme(&self) -> &str {
        "https"
    }
    fn source_address(&self) -> Option<&str> {
        Some("10.0.0.1")
    }
    fn header(&self, _name: &str) -> Option<String> {
        Some("value".to_owned())
    }
    fn extension(&self, _name: &str) -> Option<&str> {
        None
    }
    fn path_parameter(&self, _name: &str) -> Option<&str> {
        Some("42")
    }
    fn claims(&self) -> Option<&Map<String, Value>> {
        Some(&self.0)
    }
    fn certificate(&self) -> Option<CertificateFacts<'_>> {
        None
    }
    fn now_seconds(&self) -> i64 {
        1_763_942_400
    }
}

fuzz_target!(|input: (&str, &[u8])| {
    let (text, claims) = input;
    match Condition::compile(text) {
        Ok(condition) => {
            let claims = atm_core::json::parse_object(claims).unwrap_or_default();
            let _ = condition.evaluate(&Claims(claims));
        }
        Err(error) => assert!(error.line >= 1 && error.column >= 1 && !error.message.is_empty()),
    }
});
