//! `/admin/v1/keys`

use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::{Body, actor};
use crate::admin_access::Holder;
use crate::feed::Receipt;
use crate::http::Shared;
use crate::http::problem::Problem;
use crate::keys::root::Rewrapped;
use crate::keys::{KeyRecord, Rotation, SigningKeyState};
use crate::revocation::{Order, Selector};

/// All keys, and how a rotation goes.
#[derive(Serialize)]
pub(super) struct KeyList {
    items: Vec<KeyRecord>,
    /// Who makes new keys.
    provider: &'static str,
    /// Why tokens are not signed now.
    #[serde(skip_serializing_if = "Option::is_none")]
    outage: Option<String>,
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
    let (provider, outage) = (services.keys.provider(), services.keys.outage());
    Ok(Json(KeyList { items, provider, outage, rotation }))
}

/// 202: published now, used as soon as the fleet has it.
pub(super) async fn rotate(State(services): State<Shared>) -> Result<(StatusCode, Json<Rotation>), Problem> {
    let rotation = services.keys.rotate().await?;
    tracing::info!(
        pending = rotation.pending,
        revision = rotation.revision,
        actor = actor(),
        "key rotation begun"
    );
    Ok((StatusCode::ACCEPTED, Json(rotation)))
}

/// Why a key is given up.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Compromise {
    #[serde(default)]
    reason: Option<String>,
}

/// A key that was given up, and who has learnt of it.
#[derive(Serialize)]
pub(super) struct Compromised {
    /// The key that is dead.
    kid: String,
    /// The key that signs now; none while its provider does not make one.
    active: Option<String>,
    /// The feed's revision that ends every token of the dead key.
    revision: u64,
    receipt: Receipt,
}

/// The emergency: the key is dead at once with whatever it signed, another one signs, and the receipt says who knows. `active`
/// names the one that signs.
pub(super) async fn compromise(
    State(services): State<Shared>,
    Extension(holder): Extension<Holder>,
    kid: Result<Path<String>, PathRejection>,
    Body(compromise): Body<Compromise>,
) -> Result<Json<Compromised>, Problem> {
    let Path(named) = kid?;
    let active = services.keys.active_kid();
    let kid = if named == "active" { active.unwrap_or_default() } else { named };
    if !services.keys.list().await?.iter().any(|key| key.kid == kid) {
        return Err(Problem::new(StatusCode::NOT_FOUND, "none of our signing keys has this kid"));
    }
    let selectors = [Selector::Key(kid.clone())];
    let order = Order {
        selectors: &selectors,
        before: None,
        actor: &holder.name,
        reason: compromise.reason.as_deref(),
    };
    let revoked = services.revocations.carry_out_order(order).await?;
    services.metrics.revoked(revoked.revoked);
    let active = services.keys.active_kid();
    tracing::warn!(kid, active, revision = revoked.revision, actor = holder.name, "signing key compromised");
    let receipt = services.feed.wait_applied(revoked.revision, 1.0, Duration::ZERO).await;
    Ok(Json(Compromised { kid, active, revision: revoked.revision, receipt }))
}

/// Seals the root key by the current wrapping key.
pub(super) async fn rewrap(State(services): State<Shared>) -> Result<Json<Rewrapped>, Problem> {
    let rewrapped = services.wrapping_keys.rewrap(&services.store).await?;
    tracing::info!(sealed_by = rewrapped.sealed_by, changed = rewrapped.changed, "root key sealed anew");
    Ok(Json(rewrapped))
}

/// Who enforces a revision by now.
pub(super) async fn receipt(
    State(services): State<Shared>,
    revision: Result<Path<u64>, PathRejection>,
) -> Result<Json<Receipt>, Problem> {
    let Path(revision) = revision?;
    Ok(Json(services.feed.wait_applied(revision, 1.0, Duration::ZERO).await))
}
