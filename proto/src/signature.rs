//! Ed25519 signatures over the feed's exact bytes, separated by domain.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;
use zeroize::Zeroizing;

use crate::wire::Signed;

/// Bytes that a signed message may have: 1 MiB, NATS's default limit for one message.
pub const MAX_SIGNED_BYTES: usize = 1024 * 1024;

/// The kind of message a signature is for; a signature of one kind never verifies as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// A [`crate::change::ChangeSet`].
    ChangeSet,
    /// A [`crate::change::Heartbeat`].
    Heartbeat,
    /// A snapshot's manifest.
    SnapshotManifest,
    /// A [`crate::introspection::IntrospectionReply`].
    IntrospectionReply,
    /// A [`crate::audit::Checkpoint`].
    AuditCheckpoint,
    /// A [`crate::digests::Digests`].
    Digests,
    /// A [`crate::command::Command`].
    Command,
    /// A [`crate::rotation::Rotation`].
    Rotation,
}

impl Domain {
    fn name(self) -> &'static str {
        match self {
            Self::ChangeSet => "atm.feed.v1.ChangeSet",
            Self::Heartbeat => "atm.feed.v1.Heartbeat",
            Self::SnapshotManifest => "atm.feed.v1.SnapshotManifest",
            Self::IntrospectionReply => "atm.feed.v1.IntrospectionReply",
            Self::AuditCheckpoint => "atm.audit.v1.Checkpoint",
            Self::Digests => "atm.feed.v1.DigestsReply",
            Self::Command => "atm.feed.v1.FleetCommand",
            Self::Rotation => "atm.feed.v1.FeedKeyRotation",
        }
    }

    /// What is signed: the domain's name, a zero byte that no name holds, and the payload.
    fn message(self, payload: &[u8]) -> Vec<u8> {
        let name = self.name().as_bytes();
        let mut message = Vec::with_capacity(name.len() + 1 + payload.len());
        message.extend_from_slice(name);
        message.push(0);
        message.extend_from_slice(payload);
        message
    }
}

/// Why a signed message was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SignatureError {
    /// Not a `Signed` envelope, or one over [`MAX_SIGNED_BYTES`].
    #[error("not a signed message of the feed")]
    Envelope,
    /// Signed by a key that is not pinned here.
    #[error("signed by feed key {0}, which is not among the pinned feed keys")]
    UnknownKey(String),
    /// The signature does not belong to these bytes.
    #[error("the signature does not match")]
    Mismatch,
}

/// A key or seed that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("a feed key is 32 bytes in base64url without padding (43 characters)")]
pub struct FeedKeyError;

/// Signs what the control plane publishes. Its seed is the root of trust of every sidecar.
pub struct FeedSigner {
    pair: Ed25519KeyPair,
    public: FeedPublicKey,
}

impl fmt::Debug for FeedSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedSigner").field("public", &self.public).finish_non_exhaustive()
    }
}

impl FeedSigner {
    /// The signer of a 32-byte Ed25519 seed (RFC 8032 §5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, FeedKeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| FeedKeyError)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| FeedKeyError)?;
        Ok(Self { pair, public: FeedPublicKey(public) })
    }

    /// A new random signer, and the seed to keep.
    pub fn generate() -> Result<(Self, Zeroizing<[u8; 32]>), FeedKeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(seed.as_mut()).map_err(|_| FeedKeyError)?;
        Ok((Self::from_seed(&seed)?, seed))
    }

    /// The key that sidecars pin.
    pub fn public_key(&self) -> &FeedPublicKey {
        &self.public
    }

    /// The encoded [`Signed`] envelope of `payload`.
    pub fn sign(&self, domain: Domain, payload: &[u8]) -> Vec<u8> {
        let signature = self.pair.sign(&domain.message(payload));
        Signed {
            payload: payload.to_vec(),
            key_id: self.public.id().to_vec(),
            signature: signature.as_ref().to_vec(),
        }
        .encode_to_vec()
    }
}

/// A feed key's public half; in text 43 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FeedPublicKey([u8; 32]);

impl FeedPublicKey {
    /// From the raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 8 bytes by which an envelope names the key.
    pub fn id(&self) -> [u8; 8] {
        let mut id = [0; 8];
        id.copy_from_slice(&digest(&SHA256, &self.0).as_ref()[..8]);
        id
    }
}

impl fmt::Display for FeedPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for FeedPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FeedPublicKey({self})")
    }
}

impl FromStr for FeedPublicKey {
    type Err = FeedKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| FeedKeyError)?;
        Ok(Self(bytes.try_into().map_err(|_| FeedKeyError)?))
    }
}

/// The feed keys that a reader has pinned. Nothing else is believed.
#[derive(Debug, Clone)]
pub struct TrustedFeedKeys(Vec<FeedPublicKey>);

impl TrustedFeedKeys {
    /// Pins `keys`. With none, every message is refused.
    pub fn new(keys: Vec<FeedPublicKey>) -> Self {
        Self(keys)
    }

    /// The pinned keys.
    pub fn keys(&self) -> &[FeedPublicKey] {
        &self.0
    }

    /// The payload of an encoded [`Signed`] envelope, if a pinned key signed exactly these bytes for this domain.
    pub fn verify(&self, domain: Domain, signed: &[u8]) -> Result<Vec<u8>, SignatureError> {
        if signed.len() > MAX_SIGNED_BYTES {
            return Err(SignatureError::Envelope);
        }
        let envelope = Signed::decode(signed).map_err(|_| SignatureError::Envelope)?;
        if envelope.key_id.len() != 8 {
            return Err(SignatureError::Envelope);
        }
        let key = self
            .0
            .iter()
            .find(|key| key.id() == envelope.key_id[..])
            .ok_or_else(|| SignatureError::UnknownKey(hex::encode(&envelope.key_id)))?;
        UnparsedPublicKey::new(&ED25519, key.0)
            .verify(&domain.message(&envelope.payload), &envelope.signature)
            .map_err(|_| SignatureError::Mismatch)?;
        Ok(envelope.payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(byte: u8) -> FeedSigner {
        FeedSigner::from_seed(&[byte; 32]).unwrap()
    }

    #[test]
    fn what_a_pinned_key_signed_is_believed() {
        let signer = signer(1);
        let trusted = TrustedFeedKeys::new(vec![*signer.public_key()]);
        let signed = signer.sign(Domain::Heartbeat, b"payload");
        assert_eq!(trusted.verify(Domain::Heartbeat, &signed).unwrap(), b"payload");
    }

    #[test]
    fn a_signature_of_one_domain_is_none_of_another() {
        let signer = signer(1);
        let trusted = TrustedFeedKeys::new(vec![*signer.public_key()]);
        let signed = signer.sign(Domain::Heartbeat, b"payload");
        assert_eq!(trusted.verify(Domain::ChangeSet, &signed), Err(SignatureError::Mismatch));
    }

    #[test]
    fn another_key_is_refused_even_under_a_pinned_key_id() {
        let (pinned, other) = (signer(1), signer(2));
        let trusted = TrustedFeedKeys::new(vec![*pinned.public_key()]);
        let signed = other.sign(Domain::ChangeSet, b"payload");
        assert!(matches!(trusted.verify(Domain::ChangeSet, &signed), Err(SignatureError::UnknownKey(_))));
        let mut envelope = Signed::decode(&signed[..]).unwrap();
        envelope.key_id = pinned.public_key().id().to_vec();
        assert_eq!(
            trusted.verify(Domain::ChangeSet, &envelope.encode_to_vec()),
            Err(SignatureError::Mismatch)
        );
    }

    #[test]
    fn no_changed_byte_of_an_envelope_yields_another_payload() {
        let signer = signer(3);
        let trusted = TrustedFeedKeys::new(vec![*signer.public_key()]);
        let signed = signer.sign(Domain::ChangeSet, b"the exact bytes");
        for at in 0..signed.len() {
            let mut changed = signed.clone();
            changed[at] ^= 0x01;
            if let Ok(payload) = trusted.verify(Domain::ChangeSet, &changed) {
                assert_eq!(payload, b"the exact bytes", "byte {at}");
            }
        }
    }

    #[test]
    fn a_public_key_survives_its_text() {
        let key = *signer(4).public_key();
        assert_eq!(key.to_string().parse::<FeedPublicKey>().unwrap(), key);
        assert!("short".parse::<FeedPublicKey>().is_err());
    }
}
