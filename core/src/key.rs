//! Verification keys, each pinned to one algorithm, and the issuers that own them.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};

use crate::jwk;

/// Length of a key id at most, in bytes.
pub const MAX_KID_BYTES: usize = 256;
/// Stands for a missing `typ` in [`Issuer::with_token_types`].
pub const NO_TOKEN_TYPE: &str = "none";
/// The `typ` of a JWT access token (RFC 9068 §2.1).
const ACCESS_TOKEN_TYPE: &str = "at+jwt";
/// What a `typ` may leave out (RFC 7515 §4.1.9).
const APPLICATION: &str = "application/";
/// Sizes of RSA moduli that are accepted, in bits (RFC 7518 §3.3 asks for 2048 or more).
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The signature algorithms that are accepted (RFC 7518 §3.1, RFC 8037 §3.1). Asymmetric only: a verifier that could
/// also sign would be no verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, clippy::upper_case_acronyms)] // the JWA names say what they are
pub enum Algorithm {
    ES256,
    ES384,
    ES512,
    EdDSA,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
}

/// A name that is none of [`Algorithm`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an accepted signature algorithm; accepted are ES256, ES384, ES512, EdDSA, RS256, RS384, RS512, PS256, PS384, PS512"
)]
pub struct UnknownAlgorithm;

impl Algorithm {
    /// Every accepted algorithm.
    pub const ALL: [Self; 10] = [
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::EdDSA,
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
    ];

    /// The JWA name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::ES512 => "ES512",
            Self::EdDSA => "EdDSA",
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
        }
    }

    /// Whether it takes an RSA key.
    pub(crate) const fn is_rsa(self) -> bool {
        !matches!(self, Self::ES256 | Self::ES384 | Self::ES512 | Self::EdDSA)
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
            Self::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
            Self::ES512 => &signature::ECDSA_P521_SHA512_FIXED,
            Self::EdDSA => &signature::ED25519,
            Self::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
        }
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    /// Case matters (RFC 7515 §4.1.1). `Ed25519` is RFC 9864's name for what `EdDSA` means here.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == "Ed25519" {
            return Ok(Self::EdDSA);
        }
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name).ok_or(UnknownAlgorithm)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a key is in its life. All three verify; only an active one signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyState {
    /// Published, not yet signing.
    Pending,
    /// Signing.
    Active,
    /// No longer signing; its tokens may still live.
    Retiring,
}

impl KeyState {
    /// The name in lower case, as APIs show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Retiring => "retiring",
        }
    }
}

/// Why a public key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key id is empty, too long or has characters that [`is_kid`] refuses.
    #[error(
        "a kid is 1 to {MAX_KID_BYTES} ASCII letters, digits and characters of -._~:+=@/, without dot segments"
    )]
    Kid,
    /// Not a key of the kind that the algorithm needs, or an RSA key outside 2048 to 8192 bits.
    #[error("not a public key for {0} (RSA keys have 2048 to 8192 bits)")]
    Rejected(Algorithm),
}

/// Whether `kid` may be a key id: 1 to [`MAX_KID_BYTES`] ASCII letters, digits and characters of `-._~:+=@/` (identity providers
/// use standard base64), without the segments `.` and `..`. Nothing that a query language or a shell reads specially and
/// nothing that leaves a directory, wherever a key id may come to be written.
pub fn is_kid(kid: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:+=@/".contains(&byte);
    !kid.is_empty()
        && kid.len() <= MAX_KID_BYTES
        && kid.bytes().all(allowed)
        && !kid.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// A signature that does not verify. Deliberately says no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct SignatureInvalid;

/// A public key, its id, and the one algorithm that it verifies.
#[derive(Clone)]
pub struct VerificationKey {
    kid: Arc<str>,
    algorithm: Algorithm,
    state: KeyState,
    key: ParsedPublicKey,
    spki: Arc<[u8]>,
}

impl VerificationKey {
    /// A key from its DER SubjectPublicKeyInfo (RFC 5280 §4.1).
    pub fn from_spki(
        kid: &str,
        algorithm: Algorithm,
        spki: &[u8],
        state: KeyState,
    ) -> Result<Self, KeyError> {
        if !is_kid(kid) {
            return Err(KeyError::Kid);
        }
        let rejected = KeyError::Rejected(algorithm);
        let key = ParsedPublicKey::new(algorithm.verification(), spki).map_err(|_| rejected.clone())?;
        // The parser also takes bare points, compressed ones, PKCS#1 and trailing bytes; a key has one form here.
        if !key.as_der().is_ok_and(|der| der.as_ref() == spki) {
            return Err(rejected);
        }
        // The library bounds RSA only when it verifies; a key that can verify nothing must not be trusted in silence.
        if algorithm.is_rsa() && !jwk::rsa_modulus_bits(spki).is_some_and(|bits| RSA_BITS.contains(&bits)) {
            return Err(rejected);
        }
        Ok(Self { kid: kid.into(), algorithm, state, key, spki: spki.into() })
    }

    /// Verifies `signature` over `message` with the pinned algorithm; ECDSA signatures are `r || s` (RFC 7518 §3.4).
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureInvalid> {
        self.key.verify_sig(message, signature).map_err(|_| SignatureInvalid)
    }

    /// The key's id within its issuer.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The key's id, shared.
    pub(crate) fn shared_kid(&self) -> Arc<str> {
        Arc::clone(&self.kid)
    }

    /// The one algorithm that it verifies.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Where it is in its life.
    pub fn state(&self) -> KeyState {
        self.state
    }

    /// DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
}

impl fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerificationKey({} {} {})", self.kid, self.algorithm, self.state.as_str())
    }
}

/// A trusted issuer and its keys. A kid means something only within its issuer.
#[derive(Debug, Clone)]
pub struct Issuer {
    name: Arc<str>,
    realm: Option<Arc<str>>,
    keys: Vec<VerificationKey>,
    token_types: Vec<String>,
}

impl Issuer {
    /// The issuer `name` (exactly as in `iss`), of the realm that owns it, if one of ours does.
    pub fn new(name: impl Into<Arc<str>>, realm: Option<String>, keys: Vec<VerificationKey>) -> Self {
        Self { name: name.into(), realm: realm.map(Into::into), keys, token_types: Vec::new() }
    }

    /// The same issuer, whose access tokens have one of these `typ` values; [`NO_TOKEN_TYPE`] stands for a missing one.
    /// Empty: `at+jwt` alone (RFC 9068 §4). An ID token has `JWT` or none, so with these only the audience tells it from an
    /// access token. For an issuer of our own realms this changes nothing: they sign `at+jwt`.
    #[must_use]
    pub fn with_token_types(mut self, token_types: Vec<String>) -> Self {
        self.token_types = token_types;
        self
    }

    /// Exactly as in the tokens' `iss`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The realm that owns the issuer; none for an external one.
    pub fn realm(&self) -> Option<&str> {
        self.realm.as_deref()
    }

    /// All keys that verify.
    pub fn keys(&self) -> &[VerificationKey] {
        &self.keys
    }

    /// The `typ` values of its access tokens, as they were given; empty for `at+jwt` alone.
    pub fn token_types(&self) -> &[String] {
        &self.token_types
    }

    /// Whether its access tokens may have this `typ`.
    pub fn takes_type(&self, typ: Option<&str>) -> bool {
        if self.realm.is_some() || self.token_types.is_empty() {
            return typ.is_some_and(|typ| is_media_type(typ, ACCESS_TOKEN_TYPE));
        }
        self.token_types.iter().any(|taken| match typ {
            None => taken == NO_TOKEN_TYPE,
            Some(typ) => taken != NO_TOKEN_TYPE && is_media_type(typ, taken),
        })
    }

    /// The key of that id.
    pub fn key(&self, kid: &str) -> Option<&VerificationKey> {
        self.keys.iter().find(|key| key.kid() == kid)
    }
}

/// Whether both name one media type: in any case, and `application/` may be left out (RFC 7515 §4.1.9).
fn is_media_type(typ: &str, expected: &str) -> bool {
    let short = |name: &str| match name.split_at_checked(APPLICATION.len()) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case(APPLICATION) => rest.to_ascii_lowercase(),
        _ => name.to_ascii_lowercase(),
    };
    short(typ) == short(expected)
}

/// The trusted issuers by name. A clone shares the issuers with its origin.
#[derive(Debug, Clone, Default)]
pub struct Issuers(Arc<HashMap<Arc<str>, Arc<Issuer>>>);

impl Issuers {
    /// The issuer of that exact name; no normalisation (RFC 7519 §4.1.1 compares case-sensitively).
    pub fn get(&self, name: &str) -> Option<&Arc<Issuer>> {
        self.0.get(name)
    }

    /// Adds `issuer`, or replaces the one of the same name with all its keys.
    pub fn set(&mut self, issuer: Issuer) {
        Arc::make_mut(&mut self.0).insert(Arc::clone(&issuer.name), Arc::new(issuer));
    }

    /// Ends the trust in the issuer of that name.
    pub fn remove(&mut self, name: &str) {
        Arc::make_mut(&mut self.0).remove(name);
    }

    /// All issuers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Issuer>> {
        self.0.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests;
