//! From text to a checked tree.

use std::borrow::Cow;

use cel::common::ast::{ComprehensionExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators};
use cel::parser::Parser;

use super::cost::{self, cost};
use super::pattern::Pattern;
use super::time::{Part, parse_duration, parse_timestamp};
use super::tree::{Compiled, Conversion, Node, Operator, Quantifier, Search};
use super::types::{Type, result_type};
use super::{ConditionError, MAX_STEPS, MAX_TEXT_BYTES};

mod names;

use names::is_request_map;

/// Levels of nesting at most.
const MAX_DEPTH: u16 = 24;
/// Nodes of a tree at most.
const MAX_NODES: usize = 500;
/// `all`, `exists` and `exists_one` within each other at most.
const MAX_QUANTIFIERS: usize = 2;

const OPERATORS: [(&str, Operator); 12] = [
    (operators::ADD, Operator::Add),
    (operators::SUBSTRACT, Operator::Subtract),
    (operators::MULTIPLY, Operator::Multiply),
    (operators::DIVIDE, Operator::Divide),
    (operators::MODULO, Operator::Remainder),
    (operators::EQUALS, Operator::Equal),
    (operators::NOT_EQUALS, Operator::NotEqual),
    (operators::LESS, Operator::Less),
    (operators::LESS_EQUALS, Operator::LessOrEqual),
    (operators::GREATER, Operator::Greater),
    (operators::GREATER_EQUALS, Operator::GreaterOrEqual),
    (operators::IN, Operator::In),
];
const FUNCTIONS: &str = "size, startsWith, endsWith, contains, matches, lowerAscii, int, double, string, timestamp, \
                         duration, getFullYear, getMonth, getDate, getDayOfMonth, getDayOfWeek, getHours, getMinutes, \
                         getSeconds, has, all, exists, exists_one";

/// `pattern_bytes` is what regular expressions may still take together; what they take is taken from it.
pub(super) fn compile(text: &str, pattern_bytes: &mut usize) -> Result<Compiled, ConditionError> {
    let whole = |message: String| ConditionError { line: 1, column: 1, message };
    if text.trim().is_empty() {
        return Err(whole("is empty; leave it out for no condition".into()));
    }
    if text.len() > MAX_TEXT_BYTES {
        return Err(whole(format!("has {} bytes, at most {MAX_TEXT_BYTES} are allowed", text.len())));
    }
    check_nesting(text)?;
    let parser = Parser::new().max_recursion_depth(MAX_DEPTH * 8);
    let (expression, source) = parser.parse_with_source_info(text).map_err(|errors| {
        let first = errors.errors.into_iter().next();
        first.map_or_else(
            || whole("is no CEL expression".into()),
            |error| {
                let place = |number: isize| usize::try_from(number).unwrap_or(1).max(1);
                let message = error.msg.replace('\n', " ");
                ConditionError {
                    line: place(error.pos.0),
                    column: place(error.pos.1),
                    message: format!("is no CEL expression: {message}"),
                }
            },
        )
    })?;
    let before = *pattern_bytes;
    let mut compiler = Compiler {
        source,
        nodes: 0,
        elements: Vec::new(),
        parameters: Vec::new(),
        pattern_bytes: &mut *pattern_bytes,
    };
    let (root, kind) = compiler.node(&expression, 0)?;
    compiler.bounded(&expression, &root)?;
    if !kind.may_be(&[Type::Bool]) {
        return Err(compiler.error(&expression, format!("must be true or false, and is {}", kind.as_str())));
    }
    let parameters = compiler.parameters;
    Ok(Compiled { text: text.to_owned(), root, parameters, pattern_bytes: before - *pattern_bytes })
}

/// The parser recurses, also where no node comes of it: brackets are counted before it sees them.
fn check_nesting(text: &str) -> Result<(), ConditionError> {
    let (mut depth, mut line, mut column) = (0_u16, 1, 1);
    let mut operators = 0_u16;
    for character in text.chars() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        operators = if matches!(character, '!' | '-' | '?') { operators + 1 } else { operators };
        if depth > MAX_DEPTH || operators > 64 {
            let message = format!("is nested deeper than {MAX_DEPTH} levels");
            return Err(ConditionError { line, column, message });
        }
        (line, column) = if character == '\n' { (line + 1, 1) } else { (line, column + 1) };
    }
    Ok(())
}

struct Compiler<'b> {
    source: SourceInfo,
    nodes: usize,
    /// Names of the quantifiers' elements, the innermost last.
    elements: Vec<String>,
    parameters: Vec<String>,
    /// What regular expressions may still take, in bytes.
    pattern_bytes: &'b mut usize,
}

type Checked = Result<(Node, Type), ConditionError>;

impl Compiler<'_> {
    fn error(&self, at: &IdedExpr, message: impl Into<String>) -> ConditionError {
        let offset = self.source.offset_for(at.id).map_or(0, |(start, _)| start as usize);
        // The parser counts characters.
        let before: String = self.source.source.chars().take(offset).collect();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        ConditionError { line, column, message: message.into() }
    }

    fn node(&mut self, at: &IdedExpr, depth: u16) -> Checked {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self.error(at, format!("has more than {MAX_NODES} parts; split the rule")));
        }
        if depth > MAX_DEPTH * 4 {
            return Err(self.error(at, "is nested too deeply"));
        }
        match &at.expr {
            Expr::Literal(literal) => self.literal(at, literal),
            Expr::Ident(name) => self.variable(at, name),
            Expr::Select(select) => self.select(at, select, depth),
            Expr::Call(call) => match (&call.target, &call.args[..]) {
                (None, [one]) => self.unary(at, &call.func_name, one, depth),
                (None, [left, right]) => self.binary(at, &call.func_name, left, right, depth),
                (None, [condition, yes, no]) if call.func_name == operators::CONDITIONAL => {
                    self.choice(condition, yes, no, depth)
                }
                (Some(target), args) => self.method(at, &call.func_name, target, args, depth),
                _ => Err(self.unknown_function(at, &call.func_name)),
            },
            Expr::List(list) if list.optional_indices.is_empty() => {
                let elements = list.elements.iter().map(|element| Ok(self.node(element, depth + 1)?.0));
                Ok((Node::List(elements.collect::<Result<_, _>>()?), Type::List))
            }
            Expr::Comprehension(comprehension) => self.quantifier(at, comprehension, depth),
            Expr::List(_) | Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {
                Err(self.error(at, "maps, messages and optional values are not part of conditions"))
            }
        }
    }

    fn literal(&self, at: &IdedExpr, literal: &LiteralValue) -> Checked {
        Ok(match literal {
            LiteralValue::Boolean(value) => (Node::Bool(*value.inner()), Type::Bool),
            LiteralValue::Int(value) => (Node::Int(*value.inner()), Type::Int),
            LiteralValue::Double(value) => (Node::Double(*value.inner()), Type::Double),
            LiteralValue::String(value) => (Node::Text(value.inner().to_owned()), Type::Text),
            LiteralValue::Null => (Node::Null, Type::Null),
            LiteralValue::UInt(value) => match i64::try_from(*value.inner()) {
                Ok(value) => (Node::Int(value), Type::Int),
                Err(_) => return Err(self.error(at, "the number is too large")),
            },
            LiteralValue::Bytes(_) => return Err(self.error(at, "bytes are not part of conditions")),
        })
    }

    fn unary(&mut self, at: &IdedExpr, function: &str, argument: &IdedExpr, depth: u16) -> Checked {
        match function {
            "timestamp" | "duration" => return self.literal_time(argument, function),
            "size" => return self.size(argument, depth),
            _ => {}
        }
        let conversion = match function {
            "int" => Some((Conversion::Int, Type::Int)),
            "double" => Some((Conversion::Double, Type::Double)),
            "string" => Some((Conversion::Text, Type::Text)),
            operators::LOGICAL_NOT | operators::NEGATE => None,
            operators::NOT_STRICTLY_FALSE => return self.node(argument, depth + 1),
            _ => return Err(self.unknown_function(at, function)),
        };
        let (node, kind) = self.node(argument, depth + 1)?;
        let node = Box::new(node);
        if let Some((conversion, to)) = conversion {
            let scalars = [Type::Int, Type::Double, Type::Text, Type::Bool, Type::Timestamp, Type::Duration];
            self.expect(argument, kind, &scalars)?;
            return Ok((Node::Convert(conversion, node), to));
        }
        if function == operators::LOGICAL_NOT {
            self.expect(argument, kind, &[Type::Bool])?;
            return Ok((Node::Not(node), Type::Bool));
        }
        self.expect(argument, kind, &[Type::Int, Type::Double, Type::Duration])?;
        Ok((Node::Negate(node), kind))
    }

    fn binary(
        &mut self,
        at: &IdedExpr,
        function: &str,
        left: &IdedExpr,
        right: &IdedExpr,
        depth: u16,
    ) -> Checked {
        if function == operators::INDEX {
            return self.index(at, left, right, depth);
        }
        if function == operators::IN && is_request_map(right) {
            // `"x-name" in request.headers`
            let Expr::Literal(LiteralValue::String(name)) = &left.expr else {
                return Err(self.error(left, "must be a text that is written out"));
            };
            let Expr::Select(map) = &right.expr else {
                return Err(self.error(right, "must be a map of the request"));
            };
            let (node, _) = self.request_map(left, &map.field, name.inner())?;
            return Ok((Node::Present(Box::new(node)), Type::Bool));
        }
        let ((left_node, left_type), (right_node, right_type)) =
            (self.node(left, depth + 1)?, self.node(right, depth + 1)?);
        let (a, b) = (Box::new(left_node), Box::new(right_node));
        if function == operators::LOGICAL_AND || function == operators::LOGICAL_OR {
            self.expect(left, left_type, &[Type::Bool])?;
            self.expect(right, right_type, &[Type::Bool])?;
            let node = if function == operators::LOGICAL_AND { Node::And(a, b) } else { Node::Or(a, b) };
            return Ok((node, Type::Bool));
        }
        let found = OPERATORS.iter().find(|(name, _)| *name == function);
        let Some((_, operator)) = found.copied() else { return Err(self.unknown_function(at, function)) };
        let kind = result_type(operator, left_type, right_type).ok_or_else(|| {
            let message =
                format!("{} and {} cannot be put together so", left_type.as_str(), right_type.as_str());
            self.error(at, message)
        })?;
        Ok((Node::Binary(operator, a, b), kind))
    }

    fn index(&mut self, at: &IdedExpr, operand: &IdedExpr, index: &IdedExpr, depth: u16) -> Checked {
        if let Expr::Literal(LiteralValue::String(name)) = &index.expr {
            return self.member(at, operand, name.inner(), depth);
        }
        if is_request_map(operand) {
            return Err(self.error(index, "must be a text that is written out"));
        }
        let ((operand_node, operand_type), (index_node, index_type)) =
            (self.node(operand, depth + 1)?, self.node(index, depth + 1)?);
        self.expect(operand, operand_type, &[Type::List, Type::Map])?;
        self.expect(index, index_type, &[Type::Int, Type::Text])?;
        Ok((Node::Index(Box::new(operand_node), Box::new(index_node)), Type::Any))
    }

    fn choice(&mut self, condition: &IdedExpr, yes: &IdedExpr, no: &IdedExpr, depth: u16) -> Checked {
        let (condition_node, kind) = self.node(condition, depth + 1)?;
        self.expect(condition, kind, &[Type::Bool])?;
        let ((yes, yes_type), (no, no_type)) = (self.node(yes, depth + 1)?, self.node(no, depth + 1)?);
        let kind = if yes_type == no_type { yes_type } else { Type::Any };
        Ok((Node::Choice(Box::new([condition_node, yes, no])), kind))
    }

    fn size(&mut self, argument: &IdedExpr, depth: u16) -> Checked {
        let (node, kind) = self.node(argument, depth + 1)?;
        self.expect(argument, kind, &[Type::Text, Type::List, Type::Map])?;
        Ok((Node::Size(Box::new(node)), Type::Int))
    }

    fn literal_time(&self, argument: &IdedExpr, function: &str) -> Checked {
        let text: Option<Cow<'_, str>> = match &argument.expr {
            Expr::Literal(LiteralValue::String(text)) => Some(Cow::Borrowed(text.inner())),
            _ => None,
        };
        let read = |parse: fn(&str) -> Option<i64>| text.as_deref().and_then(parse);
        if function == "timestamp" {
            let at = read(parse_timestamp).ok_or_else(|| {
                self.error(argument, "must be a time that is written out, as in \"2026-01-31T08:00:00Z\"")
            })?;
            return Ok((Node::Timestamp(at), Type::Timestamp));
        }
        let seconds = read(parse_duration).ok_or_else(|| {
            self.error(argument, "must be a duration that is written out, as in \"90s\" or \"1h30m\"")
        })?;
        Ok((Node::Duration(seconds), Type::Duration))
    }

    fn method(
        &mut self,
        at: &IdedExpr,
        function: &str,
        target: &IdedExpr,
        arguments: &[IdedExpr],
        depth: u16,
    ) -> Checked {
        if function == "size" && arguments.is_empty() {
            return self.size(target, depth);
        }
        let (node, kind) = self.node(target, depth + 1)?;
        let node = Box::new(node);
        if let Some((_, part)) = Part::ALL.iter().find(|(name, _)| *name == function) {
            if !arguments.is_empty() {
                return Err(self.error(at, "times are in UTC; there is no other zone"));
            }
            self.expect(target, kind, &[Type::Timestamp, Type::Duration])?;
            return Ok((Node::Part(*part, node), Type::Int));
        }
        self.expect(target, kind, &[Type::Text])?;
        let search = match (function, arguments) {
            ("lowerAscii", []) => return Ok((Node::LowerAscii(node), Type::Text)),
            ("matches", [pattern]) => {
                return Ok((Node::Matches(node, Box::new(self.pattern(pattern)?)), Type::Bool));
            }
            ("startsWith", [_]) => Search::StartsWith,
            ("endsWith", [_]) => Search::EndsWith,
            ("contains", [_]) => Search::Contains,
            _ => return Err(self.unknown_function(at, function)),
        };
        let (argument, kind) = self.node(&arguments[0], depth + 1)?;
        self.expect(&arguments[0], kind, &[Type::Text])?;
        Ok((Node::Search(search, node, Box::new(argument)), Type::Bool))
    }

    fn pattern(&mut self, at: &IdedExpr) -> Result<Pattern, ConditionError> {
        let Expr::Literal(LiteralValue::String(text)) = &at.expr else {
            return Err(self.error(at, "must be a regular expression that is written out"));
        };
        Pattern::compile(text.inner(), self.pattern_bytes).map_err(|problem| self.error(at, problem))
    }

    /// Refuses what may take more steps than an evaluation has.
    fn bounded(&self, at: &IdedExpr, node: &Node) -> Result<(), ConditionError> {
        let steps = cost(node);
        if steps <= u64::from(MAX_STEPS) {
            return Ok(());
        }
        let message = format!(
            "may take {steps} steps where a list has {} elements, and {MAX_STEPS} are allowed; ask for less within \
             all, exists and exists_one",
            cost::ELEMENTS
        );
        Err(self.error(at, message))
    }

    /// The macros come expanded; each has its own shape.
    fn quantifier(&mut self, at: &IdedExpr, comprehension: &ComprehensionExpr, depth: u16) -> Checked {
        let step = match &comprehension.loop_step.expr {
            Expr::Call(call) => Some((call.func_name.as_str(), &call.args[..])),
            _ => None,
        };
        let initial = match &comprehension.accu_init.expr {
            Expr::Literal(LiteralValue::Boolean(value)) => Some(*value.inner()),
            _ => None,
        };
        let is_count = matches!(&comprehension.accu_init.expr, Expr::Literal(LiteralValue::Int(_)));
        let (quantifier, predicate) = match (step, initial) {
            (Some((operators::LOGICAL_AND, [_, predicate])), Some(true)) => (Quantifier::All, predicate),
            (Some((operators::LOGICAL_OR, [_, predicate])), Some(false)) => (Quantifier::Exists, predicate),
            (Some((operators::CONDITIONAL, [predicate, _, _])), None) if is_count => {
                (Quantifier::ExistsOne, predicate)
            }
            _ => {
                return Err(self.error(
                    at,
                    "`map` and `filter` are not part of conditions; use all, exists or exists_one",
                ));
            }
        };
        if self.elements.len() >= MAX_QUANTIFIERS {
            let message =
                format!("all, exists and exists_one stand within each other at most {MAX_QUANTIFIERS} deep");
            return Err(self.error(at, message));
        }
        if comprehension.iter_var2.is_some() {
            return Err(self.error(at, "takes one name and a condition"));
        }
        let (range, kind) = self.node(&comprehension.iter_range, depth + 1)?;
        self.expect(&comprehension.iter_range, kind, &[Type::List])?;
        self.elements.push(comprehension.iter_var.clone());
        let checked = self.node(predicate, depth + 1);
        self.elements.pop();
        let (node, kind) = checked?;
        self.expect(predicate, kind, &[Type::Bool])?;
        let node = Node::Quantifier(quantifier, Box::new(range), Box::new(node));
        self.bounded(at, &node)?;
        Ok((node, Type::Bool))
    }

    fn expect(&self, at: &IdedExpr, kind: Type, expected: &[Type]) -> Result<(), ConditionError> {
        if kind.may_be(expected) {
            return Ok(());
        }
        let names: Vec<&str> = expected.iter().map(|kind| kind.as_str()).collect();
        Err(self.error(at, format!("must be {}, and is {}", names.join(" or "), kind.as_str())))
    }

    fn unknown_function(&self, at: &IdedExpr, function: &str) -> ConditionError {
        self.error(at, format!("there is no function `{function}` of that form; there are {FUNCTIONS}"))
    }
}
