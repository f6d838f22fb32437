//! What is known of the types of values before there is a request.

use super::tree::Operator;

/// What is known of a value's type before there is a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// A claim, or an element of a list.
    Any,
    Null,
    Bool,
    Int,
    Double,
    Text,
    List,
    Map,
    Timestamp,
    Duration,
}

impl Type {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any value",
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Int => "a whole number",
            Self::Double => "a number",
            Self::Text => "a text",
            Self::List => "a list",
            Self::Map => "a map",
            Self::Timestamp => "a time",
            Self::Duration => "a duration",
        }
    }

    pub(super) fn may_be(self, others: &[Self]) -> bool {
        self == Self::Any || others.contains(&self)
    }
}

/// The type that an operation gives, or none where these types have no such operation.
pub(super) fn result_type(operator: Operator, left: Type, right: Type) -> Option<Type> {
    use Type::{Any, Bool, Double, Duration, Int, List, Map, Text, Timestamp};
    let numbers = [Int, Double];
    let same = |kinds: &[Type]| left == right && kinds.contains(&left);
    match operator {
        Operator::Equal | Operator::NotEqual => {
            let comparable = left == right
                || left == Any
                || right == Any
                || left == Type::Null
                || right == Type::Null
                || (numbers.contains(&left) && numbers.contains(&right));
            comparable.then_some(Bool)
        }
        Operator::In => right.may_be(&[List, Map]).then_some(Bool),
        Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => {
            let ordered = [Int, Double, Text, Timestamp, Duration, Bool];
            let either = |kind: Type, other: Type| kind == Any && other.may_be(&ordered);
            let fits = same(&ordered)
                || (numbers.contains(&left) && numbers.contains(&right))
                || either(left, right)
                || either(right, left);
            fits.then_some(Bool)
        }
        _ if left == Any || right == Any => Some(Any),
        Operator::Add => match (left, right) {
            (Timestamp, Duration) | (Duration, Timestamp) => Some(Timestamp),
            _ => same(&[Int, Double, Text, Duration]).then_some(left),
        },
        Operator::Subtract => match (left, right) {
            (Timestamp, Timestamp) => Some(Duration),
            (Timestamp, Duration) => Some(Timestamp),
            _ => same(&[Int, Double, Duration]).then_some(left),
        },
        Operator::Multiply | Operator::Divide => same(&numbers).then_some(left),
        Operator::Remainder => same(&[Int]).then_some(left),
    }
}
