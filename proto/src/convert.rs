//! Wire messages to `core` types and back. From the wire, whatever is not understood is refused, with the field's name.

use atm_core::id::{Id, IdKind};
use atm_core::key::{Algorithm, KeyState, VerificationKey};
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;

use crate::change::{Change, DecodeError};
use crate::wire;

pub(crate) fn refuse(field: &'static str, problem: impl Into<String>) -> DecodeError {
    DecodeError::Field { field, problem: problem.into() }
}

/// Exactly `N` bytes.
pub(crate) fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], DecodeError> {
    bytes.try_into().map_err(|_| refuse(field, format!("must be {N} bytes, has {}", bytes.len())))
}

pub(crate) fn change_to_wire(change: &Change) -> wire::Change {
    use wire::change::Kind;
    let kind = match change {
        Change::IssuerKeys { issuer, realm, keys, token_types } => Kind::IssuerKeys(wire::IssuerKeys {
            issuer: issuer.clone(),
            realm: realm.clone().unwrap_or_default(),
            keys: keys.iter().map(key_to_wire).collect(),
            token_types: token_types.clone(),
        }),
        Change::RevokedTokens { bucket, ids } => Kind::RevokedTokens(wire::RevokedTokens {
            bucket: bucket.0,
            ids: ids.iter().flat_map(|id| *id.as_bytes()).collect(),
        }),
        Change::Watermarks { kind, entries } => Kind::Watermarks(wire::Watermarks {
            kind: *kind as i32,
            ids: entries.iter().flat_map(|(id, _)| *id.as_bytes()).collect(),
            not_after_ms: entries.iter().map(|(_, instant)| instant.0).collect(),
        }),
        Change::Policies { version, documents } => {
            Kind::Policies(wire::PolicySet { version: *version, documents: documents.clone() })
        }
    };
    wire::Change { kind: Some(kind) }
}

pub(crate) fn change_from_wire(change: wire::Change) -> Result<Change, DecodeError> {
    use wire::change::Kind;
    match change.kind {
        None => {
            Err(refuse("changes.kind", "is of a kind that this version does not know; upgrade the sidecar"))
        }
        Some(Kind::IssuerKeys(set)) => issuer_keys(set),
        Some(Kind::RevokedTokens(tokens)) => {
            let ids = ids("changes.revoked_tokens.ids", &tokens.ids)?;
            if !ids.is_sorted_by(|a, b| a < b) {
                return Err(refuse("changes.revoked_tokens.ids", "must ascend without duplicates"));
            }
            Ok(Change::RevokedTokens { bucket: Bucket(tokens.bucket), ids })
        }
        Some(Kind::Watermarks(watermarks)) => self::watermarks(&watermarks),
        Some(Kind::Policies(set)) => Ok(Change::Policies { version: set.version, documents: set.documents }),
    }
}

fn issuer_keys(set: wire::IssuerKeys) -> Result<Change, DecodeError> {
    if set.issuer.is_empty() {
        return Err(refuse("changes.issuer_keys.issuer", "is missing"));
    }
    Ok(Change::IssuerKeys {
        issuer: set.issuer,
        realm: Some(set.realm).filter(|realm| !realm.is_empty()),
        keys: set.keys.iter().map(key_from_wire).collect::<Result<_, _>>()?,
        token_types: set.token_types,
    })
}

fn watermarks(watermarks: &wire::Watermarks) -> Result<Change, DecodeError> {
    const FIELD: &str = "changes.watermarks";
    let kind = watermark_kind(FIELD, watermarks.kind(), watermarks.kind)?;
    let ids = ids(FIELD, &watermarks.ids)?;
    if ids.len() != watermarks.not_after_ms.len() {
        return Err(refuse(
            FIELD,
            format!("{} ids for {} instants", ids.len(), watermarks.not_after_ms.len()),
        ));
    }
    let instants = watermarks.not_after_ms.iter().map(|ms| UnixMillis(*ms));
    Ok(Change::Watermarks { kind, entries: ids.into_iter().zip(instants).collect() })
}

pub(crate) fn watermark_kind(
    field: &'static str,
    kind: wire::WatermarkKind,
    number: i32,
) -> Result<IdKind, DecodeError> {
    match kind {
        wire::WatermarkKind::Session => Ok(IdKind::Session),
        wire::WatermarkKind::Subject => Ok(IdKind::Subject),
        wire::WatermarkKind::Client => Ok(IdKind::Client),
        wire::WatermarkKind::Realm => Ok(IdKind::Realm),
        wire::WatermarkKind::Issuer => Ok(IdKind::Issuer),
        wire::WatermarkKind::Key => Ok(IdKind::Key),
        wire::WatermarkKind::Introspection => Ok(IdKind::Introspection),
        wire::WatermarkKind::Unspecified => {
            Err(refuse(field, format!("kind {number} is not known; upgrade the sidecar")))
        }
    }
}

fn ids(field: &'static str, bytes: &[u8]) -> Result<Vec<Id>, DecodeError> {
    let (ids, rest) = bytes.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(refuse(field, format!("must be a multiple of 16 bytes, has {}", bytes.len())));
    }
    Ok(ids.iter().map(|id| Id::from_bytes(*id)).collect())
}

fn key_to_wire(key: &VerificationKey) -> wire::VerificationKey {
    let state = match key.state() {
        KeyState::Pending => wire::KeyState::Pending,
        KeyState::Active => wire::KeyState::Active,
        KeyState::Retiring => wire::KeyState::Retiring,
    };
    wire::VerificationKey {
        kid: key.kid().to_owned(),
        algorithm: key.algorithm().to_string(),
        spki: key.spki().to_vec(),
        state: state.into(),
    }
}

fn key_from_wire(key: &wire::VerificationKey) -> Result<VerificationKey, DecodeError> {
    const FIELD: &str = "changes.issuer_keys.keys";
    let problem = |what: String| refuse(FIELD, format!("key {:?}: {what}", key.kid));
    let algorithm: Algorithm =
        key.algorithm.parse().map_err(|_| problem(format!("algorithm {:?} is not known", key.algorithm)))?;
    let state = match key.state() {
        wire::KeyState::Pending => KeyState::Pending,
        wire::KeyState::Active => KeyState::Active,
        wire::KeyState::Retiring => KeyState::Retiring,
        wire::KeyState::Unspecified => return Err(problem(format!("state {} is not known", key.state))),
    };
    VerificationKey::from_spki(&key.kid, algorithm, &key.spki, state)
        .map_err(|error| problem(error.to_string()))
}
