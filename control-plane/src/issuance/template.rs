//! Claims that an operator writes once for all tokens of a client, with places for what differs.
//!
//! `${client_id}`, `${client_name}`, `${subject}`, `${realm}` and, where a token comes of a session, `${session.NAME}` for the
//! claims that the session was opened with; where it comes of an assertion, `${assertion.NAME}`. A text that is one place and
//! nothing else takes the value with its type; a claim with a place that has no value is left out.

use serde_json::{Map, Value};

/// Claims of one client at most.
pub const MAX_CLAIMS: usize = 32;
/// Bytes that they take as JSON at most.
pub const MAX_BYTES: usize = 4_096;
/// Bytes of one expanded text at most.
const MAX_TEXT: usize = 1_024;

/// Claims that say what a token is; no template and no session sets one.
const RESERVED: [&str; 20] = [
    "iss",
    "sub",
    "aud",
    "exp",
    "nbf",
    "iat",
    "jti",
    "client_id",
    "scope",
    "sid",
    "cnf",
    "act",
    "may_act",
    "azp",
    "typ",
    "active",
    "token_type",
    "username",
    "events",
    "realm",
];

/// What stands for the places of a template.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// `${client_id}`
    pub client_id: &'a str,
    /// `${client_name}`
    pub client_name: Option<&'a str>,
    /// `${subject}`
    pub subject: &'a str,
    /// `${realm}`
    pub realm: &'a str,
    /// `${session.NAME}`
    pub session: Option<&'a Map<String, Value>>,
    /// `${assertion.NAME}`
    pub assertion: Option<&'a Map<String, Value>>,
}

/// Whether a claim of this name is not for operators to set.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || name.starts_with("atm_")
}

/// What is wrong with claims that are to be templates, with the claim's name.
pub fn mistakes(claims: &Map<String, Value>) -> Vec<(String, &'static str)> {
    let mut mistakes = Vec::new();
    if claims.len() > MAX_CLAIMS || Value::Object(claims.clone()).to_string().len() > MAX_BYTES {
        mistakes.push((String::new(), "must be at most 32 claims and 4096 bytes"));
    }
    for (name, value) in claims {
        if name.is_empty() || name.len() > 256 || name.chars().any(char::is_control) {
            mistakes.push((name.clone(), "a claim's name is 1 to 256 bytes without control characters"));
        } else if is_reserved(name) {
            mistakes.push((name.clone(), "is a claim that the server sets itself; choose another name"));
        } else if !is_well_formed(value, 0) {
            let message = "takes ${client_id}, ${client_name}, ${subject}, ${realm}, ${session.NAME} and \
                           ${assertion.NAME}, no other places, and at most four levels";
            mistakes.push((name.clone(), message));
        }
    }
    mistakes
}

/// What is wrong with one text that is to be a template.
pub fn text_mistake(text: &str) -> Option<&'static str> {
    if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
        return Some("must be 1 to 256 bytes without control characters");
    }
    (!places_are_known(text)).then_some("has a place that is not known; ${client_id} and ${realm} are")
}

fn is_well_formed(value: &Value, depth: usize) -> bool {
    match value {
        Value::String(text) => places_are_known(text),
        Value::Array(entries) => depth < 4 && entries.iter().all(|entry| is_well_formed(entry, depth + 1)),
        Value::Object(members) => depth < 4 && members.values().all(|entry| is_well_formed(entry, depth + 1)),
        // What readers of tokens take (I-JSON); larger numbers would make a token that no sidecar reads.
        Value::Number(number) => {
            number.as_f64().is_some_and(|number| number.abs() <= 9_007_199_254_740_992.0)
        }
        Value::Null | Value::Bool(_) => true,
    }
}

fn places_are_known(text: &str) -> bool {
    pieces(text).all(|piece| match piece {
        Piece::Text(_) => true,
        Piece::Place(name) => {
            matches!(name, "client_id" | "client_name" | "subject" | "realm")
                || name.strip_prefix("session.").is_some_and(|claim| !claim.is_empty())
                || name.strip_prefix("assertion.").is_some_and(|claim| !claim.is_empty())
        }
        Piece::Open => false,
    })
}

enum Piece<'a> {
    Text(&'a str),
    Place(&'a str),
    /// `${` without an end.
    Open,
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = match rest.find("${") {
            Some(0) => match rest.find('}') {
                Some(end) => (Piece::Place(&rest[2..end]), &rest[end + 1..]),
                None => (Piece::Open, ""),
            },
            Some(at) => (Piece::Text(&rest[..at]), &rest[at..]),
            None => (Piece::Text(rest), ""),
        };
        rest = after;
        Some(piece)
    })
}

impl Places<'_> {
    fn value(&self, place: &str) -> Option<Value> {
        let claim = |claims: Option<&Map<String, Value>>, name: &str| claims?.get(name).cloned();
        match place {
            "client_id" => Some(self.client_id.into()),
            "client_name" => self.client_name.map(Value::from),
            "subject" => Some(self.subject.into()),
            "realm" => Some(self.realm.into()),
            _ => place
                .strip_prefix("session.")
                .and_then(|name| claim(self.session, name))
                .or_else(|| place.strip_prefix("assertion.").and_then(|name| claim(self.assertion, name))),
        }
    }

    /// The text with its places filled in; none where one has no value, or the outcome is no text for a claim.
    pub fn text(&self, template: &str) -> Option<String> {
        let mut text = String::new();
        for piece in pieces(template) {
            match piece {
                Piece::Text(literal) => text.push_str(literal),
                Piece::Place(name) => match self.value(name)? {
                    Value::String(value) => text.push_str(&value),
                    Value::Number(number) => text.push_str(&number.to_string()),
                    Value::Bool(value) => text.push_str(if value { "true" } else { "false" }),
                    _ => return None,
                },
                Piece::Open => return None,
            }
        }
        (!text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control)).then_some(text)
    }

    /// The value with the places of its texts filled in; none where one has no value.
    fn filled(&self, template: &Value) -> Option<Value> {
        match template {
            Value::String(text) if text.contains("${") => {
                let mut pieces = pieces(text);
                match (pieces.next(), pieces.next()) {
                    (Some(Piece::Place(name)), None) => self.value(name),
                    _ => self.text(text).map(Value::String),
                }
            }
            Value::Array(entries) => {
                Some(Value::Array(entries.iter().filter_map(|entry| self.filled(entry)).collect()))
            }
            Value::Object(members) => Some(Value::Object(
                members
                    .iter()
                    .filter_map(|(name, value)| Some((name.clone(), self.filled(value)?)))
                    .collect(),
            )),
            other => Some(other.clone()),
        }
    }

    /// The claims that `templates` come to.
    pub fn claims(&self, templates: &Map<String, Value>) -> Map<String, Value> {
        templates.iter().filter_map(|(name, value)| Some((name.clone(), self.filled(value)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn places_are_filled_with_their_types_and_a_claim_without_a_value_is_left_out() {
        let session = object(&json!({"roles": ["a", "b"], "tenant": "acme", "level": 3}));
        let places = Places {
            client_id: "c",
            client_name: None,
            subject: "alice",
            realm: "default",
            session: Some(&session),
            assertion: None,
        };
        let templates = object(&json!({
            "roles": "${session.roles}", "who": "${subject}@${session.tenant}", "level": "l${session.level}",
            "name": "${client_name}", "list": "x${session.roles}", "from": "${assertion.sub}",
            "nested": {"client": "${client_id}", "none": "${session.none}"}, "plain": true,
        }));
        let expected = json!({
            "roles": ["a", "b"], "who": "alice@acme", "level": "l3", "nested": {"client": "c"}, "plain": true,
        });
        assert_eq!(Value::Object(places.claims(&templates)), expected);
    }

    #[test]
    fn what_a_token_says_of_itself_cannot_be_set() {
        let refused =
            |claims: &Value| mistakes(&object(claims)).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(refused(&json!({"sub": "x", "atm_iat_ms": 1, "tenant": "a"})), ["atm_iat_ms", "sub"]);
        assert_eq!(
            refused(&json!({"a": "${other}", "b": ["${subject"], "c": "${session.}"})),
            ["a", "b", "c"]
        );
        assert_eq!(refused(&json!({"big": 9_007_199_254_740_994_i64})), ["big"]);
        assert_eq!(refused(&json!({"a": "x".repeat(MAX_BYTES)})), [""]);
        assert_eq!(text_mistake("spiffe://${realm}/${client_id}"), None);
        for wrong in ["", "${", "${env}", "a\n"] {
            assert!(text_mistake(wrong).is_some(), "{wrong:?}");
        }
    }
}
