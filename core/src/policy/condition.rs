//! Conditions of rules: a checked and bounded subset of the Common Expression Language.
//!
//! The text is parsed by the `cel` crate and compiled to a tree of our own: names, functions and types are checked, regular
//! expressions are compiled, nothing is converted that is not asked for, and every evaluation has a budget of steps. What
//! there is: literals, lists, `! - + - * / % == != < <= > >= && || in ?:`, `has()`, `size()`, `startsWith`, `endsWith`,
//! `contains`, `matches`, `lowerAscii`, `int()`, `double()`, `string()`, `timestamp()`, `duration()`, `getHours` and its
//! kin (in UTC), and `all`, `exists`, `exists_one` over lists; over the variables `request`, `token`, `client_certificate`
//! and `now`.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

mod compile;
mod cost;
mod evaluate;
mod pattern;
#[cfg(test)]
mod tests;
mod time;
mod tree;
mod types;
mod value;

use tree::Compiled;

/// Length of an expression at most, in bytes.
const MAX_TEXT_BYTES: usize = 4 * 1024;
/// Bytes that the regular expressions of a policy set may take together.
pub(super) const MAX_PATTERN_BYTES: usize = 8 * 1024 * 1024;
/// Steps that one evaluation may take; a step is a node of the tree, or 64 bytes of a text that is searched.
const MAX_STEPS: u32 = 20_000;

/// A compiled condition. A clone shares everything.
#[derive(Clone)]
pub struct Condition(Arc<Compiled>);

/// A mistake in an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConditionError {
    /// Line within the expression, from 1.
    pub line: usize,
    /// Column in that line, in characters from 1.
    pub column: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

/// An evaluation without an outcome: a claim is missing or of another type, or the budget is used up. Holds no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConditionFault {
    /// A member is not there.
    #[error("something that is asked for is not there")]
    Missing,
    /// Values of these types cannot be put together so.
    #[error("a value has another type than the condition needs")]
    Type,
    /// A number is too large, or a division is by zero.
    #[error("a number cannot be computed")]
    Arithmetic,
    /// More than [`MAX_STEPS`] steps.
    #[error("the condition takes too many steps")]
    Budget,
}

/// What a condition may ask. Only what the expression names is asked for.
pub trait Facts {
    /// The method.
    fn method(&self) -> &str;
    /// The authority as received.
    fn host(&self) -> &str;
    /// The normalised path.
    fn path(&self) -> &str;
    /// The raw query.
    fn query(&self) -> Option<&str>;
    /// `http` or `https`; empty where it is not known.
    fn scheme(&self) -> &str;
    /// The peer's address.
    fn source_address(&self) -> Option<&str>;
    /// A header by its name in lower case; several values joined by `, `.
    fn header(&self, name: &str) -> Option<String>;
    /// A context extension.
    fn extension(&self, name: &str) -> Option<&str>;
    /// What a placeholder of the path template stands for.
    fn path_parameter(&self, name: &str) -> Option<&str>;
    /// The token's claims.
    fn claims(&self) -> Option<&Map<String, Json>>;
    /// The client's certificate.
    fn certificate(&self) -> Option<CertificateFacts<'_>>;
    /// Now, in seconds since the Unix epoch.
    fn now_seconds(&self) -> i64;
}

/// What a condition may ask of a certificate.
#[derive(Debug, Clone, Copy)]
pub struct CertificateFacts<'a> {
    /// The base64url of SHA-256 over it (`x5t#S256`).
    pub sha256: &'a str,
    /// The subject's name.
    pub subject: &'a str,
    /// DNS names.
    pub dns_names: &'a [String],
    /// URIs, a SPIFFE id among them.
    pub uris: &'a [String],
}

impl Condition {
    /// Parses, checks and compiles an expression.
    ///
    /// # Errors
    ///
    /// The first mistake, with its place.
    pub fn compile(text: &str) -> Result<Self, ConditionError> {
        Self::compile_within(text, &mut { MAX_PATTERN_BYTES })
    }

    /// As [`Self::compile`]; what its regular expressions take is taken from `pattern_bytes`.
    pub(super) fn compile_within(text: &str, pattern_bytes: &mut usize) -> Result<Self, ConditionError> {
        compile::compile(text, pattern_bytes).map(|compiled| Self(Arc::new(compiled)))
    }

    /// The one outcome of an expression that asks for nothing of a request.
    pub(super) fn constant(&self) -> Option<Result<bool, ConditionFault>> {
        self.0.root.is_constant().then(|| evaluate::evaluate(&self.0.root, &Nothing))
    }

    /// Bytes that its regular expressions take.
    pub fn pattern_bytes(&self) -> usize {
        self.0.pattern_bytes
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The placeholders of the path template that it asks for.
    pub fn path_parameters(&self) -> impl Iterator<Item = &str> {
        self.0.parameters.iter().map(String::as_str)
    }

    /// Whether it holds.
    ///
    /// # Errors
    ///
    /// [`ConditionFault`], which is neither yes nor no.
    pub fn evaluate(&self, facts: &dyn Facts) -> Result<bool, ConditionFault> {
        evaluate::evaluate(&self.0.root, facts)
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition({:?})", self.0.text)
    }
}

/// No request at all.
struct Nothing;

impl Facts for Nothing {
    fn method(&self) -> &'static str {
        ""
    }
    fn host(&self) -> &'static str {
        ""
    }
    fn path(&self) -> &'static str {
        ""
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn scheme(&self) -> &'static str {
        ""
    }
    fn source_address(&self) -> Option<&str> {
        None
    }
    fn header(&self, _name: &str) -> Option<String> {
        None
    }
    fn extension(&self, _name: &str) -> Option<&str> {
        None
    }
    fn path_parameter(&self, _name: &str) -> Option<&str> {
        None
    }
    fn claims(&self) -> Option<&Map<String, Json>> {
        None
    }
    fn certificate(&self) -> Option<CertificateFacts<'_>> {
        None
    }
    fn now_seconds(&self) -> i64 {
        0
    }
}
