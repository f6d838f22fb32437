//! The checked tree that an expression becomes.

use super::pattern::Pattern;
use super::time::Part;

/// A checked expression.
pub(super) struct Compiled {
    pub(super) text: String,
    pub(super) root: Node,
    pub(super) parameters: Vec<String>,
    /// Bytes that its regular expressions take.
    pub(super) pattern_bytes: usize,
}

#[derive(Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
    Timestamp(i64),
    Duration(i64),
    List(Vec<Node>),
    Request(RequestField),
    Header(String),
    Parameter(String),
    Extension(String),
    Token,
    Certificate(CertificateField),
    Now,
    /// The element of the quantifier so many levels up, 0 for the innermost.
    Element(usize),
    Member(Box<Node>, String),
    Index(Box<Node>, Box<Node>),
    /// Whether the inner one is there.
    Present(Box<Node>),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Choice(Box<[Node; 3]>),
    Binary(Operator, Box<Node>, Box<Node>),
    Size(Box<Node>),
    Search(Search, Box<Node>, Box<Node>),
    Matches(Box<Node>, Box<Pattern>),
    LowerAscii(Box<Node>),
    Convert(Conversion, Box<Node>),
    Part(Part, Box<Node>),
    Quantifier(Quantifier, Box<Node>, Box<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestField {
    Method,
    Host,
    Path,
    Query,
    Scheme,
    SourceAddress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CertificateField {
    Sha256,
    Subject,
    DnsNames,
    Uris,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Search {
    StartsWith,
    EndsWith,
    Contains,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conversion {
    Int,
    Double,
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantifier {
    All,
    Exists,
    ExistsOne,
}

impl Node {
    /// Whether nothing of a request is asked for.
    pub(super) fn is_constant(&self) -> bool {
        match self {
            Self::Request(_)
            | Self::Header(_)
            | Self::Parameter(_)
            | Self::Extension(_)
            | Self::Token
            | Self::Certificate(_)
            | Self::Now => false,
            other => other.children().into_iter().all(Self::is_constant),
        }
    }

    /// The parts that it is made of.
    pub(super) fn children(&self) -> Vec<&Self> {
        match self {
            Self::List(elements) => elements.iter().collect(),
            Self::Choice(parts) => parts.iter().collect(),
            Self::Member(inner, _)
            | Self::Present(inner)
            | Self::Not(inner)
            | Self::Negate(inner)
            | Self::Size(inner)
            | Self::Matches(inner, _)
            | Self::LowerAscii(inner)
            | Self::Convert(_, inner)
            | Self::Part(_, inner) => vec![inner],
            Self::Index(left, right)
            | Self::And(left, right)
            | Self::Or(left, right)
            | Self::Binary(_, left, right)
            | Self::Search(_, left, right)
            | Self::Quantifier(_, left, right) => vec![left, right],
            _ => Vec::new(),
        }
    }
}
