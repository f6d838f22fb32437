use proptest::prelude::*;

use super::*;
use crate::signature::{FeedSigner, TrustedFeedKeys};

fn signer() -> FeedSigner {
    FeedSigner::from_seed(&[5; 32]).unwrap()
}

fn trusted() -> TrustedFeedKeys {
    TrustedFeedKeys::new(vec![*signer().public_key()])
}

/// A chain of `number` events with a checkpoint behind every `every`th and one at the end.
struct Writer {
    chain: &'static str,
    sequence: u64,
    link: Link,
}

impl Writer {
    fn new(chain: &'static str) -> Self {
        Self { chain, sequence: 0, link: Link::genesis(chain) }
    }

    fn event(&mut self, action: &str) -> String {
        self.sequence += 1;
        let event = format!(
            r#"{{"chain":"{}","seq":{},"time_ms":{},"action":"{action}","detail":{{"lost":2}}}}"#,
            self.chain,
            self.sequence,
            1_000 + self.sequence
        );
        let line = event_line(self.link, &event);
        self.link = self.link.then(self.sequence, event.as_bytes());
        line
    }

    fn head(&self) -> Head {
        Head { sequence: self.sequence, link: self.link.to_string() }
    }

    fn checkpoint(&self, occasion: Occasion, heads: &[(&str, Head)]) -> String {
        let checkpoint = Checkpoint {
            chain: self.chain.to_owned(),
            instance: "i".to_owned(),
            sequence: self.sequence,
            link: self.link.to_string(),
            time_ms: 5,
            occasion,
            heads: heads.iter().map(|(chain, head)| ((*chain).to_owned(), head.clone())).collect(),
        };
        checkpoint_line(&checkpoint.sign(&signer()).unwrap())
    }
}

/// Two chains; the second one's last checkpoint names the first one.
fn two_chains() -> Vec<String> {
    let (mut a, mut b) = (Writer::new("a"), Writer::new("b"));
    let mut lines = Vec::new();
    for number in 0..6 {
        lines.push(a.event("token.issued"));
        if number % 3 == 2 {
            lines.push(a.checkpoint(Occasion::Periodic, &[]));
        }
    }
    for _ in 0..3 {
        lines.push(b.event("token.issued"));
    }
    lines.push(b.event("chain.closed"));
    lines.push(b.checkpoint(Occasion::Closed, &[("a", a.head())]));
    lines
}

fn verify(lines: &[String], whole: bool) -> Report {
    let mut verifier = Verifier::new(trusted(), whole);
    for line in lines {
        verifier.line(line.as_bytes());
    }
    verifier.finish()
}

#[test]
fn an_untouched_export_is_proven_to_its_end() {
    let report = verify(&two_chains(), true);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.events, report.checkpoints), (10, 3));
    let [a, b] = &report.chains[..] else { panic!("{report:?}") };
    assert_eq!((a.first, a.last, a.proven_to, a.closed), (Some(1), 6, 6, false));
    assert_eq!((b.first, b.last, b.proven_to, b.closed), (Some(1), 4, 4, true));
    assert_eq!(b.times_ms, Some((1_001, 1_004)));
}

#[test]
fn a_missing_chain_is_found_because_another_one_names_it() {
    let lines: Vec<String> = two_chains().split_off(8);
    let report = verify(&lines, true);
    assert!(report.findings[0].problem.contains("chain a is missing"), "{report:?}");
    assert!(verify(&lines, false).is_intact(), "a range says nothing of other chains");
}

#[test]
fn a_chain_that_was_cut_off_and_signed_again_is_not_what_the_other_one_saw() {
    let mut lines = two_chains();
    lines.drain(4..8); // the events 4 to 6 of chain a with their checkpoint
    let report = verify(&lines, true);
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert!(report.findings[0].problem.contains("cut off"), "{report:?}");
}

#[test]
fn retention_leaves_a_signed_bridge() {
    let mut a = Writer::new("a");
    for _ in 0..4 {
        a.event("token.issued");
    }
    let bridge = a.checkpoint(Occasion::Retention, &[]);
    let mut lines = vec![bridge];
    lines.extend((0..2).map(|_| a.event("token.issued")));
    lines.push(a.checkpoint(Occasion::Periodic, &[]));
    let report = verify(&lines, true);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.chains[0].beginning, Beginning::Retention);
    assert_eq!((report.chains[0].first, report.chains[0].proven_to), (Some(5), 6));
    lines.remove(1);
    assert!(!verify(&lines, true).is_intact());
}

#[test]
fn a_range_from_the_middle_is_proven_by_the_checkpoint_behind_it() {
    let lines: Vec<String> = two_chains()[5..8].to_vec();
    let report = verify(&lines, false);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.chains[0].beginning, report.chains[0].proven_to), (Beginning::Range, 6));
    let mut changed = lines;
    changed[0] = changed[0].replace("token.issued", "token.hidden");
    assert!(!verify(&changed, false).is_intact(), "the first line of a range too");
}

#[test]
fn what_a_process_lost_is_summed_up_and_strangers_sign_nothing() {
    let mut a = Writer::new("a");
    let lines = vec![a.event("audit.gap"), a.event("audit.gap"), a.checkpoint(Occasion::Periodic, &[])];
    assert_eq!(verify(&lines, true).chains[0].lost, 4);
    let other = TrustedFeedKeys::new(vec![*FeedSigner::from_seed(&[6; 32]).unwrap().public_key()]);
    let mut verifier = Verifier::new(other, true);
    for line in &lines {
        verifier.line(line.as_bytes());
    }
    let report = verifier.finish();
    assert!(!report.is_intact());
    assert_eq!(report.chains[0].proven_to, 0);
}

proptest! {
    #[test]
    fn any_changed_byte_is_found(line in 0usize..13, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut lines = two_chains();
        let line = line % lines.len();
        let mut bytes = lines[line].clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let mut verifier = Verifier::new(trusted(), true);
        for (index, original) in lines.iter_mut().enumerate() {
            verifier.line(if index == line { &bytes } else { original.as_bytes() });
        }
        prop_assert!(!verifier.finish().is_intact(), "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_removed_repeated_or_swapped_line_is_found(first in 0usize..13, second in 0usize..13, how in 0u8..3) {
        let mut lines = two_chains();
        let (first, second) = (first % lines.len(), second % lines.len());
        let of_chain = |line: usize| line < 8;
        match how {
            // Checkpoints but the last of a chain may go: others vouch for the same events.
            0 if first == 3 => return Ok(()),
            // Behind the last checkpoint of the newest chain nothing vouches for anything, and the report says so.
            0 if first == 12 => {
                lines.remove(first);
                prop_assert_eq!(verify(&lines, true).chains[1].proven_to, 0);
                return Ok(());
            }
            0 => { lines.remove(first); }
            1 => { let line = lines[first].clone(); lines.insert(second, line); }
            _ => {
                // Chains may be interleaved in any way; within one the order counts.
                if first == second || of_chain(first) != of_chain(second) { return Ok(()); }
                lines.swap(first, second);
            }
        }
        // A checkpoint said twice, before the next event of its chain, says nothing new.
        let repeated_checkpoint = how == 1
            && match first {
                3 => [3, 4].contains(&second),
                7 | 12 => second >= first,
                _ => false,
            };
        prop_assert_eq!(verify(&lines, true).is_intact(), repeated_checkpoint);
    }
}
