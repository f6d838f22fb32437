//! `/admin/v1/feed`

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::Body;
use crate::feed::Carrier;
use crate::http::Shared;
use crate::http::problem::Problem;

/// How far snapshots are; 0 for none.
#[derive(Serialize)]
struct SnapshotView {
    /// Revision of the newest one.
    built: u64,
    /// Revision of the newest one that JetStream holds, as far as this process has seen.
    published: u64,
}

/// What a sidecar has to be told, and how far the log is.
#[derive(Serialize)]
pub(super) struct FeedView {
    realm_group: String,
    /// What sidecars pin, in `feedKeys`.
    feed_public_key: String,
    epoch: String,
    /// How often the trust in feed keys was handed over.
    rotation: u64,
    /// The keys that sidecars are told to trust; empty: those that they pin.
    trusted_keys: Vec<String>,
    /// The newest revision, stored and signed.
    revision: u64,
    /// The newest revision that JetStream holds.
    published: u64,
    /// The newest snapshot.
    snapshot: SnapshotView,
    /// What is wrong with NATS, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<String>,
}

pub(super) async fn show(State(services): State<Shared>) -> Json<FeedView> {
    let feed = &services.feed;
    let position = feed.position();
    let degraded = match &*feed.carrier().borrow() {
        Carrier::Connected => None,
        other => Some(other.to_string()),
    };
    let keys = feed.feed_keys();
    Json(FeedView {
        rotation: keys.rotation,
        trusted_keys: keys.trusted.iter().map(ToString::to_string).collect(),
        realm_group: feed.realm_group().to_owned(),
        feed_public_key: feed.public_key().to_string(),
        epoch: position.epoch.to_string(),
        revision: position.revision,
        published: feed.published(),
        snapshot: SnapshotView { built: feed.snapshot(), published: feed.snapshot_published() },
        degraded,
    })
}

/// A step in handing over the trust in feed keys.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum KeyChange {
    /// Trust this public key beside the others.
    Add(String),
    /// Trust it no more.
    Retire(String),
}

pub(super) async fn change_keys(
    State(services): State<Shared>,
    Body(change): Body<KeyChange>,
) -> Result<Json<FeedView>, Problem> {
    let parse = |key: &str| {
        key.parse().map_err(|_| Problem::field("key", "is no public feed key (43 characters of base64url)"))
    };
    match change {
        KeyChange::Add(key) => services.feed.add_feed_key(parse(&key)?).await?,
        KeyChange::Retire(key) => services.feed.retire_feed_key(parse(&key)?).await?,
    };
    Ok(show(State(services)).await)
}
