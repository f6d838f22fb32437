//! Secrets that we mint, how they are kept, and how keys are wrapped at rest.
//!
//! A minted secret is 256 random bits behind a prefix that names its type, with a checksum: scanners find it, and a typo is
//! refused without a look-up. It is kept as a keyed hash (HMAC-SHA-256); slow hashes are for passwords that people choose.

use std::fmt;

use atm_core::binding::NonceKey;
use atm_core::opaque::{self, ALPHABET, BODY_LENGTH, CHECKSUM_LENGTH, OpaqueKind, checksum};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{constant_time, digest, hkdf, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

/// Why a secret could not be made, read or unwrapped. Never holds any part of a secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecretError {
    /// The root key's text is not what it should be.
    #[error("a wrapping key is 32 random bytes in base64url without padding (43 characters)")]
    RootKey,
    /// Wrapped under another key, for another purpose, or changed since.
    #[error("cannot unwrap: another wrapping key, or the stored value was changed")]
    Unwrap,
    /// The system gives no randomness, or the library refused a key.
    #[error("the cryptographic library failed")]
    Library,
}

impl From<aws_lc_rs::error::Unspecified> for SecretError {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self::Library
    }
}

/// What a minted secret is for; its prefix says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    /// Authenticates a client at the token endpoint.
    ClientSecret,
    /// A refresh token.
    RefreshToken,
    /// An API key.
    ApiKey,
    /// An opaque access token.
    AccessToken,
}

impl SecretKind {
    /// What every secret of this kind begins with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::ClientSecret => "atm_cs_",
            Self::RefreshToken => "atm_rt_",
            Self::ApiKey => OpaqueKind::ApiKey.prefix(),
            Self::AccessToken => OpaqueKind::AccessToken.prefix(),
        }
    }
}

/// A new secret: prefix, 43 characters of randomness, 6 of checksum.
pub fn mint(kind: SecretKind) -> Result<Zeroizing<String>, SecretError> {
    let mut random = Zeroizing::new([0u8; 32]);
    rand::fill(random.as_mut())?;
    let prefix = kind.prefix();
    let mut text = Zeroizing::new(String::with_capacity(prefix.len() + BODY_LENGTH + CHECKSUM_LENGTH));
    text.push_str(prefix);
    text.push_str(&Zeroizing::new(base62(random.as_ref(), BODY_LENGTH)));
    let checksum = checksum(&text);
    text.push_str(&checksum);
    Ok(text)
}

/// Whether `text` can be a secret of this kind: prefix, length, alphabet and checksum. Says nothing of its validity.
pub fn is_well_formed(kind: SecretKind, text: &str) -> bool {
    opaque::is_well_formed(kind.prefix(), text)
}

/// A random identifier of 128 bits: 22 characters of base 62.
pub fn random_id() -> Result<String, SecretError> {
    let mut random = [0u8; 16];
    rand::fill(&mut random)?;
    Ok(base62(&random, 22))
}

/// Whether both are the same bytes, in time that depends on their lengths only.
pub fn constant_time_equal(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Big-endian base conversion to a fixed width. The width must hold all of `bytes`.
pub(crate) fn base62(bytes: &[u8], width: usize) -> String {
    let mut number = Zeroizing::new(bytes.to_vec());
    let mut digits = Zeroizing::new(vec![ALPHABET[0]; width]);
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in number.iter_mut() {
            let value = remainder << 8 | u32::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX); // remainder < 62, so value / 62 < 256
            remainder = value % 62;
        }
        *digit = ALPHABET[remainder as usize];
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// The one key that an operator keeps for us, from a file or the environment. Everything at rest hangs on it: the hashes
/// of secrets and the wrapping of private keys use keys derived from it (HKDF-SHA-256, RFC 5869).
pub struct RootKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(..)")
    }
}

struct Length32;

impl hkdf::KeyType for Length32 {
    fn len(&self) -> usize {
        32
    }
}

impl RootKey {
    /// Reads the text of [`RootKey::generate`]; surrounding white space is ignored, as files end with a newline.
    pub fn from_base64url(text: &str) -> Result<Self, SecretError> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text.trim()).map_err(|_| SecretError::RootKey)?);
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            return Err(SecretError::RootKey);
        }
        key.copy_from_slice(&bytes);
        Ok(Self(key))
    }

    /// A new random root key, and its text to keep.
    pub fn generate() -> Result<(Self, Zeroizing<String>), SecretError> {
        let mut key = Zeroizing::new([0; 32]);
        rand::fill(key.as_mut())?;
        let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(key.as_ref()));
        Ok((Self(key), text))
    }

    /// What hashes minted secrets.
    pub fn hasher(&self) -> Result<SecretHasher, SecretError> {
        Ok(SecretHasher(hmac::Key::new(hmac::HMAC_SHA256, self.derive(b"atm secret hash v1")?.as_ref())))
    }

    /// What wraps private keys.
    pub fn wrapper(&self) -> Result<Wrapper, SecretError> {
        let key = UnboundKey::new(&AES_256_GCM, self.derive(b"atm key wrap v1")?.as_ref())?;
        Ok(Wrapper(std::sync::Arc::new(LessSafeKey::new(key))))
    }

    /// What nonces of DPoP proofs are made with: the same at every replica, so that each takes the others'.
    pub fn dpop_nonce_key(&self) -> Result<NonceKey, SecretError> {
        let bytes = self.derive(b"atm dpop nonce v1")?;
        Ok(NonceKey::new(&bytes))
    }

    /// Names the key, and tells nothing of it: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        hex::encode(
            &hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, self.0.as_ref()), b"atm key id v1").as_ref()[..8],
        )
    }

    /// `other`, sealed by this key for the purpose `name`.
    pub(crate) fn seal(&self, name: &str, other: &Self) -> Result<Vec<u8>, SecretError> {
        self.sealer()?.wrap(name.as_bytes(), other.0.as_ref())
    }

    /// What [`Self::seal`] sealed.
    pub(crate) fn unseal(&self, name: &str, sealed: &[u8]) -> Result<Self, SecretError> {
        let bytes = self.sealer()?.unwrap(name.as_bytes(), sealed)?;
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            return Err(SecretError::Unwrap);
        }
        key.copy_from_slice(&bytes);
        Ok(Self(key))
    }

    fn sealer(&self) -> Result<Wrapper, SecretError> {
        let key = UnboundKey::new(&AES_256_GCM, self.derive(b"atm root key seal v1")?.as_ref())?;
        Ok(Wrapper(std::sync::Arc::new(LessSafeKey::new(key))))
    }

    fn derive(&self, purpose: &[u8]) -> Result<Zeroizing<[u8; 32]>, SecretError> {
        let mut key = Zeroizing::new([0; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"atm-control-plane")
            .extract(self.0.as_ref())
            .expand(&[purpose], Length32)?
            .fill(key.as_mut())?;
        Ok(key)
    }
}

/// Hashes minted secrets for the store.
#[derive(Clone)]
pub struct SecretHasher(hmac::Key);

impl fmt::Debug for SecretHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHasher(..)")
    }
}

impl SecretHasher {
    /// HMAC-SHA-256 of the whole text, prefix and checksum included.
    pub fn hash(&self, secret: &str) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(hmac::sign(&self.0, secret.as_bytes()).as_ref());
        hash
    }

    /// Whether `stored` is the hash of `secret`, compared in constant time.
    pub fn matches(&self, secret: &str, stored: &[u8]) -> bool {
        hmac::verify(&self.0, secret.as_bytes(), stored).is_ok()
    }
}

/// Wraps private keys for the store: AES-256-GCM under a random nonce, with the key's identity as associated data, so that
/// a wrapped key cannot be moved to another row.
#[derive(Clone)]
pub struct Wrapper(std::sync::Arc<LessSafeKey>);

impl fmt::Debug for Wrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wrapper(..)")
    }
}

impl Wrapper {
    /// Nonce (12 bytes), ciphertext and tag (16 bytes).
    pub fn wrap(&self, associated: &[u8], plain: &[u8]) -> Result<Vec<u8>, SecretError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce)?;
        let mut sealed = plain.to_vec();
        self.0.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(associated),
            &mut sealed,
        )?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// What [`Self::wrap`] was given, if neither the bytes nor the associated data changed.
    pub fn unwrap(&self, associated: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let (nonce, sealed) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or(SecretError::Unwrap)?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let length = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(associated), &mut sealed)
            .map_err(|_| SecretError::Unwrap)?
            .len();
        sealed.truncate(length);
        Ok(sealed)
    }
}

/// SHA-256, for what is no secret: names of keys and the like.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_secret_is_well_formed_and_of_its_kind_only() {
        let secret = mint(SecretKind::ClientSecret).unwrap();
        assert_eq!(secret.len(), 7 + 43 + 6);
        assert!(is_well_formed(SecretKind::ClientSecret, &secret));
        assert!(!is_well_formed(SecretKind::RefreshToken, &secret));
        assert_ne!(*secret, *mint(SecretKind::ClientSecret).unwrap());
    }

    #[test]
    fn a_typo_a_truncation_or_another_script_is_refused_offline() {
        let secret = mint(SecretKind::ApiKey).unwrap();
        for at in 7..secret.len() {
            let other = if secret.as_bytes()[at] == b'x' { "y" } else { "x" };
            let typo = format!("{}{other}{}", &secret[..at], &secret[at + 1..]);
            assert!(!is_well_formed(SecretKind::ApiKey, &typo), "position {at}");
        }
        assert!(!is_well_formed(SecretKind::ApiKey, &secret[..secret.len() - 1]));
        assert!(!is_well_formed(SecretKind::ApiKey, &format!("atm_ak_{}", "é".repeat(24))));
        assert!(!is_well_formed(SecretKind::ApiKey, ""));
    }

    #[test]
    fn numbers_keep_their_width_in_base_62() {
        assert_eq!(base62(&[0, 61], 2), "0z");
        assert_eq!(base62(&[0, 62], 2), "10");
        assert_eq!(base62(&[255; 32], 43).len(), 43);
    }

    #[test]
    fn a_root_key_survives_its_text_and_its_hashes_match() {
        let (key, text) = RootKey::generate().unwrap();
        let again = RootKey::from_base64url(&format!("{}\n", *text)).unwrap();
        let hash = key.hasher().unwrap().hash("secret");
        assert!(again.hasher().unwrap().matches("secret", &hash));
        assert!(!again.hasher().unwrap().matches("Secret", &hash));
        assert!(!again.hasher().unwrap().matches("secret", &hash[..31]));
        assert_eq!(format!("{key:?}"), "RootKey(..)");
        for bad in ["", "short", &"A".repeat(44)] {
            assert_eq!(RootKey::from_base64url(bad).unwrap_err(), SecretError::RootKey);
        }
    }

    #[test]
    fn a_wrapped_key_opens_only_under_its_key_and_its_name() {
        let wrapper = RootKey::generate().unwrap().0.wrapper().unwrap();
        let other = RootKey::generate().unwrap().0.wrapper().unwrap();
        let sealed = wrapper.wrap(b"kid-1", b"private").unwrap();
        assert_eq!(**wrapper.unwrap(b"kid-1", &sealed).unwrap(), *b"private");
        assert_eq!(wrapper.unwrap(b"kid-2", &sealed).unwrap_err(), SecretError::Unwrap);
        assert_eq!(other.unwrap(b"kid-1", &sealed).unwrap_err(), SecretError::Unwrap);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(wrapper.unwrap(b"kid-1", &changed).is_err());
        }
        assert!(wrapper.unwrap(b"kid-1", &sealed[..11]).is_err());
    }
}
