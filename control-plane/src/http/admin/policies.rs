//! `/admin/v1/policies`

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{Body, actor};
use crate::http::Shared;
use crate::http::problem::Problem;
use crate::policies::{Applied, PolicyHeader, PolicyVersion};

/// Versions that a look at the current set shows.
const HISTORY: u32 = 50;

/// The whole set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Set {
    /// YAML documents of kind `TokenPolicy`.
    documents: Vec<String>,
}

/// Where to roll back to.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    /// None: the one before the current.
    #[serde(default)]
    version: Option<u64>,
}

/// The set in force; version 0 before the first.
#[derive(Serialize)]
pub(super) struct Current {
    version: u64,
    documents: Vec<String>,
    history: Vec<PolicyHeader>,
}

pub(super) async fn apply(
    State(services): State<Shared>,
    Body(set): Body<Set>,
) -> Result<Json<Applied>, Problem> {
    let applied = services.policies.apply(set.documents, &actor()).await?;
    tracing::info!(
        version = applied.version,
        revision = applied.revision,
        actor = actor(),
        "policies applied"
    );
    Ok(Json(applied))
}

pub(super) async fn current(State(services): State<Shared>) -> Result<Json<Current>, Problem> {
    let history = services.policies.history(HISTORY).await?;
    let set = services.policies.current().await?;
    let (version, documents) = set.map_or((0, Vec::new()), |set| (set.header.version, set.documents));
    Ok(Json(Current { version, documents, history }))
}

pub(super) async fn show(
    State(services): State<Shared>,
    version: Result<Path<u64>, PathRejection>,
) -> Result<Json<PolicyVersion>, Problem> {
    let Path(version) = version?;
    let set = services.policies.get(version).await?;
    set.map(Json).ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "there is no such version"))
}

/// Takes an empty body too.
pub(super) async fn rollback(State(services): State<Shared>, body: Bytes) -> Result<Json<Applied>, Problem> {
    let rollback = match &body[..] {
        [] => Rollback::default(),
        body => serde_json::from_slice(body)
            .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body: {error}")))?,
    };
    let applied = services.policies.rollback(rollback.version, &actor()).await?;
    tracing::info!(
        version = applied.version,
        revision = applied.revision,
        actor = actor(),
        "policies rolled back"
    );
    Ok(Json(applied))
}
