//! Opaque credentials of the control plane: 256 random bits behind a prefix that names their kind, with a checksum, so that a
//! typo or a truncated one is refused without asking anybody.

use aws_lc_rs::digest::{SHA256, digest as hash};

/// The digits that bodies and checksums are written in, by their value.
pub const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Characters of 256 bits in base 62.
pub const BODY_LENGTH: usize = 43;
/// Characters of a CRC-32 in base 62.
pub const CHECKSUM_LENGTH: usize = 6;

/// The kinds that a request may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpaqueKind {
    /// An access token.
    AccessToken,
    /// An API key.
    ApiKey,
}

impl OpaqueKind {
    /// What every credential of this kind begins with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::AccessToken => "atm_at_",
            Self::ApiKey => "atm_ak_",
        }
    }
}

/// The kind that `text` claims to be of. No JWT begins like one: its first characters are the base64url of a brace.
pub fn prefix_kind(text: &str) -> Option<OpaqueKind> {
    [OpaqueKind::AccessToken, OpaqueKind::ApiKey].into_iter().find(|kind| text.starts_with(kind.prefix()))
}

/// The kind of `text` if it is well formed: prefix, length, alphabet and checksum. Says nothing of its validity.
pub fn is_opaque(text: &str) -> Option<OpaqueKind> {
    prefix_kind(text).filter(|kind| is_well_formed(kind.prefix(), text))
}

/// What stands for a credential where the credential itself must not be: SHA-256 over its text.
pub fn digest(text: &str) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(hash(&SHA256, text.as_bytes()).as_ref());
    digest
}

/// Whether `text` is `prefix`, 43 characters of base 62 and their checksum.
pub fn is_well_formed(prefix: &str, text: &str) -> bool {
    if text.len() != prefix.len() + BODY_LENGTH + CHECKSUM_LENGTH || !text.starts_with(prefix) {
        return false;
    }
    // ASCII from here on, so the byte position is a character boundary.
    text.bytes().skip(prefix.len()).all(|byte| byte.is_ascii_alphanumeric())
        && text
            .split_at_checked(text.len() - CHECKSUM_LENGTH)
            .is_some_and(|(head, tail)| checksum(head) == tail)
}

/// The checksum behind `text`: its CRC-32 (IEEE 802.3) in base 62.
pub fn checksum(text: &str) -> String {
    let mut number = crc32(text.as_bytes());
    let mut digits = [ALPHABET[0]; CHECKSUM_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(number % 62) as usize];
        number /= 62;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// Bit by bit: it runs over 50 bytes, and seldom.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(kind: OpaqueKind) -> String {
        let head = format!("{}{}", kind.prefix(), "0123456789".repeat(5).split_at(BODY_LENGTH).0);
        format!("{head}{}", checksum(&head))
    }

    #[test]
    fn the_checksum_is_a_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926); // the check value that CRC catalogues give
    }

    #[test]
    fn a_typo_or_a_missing_end_is_seen() {
        for kind in [OpaqueKind::AccessToken, OpaqueKind::ApiKey] {
            let text = credential(kind);
            assert_eq!(is_opaque(&text), Some(kind));
            for at in kind.prefix().len()..text.len() {
                let mut changed = text.clone().into_bytes();
                changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
                assert_eq!(is_opaque(std::str::from_utf8(&changed).unwrap()), None, "{at}");
                assert_eq!(is_opaque(&text[..at]), None, "{at}");
            }
        }
        assert_eq!(is_opaque("atm_rt_x"), None);
        assert_eq!(is_opaque("atm_ak_é"), None);
    }
}
