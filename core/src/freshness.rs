//! How old the knowledge is that a decision rests on.

use std::fmt;

/// Up to this age, in milliseconds, the state counts as fresh.
pub const DEGRADED_AFTER_MS: u64 = 3_000;
/// Beyond this age, in milliseconds, the state counts as stale.
pub const STALE_AFTER_MS: u64 = 15_000;

/// The freshness of a validator's state: the age of the newest heartbeat that it has caught up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Freshness {
    /// As current as the feed allows.
    Fresh,
    /// Serve, and alarm.
    Degraded,
    /// Each rule says what happens (`onStale`).
    Stale,
}

impl Freshness {
    /// The freshness of a state `age_ms` milliseconds old, by the default thresholds.
    pub const fn of(age_ms: u64) -> Self {
        Self::with_thresholds(age_ms, DEGRADED_AFTER_MS, STALE_AFTER_MS)
    }

    /// The freshness of a state `age_ms` milliseconds old; an age equal to a threshold is still on its better side.
    pub const fn with_thresholds(age_ms: u64, degraded_after_ms: u64, stale_after_ms: u64) -> Self {
        if age_ms > stale_after_ms {
            Self::Stale
        } else if age_ms > degraded_after_ms {
            Self::Degraded
        } else {
            Self::Fresh
        }
    }

    /// The stable code for metrics, logs and dynamic metadata.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Degraded => "degraded",
            Self::Stale => "stale",
        }
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Freshness;

    #[test]
    fn thresholds_belong_to_the_better_side() {
        let expected = [
            (0, Freshness::Fresh),
            (3_000, Freshness::Fresh),
            (3_001, Freshness::Degraded),
            (15_000, Freshness::Degraded),
            (15_001, Freshness::Stale),
            (u64::MAX, Freshness::Stale),
        ];
        for (age_ms, freshness) in expected {
            assert_eq!(Freshness::of(age_ms), freshness, "{age_ms}");
        }
    }
}
