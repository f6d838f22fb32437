//! `/admin/v1/openapi.json`: the admin API described for machines (OpenAPI 3.1). The description is written by hand beside the
//! handlers, and held to what they do by a property-based tester (`control-plane/tests/clients`).

use std::sync::LazyLock;

use axum::Json;
use serde_json::Value;

const TEXT: &str = include_str!("openapi.yaml");

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    // A test reads it; at run time a broken document is an empty one.
    serde_norway::from_str(TEXT).unwrap_or_default()
});

pub(super) async fn show() -> Json<&'static Value> {
    Json(&DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let routes: BTreeSet<&str> = include_str!("../admin.rs")
            .split('"')
            .filter(|text| text.starts_with("/admin/v1/") && !text.contains('*'))
            .collect();
        let described: BTreeSet<&str> =
            DOCUMENT["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(described, routes);
    }

    #[test]
    fn the_document_reads_and_every_reference_has_its_end() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(members) => {
                    for (name, value) in members {
                        match (name.as_str(), value) {
                            ("$ref", Value::String(target)) => found.push(target.clone()),
                            _ => references(value, found),
                        }
                    }
                }
                Value::Array(entries) => entries.iter().for_each(|entry| references(entry, found)),
                _ => {}
            }
        }
        assert_eq!(DOCUMENT["openapi"], "3.1.0");
        let mut found = Vec::new();
        references(&DOCUMENT, &mut found);
        assert!(found.len() > 20);
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(DOCUMENT.pointer(pointer).is_some(), "{target}");
        }
        for (path, operations) in DOCUMENT["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                if method != "parameters" {
                    assert!(operation["summary"].is_string(), "{method} {path}");
                    assert!(
                        operation["responses"]["default"].is_object(),
                        "{method} {path} has no problem response"
                    );
                }
            }
        }
    }
}
