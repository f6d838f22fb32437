//! Policy sets: compiled before anything else knows of them, kept in every version, published through the feed.

use std::sync::Arc;

use atm_core::policy::{self, PolicyError};
use atm_proto::change::Change;
use serde::Serialize;

use crate::clock::IssueClock;
use crate::feed::{FeedError, FeedHandle};
use crate::store::outbox::{self, Ticket};
use crate::store::{Store, StoreError, policy_sets, transact};

mod scopes;

/// Bytes that a set's documents may have together: one set travels in one change set.
pub const MAX_BYTES: usize = 384 * 1024;

/// What a list shows of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyHeader {
    /// Counts applied sets, from 1.
    pub version: u64,
    /// Milliseconds since the Unix epoch.
    pub applied_at: i64,
    /// Who applied it.
    pub actor: String,
    /// The version whose documents a rollback brought back.
    pub restored_from: Option<u64>,
}

/// One version of the policy set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyVersion {
    /// Number, time and actor.
    #[serde(flatten)]
    pub header: PolicyHeader,
    /// YAML documents of kind `TokenPolicy`, as they were given.
    pub documents: Vec<String>,
}

/// The outcome of an apply or a rollback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// The new version.
    pub version: u64,
    /// The feed's revision that brings it.
    pub revision: u64,
    /// What is in force all the same, and worth a look.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Why the set in force stays.
#[derive(Debug, thiserror::Error)]
pub enum PoliciesError {
    /// The documents do not compile; each mistake with its place.
    #[error("{} mistakes in the policy documents", .0.len())]
    Refused(Vec<PolicyError>),
    /// Over [`MAX_BYTES`].
    #[error("the policy documents have {0} bytes together, at most {MAX_BYTES} are allowed")]
    TooLarge(usize),
    /// No such version, or none before the current one.
    #[error("there is no such version to roll back to")]
    NoSuchVersion,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Committed, not sequenced yet.
    #[error(transparent)]
    Feed(#[from] FeedError),
}

/// The policy sets; clones share everything.
#[derive(Debug, Clone)]
pub struct Policies {
    store: Store,
    feed: FeedHandle,
    clock: Arc<IssueClock>,
}

impl Policies {
    /// The policy sets in `store`.
    pub fn new(store: Store, feed: FeedHandle, clock: Arc<IssueClock>) -> Self {
        Self { store, feed, clock }
    }

    /// Replaces the whole set. One that does not compile changes nothing.
    pub async fn apply(&self, documents: Vec<String>, actor: &str) -> Result<Applied, PoliciesError> {
        self.put(documents, actor, None).await
    }

    /// Brings the documents of `version` back as a new version; without one, those before the current.
    pub async fn rollback(&self, version: Option<u64>, actor: &str) -> Result<Applied, PoliciesError> {
        let version = match version {
            Some(version) => version,
            None => self
                .current()
                .await?
                .and_then(|current| {
                    current.header.restored_from.unwrap_or(current.header.version).checked_sub(1)
                })
                .filter(|version| *version > 0)
                .ok_or(PoliciesError::NoSuchVersion)?,
        };
        let set = self.get(version).await?.ok_or(PoliciesError::NoSuchVersion)?;
        self.put(set.documents, actor, Some(version)).await
    }

    /// The set in force; none before the first.
    pub async fn current(&self) -> Result<Option<PolicyVersion>, StoreError> {
        policy_sets::newest(&self.store).await
    }

    /// One version.
    pub async fn get(&self, version: u64) -> Result<Option<PolicyVersion>, StoreError> {
        policy_sets::get(&self.store, version).await
    }

    /// Versions, the newest first, at most `limit`.
    pub async fn history(&self, limit: u32) -> Result<Vec<PolicyHeader>, StoreError> {
        policy_sets::history(&self.store, limit).await
    }

    async fn put(
        &self,
        documents: Vec<String>,
        actor: &str,
        restored_from: Option<u64>,
    ) -> Result<Applied, PoliciesError> {
        let bytes = documents.iter().map(String::len).sum();
        if bytes > MAX_BYTES {
            return Err(PoliciesError::TooLarge(bytes));
        }
        // A rollback compiles too: an old version may hold what this program no longer takes.
        let compiled = policy::compile(&documents).map_err(PoliciesError::Refused)?;
        let now = self.clock.wall();
        let header = PolicyHeader { version: 0, applied_at: now.0, actor: actor.to_owned(), restored_from };
        let mut set = PolicyVersion { header, documents };
        let (version, ticket) = transact!(self.store, |transaction| -> Result<(u64, Ticket), StoreError> {
            let version = policy_sets::locked_newest(transaction).await? + 1;
            set.header.version = version;
            policy_sets::insert(transaction, &set).await?;
            let change = Change::Policies { version, documents: set.documents.clone() };
            Ok((version, outbox::enqueue(transaction, &change, now).await?))
        })?;
        // The set is committed: what cannot be looked up now is not worth a failure.
        let warnings = scopes::warnings(&self.store, &compiled).await.unwrap_or_default();
        Ok(Applied { version, revision: self.feed.sequenced(&ticket).await?, warnings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::tests::Fixture;

    fn document(name: &str) -> String {
        format!(
            "apiVersion: atm.dev/v1\nkind: TokenPolicy\nmetadata: {{ name: {name} }}\nspec:\n  audiences: [orders-api]\n  \
             rules:\n    - name: read\n      paths: [\"/orders\"]\n"
        )
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_rollback_is_a_new_version_with_the_documents_before() {
        let fixture = Fixture::start().await;
        let policies = Policies::new(fixture.store.clone(), fixture.feed.clone(), Arc::clone(&fixture.clock));
        assert!(policies.current().await.unwrap().is_none());
        assert!(matches!(policies.rollback(None, "x").await, Err(PoliciesError::NoSuchVersion)));
        for (name, version) in [("one", 1), ("two", 2), ("three", 3)] {
            let applied = policies.apply(vec![document(name)], "x").await.unwrap();
            assert_eq!((applied.version, applied.revision), (version, version));
        }
        for (from, version) in [(2, 4), (1, 5)] {
            assert_eq!(policies.rollback(None, "y").await.unwrap().version, version);
            let current = policies.current().await.unwrap().unwrap();
            assert_eq!((current.header.version, current.header.restored_from), (version, Some(from)));
            assert_eq!(current.documents, policies.get(from).await.unwrap().unwrap().documents);
        }
        assert!(matches!(policies.rollback(None, "y").await, Err(PoliciesError::NoSuchVersion)));
        assert_eq!(policies.rollback(Some(3), "y").await.unwrap().version, 6);
        assert_eq!(policies.history(2).await.unwrap().len(), 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_set_that_does_not_compile_or_is_too_large_changes_nothing() {
        let fixture = Fixture::start().await;
        let policies = Policies::new(fixture.store.clone(), fixture.feed.clone(), Arc::clone(&fixture.clock));
        let bad = policies.apply(vec!["kind: Nonsense".into()], "x").await;
        assert!(matches!(bad, Err(PoliciesError::Refused(errors)) if !errors.is_empty()));
        let large = policies.apply(vec!["#".repeat(MAX_BYTES + 1)], "x").await;
        assert!(matches!(large, Err(PoliciesError::TooLarge(_))));
        assert!(policies.current().await.unwrap().is_none());
        assert_eq!(fixture.feed.position().revision, 0);
    }
}
