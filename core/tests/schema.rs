//! The JSON Schema of policy documents, as editors use it: it takes what the compiler takes and shows a typo.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy knows only the test functions themselves

use std::path::Path;

use serde_json::{Value, json};

fn examples() -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policies");
    let mut examples = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        // A table of tests is no document.
        let is_table = path.file_stem().is_some_and(|stem| Path::new(stem).extension().is_some());
        if path.extension().is_some_and(|extension| extension == "yaml") && !is_table {
            let text = std::fs::read_to_string(&path).unwrap();
            examples.push((name, serde_norway::from_str(&text).unwrap()));
        }
    }
    assert!(examples.len() >= 3);
    examples
}

/// A document that uses every key.
fn complete() -> Value {
    json!({
        "apiVersion": "atm.dev/v1", "kind": "TokenPolicy",
        "metadata": {"name": "all", "labels": {"team": "a"}, "annotations": {"note": "b"}},
        "spec": {
            "mode": "enforce", "rollout": {"percent": 12.5, "by": "x-user"}, "issuers": ["https://i"], "audiences": ["a"],
            "knownScopes": ["s", "t"], "clockSkewSeconds": 10, "onStale": "allow", "allowStaleSeconds": 60,
            "credential": [{"header": "authorization", "scheme": "DPoP"}, {"header": "x-key", "prefix": "k "}, {"cookie": "c"}, {"query": "q"}],
            "accepts": ["jwt", "opaque", "apiKey"],
            "binding": {"require": "any", "dpop": {"nonce": true, "maxAgeSeconds": 30, "origins": ["https://a.example"]}},
            "forwardToken": false,
            "upstreamHeaders": [{"name": "x-a", "claim": "a"}, {"name": "x-b", "claim": ["b", "c"], "encode": "json"}],
            "metadataClaims": ["a", ["b", "c"]],
            "rules": [
                {
                    "name": "r", "hosts": ["*.example.com"], "methods": ["GET"], "paths": ["/a/{id}"], "extensions": {"e": "v"},
                    "issuers": ["https://i"], "audiences": ["b"], "scopes": {"all": ["s"], "any": ["t"]},
                    "condition": "token.sub == request.params.id", "credential": {"scheme": "DPoP"}, "accepts": ["opaque"],
                    "binding": {"require": "dpop"}, "onStale": "introspect",
                },
                {"paths": ["/inherits"]},
                {"paths": ["/healthz"], "allowAnonymous": true},
            ],
        },
    })
}

#[test]
fn what_the_compiler_takes_the_schema_takes() {
    let validator = jsonschema::validator_for(&atm_core::policy::json_schema()).unwrap();
    for (name, document) in examples().into_iter().chain([("complete".to_owned(), complete())]) {
        let errors: Vec<String> = validator
            .iter_errors(&document)
            .map(|error| format!("{}: {error}", error.instance_path))
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}");
        let compiled = atm_core::policy::compile(&[document.to_string()]);
        assert!(compiled.is_ok(), "{name}: {}", compiled.unwrap_err()[0]);
    }
}

#[test]
fn a_typo_or_a_value_of_another_kind_is_refused_by_both() {
    let validator = jsonschema::validator_for(&atm_core::policy::json_schema()).unwrap();
    for (pointer, key, value) in [
        ("", "spce", json!({})),
        ("", "apiVersion", json!("atm.dev/v2")),
        ("", "kind", json!("Policy")),
        ("/metadata", "nmae", json!("x")),
        ("/spec", "audience", json!(["a"])),
        ("/spec", "mode", json!("audit")),
        ("/spec", "clockSkewSeconds", json!(301)),
        ("/spec", "clockSkewSeconds", json!(-1)),
        ("/spec", "accepts", json!(["api-key"])),
        ("/spec", "onStale", json!("ignore")),
        ("/spec/rollout", "percentage", json!(5)),
        ("/spec/rollout", "percent", json!(101)),
        ("/spec/binding", "require", json!("mtls")),
        ("/spec/binding/dpop", "maxAgeSeconds", json!(0)),
        ("/spec/credential/0", "headr", json!("x")),
        ("/spec/upstreamHeaders/0", "encode", json!("csv")),
        ("/spec/rules/0", "path", json!("/a")),
        ("/spec/rules/0", "paths", json!("/a")),
        ("/spec/rules/0", "allowAnonymos", json!(true)),
        ("/spec/rules/0/scopes", "every", json!(["s"])),
    ] {
        let mut document = complete();
        document.pointer_mut(pointer).unwrap()[key] = value.clone();
        assert!(!validator.is_valid(&document), "{pointer}/{key}: {value} passes the schema");
        assert!(
            atm_core::policy::compile(&[document.to_string()]).is_err(),
            "{pointer}/{key}: {value} compiles"
        );
    }
    let mut document = complete();
    document["spec"].as_object_mut().unwrap().remove("rules");
    assert!(!validator.is_valid(&document));
}
