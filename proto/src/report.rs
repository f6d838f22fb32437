//! What sidecars send back, and how they ask for what they miss. These messages are not signed: they change no decision;
//! NATS permissions say who may send them.

pub use crate::wire::{DigestsRequest, ResyncReply, ResyncRequest, SidecarCondition, SidecarReport};

/// Bytes of signed change sets that one [`ResyncReply`] carries at most; NATS's default message limit is 1 MiB.
pub const MAX_RESYNC_BYTES: usize = 512 * 1024;
