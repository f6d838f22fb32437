//! Private keys in memory: generation, wrapping, signing.

use std::fmt;

use atm_core::key::Algorithm;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::KeysError;
use super::provider::RemoteKey;
use crate::secret::{self, Wrapper};

/// Bits of new RSA keys: 128 bits of security (NIST SP 800-57).
const RSA_SIZE: rsa::KeySize = rsa::KeySize::Rsa3072;

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<rsa::KeyPair>, &'static dyn RsaEncoding),
    /// At a provider.
    Remote(RemoteKey),
}

/// A private key that signs, with its public half.
pub struct Signer {
    kid: String,
    algorithm: Algorithm,
    spki: Vec<u8>,
    pair: Pair,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// A new random key. RSA takes up to a second of computing.
    pub(crate) fn generate(algorithm: Algorithm) -> Result<Self, KeysError> {
        let pair = match (ecdsa(algorithm), rsa_encoding(algorithm)) {
            (Some(curve), _) => Pair::Ecdsa(EcdsaKeyPair::generate(curve)?),
            (None, Some(encoding)) => Pair::Rsa(Box::new(rsa::KeyPair::generate(RSA_SIZE)?), encoding),
            (None, None) => Pair::Ed25519(Ed25519KeyPair::generate()?),
        };
        Self::of(algorithm, pair)
    }

    /// The key that [`Self::wrap`] wrapped.
    pub(super) fn unwrap(
        wrapper: &Wrapper,
        kid: &str,
        algorithm: Algorithm,
        sealed: &[u8],
    ) -> Result<Self, KeysError> {
        let pkcs8 = wrapper
            .unwrap(&associated(kid, algorithm), sealed)
            .map_err(|source| KeysError::Wrapped { kid: kid.to_owned(), source })?;
        let pair = match (ecdsa(algorithm), rsa_encoding(algorithm)) {
            (Some(curve), _) => EcdsaKeyPair::from_pkcs8(curve, &pkcs8).map(Pair::Ecdsa),
            (None, Some(encoding)) => {
                rsa::KeyPair::from_pkcs8(&pkcs8).map(|pair| Pair::Rsa(Box::new(pair), encoding))
            }
            (None, None) => Ed25519KeyPair::from_pkcs8(&pkcs8).map(Pair::Ed25519),
        }
        .map_err(|_| KeysError::Library)?;
        Self::of(algorithm, pair)
    }

    /// A key that a provider keeps.
    pub(super) fn remote(algorithm: Algorithm, spki: Vec<u8>, key: RemoteKey) -> Self {
        Self { kid: kid_of(&spki), algorithm, spki, pair: Pair::Remote(key) }
    }

    /// The provider and its reference; none for a key that is here.
    pub(super) fn reference(&self) -> Option<(&'static str, &[u8])> {
        match &self.pair {
            Pair::Remote(key) => Some((key.provider(), key.reference())),
            _ => None,
        }
    }

    /// Whether the provider signs with this key.
    pub(super) async fn check(&self) -> Result<(), KeysError> {
        match &self.pair {
            Pair::Remote(key) => Ok(key.check(&self.kid, &self.spki).await?),
            _ => Ok(()),
        }
    }

    /// The private key as PKCS #8 (RFC 5208), wrapped for the store.
    pub(super) fn wrap(&self, wrapper: &Wrapper) -> Result<Vec<u8>, KeysError> {
        let pkcs8 = match &self.pair {
            Pair::Ecdsa(pair) => Zeroizing::new(pair.to_pkcs8v1()?.as_ref().to_vec()),
            Pair::Ed25519(pair) => Zeroizing::new(pair.to_pkcs8()?.as_ref().to_vec()),
            Pair::Rsa(pair, _) => {
                let der: Pkcs8V1Der<'static> = pair.as_der()?;
                Zeroizing::new(der.as_ref().to_vec())
            }
            // It never leaves its provider; who asks for it has mixed keys up.
            Pair::Remote(_) => return Err(KeysError::Library),
        };
        wrapper
            .wrap(&associated(&self.kid, self.algorithm), &pkcs8)
            .map_err(|source| KeysError::Wrapped { kid: self.kid.clone(), source })
    }

    /// The key id: 22 characters of base64url over the SHA-256 of the public key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What it signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The public key, DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The signature over `message` as JWS has it (RFC 7518 §3): `r || s` for ECDSA.
    pub async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeysError> {
        let random = SystemRandom::new();
        Ok(match &self.pair {
            Pair::Remote(key) => key.sign(message).await?,
            Pair::Ecdsa(pair) => pair.sign(&random, message)?.as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature)?;
                signature
            }
        })
    }

    fn of(algorithm: Algorithm, pair: Pair) -> Result<Self, KeysError> {
        let spki: PublicKeyX509Der<'static> = match &pair {
            Pair::Ecdsa(pair) => pair.public_key().as_der()?,
            Pair::Ed25519(pair) => pair.public_key().as_der()?,
            Pair::Rsa(pair, _) => pair.public_key().as_der()?,
            Pair::Remote(_) => return Err(KeysError::Library),
        };
        let spki = spki.as_ref().to_vec();
        Ok(Self { kid: kid_of(&spki), algorithm, spki, pair })
    }
}

fn kid_of(spki: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(&secret::sha256(spki)[..16])
}

/// What ties a wrapped key to its row.
fn associated(kid: &str, algorithm: Algorithm) -> Vec<u8> {
    format!("atm signing key v1\0{kid}\0{algorithm}").into_bytes()
}

fn ecdsa(algorithm: Algorithm) -> Option<&'static EcdsaSigningAlgorithm> {
    match algorithm {
        Algorithm::ES256 => Some(&ECDSA_P256_SHA256_FIXED_SIGNING),
        Algorithm::ES384 => Some(&ECDSA_P384_SHA384_FIXED_SIGNING),
        Algorithm::ES512 => Some(&ECDSA_P521_SHA512_FIXED_SIGNING),
        _ => None,
    }
}

fn rsa_encoding(algorithm: Algorithm) -> Option<&'static dyn RsaEncoding> {
    match algorithm {
        Algorithm::RS256 => Some(&signature::RSA_PKCS1_SHA256),
        Algorithm::RS384 => Some(&signature::RSA_PKCS1_SHA384),
        Algorithm::RS512 => Some(&signature::RSA_PKCS1_SHA512),
        Algorithm::PS256 => Some(&signature::RSA_PSS_SHA256),
        Algorithm::PS384 => Some(&signature::RSA_PSS_SHA384),
        Algorithm::PS512 => Some(&signature::RSA_PSS_SHA512),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use atm_core::key::{KeyState, VerificationKey};

    use super::*;
    use crate::secret::RootKey;

    #[tokio::test]
    async fn a_key_of_every_algorithm_survives_its_wrapping_and_verifies_in_core() {
        use Algorithm::{ES256, ES384, ES512, EdDSA, PS256, RS256};
        let wrapper = RootKey::generate().unwrap().0.wrapper().unwrap();
        for algorithm in [ES256, ES384, ES512, EdDSA, PS256, RS256] {
            let signer = Signer::generate(algorithm).unwrap();
            let sealed = signer.wrap(&wrapper).unwrap();
            let again = Signer::unwrap(&wrapper, signer.kid(), algorithm, &sealed).unwrap();
            assert_eq!(again.kid(), signer.kid());
            let key =
                VerificationKey::from_spki(signer.kid(), algorithm, signer.spki(), KeyState::Active).unwrap();
            let signature = again.sign(b"message").await.unwrap();
            assert!(key.verify(b"message", &signature).is_ok(), "{algorithm}");
            assert!(key.verify(b"massage", &signature).is_err(), "{algorithm}");
            assert!(Signer::unwrap(&wrapper, "other", algorithm, &sealed).is_err());
        }
    }
}
