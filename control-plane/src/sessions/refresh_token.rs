//! Refresh tokens, derived instead of stored.
//!
//! The token of a session's generation is `atm_rt_`, the session's id, the generation, 256 bits of HMAC-SHA-256 over both, and a
//! checksum. So it needs no column and no index of its own: a session is found by its primary key, a forged token is refused
//! without asking the store, every token that ever was is known for what it is, and the successor of a token that was lost on
//! its way is the same text when it is asked for again. Whoever reads the store learns no token from it, because the key is
//! derived from the root key; whoever has both could sign access tokens, too.

use atm_core::opaque::{ALPHABET, BODY_LENGTH, CHECKSUM_LENGTH, checksum};
use zeroize::Zeroizing;

use crate::secret::{SecretHasher, SecretKind, base62, constant_time_equal};

/// Characters of a session's id: 128 bits in base 62.
pub(crate) const ID_LENGTH: usize = 22;
/// Characters of a generation: up to 62^6, one refresh a second for 1,800 years.
const GENERATION_LENGTH: usize = 6;

/// What a token that we made says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefreshToken {
    /// The session.
    pub(crate) session: String,
    /// From 1 on.
    pub(crate) generation: u64,
}

impl RefreshToken {
    /// The text of the token.
    pub(crate) fn text(&self, hasher: &SecretHasher) -> Zeroizing<String> {
        let generation = base62(&self.generation.to_be_bytes()[3..], 7);
        let mut text = Zeroizing::new(String::with_capacity(96));
        text.push_str(SecretKind::RefreshToken.prefix());
        text.push_str(&self.session);
        text.push_str(&generation[generation.len() - GENERATION_LENGTH..]);
        text.push_str(&self.tag(hasher));
        let checksum = checksum(&text);
        text.push_str(&checksum);
        text
    }

    /// Reads a token and tells whether we made it. None: a typo, a truncated one, a forgery.
    pub(crate) fn read(text: &str, hasher: &SecretHasher) -> Option<Self> {
        let (head, end) = text.split_at_checked(text.len().checked_sub(CHECKSUM_LENGTH)?)?;
        let body = head.strip_prefix(SecretKind::RefreshToken.prefix())?;
        let is_complete = body.len() == ID_LENGTH + GENERATION_LENGTH + BODY_LENGTH;
        if !is_complete || !body.bytes().all(|byte| byte.is_ascii_alphanumeric()) || checksum(head) != end {
            return None;
        }
        let (session, rest) = body.split_at(ID_LENGTH);
        let (generation, tag) = rest.split_at(GENERATION_LENGTH);
        let generation = generation.bytes().try_fold(0, |number: u64, digit| {
            let value = ALPHABET.iter().position(|known| *known == digit)?;
            Some(number * 62 + value as u64)
        })?;
        let token = Self { session: session.to_owned(), generation };
        constant_time_equal(token.tag(hasher).as_bytes(), tag.as_bytes()).then_some(token)
    }

    /// The token that takes this one's place.
    pub(crate) fn successor(&self) -> Self {
        Self { session: self.session.clone(), generation: self.generation + 1 }
    }

    fn tag(&self, hasher: &SecretHasher) -> Zeroizing<String> {
        // The hasher's other inputs begin with a prefix of ours or are hexadecimal, so none of them can be this text.
        let input = Zeroizing::new(format!("refresh token v1\n{}\n{}", self.session, self.generation));
        Zeroizing::new(base62(&hasher.hash(&input), BODY_LENGTH))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::{RootKey, random_id};

    fn hasher() -> SecretHasher {
        RootKey::generate().unwrap().0.hasher().unwrap()
    }

    fn token(generation: u64) -> RefreshToken {
        RefreshToken { session: random_id().unwrap(), generation }
    }

    #[test]
    fn a_token_is_read_back_by_its_own_key_alone() {
        let (hasher, other) = (hasher(), self::hasher());
        for generation in [1, 2, 61, 62, 1_000_000] {
            let token = token(generation);
            let text = token.text(&hasher);
            assert_eq!(RefreshToken::read(&text, &hasher).unwrap(), token);
            assert_eq!(*token.text(&hasher), *text, "derived, so the same again");
            assert_eq!(RefreshToken::read(&text, &other), None);
            assert_ne!(*token.successor().text(&hasher), *text);
        }
    }

    #[test]
    fn no_character_can_be_changed_or_lost() {
        let hasher = hasher();
        let text = token(7).text(&hasher).to_string();
        for at in 0..text.len() {
            let other = if text.as_bytes()[at] == b'x' { "y" } else { "x" };
            assert_eq!(
                RefreshToken::read(&format!("{}{other}{}", &text[..at], &text[at + 1..]), &hasher),
                None
            );
            assert_eq!(RefreshToken::read(&text[..at], &hasher), None);
        }
    }

    /// Who knows a session's id (it is in access tokens) and the format can still make no token of it.
    #[test]
    fn a_forgery_with_a_good_checksum_is_none_of_ours() {
        let hasher = hasher();
        let token = token(3);
        let text = token.text(&hasher);
        let head = &text[..text.len() - CHECKSUM_LENGTH];
        let forged = format!("{}{}", &head[..head.len() - BODY_LENGTH], "0".repeat(BODY_LENGTH));
        assert_eq!(RefreshToken::read(&format!("{forged}{}", checksum(&forged)), &hasher), None);
    }

    proptest! {
        #[test]
        fn nothing_else_is_a_token(text in "\\PC{0,100}") {
            prop_assert_eq!(RefreshToken::read(&text, &hasher()), None);
        }
    }
}
