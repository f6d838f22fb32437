//! `/admin/v1/fleet`

use axum::Json;
use axum::extract::State;

use crate::feed::FleetView;
use crate::http::Shared;

pub(super) async fn show(State(services): State<Shared>) -> Json<FleetView> {
    Json(services.feed.fleet())
}
