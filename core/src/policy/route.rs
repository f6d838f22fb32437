//! Finding the rule that applies, in a time that does not grow with the number of rules.
//!
//! A table a host pattern holds a map of exact paths and a tree of templates by segment. A request looks into the tables of
//! its host, of the wildcards above it and of any host, and the most specific match wins.

use std::cmp::Reverse;

use hashbrown::HashMap;

use super::host::{self, HostPattern};
use super::template::{Segment, Template};
use super::{Mode, Rule};
use crate::path::NormalisedPath;
use crate::request::Request;

/// How specific a match is; the greater wins. The fields are compared in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Specificity {
    path: PathKind,
    literals: usize,
    segments: usize,
    host: HostKind,
    methods: bool,
    extensions: usize,
    rollout: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PathKind {
    Rest,
    Template,
    Exact,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum HostKind {
    Any,
    /// With the number of labels below which it matches.
    Below(usize),
    Exact,
}

/// One way into a rule: one of its paths on one of its hosts.
#[derive(Debug, Clone, Copy)]
struct Entry {
    specificity: Specificity,
    /// Index in the set's rules.
    rule: usize,
    /// Index in the rule's paths.
    path: usize,
}

/// The entries that end at one place, the most specific first.
type Entries = Vec<Entry>;

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Node>,
    parameter: Option<Box<Node>>,
    ends: Entries,
    rests: Entries,
}

#[derive(Debug, Default)]
struct Table {
    exact: HashMap<Box<str>, Entries>,
    templates: Node,
    /// Every entry of `templates`, to look for ties in.
    entries: Entries,
}

/// The tables of a policy set.
#[derive(Debug, Default)]
pub(super) struct Routes {
    exact: HashMap<Box<str>, Table>,
    below: HashMap<Box<str>, Table>,
    any: Table,
}

/// Two ways into different rules of which neither is the more specific, though one request can take both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tie {
    /// Rule and path of the one that comes later in the documents.
    pub(super) later: (usize, usize),
    /// Rule and path of the one that comes first.
    pub(super) earlier: (usize, usize),
}

impl Routes {
    /// Builds the tables of the rules in `mode`.
    pub(super) fn build<'r>(rules: impl IntoIterator<Item = &'r Rule>, mode: Mode) -> Self {
        let mut routes = Self::default();
        for (index, rule) in rules.into_iter().enumerate().filter(|(_, rule)| rule.mode == mode) {
            for host in &rule.hosts {
                for (path, template) in rule.paths.iter().enumerate() {
                    let entry =
                        Entry { specificity: Specificity::of(rule, host, template), rule: index, path };
                    routes.table_of(host).insert(template, entry);
                }
            }
        }
        routes
    }

    /// Whether there is no way into any rule.
    pub(super) fn is_empty(&self) -> bool {
        let tables = self.exact.values().chain(self.below.values()).chain([&self.any]);
        tables.into_iter().all(|table| table.exact.is_empty() && table.entries.is_empty())
    }

    /// The index of the rule that applies to a request with this normalised host and path, and that of its path.
    pub(super) fn find<R: AsRef<Rule>>(
        &self,
        rules: &[R],
        host: &str,
        path: &NormalisedPath<'_>,
        request: &Request<'_>,
    ) -> Option<(usize, usize)> {
        let admits = |entry: &Entry| rules[entry.rule].as_ref().admits(request);
        let exact = self.exact.get(host).into_iter();
        let below = host::parents(host).filter_map(|parent| self.below.get(parent));
        let tables = exact.chain(below).chain([&self.any]);
        let found = tables.filter_map(|table| table.find(path, &admits));
        found.max_by_key(|entry| entry.specificity).map(|entry| (entry.rule, entry.path))
    }

    /// Every tie between two rules, by the later one's place in the documents.
    pub(super) fn ties<R: AsRef<Rule>>(&self, rules: &[R]) -> Vec<Tie> {
        let tables = self.exact.values().chain(self.below.values()).chain([&self.any]);
        let mut ties = Vec::new();
        for table in tables {
            let groups = table.exact.values().map(Vec::as_slice);
            for group in groups.chain(table.entries.chunk_by(|a, b| a.specificity == b.specificity)) {
                collect_ties(rules, group, &mut ties);
            }
        }
        ties.sort_unstable();
        ties.dedup_by_key(|tie| (tie.later.0, tie.earlier.0)); // one pair of paths shows it
        ties
    }

    fn table_of(&mut self, host: &HostPattern) -> &mut Table {
        match host {
            HostPattern::Exact(host) => self.exact.entry_ref(host.as_str()).or_default(),
            HostPattern::Below(host) => self.below.entry_ref(host.as_str()).or_default(),
            HostPattern::Any => &mut self.any,
        }
    }
}

impl Specificity {
    /// Whether the rule takes a share of the requests only.
    pub(super) fn is_share(self) -> bool {
        self.rollout
    }

    pub(super) fn of(rule: &Rule, host: &HostPattern, template: &Template) -> Self {
        Self {
            path: match template.exact() {
                Some(_) => PathKind::Exact,
                None if template.has_rest() => PathKind::Rest,
                None => PathKind::Template,
            },
            literals: template.literals(),
            segments: template.segments().len(),
            host: match host {
                HostPattern::Exact(_) => HostKind::Exact,
                HostPattern::Below(parent) => HostKind::Below(parent.split('.').count()),
                HostPattern::Any => HostKind::Any,
            },
            methods: !rule.methods.is_empty(),
            extensions: rule.extensions.len(),
            // All of the requests is no share: such a rule takes them from no other.
            rollout: rule.rollout.as_ref().is_some_and(|rollout| rollout.per_ten_thousand < 10_000),
        }
    }
}

impl Table {
    fn insert(&mut self, template: &Template, entry: Entry) {
        let ends = if let Some(path) = template.exact() {
            self.exact.entry(path.into()).or_default()
        } else {
            insert_sorted(&mut self.entries, entry);
            self.templates.ends_of(template)
        };
        insert_sorted(ends, entry);
    }

    fn find(&self, path: &NormalisedPath<'_>, admits: &impl Fn(&Entry) -> bool) -> Option<Entry> {
        // An exact path is more specific than any template, so nothing else need be looked at.
        let exact = self.exact.get(path.as_str()).and_then(|entries| first(entries, admits));
        exact.or_else(|| {
            let mut best = None;
            self.templates.find(path.as_str(), admits, &mut best);
            best
        })
    }
}

impl Node {
    fn ends_of(&mut self, template: &Template) -> &mut Entries {
        let node = template.segments().iter().fold(self, |node, segment| match segment {
            Segment::Literal(text) => node.literals.entry_ref(text.as_str()).or_default(),
            Segment::Parameter => node.parameter.get_or_insert_default(),
        });
        if template.has_rest() { &mut node.rests } else { &mut node.ends }
    }

    /// Leaves the most specific entry for `rest`, the path from here on (empty, or beginning with a slash), in `best`.
    fn find(&self, rest: &str, admits: &impl Fn(&Entry) -> bool, best: &mut Option<Entry>) {
        let mut offer = |entries: &Entries| {
            if let Some(entry) = first(entries, admits)
                && best.is_none_or(|best| best.specificity < entry.specificity)
            {
                *best = Some(entry);
            }
        };
        let Some(rest) = rest.strip_prefix('/').filter(|rest| !rest.is_empty()) else {
            return offer(&self.ends);
        };
        offer(&self.rests);
        let end = rest.find('/').unwrap_or(rest.len());
        let (segment, rest) = rest.split_at(end);
        if let Some(node) = self.literals.get(segment) {
            node.find(rest, admits, best);
        }
        if let Some(node) = &self.parameter {
            node.find(rest, admits, best);
        }
    }
}

fn insert_sorted(entries: &mut Entries, entry: Entry) {
    let at = entries.partition_point(|known| Reverse(known.specificity) <= Reverse(entry.specificity));
    entries.insert(at, entry);
}

fn first(entries: &Entries, admits: &impl Fn(&Entry) -> bool) -> Option<Entry> {
    entries.iter().find(|entry| admits(entry)).copied()
}

/// Compares entries of one table pairwise: of exact paths those of one path, of templates those of one specificity.
fn collect_ties<R: AsRef<Rule>>(rules: &[R], group: &[Entry], ties: &mut Vec<Tie>) {
    for (at, one) in group.iter().enumerate() {
        for other in &group[at + 1..] {
            let (a, b) = (rules[one.rule].as_ref(), rules[other.rule].as_ref());
            if one.rule != other.rule
                && one.specificity == other.specificity
                && a.paths[one.path].overlaps(&b.paths[other.path])
                && share_a_method(a, b)
                && may_share_extensions(a, b)
            {
                let (one, other) = ((one.rule, one.path), (other.rule, other.path));
                ties.push(Tie { later: one.max(other), earlier: one.min(other) });
            }
        }
    }
}

/// Both name methods or neither does: otherwise one is the more specific.
fn share_a_method(a: &Rule, b: &Rule) -> bool {
    a.methods.is_empty() || a.methods.iter().any(|method| b.methods.contains(method))
}

/// A request cannot have two values of one extension.
fn may_share_extensions(a: &Rule, b: &Rule) -> bool {
    let contradicts = |(name, value): &(String, String)| {
        b.extensions.iter().any(|(other, theirs)| other == name && theirs != value)
    };
    !a.extensions.iter().any(contradicts)
}
