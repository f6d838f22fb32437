//! How the trust in feed keys is handed over: a trusted key signs the list of those that are trusted from now on.

use atm_core::time::UnixMillis;
use prost::Message;

use crate::change::DecodeError;
use crate::convert::{self, refuse};
use crate::signature::FeedPublicKey;
use crate::wire;

/// Keys that may be trusted at the same time.
const MAX_KEYS: usize = 8;

/// The feed keys that are trusted from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The realms that share the log.
    pub realm_group: String,
    /// Counts rotations, from 1. Only a higher number than the last accepted one counts.
    pub number: u64,
    /// The signer's clock.
    pub time: UnixMillis,
    /// All that are trusted; never empty.
    pub trusted: Vec<FeedPublicKey>,
}

impl Rotation {
    /// The payload bytes, to be signed for [`crate::signature::Domain::Rotation`].
    pub fn encode(&self) -> Vec<u8> {
        wire::FeedKeyRotation {
            realm_group: self.realm_group.clone(),
            number: self.number,
            time_ms: self.time.0,
            trusted: self.trusted.iter().map(|key| key.as_bytes().to_vec()).collect(),
        }
        .encode_to_vec()
    }

    /// Reads a verified payload.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let rotation = wire::FeedKeyRotation::decode(payload)?;
        if rotation.number == 0 {
            return Err(refuse("number", "must be 1 or more"));
        }
        if rotation.trusted.is_empty() || rotation.trusted.len() > MAX_KEYS {
            return Err(refuse("trusted", format!("must name 1 to {MAX_KEYS} keys")));
        }
        let keys =
            rotation.trusted.iter().map(|key| Ok(FeedPublicKey::from_bytes(convert::array("trusted", key)?)));
        Ok(Self {
            realm_group: rotation.realm_group,
            number: rotation.number,
            time: UnixMillis(rotation.time_ms),
            trusted: keys.collect::<Result<_, DecodeError>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::FeedSigner;

    #[test]
    fn a_rotation_comes_back_and_never_names_nobody() {
        let key = *FeedSigner::from_seed(&[1; 32]).unwrap().public_key();
        let mut rotation = Rotation {
            realm_group: "default".into(),
            number: 3,
            time: UnixMillis(7),
            trusted: vec![key, key],
        };
        assert_eq!(Rotation::decode(&rotation.encode()).unwrap(), rotation);
        rotation.trusted.clear();
        assert!(Rotation::decode(&rotation.encode()).is_err());
        rotation.trusted = vec![key; 9];
        assert!(Rotation::decode(&rotation.encode()).is_err());
        (rotation.trusted, rotation.number) = (vec![key], 0);
        assert!(Rotation::decode(&rotation.encode()).is_err());
    }
}
