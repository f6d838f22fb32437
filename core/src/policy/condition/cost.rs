//! What an evaluation may take, told before there is a request.

use super::tree::{Node, RequestField};

/// Elements of a list that is not written out. A longer one is met by the budget of the evaluation.
pub(super) const ELEMENTS: u64 = 32;
/// Steps for a text that a client may make long: 1 KiB.
const LONG_TEXT: u64 = 16;

/// Steps that the evaluation of `node` takes at most, where lists have [`ELEMENTS`] elements and what clients send has 1 KiB.
pub(super) fn cost(node: &Node) -> u64 {
    let parts = || node.children().into_iter().map(cost).fold(1, u64::saturating_add);
    match node {
        Node::Header(_)
        | Node::Parameter(_)
        | Node::Request(RequestField::Path | RequestField::Query | RequestField::Host) => 1 + LONG_TEXT,
        Node::Quantifier(_, range, predicate) => {
            let elements = if let Node::List(elements) = &**range { elements.len() as u64 } else { ELEMENTS };
            let each = cost(predicate).saturating_add(1).saturating_mul(elements);
            cost(range).saturating_add(each).saturating_add(1)
        }
        // The longer side is read once more.
        Node::Binary(..) | Node::Search(..) | Node::Matches(..) | Node::Size(_) | Node::LowerAscii(_) => {
            parts().saturating_add(node.children().into_iter().map(text).max().unwrap_or(0))
        }
        _ => parts(),
    }
}

/// Steps to read what `node` gives.
fn text(node: &Node) -> u64 {
    match node {
        Node::Header(_)
        | Node::Parameter(_)
        | Node::Request(RequestField::Path | RequestField::Query | RequestField::Host) => LONG_TEXT,
        Node::List(elements) => elements.len() as u64,
        Node::LowerAscii(inner) => text(inner),
        Node::Binary(..) => node.children().into_iter().map(text).sum(),
        _ => 1,
    }
}
