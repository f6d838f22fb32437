//! Verifies exported chains, line by line, in memory that does not grow with the number of events.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Checkpoint, Line, Link, Occasion, Place};
use crate::signature::TrustedFeedKeys;

/// Findings that are kept; more are counted.
const MAX_FINDINGS: usize = 1_000;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The chain, where it is known.
    pub chain: Option<String>,
    /// The event, where it is known.
    pub sequence: Option<u64>,
    /// In words.
    pub problem: String,
}

/// Where a chain's lines begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Beginning {
    /// With its first event.
    First,
    /// Behind a signed checkpoint of its retention.
    Retention,
    /// In the middle: the range that was asked for.
    Range,
}

/// One chain, as far as its lines go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainReport {
    /// Its name.
    pub chain: String,
    /// Where its lines begin.
    pub beginning: Beginning,
    /// The first event; none where retention has taken all.
    pub first: Option<u64>,
    /// The last event.
    pub last: u64,
    /// Up to here a signature vouches for every byte, for the order and for the number; 0: nothing is vouched for.
    pub proven_to: u64,
    /// Whether the chain ended in order. If not, its process runs, or was ended before it could write down its last events.
    pub closed: bool,
    /// Times of the first and the last event, in milliseconds since the Unix epoch.
    pub times_ms: Option<(i64, i64)>,
    /// Events that the process itself said were lost.
    pub lost: u64,
}

/// What a verification came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// By name.
    pub chains: Vec<ChainReport>,
    /// What is wrong; empty means that nothing is.
    pub findings: Vec<Finding>,
    /// Findings beyond those kept.
    pub more_findings: u64,
    /// Events looked at.
    pub events: u64,
    /// Valid checkpoints.
    pub checkpoints: u64,
}

impl Report {
    /// Whether every line is as it was written and nothing is missing.
    pub fn is_intact(&self) -> bool {
        self.findings.is_empty() && self.more_findings == 0
    }
}

#[derive(Debug)]
struct Chain {
    report: ChainReport,
    link: Link,
    /// Links that checkpoints vouch for, by sequence: what other chains refer to.
    vouched: BTreeMap<u64, Link>,
    /// Nothing of what comes behind a break can be told right from wrong a second time.
    broken: bool,
}

/// Takes lines in the order of each chain; chains may be interleaved.
#[derive(Debug)]
pub struct Verifier {
    trusted: TrustedFeedKeys,
    whole: bool,
    chains: BTreeMap<String, Chain>,
    /// What checkpoints say of other chains: (by whom, of whom) and the highest sequence with its link.
    referred: BTreeMap<(String, String), (u64, String)>,
    findings: Vec<Finding>,
    more_findings: u64,
    events: u64,
    checkpoints: u64,
}

impl Verifier {
    /// Believes checkpoints of `trusted`. `whole` says that the lines are all there is, so that a chain that others refer to
    /// must be there; a range or a single file is not.
    pub fn new(trusted: TrustedFeedKeys, whole: bool) -> Self {
        Self {
            trusted,
            whole,
            chains: BTreeMap::new(),
            referred: BTreeMap::new(),
            findings: Vec::new(),
            more_findings: 0,
            events: 0,
            checkpoints: 0,
        }
    }

    /// Takes one line, without its line break.
    pub fn line(&mut self, line: &[u8]) {
        match Line::parse(line) {
            Some(Line::Event { prev, event }) => self.event(prev, event),
            Some(Line::Checkpoint(signed)) => self.checkpoint(&signed),
            Some(Line::Finding(finding)) => self.find(None, None, finding),
            None => self.find(None, None, "a line that is no event and no checkpoint".to_owned()),
        }
    }

    fn event(&mut self, prev: Link, event: &str) {
        self.events += 1;
        let Ok(place) = Place::of(event) else {
            self.find(None, None, "an event that cannot be read".to_owned());
            return;
        };
        let mut problem = None;
        let chain = self.chains.entry(place.chain.clone()).or_insert_with(|| Chain::beginning(&place, prev));
        if place.seq == 1 && chain.report.last == 0 && prev != Link::genesis(&place.chain) {
            problem = Some("the first event does not begin its chain".to_owned());
        } else if place.seq != chain.report.last + 1 {
            let (last, seq) = (chain.report.last, place.seq);
            problem = Some(if seq > last + 1 {
                format!("events {} to {} are missing", last + 1, seq - 1)
            } else {
                format!("event {seq} comes after event {last}: repeated or out of order")
            });
        } else if prev != chain.link {
            problem = Some(
                "the event before is not the one that was written, or this one's link was changed".to_owned(),
            );
        }
        chain.take(&place, prev, event);
        if let Some(problem) = problem.filter(|_| !std::mem::replace(&mut chain.broken, true)) {
            self.find(Some(place.chain), Some(place.seq), problem);
        }
    }

    fn checkpoint(&mut self, signed: &[u8]) {
        let checkpoint = match Checkpoint::verify(&self.trusted, signed) {
            Ok(checkpoint) => checkpoint,
            Err(error) => return self.find(None, None, format!("a checkpoint: {error}")),
        };
        let Some(link) = checkpoint.link() else {
            return self.find(Some(checkpoint.chain), None, "a checkpoint without a link".to_owned());
        };
        self.checkpoints += 1;
        for (other, head) in &checkpoint.heads {
            let referred = self
                .referred
                .entry((checkpoint.chain.clone(), other.clone()))
                .or_insert_with(|| (0, String::new()));
            if head.sequence >= referred.0 {
                *referred = (head.sequence, head.link.clone());
            }
        }
        let sequence = checkpoint.sequence;
        let chain =
            self.chains.entry(checkpoint.chain.clone()).or_insert_with(|| Chain::behind(&checkpoint, link));
        if let Err(problem) = chain.vouch(&checkpoint, link) {
            self.find(Some(checkpoint.chain), Some(sequence), problem);
        }
    }

    /// What all lines came to.
    pub fn finish(mut self) -> Report {
        for ((by, of), (sequence, link)) in std::mem::take(&mut self.referred) {
            let problem = match self.chains.get(&of) {
                None if self.whole => format!("chain {of} is missing; a checkpoint of chain {by} names it"),
                None => continue,
                Some(chain) => match chain.vouched.get(&sequence) {
                    Some(vouched) if vouched.to_string() == link => continue,
                    // Retention keeps one checkpoint, behind all that it removed; a range begins somewhere.
                    None if chain.vouched.keys().next().is_some_and(|first| *first > sequence)
                        || chain.report.first.is_some_and(|first| first > sequence) =>
                    {
                        continue;
                    }
                    _ if !self.whole && chain.report.last < sequence => continue,
                    _ => format!(
                        "is not what a checkpoint of chain {by} says of it at event {sequence}: cut off or replaced"
                    ),
                },
            };
            self.find(Some(of), Some(sequence), problem);
        }
        self.find_beginnings();
        Report {
            chains: self.chains.into_values().map(|chain| chain.report).collect(),
            findings: self.findings,
            more_findings: self.more_findings,
            events: self.events,
            checkpoints: self.checkpoints,
        }
    }

    /// Where all there is was given, a chain begins with its first event or behind a signed bridge.
    fn find_beginnings(&mut self) {
        let ranges: Vec<(String, Option<u64>)> = self
            .chains
            .values()
            .filter(|chain| self.whole && chain.report.beginning == Beginning::Range)
            .map(|chain| (chain.report.chain.clone(), chain.report.first))
            .collect();
        for (chain, first) in ranges {
            let problem =
                "the events before are missing, and no signed checkpoint says that they were removed";
            self.find(Some(chain), first, problem.to_owned());
        }
    }

    fn find(&mut self, chain: Option<String>, sequence: Option<u64>, problem: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { chain, sequence, problem });
        } else {
            self.more_findings += 1;
        }
    }
}

impl Chain {
    fn beginning(place: &Place, prev: Link) -> Self {
        let beginning = if place.seq == 1 { Beginning::First } else { Beginning::Range };
        Self::empty(place.chain.clone(), beginning, place.seq.saturating_sub(1), prev)
    }

    /// A chain whose first line is a checkpoint: retention has taken what was before.
    fn behind(checkpoint: &Checkpoint, link: Link) -> Self {
        let beginning = match checkpoint.occasion {
            Occasion::Retention => Beginning::Retention,
            Occasion::Periodic | Occasion::Closed => Beginning::Range,
        };
        Self::empty(checkpoint.chain.clone(), beginning, checkpoint.sequence, link)
    }

    fn empty(chain: String, beginning: Beginning, last: u64, link: Link) -> Self {
        let report = ChainReport {
            chain,
            beginning,
            first: None,
            last,
            proven_to: 0,
            closed: false,
            times_ms: None,
            lost: 0,
        };
        Self { report, link, vouched: BTreeMap::new(), broken: false }
    }

    fn take(&mut self, place: &Place, prev: Link, event: &str) {
        let report = &mut self.report;
        report.first.get_or_insert(place.seq);
        report.last = place.seq;
        report.closed = place.action == "chain.closed";
        report.times_ms = Some((report.times_ms.map_or(place.time_ms, |(first, _)| first), place.time_ms));
        if place.action == "audit.gap" {
            let event: serde_json::Value = serde_json::from_str(event).unwrap_or_default();
            report.lost += event["detail"]["lost"].as_u64().unwrap_or(0);
        }
        self.link = prev.then(place.seq, event.as_bytes());
    }

    fn vouch(&mut self, checkpoint: &Checkpoint, link: Link) -> Result<(), String> {
        let (sequence, last) = (checkpoint.sequence, self.report.last);
        if sequence > last {
            return Err(format!(
                "events {} to {sequence} are missing: a signed checkpoint vouches for them",
                last + 1
            ));
        }
        if sequence < last {
            return Err(format!("a checkpoint of event {sequence} comes after event {last}"));
        }
        if link != self.link {
            return Err(
                "the events up to here are not those that the signed checkpoint vouches for".to_owned()
            );
        }
        if !self.broken {
            self.report.proven_to = sequence;
        }
        self.vouched.insert(sequence, link);
        Ok(())
    }
}
