//! Any text as a policy document: compiled or refused with a place in it, never a panic.
#![no_main]

use atm_core::policy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(errors) = policy::compile(&[text.to_owned()]) {
        assert!(!errors.is_empty());
    }
});
