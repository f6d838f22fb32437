//! What a message is, seen from where the state is.

use atm_proto::change::{ChangeSet, Digest};

use crate::state::Position;

/// Why a message was not applied; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Not signed by a pinned key over exactly these bytes.
    Signature,
    /// Signed, and not understood.
    Decode,
    /// A later revision than the next one.
    Gap,
    /// A revision that was applied before.
    Replay,
    /// The next or the same revision with another history, or of an epoch that no heartbeat has announced.
    Conflict,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 5] = [Self::Signature, Self::Decode, Self::Gap, Self::Replay, Self::Conflict];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Decode => "decode",
            Self::Gap => "gap",
            Self::Replay => "replay",
            Self::Conflict => "conflict",
        }
    }
}

/// What a message means for the follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::feed) enum Heard {
    /// The state is level with what the message says.
    Level,
    /// There is more than the state has.
    Missing,
    /// Nothing may be concluded from it.
    Refused,
}

/// What a change set is, seen from a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The next one, with the right history.
    Next,
    /// The newest applied one once more, byte for byte.
    Same,
    /// To be refused.
    Refuse(Cause),
}

/// Where a change set of `epoch`, `revision`, `previous` and `digest` stands to `position`.
pub(super) fn judge(position: &Position, set: &ChangeSet, digest: &Digest) -> Judgement {
    if position.epoch.is_some_and(|epoch| epoch != set.epoch) {
        return Judgement::Refuse(Cause::Conflict);
    }
    if set.revision == position.revision + 1 {
        let continues = set.previous_digest == position.digest;
        return if continues { Judgement::Next } else { Judgement::Refuse(Cause::Conflict) };
    }
    if set.revision > position.revision {
        return Judgement::Refuse(Cause::Gap);
    }
    if set.revision < position.revision {
        return Judgement::Refuse(Cause::Replay);
    }
    if digest == &position.digest { Judgement::Same } else { Judgement::Refuse(Cause::Conflict) }
}
