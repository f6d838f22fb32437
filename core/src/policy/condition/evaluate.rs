//! What a checked tree comes to for one request, within a budget of steps.

use std::borrow::Cow;

use super::tree::{CertificateField, Conversion, Node, Operator, Quantifier, RequestField, Search};
use super::value::Value;
use super::{ConditionFault, Facts, MAX_STEPS};

/// Bytes of a text that are searched in one step.
const BYTES_A_STEP: usize = 64;

pub(super) fn evaluate(root: &Node, facts: &dyn Facts) -> Result<bool, ConditionFault> {
    Evaluation { facts, elements: Vec::new(), steps: MAX_STEPS }.node(root)?.bool()
}

struct Evaluation<'f> {
    facts: &'f dyn Facts,
    /// The elements that quantifiers are at, the innermost last.
    elements: Vec<Value<'f>>,
    /// What is left of the budget.
    steps: u32,
}

type Outcome<'f> = Result<Value<'f>, ConditionFault>;

impl<'f> Evaluation<'f> {
    fn spend(&mut self, steps: usize) -> Result<(), ConditionFault> {
        let steps = u32::try_from(steps).map_err(|_| ConditionFault::Budget)?;
        self.steps = self.steps.checked_sub(steps).ok_or(ConditionFault::Budget)?;
        Ok(())
    }

    fn node(&mut self, node: &'f Node) -> Outcome<'f> {
        self.spend(1)?;
        match node {
            Node::Null => Ok(Value::Null),
            Node::Bool(value) => Ok(Value::Bool(*value)),
            Node::Int(number) => Ok(Value::Int(*number)),
            Node::Double(number) => Ok(Value::Double(*number)),
            Node::Text(text) => Ok(Value::Text(Cow::Borrowed(text))),
            Node::Timestamp(seconds) => Ok(Value::Timestamp(*seconds)),
            Node::Duration(seconds) => Ok(Value::Duration(*seconds)),
            Node::Now => Ok(Value::Timestamp(self.facts.now_seconds())),
            Node::List(elements) => {
                Ok(Value::List(elements.iter().map(|element| self.node(element)).collect::<Result<_, _>>()?))
            }
            Node::Header(name) => {
                let value = self.facts.header(name).ok_or(ConditionFault::Missing)?;
                self.spend(value.len() / BYTES_A_STEP)?;
                Ok(Value::Text(Cow::Owned(value)))
            }
            Node::Request(_) | Node::Parameter(_) | Node::Extension(_) | Node::Certificate(_) => {
                self.fact(node).ok_or(ConditionFault::Missing)
            }
            // The claims as a whole are no value; only their members are asked for.
            Node::Token => Err(ConditionFault::Type),
            Node::Element(level) => {
                let at = self.elements.len().checked_sub(level + 1).ok_or(ConditionFault::Missing)?;
                self.elements.get(at).cloned().ok_or(ConditionFault::Missing)
            }
            Node::Member(operand, name) => self.member(operand, name),
            Node::Index(operand, index) => {
                let index = self.node(index)?;
                match (&**operand, &index) {
                    (Node::Token, Value::Text(name)) => self.claim(name),
                    _ => self.node(operand)?.index(&index),
                }
            }
            Node::Present(inner) => match self.node(inner) {
                Ok(_) => Ok(Value::Bool(true)),
                Err(ConditionFault::Missing) => Ok(Value::Bool(false)),
                Err(fault) => Err(fault),
            },
            Node::Not(inner) => Ok(Value::Bool(!self.node(inner)?.bool()?)),
            Node::Negate(inner) => self.node(inner)?.negate(),
            Node::And(left, right) => self.both(left, right, false),
            Node::Or(left, right) => self.both(left, right, true),
            Node::Choice(parts) => {
                let [condition, yes, no] = &**parts;
                if self.node(condition)?.bool()? { self.node(yes) } else { self.node(no) }
            }
            Node::Binary(operator, left, right) => self.binary(*operator, left, right),
            Node::Size(inner) => match &**inner {
                Node::Token => Ok(Value::Int(
                    self.facts.claims().map_or(0, |claims| i64::try_from(claims.len()).unwrap_or(i64::MAX)),
                )),
                inner => {
                    let value = self.node(inner)?;
                    if let Value::Text(text) = &value {
                        self.spend(text.len() / BYTES_A_STEP)?;
                    }
                    value.size().map(Value::Int)
                }
            },
            Node::Search(search, text, part) => self.search(*search, text, part),
            Node::Matches(text, pattern) => {
                let text = self.node(text)?;
                let text = text.text()?;
                self.spend(text.len() / BYTES_A_STEP)?;
                pattern.is_match(text).map(Value::Bool)
            }
            Node::LowerAscii(text) => {
                let text = self.node(text)?;
                let text = text.text()?;
                self.spend(text.len() / BYTES_A_STEP)?;
                Ok(Value::Text(Cow::Owned(text.to_ascii_lowercase())))
            }
            Node::Convert(conversion, inner) => convert(*conversion, &self.node(inner)?),
            Node::Part(part, inner) => match self.node(inner)? {
                Value::Timestamp(seconds) => Ok(Value::Int(part.of_timestamp(seconds))),
                Value::Duration(seconds) => part.of_duration(seconds).map(Value::Int),
                _ => Err(ConditionFault::Type),
            },
            Node::Quantifier(quantifier, range, predicate) => self.quantifier(*quantifier, range, predicate),
        }
    }

    /// What the request says, if it says it.
    fn fact(&self, node: &'f Node) -> Option<Value<'f>> {
        let facts = self.facts;
        let text = |text: &'f str| Value::Text(Cow::Borrowed(text));
        match node {
            Node::Request(field) => match field {
                RequestField::Method => Some(text(facts.method())),
                RequestField::Host => Some(text(facts.host())),
                RequestField::Path => Some(text(facts.path())),
                RequestField::Query => Some(text(facts.query().unwrap_or_default())),
                RequestField::Scheme => Some(text(facts.scheme())),
                RequestField::SourceAddress => facts.source_address().map(text),
            },
            Node::Parameter(name) => facts.path_parameter(name).map(text),
            Node::Extension(name) => facts.extension(name).map(text),
            Node::Certificate(field) => {
                let certificate = facts.certificate()?;
                Some(match field {
                    CertificateField::Sha256 => text(certificate.sha256),
                    CertificateField::Subject => text(certificate.subject),
                    CertificateField::DnsNames => Value::Texts(certificate.dns_names),
                    CertificateField::Uris => Value::Texts(certificate.uris),
                })
            }
            _ => None,
        }
    }

    fn claim(&self, name: &str) -> Outcome<'f> {
        let claim = self.facts.claims().and_then(|claims| claims.get(name));
        claim.map(Value::of_json).ok_or(ConditionFault::Missing)
    }

    fn member(&mut self, operand: &'f Node, name: &str) -> Outcome<'f> {
        match operand {
            Node::Token => self.claim(name),
            operand => self.node(operand)?.member(name),
        }
    }

    /// `&&` and `||`: what decides alone decides, also where the other side has no outcome.
    fn both(&mut self, left: &'f Node, right: &'f Node, deciding: bool) -> Outcome<'f> {
        let left = self.node(left).and_then(|value| value.bool());
        if left == Ok(deciding) || left == Err(ConditionFault::Budget) {
            return left.map(Value::Bool);
        }
        let right = self.node(right).and_then(|value| value.bool());
        match (left, right) {
            (_, Ok(right)) if right == deciding => Ok(Value::Bool(deciding)),
            (Err(fault), _) | (_, Err(fault)) => Err(fault),
            _ => Ok(Value::Bool(!deciding)),
        }
    }

    fn binary(&mut self, operator: Operator, left: &'f Node, right: &'f Node) -> Outcome<'f> {
        if operator == Operator::In && matches!(right, Node::Token) {
            let name = self.node(left)?;
            let present = self
                .facts
                .claims()
                .is_some_and(|claims| name.text().is_ok_and(|name| claims.contains_key(name)));
            return Ok(Value::Bool(present));
        }
        let (left, right) = (self.node(left)?, self.node(right)?);
        self.spend(left.weight(BYTES_A_STEP).saturating_add(right.weight(BYTES_A_STEP)))?;
        Ok(Value::Bool(match operator {
            Operator::Add => return left.add(right),
            Operator::Subtract => return left.subtract(&right),
            Operator::Multiply => return left.multiply(&right),
            Operator::Divide => return left.divide(&right),
            Operator::Remainder => return left.remainder(&right),
            Operator::Equal => left.equals(&right),
            Operator::NotEqual => !left.equals(&right),
            Operator::Less => left.compare(&right)?.is_lt(),
            Operator::LessOrEqual => left.compare(&right)?.is_le(),
            Operator::Greater => left.compare(&right)?.is_gt(),
            Operator::GreaterOrEqual => left.compare(&right)?.is_ge(),
            Operator::In => right.holds(&left)?,
        }))
    }

    fn search(&mut self, search: Search, text: &'f Node, part: &'f Node) -> Outcome<'f> {
        let (text, part) = (self.node(text)?, self.node(part)?);
        let (text, part) = (text.text()?, part.text()?);
        self.spend(text.len() / BYTES_A_STEP)?;
        Ok(Value::Bool(match search {
            Search::StartsWith => text.starts_with(part),
            Search::EndsWith => text.ends_with(part),
            Search::Contains => text.contains(part),
        }))
    }

    fn quantifier(&mut self, quantifier: Quantifier, range: &'f Node, predicate: &'f Node) -> Outcome<'f> {
        let elements = self.node(range)?.elements()?;
        self.spend(elements.len())?;
        let (mut holding, mut fault) = (0_u32, None);
        for element in elements {
            self.elements.push(element);
            let outcome = self.node(predicate).and_then(|value| value.bool());
            self.elements.pop();
            match (quantifier, outcome) {
                (_, Err(ConditionFault::Budget)) => return Err(ConditionFault::Budget),
                (Quantifier::All, Ok(false)) => return Ok(Value::Bool(false)),
                (Quantifier::Exists, Ok(true)) => return Ok(Value::Bool(true)),
                (_, Ok(holds)) => holding += u32::from(holds),
                (_, Err(other)) => fault = Some(other),
            }
        }
        match (fault, quantifier) {
            (Some(fault), _) => Err(fault),
            (None, Quantifier::All) => Ok(Value::Bool(true)),
            (None, Quantifier::Exists) => Ok(Value::Bool(false)),
            (None, Quantifier::ExistsOne) => Ok(Value::Bool(holding == 1)),
        }
    }
}

fn convert<'f>(conversion: Conversion, value: &Value<'f>) -> Outcome<'f> {
    match (conversion, value) {
        (Conversion::Int, Value::Int(number) | Value::Timestamp(number) | Value::Duration(number)) => {
            Ok(Value::Int(*number))
        }
        (Conversion::Int, Value::Text(text)) => {
            text.parse().map(Value::Int).map_err(|_| ConditionFault::Type)
        }
        #[expect(clippy::cast_possible_truncation, reason = "bounded before")]
        (Conversion::Int, Value::Double(number)) if number.abs() < 9e15 => Ok(Value::Int(*number as i64)),
        (Conversion::Double, Value::Double(number)) => Ok(Value::Double(*number)),
        #[expect(clippy::cast_precision_loss, reason = "what double() is for")]
        (Conversion::Double, Value::Int(number)) => Ok(Value::Double(*number as f64)),
        (Conversion::Double, Value::Text(text)) => {
            text.parse().map(Value::Double).map_err(|_| ConditionFault::Type)
        }
        (Conversion::Text, Value::Text(_)) => Ok(value.clone()),
        (Conversion::Text, Value::Int(number)) => Ok(Value::Text(Cow::Owned(number.to_string()))),
        (Conversion::Text, Value::Double(number)) => Ok(Value::Text(Cow::Owned(number.to_string()))),
        (Conversion::Text, Value::Bool(value)) => Ok(Value::Text(Cow::Owned(value.to_string()))),
        (_, Value::Double(_)) => Err(ConditionFault::Arithmetic),
        _ => Err(ConditionFault::Type),
    }
}
