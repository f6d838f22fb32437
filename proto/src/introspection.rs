//! What a sidecar asks of an opaque credential, and what the control plane answers. The request names the credential by its
//! digest; the reply is signed, because who could forge one could make any credential valid.

use atm_core::time::UnixMillis;
use prost::Message;
use serde_json::{Map, Value};

use crate::change::DecodeError;
use crate::convert;
use crate::wire;

/// Seconds for which a reply may be kept at most, whatever it says.
pub const MAX_CACHE_SECONDS: u32 = 300;

/// A question about one credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntrospectionRequest {
    /// SHA-256 over the credential.
    pub token_digest: [u8; 32],
    /// Random, repeated by the reply.
    pub nonce: [u8; 16],
    /// Who asks.
    pub sidecar_id: String,
    /// The trace context (W3C) of the request that it is for; may be empty.
    pub traceparent: String,
}

/// The answer, to be signed for [`crate::signature::Domain::IntrospectionReply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntrospectionReply {
    /// The realms that share the feed.
    pub realm_group: String,
    /// As asked.
    pub token_digest: [u8; 32],
    /// As asked.
    pub nonce: [u8; 16],
    /// The issue clock's instant.
    pub time: UnixMillis,
    /// What the credential stands for, in the claims of an access token; none where it is not active.
    pub claims: Option<Map<String, Value>>,
    /// Seconds for which the reply may be kept, at most [`MAX_CACHE_SECONDS`].
    pub cache_seconds: u32,
}

impl IntrospectionRequest {
    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        wire::IntrospectionRequest {
            token_digest: self.token_digest.to_vec(),
            nonce: self.nonce.to_vec(),
            sidecar_id: self.sidecar_id.clone(),
            traceparent: self.traceparent.clone(),
        }
        .encode_to_vec()
    }

    /// Reads a request.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let request = wire::IntrospectionRequest::decode(bytes)?;
        Ok(Self {
            token_digest: convert::array("token_digest", &request.token_digest)?,
            nonce: convert::array("nonce", &request.nonce)?,
            sidecar_id: request.sidecar_id,
            traceparent: request.traceparent,
        })
    }
}

impl IntrospectionReply {
    /// The payload bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::IntrospectionReply {
            realm_group: self.realm_group.clone(),
            token_digest: self.token_digest.to_vec(),
            nonce: self.nonce.to_vec(),
            time_ms: self.time.0,
            active: self.claims.is_some(),
            claims: self
                .claims
                .as_ref()
                .map(|claims| Value::Object(claims.clone()).to_string().into_bytes())
                .unwrap_or_default(),
            cache_seconds: self.cache_seconds,
        }
        .encode_to_vec()
    }

    /// Reads a verified payload. One that says active must say as what, and one that does not must not.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let reply = wire::IntrospectionReply::decode(payload)?;
        let claims = match (reply.active, reply.claims.is_empty()) {
            (false, true) => None,
            (true, false) => {
                let claims = atm_core::json::parse_object(&reply.claims);
                Some(claims.map_err(|error| convert::refuse("claims", error.to_string()))?)
            }
            _ => return Err(convert::refuse("claims", "must be there exactly where the token is active")),
        };
        Ok(Self {
            realm_group: reply.realm_group,
            token_digest: convert::array("token_digest", &reply.token_digest)?,
            nonce: convert::array("nonce", &reply.nonce)?,
            time: UnixMillis(reply.time_ms),
            claims,
            cache_seconds: reply.cache_seconds.min(MAX_CACHE_SECONDS),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply(claims: Option<Value>) -> IntrospectionReply {
        IntrospectionReply {
            realm_group: "default".into(),
            token_digest: [1; 32],
            nonce: [2; 16],
            time: UnixMillis(3),
            claims: claims.map(|claims| claims.as_object().unwrap().clone()),
            cache_seconds: 60,
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let request = IntrospectionRequest {
            token_digest: [1; 32],
            nonce: [2; 16],
            sidecar_id: "s".into(),
            traceparent: String::new(),
        };
        assert_eq!(IntrospectionRequest::decode(&request.encode()).unwrap(), request);
        for reply in [reply(None), reply(Some(json!({"sub": "alice", "aud": ["a"]})))] {
            assert_eq!(IntrospectionReply::decode(&reply.encode()).unwrap(), reply);
        }
        let long = IntrospectionReply { cache_seconds: u32::MAX, ..reply(None) };
        assert_eq!(IntrospectionReply::decode(&long.encode()).unwrap().cache_seconds, MAX_CACHE_SECONDS);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let good = wire::IntrospectionReply::decode(&reply(Some(json!({"sub": "a"}))).encode()[..]).unwrap();
        for bad in [
            wire::IntrospectionReply { active: false, ..good.clone() },
            wire::IntrospectionReply { claims: Vec::new(), ..good.clone() },
            wire::IntrospectionReply { claims: b"[1]".to_vec(), ..good.clone() },
            wire::IntrospectionReply { claims: br#"{"a":1,"a":2}"#.to_vec(), ..good.clone() },
            wire::IntrospectionReply { nonce: vec![1], ..good.clone() },
            wire::IntrospectionReply { token_digest: vec![1], ..good },
        ] {
            assert!(IntrospectionReply::decode(&bad.encode_to_vec()).is_err(), "{bad:?}");
        }
    }
}
