//! Paths of rules that no request takes, because more specific ones take all of theirs.
//!
//! A single more specific way never takes all requests of another one: what is more specific is narrower. Several together can:
//! `/a/{x}` and `/a/{x}/{rest...}` leave nothing for `/a/{rest...}`.

use std::sync::Arc;

use super::Rule;
use super::host::HostPattern;
use super::route::Specificity;
use super::template::{Segment, Template};

/// A path that no request takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreachable {
    /// Index of its rule.
    pub(super) rule: usize,
    /// Index in the rule's paths.
    pub(super) path: usize,
    /// Rules and paths that take its requests, in the documents' order.
    pub(super) by: Vec<(usize, usize)>,
}

/// One way into a rule.
#[derive(Clone, Copy)]
struct Way<'r> {
    rule: usize,
    path: usize,
    host: &'r HostPattern,
    template: &'r Template,
    specificity: Specificity,
}

/// Every path that no request takes on any of its rule's hosts.
pub(super) fn unreachable(rules: &[Arc<Rule>]) -> Vec<Unreachable> {
    let ways: Vec<Way<'_>> = rules
        .iter()
        .enumerate()
        .flat_map(|(rule, of)| of.hosts.iter().map(move |host| (rule, of, host)))
        .flat_map(|(rule, of, host)| {
            of.paths.iter().enumerate().map(move |(path, template)| {
                let specificity = Specificity::of(of, host, template);
                Way { rule, path, host, template, specificity }
            })
        })
        .collect();
    let mut found = Vec::new();
    for (rule, of) in rules.iter().enumerate() {
        // Only of what ends with a rest a finite number of others can leave nothing.
        for (path, template) in of.paths.iter().enumerate().filter(|(_, template)| template.has_rest()) {
            let mut by = Vec::new();
            let taken = of.hosts.iter().all(|host| {
                let way =
                    Way { rule, path, host, template, specificity: Specificity::of(of, host, template) };
                is_taken(rules, &ways, &way, &mut by)
            });
            if taken && !of.hosts.is_empty() {
                by.sort_unstable();
                by.dedup();
                found.push(Unreachable { rule, path, by });
            }
        }
    }
    found
}

/// Whether others take every request of `way`, for each of its methods. They are added to `by`.
fn is_taken(rules: &[Arc<Rule>], ways: &[Way<'_>], way: &Way<'_>, by: &mut Vec<(usize, usize)>) -> bool {
    let of = &rules[way.rule];
    let before: Vec<&Way<'_>> = ways
        .iter()
        .filter(|other| {
            let rule = &rules[other.rule];
            other.specificity > way.specificity
                && rule.mode == of.mode
                && !other.specificity.is_share()
                && covers_host(other.host, way.host)
                && rule.extensions.iter().all(|pair| of.extensions.contains(pair))
        })
        .collect();
    let methods: Vec<Option<&String>> =
        if of.methods.is_empty() { vec![None] } else { of.methods.iter().map(Some).collect() };
    methods.into_iter().all(|method| {
        let takes = |other: &&Way<'_>| {
            let methods = &rules[other.rule].methods;
            methods.is_empty() || method.is_some_and(|method| methods.contains(method))
        };
        let before: Vec<&Way<'_>> = before.iter().filter(|other| takes(other)).copied().collect();
        let longest = before.iter().map(|other| other.template.segments().len()).max().unwrap_or(0);
        covered(&before, way.template.segments().to_vec(), longest, by)
    })
}

/// Whether every path of `segments` and a rest is matched: as a whole, or those of one segment more and all longer ones.
fn covered(
    ways: &[&Way<'_>],
    mut segments: Vec<Segment>,
    longest: usize,
    by: &mut Vec<(usize, usize)>,
) -> bool {
    loop {
        if let Some(way) = ways.iter().find(|way| covers(way.template, &segments, true)) {
            by.push((way.rule, way.path));
            return true;
        }
        segments.push(Segment::Parameter);
        if segments.len() > longest {
            return false;
        }
        let Some(way) = ways.iter().find(|way| covers(way.template, &segments, false)) else { return false };
        by.push((way.rule, way.path));
    }
}

/// Whether `template` matches every path of these segments, with a rest behind them or without.
fn covers(template: &Template, segments: &[Segment], rest: bool) -> bool {
    let ours = template.segments();
    let long_enough = match (template.has_rest(), rest) {
        (false, true) => false,
        (false, false) => ours.len() == segments.len(),
        (true, true) => ours.len() <= segments.len(),
        (true, false) => ours.len() < segments.len(),
    };
    long_enough
        && ours.iter().zip(segments).all(|(ours, theirs)| match ours {
            Segment::Parameter => true,
            literal @ Segment::Literal(_) => literal == theirs,
        })
}

fn covers_host(pattern: &HostPattern, other: &HostPattern) -> bool {
    match (pattern, other) {
        (HostPattern::Any, _) => true,
        (HostPattern::Exact(ours), HostPattern::Exact(theirs)) => ours == theirs,
        (HostPattern::Below(ours), HostPattern::Below(theirs)) => ours == theirs || is_below(theirs, ours),
        (HostPattern::Below(ours), HostPattern::Exact(theirs)) => is_below(theirs, ours),
        _ => false,
    }
}

fn is_below(host: &str, parent: &str) -> bool {
    host.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}
