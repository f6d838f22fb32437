//! `/admin/v1/fleet`

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};

use crate::feed::{FleetQuery, FleetView, SidecarState};
use crate::http::Shared;
use crate::http::problem::Problem;

/// Sidecars that one answer lists at most.
const MAX_LISTED: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    state: Option<SidecarState>,
    #[serde(default = "everyone")]
    limit: usize,
}

fn everyone() -> usize {
    1_000
}

pub(super) async fn show(
    State(services): State<Shared>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<FleetView>, Problem> {
    let Query(Filter { state, limit }) = filter?;
    if limit > MAX_LISTED {
        return Err(Problem::field("limit", "must be at most 10000"));
    }
    Ok(Json(services.feed.fleet(FleetQuery { state, limit })))
}

/// A comparison of every sidecar's copy with the log.
#[derive(Serialize)]
pub(super) struct Scrub {
    /// Sidecars that have done it report at least this number as `scrubbed`.
    scrub: u64,
}

pub(super) async fn scrub(State(services): State<Shared>) -> Result<Json<Scrub>, Problem> {
    Ok(Json(Scrub { scrub: services.feed.scrub().await? }))
}
