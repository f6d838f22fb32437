//! Whether signing works, as the last attempts have shown.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What an attempt changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    /// It worked before and does not now.
    Began,
    /// It works again.
    Ended,
}

/// The state of signing.
#[derive(Debug, Default)]
pub(super) struct Outage {
    is_out: AtomicBool,
    failures: AtomicU64,
    problem: Mutex<String>,
}

impl Outage {
    /// Notes how an attempt went. Costs one load where all is well.
    pub(super) fn note(&self, problem: Option<&dyn std::fmt::Display>) -> Option<Turn> {
        match problem {
            None if !self.is_out.load(Ordering::Relaxed) => None,
            None => self.is_out.swap(false, Ordering::SeqCst).then_some(Turn::Ended),
            Some(problem) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem.to_string();
                (!self.is_out.swap(true, Ordering::SeqCst)).then_some(Turn::Began)
            }
        }
    }

    /// Why tokens are not signed now; none where they are.
    pub(super) fn problem(&self) -> Option<String> {
        let is_out = self.is_out.load(Ordering::SeqCst);
        is_out.then(|| self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Signatures that failed since the start.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_turns_are_told() {
        let outage = Outage::default();
        assert_eq!(outage.note(None), None);
        assert_eq!(outage.note(Some(&"away")), Some(Turn::Began));
        assert_eq!(outage.note(Some(&"still away")), None);
        assert_eq!((outage.problem().as_deref(), outage.failures()), (Some("still away"), 2));
        assert_eq!(outage.note(None), Some(Turn::Ended));
        assert_eq!(outage.problem(), None);
    }
}
