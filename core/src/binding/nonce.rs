//! Nonces for DPoP proofs (RFC 9449 §8, §9): unpredictable, and without anything to remember.

use std::fmt;

use aws_lc_rs::{constant_time, hmac};

use crate::base64url;
use crate::time::UnixMillis;

/// Seconds of one step. A nonce is taken in the step that it was made in and in the next.
const STEP_SECONDS: i64 = 150;
/// Bytes of a nonce: 128 bits cannot be guessed within its life.
const BYTES: usize = 16;

/// What nonces are made with. Whoever has the same key takes the same nonces.
pub struct NonceKey(hmac::Key);

impl fmt::Debug for NonceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NonceKey(..)")
    }
}

impl NonceKey {
    /// A key from 32 random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// A nonce that is taken from now on for 150 to 300 seconds.
    pub fn issue(&self, now: UnixMillis) -> String {
        self.of_step(step(now))
    }

    /// Whether the nonce was made with this key lately.
    pub fn accepts(&self, nonce: &str, now: UnixMillis) -> bool {
        let step = step(now);
        [step, step - 1].into_iter().any(|step| {
            constant_time::verify_slices_are_equal(self.of_step(step).as_bytes(), nonce.as_bytes()).is_ok()
        })
    }

    /// Whether it is the one that [`Self::issue`] gives now: one of the step before is taken and ends soon.
    pub fn is_current(&self, nonce: &str, now: UnixMillis) -> bool {
        constant_time::verify_slices_are_equal(self.issue(now).as_bytes(), nonce.as_bytes()).is_ok()
    }

    fn of_step(&self, step: i64) -> String {
        let tag = hmac::sign(&self.0, format!("atm-dpop-nonce-v1 {step}").as_bytes());
        base64url::encode(&tag.as_ref()[..BYTES])
    }
}

fn step(now: UnixMillis) -> i64 {
    now.seconds().div_euclid(STEP_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_taken_for_a_while_and_by_its_own_key_alone() {
        let (key, other) = (NonceKey::new(&[1; 32]), NonceKey::new(&[2; 32]));
        let made = UnixMillis::from_seconds(1_700_000_000);
        let nonce = key.issue(made);
        let after = |seconds| UnixMillis::from_seconds(1_700_000_000 + seconds);
        assert!(key.accepts(&nonce, made) && key.accepts(&nonce, after(STEP_SECONDS)));
        assert!(key.is_current(&nonce, made) && !key.is_current(&nonce, after(STEP_SECONDS)));
        assert!(!key.accepts(&nonce, after(2 * STEP_SECONDS)));
        assert!(!key.accepts(&nonce, after(-STEP_SECONDS)));
        assert!(!other.accepts(&nonce, made) && !key.accepts("", made));
        assert_eq!(format!("{key:?}"), "NonceKey(..)");
    }
}
