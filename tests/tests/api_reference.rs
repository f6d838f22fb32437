//! `docs/api.md` is made from the OpenAPI document that the control plane serves.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use std::collections::BTreeMap;
use std::fmt::Write as _;

use atm_tests::programs;
use serde_json::Value;

const HEAD: &str = "# The admin API

Made from the OpenAPI document (`/admin/v1/openapi.json`, which has the answers, too) by `ATM_WRITE_REFERENCE=1 cargo test -p atm-tests --test api_reference`.

Requests and answers are JSON; requests carry `authorization: Bearer TOKEN`, of `admin.tokenFile` or of a credential of one's own, whose role says what it may do
([operations](operations.md#who-may-do-what)). Errors are RFC 9457 problems, which name each field that is wrong. Lists take `limit`, and `after` with the `next` of the page before. Below
`/admin/v1/realms/{realm}` clients, sessions, subjects, assertion rules, keys and revocations are those of that realm.
";
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];
const OPENAPI: &str = "control-plane/src/http/admin/openapi.yaml";

/// The document, and what its `$ref`s lead to.
struct Api(Value);

impl Api {
    fn read() -> Self {
        let text = std::fs::read_to_string(programs::workspace().join(OPENAPI)).expect(OPENAPI);
        Self(serde_norway::from_str(&text).expect("YAML"))
    }

    fn followed<'v>(&'v self, value: &'v Value) -> &'v Value {
        match value["$ref"].as_str() {
            Some(path) => self.0.pointer(path.trim_start_matches('#')).unwrap_or_else(|| panic!("{path}")),
            None => value,
        }
    }

    fn reference(&self) -> String {
        let mut sections: BTreeMap<&str, Vec<(&str, &Value)>> = BTreeMap::new();
        for (path, operations) in self.0["paths"].as_object().expect("paths") {
            let below = path.strip_prefix("/admin/v1/").expect("below /admin/v1/");
            sections.entry(below.split('/').next().unwrap()).or_default().push((path, operations));
        }
        let mut page = HEAD.to_owned();
        for (name, mut paths) in sections {
            paths.sort_by_key(|(path, _)| *path);
            writeln!(page, "\n## {name}\n\n| Request | What it does | In the query |\n|---|---|---|")
                .unwrap();
            let mut bodies = BTreeMap::new();
            for (path, operations) in paths {
                for method in METHODS {
                    let operation = &operations[method];
                    if operation.is_object() {
                        page += &self.row(method, path, operation);
                        let body = &operation["requestBody"]["content"]["application/json"]["schema"];
                        if !body.is_null() {
                            bodies.insert(format!("{} {path}", method.to_uppercase()), body);
                        }
                    }
                }
            }
            for (request, body) in bodies {
                page += &self.body(&request, body);
            }
        }
        page
    }

    fn row(&self, method: &str, path: &str, operation: &Value) -> String {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let query: Vec<String> = parameters
            .map(|parameter| self.followed(parameter))
            .filter(|parameter| parameter["in"] == "query")
            .map(|parameter| {
                format!("`{}` ({})", parameter["name"].as_str().unwrap(), self.form(&parameter["schema"]))
            })
            .collect();
        let query = if query.is_empty() { "-".to_owned() } else { query.join(", ") };
        let summary = operation["summary"].as_str().expect("a summary");
        format!("| `{} {path}` | {summary} | {query} |\n", method.to_uppercase())
    }

    fn body(&self, request: &str, body: &Value) -> String {
        let mut text = format!("\n`{request}` takes");
        if let Some(description) = self.followed(body)["description"].as_str() {
            write!(text, " ({description})").unwrap();
        }
        text += ":\n\n| Field | Form | Meaning |\n|---|---|---|\n";
        let mut fields = BTreeMap::new();
        self.fields("", body, &mut fields);
        assert!(!fields.is_empty(), "{request}: a body without fields");
        for (name, (required, field)) in fields {
            let meaning = self.followed(field)["description"].as_str().unwrap_or("-");
            let required = if required { ", required" } else { "" };
            writeln!(text, "| `{name}` | {}{required} | {meaning} |", self.form(field)).unwrap();
        }
        text
    }

    /// All fields of a schema, those of objects in it with their path.
    fn fields<'v>(
        &'v self,
        prefix: &str,
        schema: &'v Value,
        found: &mut BTreeMap<String, (bool, &'v Value)>,
    ) {
        let schema = self.followed(schema);
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.fields(prefix, part, found);
        }
        for part in schema["oneOf"].as_array().into_iter().flatten() {
            let mut one = BTreeMap::new();
            self.fields(prefix, part, &mut one);
            // One of several: required only in its own form.
            found.extend(one.into_iter().map(|(name, (_, field))| (name, (false, field))));
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let required =
                schema["required"].as_array().is_some_and(|names| names.contains(&name[..].into()));
            let path = format!("{prefix}{name}");
            self.fields(&format!("{path}."), field, found);
            found.insert(path, (required, field));
        }
    }

    /// What a value looks like, in a few words.
    fn form(&self, schema: &Value) -> String {
        let schema = self.followed(schema);
        if let Some(values) = schema["enum"].as_array() {
            let values: Vec<_> = values.iter().filter_map(Value::as_str).map(|v| format!("`{v}`")).collect();
            return values.join(", ");
        }
        let kinds = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
            kind => kind.as_str().unwrap_or("object").to_owned(),
        };
        if kinds == "array" {
            return format!("list of {}", self.form(&schema["items"]));
        }
        let bounds = match (&schema["minimum"], &schema["maximum"]) {
            (Value::Null, Value::Null) => String::new(),
            (least, Value::Null) => format!(", {least} or more"),
            (Value::Null, most) => format!(", {most} at most"),
            (least, most) => format!(", {least} to {most}"),
        };
        let default = match &schema["default"] {
            Value::Null => String::new(),
            value => format!(", {value} where left out"),
        };
        format!("{kinds}{bounds}{default}")
    }
}

#[test]
fn the_page_of_the_admin_api_is_made_from_the_document() {
    let file = programs::workspace().join("docs/api.md");
    let reference = Api::read().reference();
    if std::env::var_os("ATM_WRITE_REFERENCE").is_some() {
        std::fs::write(&file, &reference).expect("docs/api.md");
    }
    let page = std::fs::read_to_string(file).unwrap_or_default();
    let command = "ATM_WRITE_REFERENCE=1 cargo test -p atm-tests --test api_reference";
    assert!(page == reference, "docs/api.md is not of {OPENAPI}; make it anew: {command}");
}
