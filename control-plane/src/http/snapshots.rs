//! Snapshots over HTTP, for object stores and content delivery networks in front, and for sidecars without JetStream.
//!
//! Nothing here needs protection from changes: the manifest is signed, and names segments by their content.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Shared;
use super::problem::Problem;
use crate::feed::SegmentName;

const BYTES: &str = "application/octet-stream";

/// `GET /feed/snapshots/manifest` and `GET /feed/snapshots/segments/{sha256}`.
pub(super) fn router() -> Router<Shared> {
    Router::new()
        .route("/feed/snapshots/manifest", get(manifest))
        .route("/feed/snapshots/segments/{sha256}", get(segment))
}

async fn manifest(State(services): State<Shared>) -> Result<Response, Problem> {
    let manifest = services.feed.snapshot_manifest().await?;
    let manifest = manifest.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no snapshot yet"))?;
    Ok(([(CONTENT_TYPE, BYTES), (CACHE_CONTROL, "public, max-age=1")], manifest).into_response())
}

async fn segment(State(services): State<Shared>, Path(sha256): Path<String>) -> Result<Response, Problem> {
    let mut name = SegmentName::default();
    let missing = || Problem::new(StatusCode::NOT_FOUND, "there is no such segment here");
    hex::decode_to_slice(&sha256, &mut name).map_err(|_| missing())?;
    let feed = services.feed.clone();
    let read = tokio::task::spawn_blocking(move || feed.snapshot_segment(&name)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes.ok_or_else(missing)?,
        Ok(Err(error)) => {
            tracing::error!(%error, "a segment cannot be read");
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the segment cannot be read just now"));
        }
        Err(_) => {
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the segment cannot be read just now"));
        }
    };
    let forever = "public, max-age=31536000, immutable";
    Ok(([(CONTENT_TYPE, BYTES), (CACHE_CONTROL, forever)], bytes).into_response())
}
