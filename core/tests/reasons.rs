//! The reason table, and the page that is made from it.

use std::path::Path;

use atm_core::reason::{self, Reason};

#[test]
fn the_page_of_the_documentation_is_made_from_the_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reasons.md");
    let written = std::fs::read_to_string(page).unwrap_or_default();
    assert_eq!(written, reason::reference(), "make it anew: atmctl reason --markdown > docs/reasons.md");
}

#[test]
fn every_reason_says_what_it_means_and_what_to_do() {
    for reason in Reason::ALL {
        for text in [reason.meaning(), reason.advice()] {
            assert!(text.len() > 20 && !text.contains(['|', '\n']), "{reason}: {text}");
            assert!(text.ends_with('.') && !text.starts_with(' '), "{reason}: {text}");
        }
        assert_ne!(reason.meaning(), reason.description(), "{reason}: operators are told more than callers");
    }
}
