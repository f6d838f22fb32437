//! Who uses the control plane most: by client and by realm, in memory that does not grow with their number.

use std::collections::HashMap;

use serde::Serialize;

/// Names that are counted at a time.
const CAPACITY: usize = 256;

/// One name's count. The true one is at least `count - error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Top {
    /// The client's id or the realm's name.
    pub name: String,
    /// Tokens issued, refreshed and exchanged since the start.
    pub issued: u64,
    /// Requests refused since the start.
    pub refused: u64,
    /// What may have been counted too much, because the name's counter was another's before.
    pub error: u64,
}

/// Space-Saving (Metwally et al., 2005): the heaviest names are in it for certain.
#[derive(Debug, Default)]
pub(super) struct HeavyHitters(HashMap<String, Counter>);

#[derive(Debug, Clone, Copy, Default)]
struct Counter {
    issued: u64,
    refused: u64,
    error: u64,
}

impl Counter {
    fn total(&self) -> u64 {
        self.issued + self.refused + self.error
    }
}

impl HeavyHitters {
    /// Counts one request of `name`.
    pub(super) fn count(&mut self, name: &str, refused: bool) {
        if !self.0.contains_key(name) {
            let mut counter = Counter::default();
            if self.0.len() >= CAPACITY
                && let Some(least) =
                    self.0.iter().min_by_key(|(_, counter)| counter.total()).map(|(name, _)| name.clone())
                && let Some(evicted) = self.0.remove(&least)
            {
                counter.error = evicted.total();
            }
            self.0.insert(name.to_owned(), counter);
        }
        if let Some(counter) = self.0.get_mut(name) {
            *(if refused { &mut counter.refused } else { &mut counter.issued }) += 1;
        }
    }

    /// The heaviest, at most `limit`.
    pub(super) fn top(&self, limit: usize) -> Vec<Top> {
        let mut all: Vec<(&String, &Counter)> = self.0.iter().collect();
        all.sort_by(|a, b| b.1.total().cmp(&a.1.total()).then_with(|| a.0.cmp(b.0)));
        all.into_iter()
            .take(limit)
            .map(|(name, counter)| Top {
                name: name.clone(),
                issued: counter.issued,
                refused: counter.refused,
                error: counter.error,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_are_found_among_many() {
        let mut hitters = HeavyHitters::default();
        for round in 0..20_000 {
            hitters.count("heavy", round % 10 == 0);
            if round % 2 == 0 {
                hitters.count("second", false);
            }
            hitters.count(&format!("light-{round}"), false);
        }
        assert!(hitters.0.len() <= CAPACITY);
        let top = hitters.top(2);
        assert_eq!((top[0].name.as_str(), top[0].issued, top[0].refused), ("heavy", 18_000, 2_000));
        assert_eq!(top[1].name, "second");
    }
}
