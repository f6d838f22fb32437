//! Values while a condition is evaluated, borrowed from the request wherever they can be.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value as Json;

use super::ConditionFault;

#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'a, str>),
    /// An array or object of the claims.
    Json(&'a Json),
    Texts(&'a [String]),
    List(Vec<Value<'a>>),
    /// Seconds since the Unix epoch.
    Timestamp(i64),
    /// Seconds.
    Duration(i64),
}

impl<'a> Value<'a> {
    pub(super) fn of_json(json: &'a Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(number) => Self::Int(number),
                None => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::Text(Cow::Borrowed(text)),
            Json::Array(_) | Json::Object(_) => Self::Json(json),
        }
    }

    pub(super) fn text(&self) -> Result<&str, ConditionFault> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(ConditionFault::Type),
        }
    }

    pub(super) fn bool(&self) -> Result<bool, ConditionFault> {
        match self {
            Self::Bool(value) => Ok(*value),
            _ => Err(ConditionFault::Type),
        }
    }

    /// The elements of a list.
    pub(super) fn elements(&self) -> Result<Vec<Value<'a>>, ConditionFault> {
        match self {
            Self::Json(Json::Array(elements)) => Ok(elements.iter().map(Value::of_json).collect()),
            Self::Texts(texts) => Ok(texts.iter().map(|text| Value::Text(Cow::Borrowed(text))).collect()),
            Self::List(elements) => Ok(elements.clone()),
            _ => Err(ConditionFault::Type),
        }
    }

    pub(super) fn size(&self) -> Result<i64, ConditionFault> {
        let size = match self {
            Self::Text(text) => text.chars().count(),
            Self::Json(Json::Array(elements)) => elements.len(),
            Self::Json(Json::Object(members)) => members.len(),
            Self::Texts(texts) => texts.len(),
            Self::List(elements) => elements.len(),
            _ => return Err(ConditionFault::Type),
        };
        i64::try_from(size).map_err(|_| ConditionFault::Arithmetic)
    }

    /// Steps to read all of it: one for every value in it, and for so many bytes of a text.
    pub(super) fn weight(&self, bytes_a_step: usize) -> usize {
        match self {
            Self::Text(text) => text.len() / bytes_a_step,
            Self::Json(json) => json_weight(json, bytes_a_step),
            Self::Texts(texts) => texts.iter().map(|text| 1 + text.len() / bytes_a_step).sum(),
            Self::List(elements) => elements.iter().map(|element| 1 + element.weight(bytes_a_step)).sum(),
            Self::Null
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Double(_)
            | Self::Timestamp(_)
            | Self::Duration(_) => 0,
        }
    }

    /// Values of different types are never equal, but numbers are compared as numbers.
    pub(super) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Timestamp(a), Self::Timestamp(b)) | (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::Int(_) | Self::Double(_), Self::Int(_) | Self::Double(_)) => {
                self.compare(other).is_ok_and(Ordering::is_eq)
            }
            (Self::Json(a @ Json::Object(_)), Self::Json(b @ Json::Object(_))) => a == b,
            _ => match (self.elements(), other.elements()) {
                (Ok(a), Ok(b)) => a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.equals(b)),
                _ => false,
            },
        }
    }

    pub(super) fn compare(&self, other: &Self) -> Result<Ordering, ConditionFault> {
        match (self, other) {
            (Self::Int(a), Self::Int(b))
            | (Self::Timestamp(a), Self::Timestamp(b))
            | (Self::Duration(a), Self::Duration(b)) => Ok(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Ok(a.cmp(b)),
            (Self::Bool(a), Self::Bool(b)) => Ok(a.cmp(b)),
            (Self::Int(_) | Self::Double(_), Self::Int(_) | Self::Double(_)) => {
                self.double().partial_cmp(&other.double()).ok_or(ConditionFault::Arithmetic)
            }
            _ => Err(ConditionFault::Type),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "claims have no integers beyond 2^53")]
    fn double(&self) -> f64 {
        match self {
            Self::Int(number) => *number as f64,
            Self::Double(number) => *number,
            _ => f64::NAN,
        }
    }

    pub(super) fn member(&self, name: &str) -> Result<Value<'a>, ConditionFault> {
        match self {
            Self::Json(Json::Object(members)) => {
                members.get(name).map(Value::of_json).ok_or(ConditionFault::Missing)
            }
            _ => Err(ConditionFault::Type),
        }
    }

    pub(super) fn index(&self, index: &Value<'_>) -> Result<Value<'a>, ConditionFault> {
        match index {
            Value::Text(name) => self.member(name),
            Value::Int(at) => {
                let at = usize::try_from(*at).map_err(|_| ConditionFault::Missing)?;
                match self {
                    Self::Json(Json::Array(elements)) => elements.get(at).map(Value::of_json),
                    Self::Texts(texts) => texts.get(at).map(|text| Value::Text(Cow::Borrowed(text))),
                    Self::List(elements) => elements.get(at).cloned(),
                    _ => return Err(ConditionFault::Type),
                }
                .ok_or(ConditionFault::Missing)
            }
            _ => Err(ConditionFault::Type),
        }
    }

    /// Whether a list has `value`, or an object a member of that name.
    pub(super) fn holds(&self, value: &Value<'_>) -> Result<bool, ConditionFault> {
        match (self, value) {
            (Self::Json(Json::Object(members)), Value::Text(name)) => Ok(members.contains_key(&**name)),
            (Self::Json(Json::Array(elements)), Value::Text(text)) => {
                Ok(elements.iter().any(|element| element.as_str() == Some(text)))
            }
            _ => Ok(self.elements()?.iter().any(|element| element.equals(value))),
        }
    }

    pub(super) fn add(self, other: Value<'a>) -> Result<Value<'a>, ConditionFault> {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => Ok(Self::Text(Cow::Owned(format!("{a}{b}")))),
            (Self::Int(a), Self::Int(b)) => whole(a.checked_add(b)),
            (Self::Timestamp(a), Self::Duration(b)) | (Self::Duration(b), Self::Timestamp(a)) => {
                a.checked_add(b).map(Self::Timestamp).ok_or(ConditionFault::Arithmetic)
            }
            (Self::Duration(a), Self::Duration(b)) => {
                a.checked_add(b).map(Self::Duration).ok_or(ConditionFault::Arithmetic)
            }
            (a, b) => real(&a, &b, |a, b| a + b),
        }
    }

    pub(super) fn subtract(self, other: &Value<'a>) -> Result<Value<'a>, ConditionFault> {
        match (&self, other) {
            (Self::Int(a), Self::Int(b)) => whole(a.checked_sub(*b)),
            (Self::Timestamp(a), Self::Timestamp(b)) | (Self::Duration(a), Self::Duration(b)) => {
                a.checked_sub(*b).map(Self::Duration).ok_or(ConditionFault::Arithmetic)
            }
            (Self::Timestamp(a), Self::Duration(b)) => {
                a.checked_sub(*b).map(Self::Timestamp).ok_or(ConditionFault::Arithmetic)
            }
            (a, b) => real(a, b, |a, b| a - b),
        }
    }

    pub(super) fn multiply(&self, other: &Self) -> Result<Value<'a>, ConditionFault> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => whole(a.checked_mul(*b)),
            (a, b) => real(a, b, |a, b| a * b),
        }
    }

    pub(super) fn divide(&self, other: &Self) -> Result<Value<'a>, ConditionFault> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => whole(a.checked_div(*b)),
            (a, b) => real(a, b, |a, b| a / b),
        }
    }

    pub(super) fn remainder(&self, other: &Self) -> Result<Value<'a>, ConditionFault> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => whole(a.checked_rem(*b)),
            _ => Err(ConditionFault::Type),
        }
    }

    pub(super) fn negate(&self) -> Result<Value<'a>, ConditionFault> {
        match self {
            Self::Int(number) => whole(number.checked_neg()),
            Self::Double(number) => Ok(Self::Double(-number)),
            Self::Duration(seconds) => {
                seconds.checked_neg().map(Self::Duration).ok_or(ConditionFault::Arithmetic)
            }
            _ => Err(ConditionFault::Type),
        }
    }
}

/// A token's JSON is neither deep nor large, so the recursion is bounded.
fn json_weight(json: &Json, bytes_a_step: usize) -> usize {
    match json {
        Json::String(text) => text.len() / bytes_a_step,
        Json::Array(elements) => elements.iter().map(|element| 1 + json_weight(element, bytes_a_step)).sum(),
        Json::Object(members) => members.values().map(|member| 1 + json_weight(member, bytes_a_step)).sum(),
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    }
}

fn whole<'a>(number: Option<i64>) -> Result<Value<'a>, ConditionFault> {
    number.map(Value::Int).ok_or(ConditionFault::Arithmetic)
}

/// CEL puts no whole number beside a real one in arithmetic.
fn real<'a>(
    a: &Value<'_>,
    b: &Value<'_>,
    operation: impl Fn(f64, f64) -> f64,
) -> Result<Value<'a>, ConditionFault> {
    match (a, b) {
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(operation(*a, *b))),
        _ => Err(ConditionFault::Type),
    }
}
