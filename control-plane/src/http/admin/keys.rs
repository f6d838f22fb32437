//! `/admin/v1/keys`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use super::ACTOR;
use crate::feed::Receipt;
use crate::http::Shared;
use crate::http::problem::Problem;
use crate::keys::{KeyRecord, Rotation, SigningKeyState};

/// All keys, and how a rotation goes.
#[derive(Serialize)]
pub(super) struct KeyList {
    items: Vec<KeyRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotation: Option<Progress>,
}

/// A rotation that waits for the fleet.
#[derive(Serialize)]
struct Progress {
    /// The key that waits.
    pending: String,
    /// Who has the newest revision, and so the key.
    receipt: Receipt,
}

pub(super) async fn list(State(services): State<Shared>) -> Result<Json<KeyList>, Problem> {
    let items = services.keys.list().await?;
    let pending = items.iter().find(|key| key.state == SigningKeyState::Pending);
    let rotation = match pending {
        None => None,
        Some(key) => {
            let revision = services.feed.position().revision;
            let receipt = services.feed.wait_applied(revision, 1.0, Duration::ZERO).await;
            Some(Progress { pending: key.kid.clone(), receipt })
        }
    };
    Ok(Json(KeyList { items, rotation }))
}

/// 202: published now, used as soon as the fleet has it.
pub(super) async fn rotate(State(services): State<Shared>) -> Result<(StatusCode, Json<Rotation>), Problem> {
    let rotation = services.keys.rotate().await?;
    tracing::info!(
        pending = rotation.pending,
        revision = rotation.revision,
        actor = ACTOR,
        "key rotation begun"
    );
    Ok((StatusCode::ACCEPTED, Json(rotation)))
}
