//! Everything that decisions are made from, as one value.

use std::sync::Arc;

use crate::key::Issuers;
use crate::policy::PolicySet;
use crate::revocation::RevocationIndex;

/// What a validator knows at one revision of the feed.
///
/// A clone shares everything with its origin and costs a few reference counts. One writer clones the current view, applies
/// a change set to the clone and publishes it; readers load a view once a request and keep it to the end.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The trusted issuers and their keys.
    pub issuers: Issuers,
    /// The compiled policies.
    pub policies: Arc<PolicySet>,
    /// What is revoked.
    pub revocations: RevocationIndex,
    /// Counts the changes of `issuers`. A cached verdict carries the generation that it was made at, so that removing a key
    /// makes everything it verified unusable at once. Whoever changes `issuers` raises it.
    pub key_generation: u64,
}
