//! What the control plane asks of all sidecars at once.

use atm_core::time::UnixMillis;
use prost::Message;

use crate::change::DecodeError;
use crate::wire;

/// A request to the whole fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The realms that share the log.
    pub realm_group: String,
    /// The sender's clock.
    pub time: UnixMillis,
    /// Compare the whole copy with the log and repair what differs; a number that grows, 0 for no such request.
    pub scrub: u64,
}

impl Command {
    /// The payload bytes, to be signed for [`crate::signature::Domain::Command`].
    pub fn encode(&self) -> Vec<u8> {
        wire::FleetCommand { realm_group: self.realm_group.clone(), time_ms: self.time.0, scrub: self.scrub }
            .encode_to_vec()
    }

    /// Reads a verified payload.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let command = wire::FleetCommand::decode(payload)?;
        Ok(Self { realm_group: command.realm_group, time: UnixMillis(command.time_ms), scrub: command.scrub })
    }
}
