//! Base64url without padding (RFC 7515 §2), in its one canonical form.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// No padding, and the bits behind the last byte must be zero: one byte string has one text, so that a token cannot be
/// respelt into another that a cache or a revocation by text would not know.
const CANONICAL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_allow_trailing_bits(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// Text that is not canonical base64url.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not canonical base64url without padding (RFC 7515 section 2)")]
pub struct NotBase64Url;

/// The bytes of `text`; padding, white space, other alphabets and stray trailing bits are refused.
pub fn decode(text: &str) -> Result<Vec<u8>, NotBase64Url> {
    CANONICAL.decode(text).map_err(|_| NotBase64Url)
}

/// The text of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    CANONICAL.encode(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_canonical_text_is_read() {
        assert_eq!(decode("AQ").unwrap(), [1]);
        for text in ["AQ==", "AR", "A", "A Q", "A+", "A/", "AQ\n"] {
            assert!(decode(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_has_one_text(text in "[A-Za-z0-9_=+/-]{0,40}") {
            if let Ok(bytes) = decode(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
