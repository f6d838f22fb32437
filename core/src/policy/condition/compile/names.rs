//! The names that an expression may use: variables, their members, elements of quantifiers.

use cel::common::ast::{Expr, IdedExpr, SelectExpr};

use super::super::tree::{CertificateField, Node, RequestField};
use super::super::types::Type;
use super::{Checked, Compiler};

impl Compiler<'_> {
    pub(super) fn variable(&self, at: &IdedExpr, name: &str) -> Checked {
        if let Some(level) = self.elements.iter().rev().position(|element| element == name) {
            return Ok((Node::Element(level), Type::Any));
        }
        match name {
            "token" => Ok((Node::Token, Type::Map)),
            "now" => Ok((Node::Now, Type::Timestamp)),
            "request" | "client_certificate" => Err(self.error(
                at,
                format!(
                    "`{name}` is asked for by its members, as in `{name}.{}`",
                    if name == "request" { "method" } else { "subject" }
                ),
            )),
            _ => Err(self.error(
                at,
                format!("there is no `{name}`; there are request, token, client_certificate and now"),
            )),
        }
    }

    pub(super) fn select(&mut self, at: &IdedExpr, select: &SelectExpr, depth: u16) -> Checked {
        let (node, kind) = self.member(at, &select.operand, &select.field, depth)?;
        Ok(if select.test { (Node::Present(Box::new(node)), Type::Bool) } else { (node, kind) })
    }

    pub(super) fn member(&mut self, at: &IdedExpr, operand: &IdedExpr, field: &str, depth: u16) -> Checked {
        match &operand.expr {
            Expr::Ident(name) if name == "request" => self.request_field(at, field),
            Expr::Ident(name) if name == "client_certificate" => self.certificate_field(at, field),
            Expr::Select(inner) if is_request(&inner.operand) => self.request_map(at, &inner.field, field),
            _ => {
                let (node, kind) = self.node(operand, depth + 1)?;
                if !kind.may_be(&[Type::Map]) {
                    return Err(self.error(at, format!("{} has no members", kind.as_str())));
                }
                Ok((Node::Member(Box::new(node), field.to_owned()), Type::Any))
            }
        }
    }

    fn request_field(&self, at: &IdedExpr, field: &str) -> Checked {
        let field = match field {
            "method" => RequestField::Method,
            "host" => RequestField::Host,
            "path" => RequestField::Path,
            "query" => RequestField::Query,
            "scheme" => RequestField::Scheme,
            "headers" | "params" | "extensions" | "source" => {
                let example = match field {
                    "headers" => "request.headers[\"x-name\"]",
                    "params" => "request.params.id",
                    "extensions" => "request.extensions[\"name\"]",
                    _ => "request.source.address",
                };
                return Err(self
                    .error(at, format!("`request.{field}` is asked for by its members, as in `{example}`")));
            }
            _ => {
                let message = format!(
                    "there is no `request.{field}`; there are method, host, path, query, scheme, headers, params, extensions and source"
                );
                return Err(self.error(at, message));
            }
        };
        Ok((Node::Request(field), Type::Text))
    }

    fn certificate_field(&self, at: &IdedExpr, field: &str) -> Checked {
        let (field, kind) = match field {
            "sha256" => (CertificateField::Sha256, Type::Text),
            "subject" => (CertificateField::Subject, Type::Text),
            "dns_names" => (CertificateField::DnsNames, Type::List),
            "uris" => (CertificateField::Uris, Type::List),
            _ => {
                let message = format!(
                    "there is no `client_certificate.{field}`; there are sha256, subject, dns_names and uris"
                );
                return Err(self.error(at, message));
            }
        };
        Ok((Node::Certificate(field), kind))
    }

    /// `request.headers.name`, `request.params.name`, `request.extensions.name`, `request.source.address`.
    pub(super) fn request_map(&mut self, at: &IdedExpr, map: &str, name: &str) -> Checked {
        let node = match map {
            "headers" if name.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                return Err(self
                    .error(at, format!("header names are in lower case: `{}`", name.to_ascii_lowercase())));
            }
            "headers" => Node::Header(name.to_owned()),
            "params" => {
                self.parameters.push(name.to_owned());
                Node::Parameter(name.to_owned())
            }
            "extensions" => Node::Extension(name.to_owned()),
            "source" if name == "address" => Node::Request(RequestField::SourceAddress),
            "source" => return Err(self.error(at, "there is `request.source.address` only")),
            _ => {
                return self
                    .request_field(at, map)
                    .and_then(|_| Err(self.error(at, "a text has no members")));
            }
        };
        Ok((node, Type::Text))
    }
}

fn is_request(expression: &IdedExpr) -> bool {
    matches!(&expression.expr, Expr::Ident(name) if name == "request")
}

pub(super) fn is_request_map(expression: &IdedExpr) -> bool {
    matches!(&expression.expr, Expr::Select(select) if is_request(&select.operand)
        && matches!(select.field.as_str(), "headers" | "params" | "extensions"))
}
