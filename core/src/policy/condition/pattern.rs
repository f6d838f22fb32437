//! Regular expressions that cost the same for every byte of every text: compiled to one table as a whole, or refused.

use std::fmt;

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

use super::ConditionFault;

/// Bytes that one table may take.
const MAX_BYTES: usize = 512 * 1024;
/// Bytes that the making of a table may take.
const MAX_WORK_BYTES: usize = 2 * MAX_BYTES;

/// A regular expression. An automaton that backtracks or builds its table as it goes would let a long header cost far more than
/// a short one.
pub(super) struct Pattern(dense::DFA<Vec<u32>>);

impl Pattern {
    /// Compiles `text`, and takes what the table needs from `left`.
    ///
    /// # Errors
    ///
    /// What is wrong, for people.
    pub(super) fn compile(text: &str, left: &mut usize) -> Result<Self, String> {
        if *left < MAX_BYTES {
            return Err(
                "is one too many: the regular expressions of the set take too much memory together".into()
            );
        }
        let nfa = thompson::Compiler::new()
            .syntax(syntax::Config::new().nest_limit(16))
            .configure(thompson::Config::new().nfa_size_limit(Some(MAX_BYTES)))
            .build(text)
            .map_err(|error| refused(&error))?;
        let config = dense::Config::new()
            .start_kind(StartKind::Unanchored)
            .match_kind(MatchKind::All)
            .accelerate(false)
            .dfa_size_limit(Some(MAX_BYTES))
            .determinize_size_limit(Some(MAX_WORK_BYTES));
        // A table that is not made took its time too: a set cannot have a thousand of them.
        let table = dense::Builder::new().configure(config).build_from_nfa(&nfa).map_err(|error| {
            *left -= MAX_BYTES;
            if error.is_size_limit_exceeded() {
                format!(
                    "is a regular expression whose table takes more than {} KiB; begin it with `^`, repeat less, or \
                     write `[0-9A-Za-z_]` for `\\w`",
                    MAX_BYTES / 1024
                )
            } else {
                format!("is no regular expression that is accepted: {error}; a word boundary is `(?-u:\\b)` here")
            }
        })?;
        *left -= table.memory_usage();
        Ok(Self(table))
    }

    /// Whether a part of `text` fits.
    pub(super) fn is_match(&self, text: &str) -> Result<bool, ConditionFault> {
        let input = Input::new(text).anchored(Anchored::No).earliest(true);
        self.0.try_search_fwd(&input).map(|found| found.is_some()).map_err(|_| ConditionFault::Type)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({} bytes)", self.0.memory_usage())
    }
}

/// The innermost cause in one line; the outer ones only say that there is one.
fn refused(error: &thompson::BuildError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let problem = cause.to_string();
    let last = problem.lines().last().unwrap_or_default().trim_start_matches("error: ");
    format!("is no regular expression that is accepted: {last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_accepted_and_found() {
        for (pattern, text, found) in [
            (r"^[a-z0-9.-]{1,63}\.example\.com$", "a.b.example.com", true),
            (r"^\d{4}-\d{2}-\d{2}$", "2026-01-31", true),
            (r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$", "x", false),
            (r"\w+@\w+\.\w+", "mail ann@example.com", true),
            (r"(?i)^bearer ", "BEARER x", true),
            (r"admin|root", "the root", true),
            (r"^[^/]+$", "a/b", false),
            (r"^.{3}$", "äöü", true),
            (r"(?-u:\b)foo(?-u:\b)", "a foo b", true),
            ("", "anything", true),
            (r"spiffe://[^/]+/ns/[^/]+/sa/[^/]+", "spiffe://mesh/ns/a/sa/b", true),
        ] {
            let mut left = MAX_BYTES;
            let compiled =
                Pattern::compile(pattern, &mut left).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert_eq!(compiled.is_match(text), Ok(found), "{pattern} in {text}");
            assert!(left < MAX_BYTES);
        }
    }

    #[test]
    fn what_would_cost_too_much_or_is_none_is_refused() {
        for (pattern, words) in [
            (r"a.{20}b", "more than 512 KiB"),
            (r"([ab]*a[ab]{14}){4}c", "more than 512 KiB"),
            (r"(?:a{0,1000}){0,1000}", "is no regular expression that is accepted"),
            (r"\bfoo", "(?-u:\\b)"),
            ("(", "unclosed group"),
            (r"(a)\1", "backreferences are not supported"),
            (r"(?=a)", "look-around"),
        ] {
            let error = Pattern::compile(pattern, &mut (4 * MAX_BYTES)).expect_err(pattern);
            assert!(error.contains(words) && !error.contains('\n'), "{pattern}: {error}");
        }
    }

    #[test]
    fn a_set_has_room_for_so_many() {
        let mut left = MAX_BYTES + 10_000;
        assert!(Pattern::compile(r"^\p{L}+$", &mut left).is_ok());
        assert!(Pattern::compile("^a$", &mut left).unwrap_err().contains("one too many"));
    }
}
