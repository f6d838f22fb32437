//! The custom resource definitions. `TokenPolicy`'s schema is the one that the policy compiler prints for editors, brought into the
//! form that Kubernetes takes (a structural schema: no references, no alternatives of types).

use serde_json::{Map, Value, json};

use crate::resource::{GROUP, VERSION};

/// Both definitions as a YAML stream.
pub fn yaml() -> String {
    let text = |crd: &Value| serde_norway::to_string(crd).unwrap_or_default();
    format!(
        "# Made by `atm-operator crds` from the code's own schema; not to be edited.\n{}---\n{}",
        text(&token_policy()),
        text(&trusted_issuer())
    )
}

fn token_policy() -> Value {
    let schema = atm_core::policy::json_schema();
    let spec = structural(&schema["properties"]["spec"], &schema["$defs"]);
    let columns = json!([
        column("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status"),
        column("In force", "string", ".status.conditions[?(@.type==\"InForce\")].status"),
        column("Enforcing", "integer", ".status.inForceOn"),
        column("Validators", "integer", ".status.validators"),
        column("Age", "date", ".metadata.creationTimestamp"),
    ]);
    let numbers = json!({
        "revision": { "type": "integer", "format": "int64", "description": "The feed's revision that brings the newest set." },
        "inForceOn": { "type": "integer", "format": "int64", "description": "Live validators that enforce it." },
        "validators": { "type": "integer", "format": "int64", "description": "Live validators." },
    });
    let about =
        "Which requests pass, with which credential. A request that no rule of any policy covers is refused.";
    definition("TokenPolicy", "tokenpolicies", "tokenpolicy", &["tp"], about, &spec, &numbers, &columns)
}

fn trusted_issuer() -> Value {
    let list = |about: &str| json!({ "type": "array", "items": { "type": "string" }, "description": about });
    let spec = json!({
        "type": "object",
        "required": ["issuer"],
        "properties": {
            "issuer": {
                "type": "string", "minLength": 1, "description": "Exactly as in the tokens' iss.",
                "x-kubernetes-validations": [{ "rule": "self == oldSelf", "message": "is not to be changed; delete the resource and make another" }],
            },
            "jwksUri": { "type": "string", "description": "Where the keys are; the issuer's metadata says when left out." },
            "jwks": { "type": "object", "x-kubernetes-preserve-unknown-fields": true, "description": "The keys themselves (RFC 7517), for issuers that cannot be reached." },
            "algorithms": list("Algorithms that its keys may have; every accepted one when left out."),
            "tokenTypes": list("The typ values of its access tokens, none for a missing one; at+jwt alone when left out."),
            "allowPrivateAddresses": { "type": "boolean", "description": "Whether it may be at a private address and without TLS." },
            "caCertificate": { "type": "string", "description": "PEM certificates that are trusted in place of the system's." },
        },
    });
    let columns = json!([
        column("Issuer", "string", ".spec.issuer"),
        column("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status"),
        column("Reason", "string", ".status.conditions[?(@.type==\"Accepted\")].reason"),
        column("Age", "date", ".metadata.creationTimestamp"),
    ]);
    let about = "An issuer of tokens that is not ours, trusted by every validator.";
    definition(
        "TrustedIssuer",
        "trustedissuers",
        "trustedissuer",
        &["ti"],
        about,
        &spec,
        &json!({}),
        &columns,
    )
}

fn column(name: &str, kind: &str, path: &str) -> Value {
    json!({ "name": name, "type": kind, "jsonPath": path })
}

#[expect(clippy::too_many_arguments, reason = "the parts of a definition, each named where it is given")]
fn definition(
    kind: &str,
    plural: &str,
    singular: &str,
    short: &[&str],
    about: &str,
    spec: &Value,
    numbers: &Value,
    columns: &Value,
) -> Value {
    let condition = json!({
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": { "type": "string" },
            "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
            "reason": { "type": "string" },
            "message": { "type": "string" },
            "observedGeneration": { "type": "integer", "format": "int64" },
            "lastTransitionTime": { "type": "string", "format": "date-time" },
        },
    });
    let mut status = json!({
        "observedGeneration": { "type": "integer", "format": "int64", "description": "The generation that the status is about." },
        "conditions": { "type": "array", "items": condition, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"] },
    });
    for (key, value) in numbers.as_object().into_iter().flatten() {
        status[key] = value.clone();
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{GROUP}") },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": singular, "shortNames": short, "categories": ["atm"] },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns,
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "description": about,
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": { "type": "string" },
                        "kind": { "type": "string" },
                        "metadata": { "type": "object" },
                        "spec": spec,
                        "status": { "type": "object", "properties": status },
                    },
                } },
            }],
        },
    })
}

/// Keywords that mean the same in both.
const SHARED: [&str; 13] = [
    "description",
    "enum",
    "format",
    "maximum",
    "minimum",
    "maxItems",
    "minItems",
    "maxLength",
    "minLength",
    "pattern",
    "uniqueItems",
    "required",
    "type",
];

/// A JSON Schema (2020-12) as a structural schema.
fn structural(schema: &Value, definitions: &Value) -> Value {
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        let mut resolved = structural(&definitions[name], definitions);
        if let Some(about) = schema.get("description") {
            resolved["description"] = about.clone();
        }
        return resolved;
    }
    let mut out = Map::new();
    for keyword in SHARED {
        if let Some(value) = schema.get(keyword) {
            out.insert(keyword.to_owned(), value.clone());
        }
    }
    // `type: [x, null]`: the value may be left out, which Kubernetes says by `nullable`.
    if let Some(kinds) = schema["type"].as_array() {
        let mut named = kinds.iter().filter(|kind| *kind != "null");
        if let (Some(kind), None) = (named.next(), named.next()) {
            out.insert("type".to_owned(), kind.clone());
            out.insert("nullable".to_owned(), true.into());
        }
    }
    let alternatives = ["oneOf", "anyOf"].into_iter().find_map(|keyword| schema[keyword].as_array());
    if let Some(alternatives) = alternatives {
        return alternative(out, alternatives, schema, definitions);
    }
    if let Some(value) = schema.get("const") {
        out.insert("enum".to_owned(), json!([value]));
        out.entry("type").or_insert_with(|| "string".into());
    }
    if let Some(properties) = schema["properties"].as_object() {
        let properties =
            properties.iter().map(|(name, inner)| (name.clone(), structural(inner, definitions)));
        out.insert("properties".to_owned(), Value::Object(properties.collect()));
    } else if let Some(inner) = schema.get("additionalProperties").filter(|inner| inner.is_object()) {
        out.insert("additionalProperties".to_owned(), structural(inner, definitions));
    }
    if schema["items"].is_object() {
        out.insert("items".to_owned(), structural(&schema["items"], definitions));
    }
    if !out.contains_key("type") {
        out.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
    }
    Value::Object(out)
}

/// Alternatives: constants become an enumeration, «or null» a nullable, and what is left is taken as it is (the policy compiler
/// checks it, and the status says what it finds).
fn alternative(
    mut out: Map<String, Value>,
    alternatives: &[Value],
    schema: &Value,
    definitions: &Value,
) -> Value {
    let constants: Option<Vec<&Value>> = alternatives
        .iter()
        .map(|one| {
            one.get("const")
                .map(|value| vec![value])
                .or_else(|| one["enum"].as_array().map(|all| all.iter().collect()))
        })
        .collect::<Option<Vec<_>>>()
        .map(|all| all.into_iter().flatten().collect());
    if let Some(constants) = constants {
        out.insert("type".to_owned(), "string".into());
        out.insert("enum".to_owned(), json!(constants));
        return Value::Object(out);
    }
    let is_null = |one: &&Value| one["type"] == "null";
    let mut others = alternatives.iter().filter(|one| !is_null(one));
    if let (Some(one), None) = (others.next(), others.next())
        && alternatives.iter().any(|one| is_null(&one))
    {
        let mut inner = structural(one, definitions);
        inner["nullable"] = true.into();
        if let Some(about) = schema.get("description") {
            inner["description"] = about.clone();
        }
        return inner;
    }
    out.remove("type");
    out.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Kubernetes refuses in a structural schema.
    fn offences(schema: &Value, path: &str, found: &mut Vec<String>) {
        let Some(map) = schema.as_object() else { return };
        for keyword in ["$ref", "$defs", "oneOf", "anyOf", "allOf", "const", "default"] {
            if map.contains_key(keyword) {
                found.push(format!("{path}: {keyword}"));
            }
        }
        if !map.contains_key("type") && !map.contains_key("x-kubernetes-preserve-unknown-fields") {
            found.push(format!("{path}: no type"));
        }
        if map.get("type").is_some_and(|kind| !kind.is_string()) {
            found.push(format!("{path}: several types"));
        }
        if map.contains_key("properties") && map.contains_key("additionalProperties") {
            found.push(format!("{path}: properties and additionalProperties"));
        }
        for (name, inner) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            offences(inner, &format!("{path}.{name}"), found);
        }
        for keyword in ["items", "additionalProperties"] {
            if let Some(inner) = map.get(keyword) {
                offences(inner, &format!("{path}.{keyword}"), found);
            }
        }
    }

    #[test]
    fn the_schemas_are_structural() {
        for crd in [token_policy(), trusted_issuer()] {
            let mut found = Vec::new();
            offences(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "", &mut found);
            assert!(found.is_empty(), "{found:#?}");
        }
    }

    #[test]
    fn a_policys_keys_are_all_there() {
        let crd = token_policy();
        let spec =
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        let original = atm_core::policy::json_schema();
        let keys = original["$defs"]["Spec"]["properties"].as_object().expect("the spec's keys");
        assert!(keys.len() > 5);
        for key in keys.keys() {
            assert!(spec.get(key).is_some(), "{key}");
        }
        assert_eq!(spec["mode"]["enum"], json!(["enforce", "shadow"]), "{}", spec["mode"]);
    }
}
