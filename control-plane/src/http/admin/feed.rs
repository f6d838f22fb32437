//! `/admin/v1/feed`

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::feed::Carrier;
use crate::http::Shared;

/// What a sidecar has to be told, and how far the log is.
#[derive(Serialize)]
pub(super) struct FeedView {
    realm_group: String,
    /// What sidecars pin, in `feedKeys`.
    feed_public_key: String,
    epoch: String,
    /// The newest revision, stored and signed.
    revision: u64,
    /// The newest revision that JetStream holds.
    published: u64,
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
    Json(FeedView {
        realm_group: feed.realm_group().to_owned(),
        feed_public_key: feed.public_key().to_string(),
        epoch: position.epoch.to_string(),
        revision: position.revision,
        published: feed.published(),
        degraded,
    })
}
