//! DPoP proofs (RFC 9449 §4.2, §4.3): a JWT that the client signs for one request with the key that its token is bound to.

use std::borrow::Cow;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Context, SHA256, digest};
use serde_json::{Map, Value};

use super::nonce::NonceKey;
use crate::base64url;
use crate::json;
use crate::jwk;
use crate::key::{Algorithm, KeyState, VerificationKey};
use crate::policy::normalise_host;
use crate::time::UnixMillis;

/// Length of a proof at most, in bytes; one with an RSA key of 4096 bits has about two thousand.
pub const MAX_PROOF_BYTES: usize = 8 * 1024;
/// Length of a `jti` at most, in bytes.
const MAX_JTI_BYTES: usize = 256;

/// What a proof must be for.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The request's method.
    pub method: &'a str,
    /// Scheme and authority by which the client may have addressed us; one of them must be the proof's.
    pub origins: &'a [(String, String)],
    /// The request target as received, with its query.
    pub target: &'a str,
    /// The access token that the proof comes with; none where a token is asked for (RFC 9449 §5).
    pub access_token: Option<&'a str>,
    /// The thumbprint of the key that the token is bound to (`cnf.jkt`); none where any key will do.
    pub thumbprint: Option<&'a str>,
    /// Now.
    pub now: UnixMillis,
    /// Age of a proof at most, in seconds.
    pub max_age_seconds: i64,
    /// Difference between clocks that is forgiven, in seconds.
    pub clock_skew_seconds: i64,
    /// Whether a nonce is asked for.
    pub nonce: NonceCheck<'a>,
}

/// Whether a proof needs a nonce.
#[derive(Debug, Clone, Copy)]
pub enum NonceCheck<'a> {
    /// It does not; one that is there is not looked at.
    NotAsked,
    /// It needs one that was made with this key.
    Required(&'a NonceKey),
}

/// Why a proof was refused. Holds nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DpopError {
    /// No compact JWS, or without the claims of RFC 9449 §4.2 in their types.
    #[error("the proof is not well formed")]
    Malformed,
    /// The `typ` is not `dpop+jwt`.
    #[error("the proof is of another type")]
    TypeRefused,
    /// The algorithm is not accepted, or not one of the key.
    #[error("the proof's algorithm is not accepted")]
    AlgorithmRefused,
    /// The `jwk` is missing, private, or no usable key.
    #[error("the proof's key cannot be used")]
    KeyRefused,
    /// The signature does not verify.
    #[error("the proof's signature does not verify")]
    SignatureInvalid,
    /// `htm` is another method.
    #[error("the proof is for another method")]
    MethodMismatch,
    /// `htu` is another URI.
    #[error("the proof is for another URI")]
    UriMismatch,
    /// `iat` lies too far back.
    #[error("the proof is too old")]
    TooOld,
    /// `iat` lies in the future.
    #[error("the proof was issued in the future")]
    IssuedInFuture,
    /// `ath` is not the token's.
    #[error("the proof is for another token")]
    TokenMismatch,
    /// The key is not the one that the token is bound to.
    #[error("the proof was made with another key")]
    KeyMismatch,
    /// There is no nonce, and one is asked for.
    #[error("the proof has no nonce")]
    NonceMissing,
    /// The nonce is not ours, or too old.
    #[error("the proof's nonce is not valid")]
    NonceInvalid,
}

/// Evidence that a proof fits a request and its token. Whether it was used before is for who remembers proofs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedProof {
    thumbprint: String,
    replay_id: [u8; 16],
    expires_at: UnixMillis,
    nonce_ends: bool,
}

impl VerifiedProof {
    /// The thumbprint of the key that the proof was made with (`jkt`, RFC 7638).
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// What the proof is remembered by: a hash over its key and its `jti`.
    pub fn replay_id(&self) -> [u8; 16] {
        self.replay_id
    }

    /// Until when it must be remembered: afterwards it is too old by itself.
    pub fn expires_at(&self) -> UnixMillis {
        self.expires_at
    }

    /// Whether a nonce was asked for and the proof's will soon be taken no more: the answer brings the next one (RFC 9449 §8.2).
    pub fn nonce_ends(&self) -> bool {
        self.nonce_ends
    }
}

/// Checks a proof in full (RFC 9449 §4.3), the cheap things before the signature.
pub fn verify(proof: &str, expected: &Expected<'_>) -> Result<VerifiedProof, DpopError> {
    if proof.len() > MAX_PROOF_BYTES {
        return Err(DpopError::Malformed);
    }
    let (input, signature) = proof.rsplit_once('.').ok_or(DpopError::Malformed)?;
    let (header, payload) = input.split_once('.').ok_or(DpopError::Malformed)?;
    let (key, thumbprint) = read_header(&object(header)?)?;
    if let Some(bound) = expected.thumbprint
        && verify_slices_are_equal(thumbprint.as_bytes(), bound.as_bytes()).is_err()
    {
        return Err(DpopError::KeyMismatch);
    }
    let payload = object(payload)?;
    let claims = Claims::read(&payload)?;
    let verified = claims.check(expected, thumbprint)?;
    let signature = base64url::decode(signature).map_err(|_| DpopError::Malformed)?;
    key.verify(input.as_bytes(), &signature).map_err(|_| DpopError::SignatureInvalid)?;
    Ok(verified)
}

fn object(encoded: &str) -> Result<Map<String, Value>, DpopError> {
    let bytes = base64url::decode(encoded).map_err(|_| DpopError::Malformed)?;
    json::parse_object(&bytes).map_err(|_| DpopError::Malformed)
}

/// The embedded key, pinned to the header's algorithm, and its thumbprint (RFC 7638).
fn read_header(header: &Map<String, Value>) -> Result<(VerificationKey, String), DpopError> {
    match header.get("typ") {
        Some(Value::String(typ)) if typ.eq_ignore_ascii_case("dpop+jwt") => {}
        _ => return Err(DpopError::TypeRefused),
    }
    if ["crit", "b64", "zip", "enc", "jku", "x5u", "x5c"].iter().any(|name| header.contains_key(*name)) {
        return Err(DpopError::Malformed);
    }
    let algorithm = header.get("alg").and_then(Value::as_str).and_then(|name| name.parse::<Algorithm>().ok());
    let algorithm = algorithm.ok_or(DpopError::AlgorithmRefused)?;
    let jwk = header.get("jwk").filter(|jwk| jwk.is_object()).ok_or(DpopError::KeyRefused)?;
    let public = jwk::spki_from_jwk(jwk).map_err(|_| DpopError::KeyRefused)?;
    let fits = public.algorithm == algorithm
        || (jwk.get("alg").is_none() && public.algorithm.is_rsa() && algorithm.is_rsa());
    if !fits {
        return Err(DpopError::AlgorithmRefused);
    }
    let key = VerificationKey::from_spki("dpop", algorithm, &public.spki, KeyState::Active)
        .map_err(|_| DpopError::KeyRefused)?;
    let thumbprint = jwk::thumbprint(jwk).ok_or(DpopError::KeyRefused)?;
    Ok((key, thumbprint))
}

/// The claims of a proof, in their types.
#[derive(Debug)]
struct Claims<'a> {
    jti: &'a str,
    method: &'a str,
    uri: &'a str,
    issued_at: i64,
    token_hash: Option<&'a str>,
    nonce: Option<&'a str>,
}

impl<'a> Claims<'a> {
    fn read(claims: &'a Map<String, Value>) -> Result<Self, DpopError> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).ok_or(DpopError::Malformed);
        let jti = text("jti")?;
        if jti.is_empty() || jti.len() > MAX_JTI_BYTES {
            return Err(DpopError::Malformed);
        }
        let optional = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(DpopError::Malformed),
        };
        let issued_at = claims.get("iat").and_then(Value::as_i64).filter(|seconds| *seconds >= 0);
        Ok(Self {
            jti,
            method: text("htm")?,
            uri: text("htu")?,
            issued_at: issued_at.ok_or(DpopError::Malformed)?,
            token_hash: optional("ath")?,
            nonce: optional("nonce")?,
        })
    }

    fn check(&self, expected: &Expected<'_>, thumbprint: String) -> Result<VerifiedProof, DpopError> {
        if self.method != expected.method {
            return Err(DpopError::MethodMismatch);
        }
        let target = expected.target.split_once('?').map_or(expected.target, |(path, _)| path);
        let uri = Uri::parse(self.uri).ok_or(DpopError::Malformed)?;
        let fits = |(scheme, authority): &(String, String)| {
            Uri::new(scheme, authority, target).as_ref() == Some(&uri)
        };
        if !expected.origins.iter().any(fits) {
            return Err(DpopError::UriMismatch);
        }
        if let Some(token) = expected.access_token {
            // RFC 9449 §7: with an access token, `ath` must be there.
            let own = self.token_hash.ok_or(DpopError::Malformed)?;
            let token_hash = base64url::encode(digest(&SHA256, token.as_bytes()).as_ref());
            if verify_slices_are_equal(token_hash.as_bytes(), own.as_bytes()).is_err() {
                return Err(DpopError::TokenMismatch);
            }
        }
        let nonce_ends = match expected.nonce {
            NonceCheck::NotAsked => false,
            NonceCheck::Required(key) => {
                let nonce = self.nonce.ok_or(DpopError::NonceMissing)?;
                if !key.accepts(nonce, expected.now) {
                    return Err(DpopError::NonceInvalid);
                }
                !key.is_current(nonce, expected.now)
            }
        };
        let now = expected.now.seconds();
        if self.issued_at > now.saturating_add(expected.clock_skew_seconds) {
            return Err(DpopError::IssuedInFuture);
        }
        let last = self
            .issued_at
            .saturating_add(expected.max_age_seconds)
            .saturating_add(expected.clock_skew_seconds);
        if now > last {
            return Err(DpopError::TooOld);
        }
        let mut context = Context::new(&SHA256);
        context.update(thumbprint.as_bytes());
        context.update(self.jti.as_bytes());
        let mut replay_id = [0; 16];
        replay_id.copy_from_slice(&context.finish().as_ref()[..16]);
        // To the end of the last second in which it would be taken.
        let expires_at = UnixMillis::from_seconds(last.saturating_add(1));
        Ok(VerifiedProof { thumbprint, replay_id, expires_at, nonce_ends })
    }
}

/// An absolute URI in the one form that it is compared in (RFC 3986 §6.2.2, §6.2.3), without query and fragment.
#[derive(Debug, PartialEq, Eq)]
struct Uri {
    scheme: String,
    host: String,
    port: Option<u16>,
    path: String,
}

impl Uri {
    fn parse(text: &str) -> Option<Self> {
        let text = text.split(['?', '#']).next()?;
        let (scheme, rest) = text.split_once("://")?;
        let path = rest.find('/').unwrap_or(rest.len());
        Self::new(scheme, &rest[..path], &rest[path..])
    }

    fn new(scheme: &str, authority: &str, path: &str) -> Option<Self> {
        let scheme = scheme.to_ascii_lowercase();
        let default = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let host = normalise_host(authority)?.into_owned();
        let port = authority.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
        let port = match port.map(|(_, port)| port) {
            None | Some("") => None,
            Some(port) => Some(port.parse().ok()?).filter(|port: &u16| *port != default),
        };
        let path = if path.is_empty() { Cow::Borrowed("/") } else { normalise_encoding(path)? };
        Some(Self { scheme, host, port, path: path.into_owned() })
    }
}

/// Unreserved characters lose their percent-encoding, the digits of the others become upper case (RFC 3986 §6.2.2).
fn normalise_encoding(path: &str) -> Option<Cow<'_, str>> {
    if !path.contains('%') {
        return Some(Cow::Borrowed(path));
    }
    let mut normalised = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            normalised.push(*first);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        let byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            normalised.push(byte);
        } else {
            normalised.push(b'%');
            normalised.extend(digits.to_ascii_uppercase());
        }
        rest = tail;
    }
    String::from_utf8(normalised).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests;
