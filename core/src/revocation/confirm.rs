//! Where a filter's ids really are: asked only when a filter says that an id may be among them.

use std::collections::BTreeSet;
use std::fmt;

use super::Bucket;
use crate::id::Id;

/// The ids that filters stand for, wherever they are kept. A filter and what confirms it enter the index together, so there
/// is never a hit that nobody can confirm.
pub trait SettledIds: fmt::Debug + Send + Sync {
    /// Whether exactly this id is among those of `bucket`. Fails where that cannot be said, and then nobody may take it for a no.
    fn contains(&self, bucket: Bucket, id: &Id) -> Result<bool, Unconfirmed>;
}

/// Whether an id is revoked cannot be said now. Says why, for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a revocation cannot be confirmed: {0}")]
pub struct Unconfirmed(pub String);

/// Ids in memory, for whoever has no database.
impl SettledIds for BTreeSet<(Bucket, Id)> {
    fn contains(&self, bucket: Bucket, id: &Id) -> Result<bool, Unconfirmed> {
        Ok(BTreeSet::contains(self, &(bucket, *id)))
    }
}
