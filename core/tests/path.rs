//! What holds for every path.

use atm_core::path::{NormalisedPath, normalise};
use proptest::prelude::*;

/// Targets made of what has been used to walk around rules.
fn hostile_target() -> impl Strategy<Value = String> {
    let pieces = vec![
        "/", "//", ".", "..", "a", "B", "~", "@", "%40", "%2e", "%2E", "%2f", "%5c", "\\", ";", "%3b", "%25",
        "%252e", "%", "%g", "%00", "%c0%ae", "%c3%a9", "%20", " ", "?", "#", "é", "*", "{", "\u{0}",
        "\u{ff0e}",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..12)
        .prop_map(|parts| format!("/{}", parts.concat()))
}

fn check(target: &str) -> Result<(), TestCaseError> {
    let Ok(path) = normalise(target) else { return Ok(()) };
    let again = normalise(path.as_str());
    prop_assert_eq!(again.as_ref(), Ok(&path), "not idempotent");
    prop_assert!(path.as_str().starts_with('/'));
    prop_assert!(path.as_str().is_ascii());
    prop_assert!(!path.as_str().contains(['?', '#', ';', '\\', ' ']));
    for segment in path.segments() {
        prop_assert!(!["", ".", ".."].contains(&segment), "dot segment in {}", path);
        let upper = segment.to_ascii_uppercase();
        prop_assert!(
            !["%2E", "%2F", "%5C", "%00", "%3B"].iter().any(|code| upper.contains(code)),
            "{}",
            path
        );
    }
    let joined = format!("/{}", path.segments().collect::<Vec<_>>().join("/"));
    prop_assert_eq!(joined, path.as_str());
    Ok(())
}

/// Encodes every byte of each segment.
fn encode_all(path: &str) -> String {
    let encode = |byte| if byte == b'/' { "/".to_owned() } else { format!("%{byte:02x}") };
    path.bytes().map(encode).collect::<Vec<_>>().concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn hostile_targets_have_one_reading_or_none(target in hostile_target()) {
        check(&target)?;
    }

    #[test]
    fn any_text_has_one_reading_or_none(target in any::<String>()) {
        check(&target)?;
        check(&format!("/{target}"))?;
    }

    #[test]
    fn encoding_a_character_never_reaches_another_rule(path in "(/[a-zA-Z0-9@:!$&'()*+,=_~-]{1,8}){1,5}") {
        let encoded = encode_all(&path);
        let normal = normalise(&encoded);
        prop_assert_eq!(normal.as_ref().map(NormalisedPath::as_str), Ok(path.as_str()));
    }
}
