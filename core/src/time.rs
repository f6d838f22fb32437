//! Instants, as parameters: nothing in this crate reads a clock.

/// Milliseconds since the Unix epoch, by somebody's wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// The first millisecond of a second since the Unix epoch (a `NumericDate`, RFC 7519 §2).
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// The whole second that the instant lies in.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}
