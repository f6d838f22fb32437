//! Strict JSON for tokens: one reading only, and bounds on what it may cost.
//!
//! RFC 8259 leaves duplicate names and huge numbers to the implementation, and two implementations that disagree about
//! a token are a way around one of them. Here such documents are refused.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Levels of nesting that a document may have.
pub const MAX_DEPTH: usize = 8;
/// Values (members, elements, scalars) that a document may hold.
pub const MAX_VALUES: usize = 1024;
/// Integers beyond ±2^53 are read differently by different parsers (RFC 8259 §6).
const MAX_INTEGER: u64 = 1 << 53;

/// Why a document was refused: malformed, ambiguous, or over a bound. Holds no part of the document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// The object that `bytes` hold. Refused: anything but one object, invalid UTF-8, duplicate names at any depth, numbers
/// that are not finite or exceed ±2^53, nesting deeper than [`MAX_DEPTH`], more than [`MAX_VALUES`] values.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut left = MAX_VALUES;
    let value = Strict { depth: 0, left: &mut left }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| JsonError(error.to_string()))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(JsonError("not a JSON object".into())),
    }
}

struct Strict<'a> {
    depth: usize,
    left: &'a mut usize,
}

impl Strict<'_> {
    fn inner(&mut self) -> Strict<'_> {
        Strict { depth: self.depth + 1, left: self.left }
    }

    fn enter<E: Error>(&self) -> Result<(), E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        *self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| D::Error::custom(format_args!("more than {MAX_VALUES} values")))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        bounded(value.unsigned_abs(), value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        bounded(value, value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        #[allow(clippy::cast_precision_loss)] // 2^53 is exact
        if value.abs() > MAX_INTEGER as f64 {
            return Err(E::custom("a number beyond 2^53"));
        }
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut array = Vec::new();
        while let Some(element) = elements.next_element_seed(self.inner())? {
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(self.inner())?;
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a duplicate member name"));
            }
        }
        Ok(Value::Object(object))
    }
}

fn bounded<E: Error>(magnitude: u64, number: Number) -> Result<Value, E> {
    if magnitude > MAX_INTEGER {
        return Err(E::custom("a number beyond 2^53"));
    }
    Ok(Value::Number(number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ordinary_object_is_read_as_it_stands() {
        let object = parse_object(br#"{"a":[1,-2,0.5,null,true],"b":{"c":"\u00e9"}}"#).unwrap();
        assert_eq!(
            Value::Object(object),
            serde_json::json!({"a": [1, -2, 0.5, null, true], "b": {"c": "é"}})
        );
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        for document in [
            r#"{"exp":1,"exp":2}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"exp":9007199254740993}"#,
            r#"{"exp":1e300}"#,
            r#"{"exp":1e999}"#,
            r#"{"exp":NaN}"#,
            r#"{"exp":-Infinity}"#,
            r#"{"a":1} {"a":1}"#,
            r#"{"a":1,}"#,
            "[1]",
            "null",
            "",
        ] {
            assert!(parse_object(document.as_bytes()).is_err(), "{document}");
        }
        assert!(parse_object(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let nested = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_object(nested(MAX_DEPTH - 1).as_bytes()).is_ok());
        assert!(parse_object(nested(MAX_DEPTH).as_bytes()).is_err());
        assert!(parse_object(nested(100_000).as_bytes()).is_err());
        let wide = |count: usize| format!("{{\"a\":[{}]}}", vec!["1"; count].join(","));
        assert!(parse_object(wide(MAX_VALUES - 2).as_bytes()).is_ok());
        assert!(parse_object(wide(MAX_VALUES).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_input_panics_and_what_is_read_agrees_with_serde(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(object) = parse_object(&bytes) {
                prop_assert_eq!(Value::Object(object), serde_json::from_slice::<Value>(&bytes).unwrap());
            }
        }

        #[test]
        fn objects_survive_their_text(members in proptest::collection::btree_map("[a-z]{1,6}", any::<i32>(), 0..20)) {
            let object: Map<String, Value> = members.into_iter().map(|(name, value)| (name, value.into())).collect();
            let text = serde_json::to_vec(&object).unwrap();
            prop_assert_eq!(parse_object(&text).unwrap(), object);
        }
    }
}
