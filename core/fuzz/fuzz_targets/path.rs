//! A normalised path is its own normal form, and holds nothing that a server behind could read differently.
#![no_main]

use atm_core::path;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|target: &str| {
    if let Ok(normal) = path::normalise(target) {
        let text = normal.as_str();
        assert!(text.starts_with('/') && !text.contains(['\\', '\0', '?', '#']) && !text.contains("//"));
        assert!(text.split('/').all(|segment| segment != "." && segment != ".."));
        assert_eq!(path::normalise(text).expect("a normal form is accepted").as_str(), text);
    }
});
