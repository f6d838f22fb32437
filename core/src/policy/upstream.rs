//! Claims as header values: what may be one, and how arrays and objects become one.

use serde_json::{Map, Value};

use super::{ClaimHeader, Encoding};
use crate::base64url;

/// Length of a header made from a claim at most, in bytes.
const MAX_VALUE_BYTES: usize = 4 * 1024;

impl ClaimHeader {
    /// The header's value; none where the claim is missing, is an array or object without an encoding, or would hold what a
    /// header must not: control characters, anything but ASCII, more than 4 KiB.
    pub fn value(&self, claims: &Map<String, Value>) -> Option<String> {
        let value = lookup(claims, &self.claim)?;
        let text = match self.encode {
            None => scalar(value)?,
            Some(Encoding::Json) => ascii_json(value),
            Some(Encoding::Base64url) => base64url::encode(value.to_string().as_bytes()),
            Some(Encoding::Comma) => joined(value, ",")?,
            Some(Encoding::Space) => joined(value, " ")?,
        };
        let is_visible = |byte: u8| matches!(byte, b' '..=b'~');
        (!text.is_empty() && text.len() <= MAX_VALUE_BYTES && text.bytes().all(is_visible)).then_some(text)
    }
}

/// The claim that `path` leads to.
pub fn lookup<'c>(claims: &'c Map<String, Value>, path: &[String]) -> Option<&'c Value> {
    let (last, objects) = path.split_last()?;
    let object = objects.iter().try_fold(claims, |object, name| object.get(name)?.as_object())?;
    object.get(last)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// An element that has the separator in it would read as two.
fn joined(value: &Value, separator: &str) -> Option<String> {
    let Value::Array(elements) = value else { return scalar(value) };
    let texts: Option<Vec<String>> = elements.iter().map(scalar).collect();
    let texts = texts?;
    texts.iter().all(|text| !text.is_empty() && !text.contains(separator)).then(|| texts.join(separator))
}

fn ascii_json(value: &Value) -> String {
    let mut text = String::new();
    for character in value.to_string().chars() {
        if character.is_ascii() && character != '\u{7f}' {
            text.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(claim: &[&str], encode: Option<Encoding>, claims: &Value) -> Option<String> {
        let claim = claim.iter().map(|name| (*name).to_owned()).collect();
        let header = ClaimHeader { name: "x-test".into(), claim, encode };
        header.value(claims.as_object().unwrap())
    }

    #[test]
    fn scalars_are_written_as_they_stand_and_nothing_else_without_an_encoding() {
        let claims =
            json!({"s": "a b", "n": 7, "b": true, "a": ["x"], "o": {"k": "v"}, "null": null, "e": ""});
        let found = |name| value(&[name], None, &claims);
        assert_eq!(found("s").as_deref(), Some("a b"));
        assert_eq!(found("n").as_deref(), Some("7"));
        assert_eq!(found("b").as_deref(), Some("true"));
        for absent in ["a", "o", "null", "e", "none"] {
            assert_eq!(found(absent), None, "{absent}");
        }
        assert_eq!(value(&["o", "k"], None, &claims).as_deref(), Some("v"));
        assert_eq!(value(&["s", "k"], None, &claims), None);
    }

    #[test]
    fn control_characters_never_become_a_header() {
        for text in ["a\r\nx-admin: 1", "a\nb", "a\0b", "a\tb", "é", "a\u{7f}"] {
            let claims = json!({ "s": text, "a": [text] });
            assert_eq!(value(&["s"], None, &claims), None, "{text:?}");
            assert_eq!(value(&["a"], Some(Encoding::Comma), &claims), None, "{text:?}");
            let json = value(&["s"], Some(Encoding::Json), &claims).unwrap();
            assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), text, "{json}");
            assert!(value(&["s"], Some(Encoding::Base64url), &claims).is_some());
        }
    }

    #[test]
    fn arrays_are_joined_only_where_they_can_be_taken_apart_again() {
        let claims = json!({"roles": ["a", "b"], "bad": ["a,b"], "nested": [["a"]], "one": "a"});
        assert_eq!(value(&["roles"], Some(Encoding::Comma), &claims).as_deref(), Some("a,b"));
        assert_eq!(value(&["roles"], Some(Encoding::Space), &claims).as_deref(), Some("a b"));
        assert_eq!(value(&["one"], Some(Encoding::Comma), &claims).as_deref(), Some("a"));
        assert_eq!(value(&["bad"], Some(Encoding::Comma), &claims), None);
        assert_eq!(value(&["nested"], Some(Encoding::Comma), &claims), None);
        assert_eq!(value(&["roles"], Some(Encoding::Json), &claims).as_deref(), Some(r#"["a","b"]"#));
    }
}
