//! What verifiers are told of the signing keys.

use atm_core::key::{Issuer, Issuers, VerificationKey};
use atm_core::time::UnixMillis;
use atm_proto::change::Change;

use super::{KeySettings, SigningKeyState, publish};
use crate::clock::wall_now;
use crate::store::signing_keys::{self, StoredKey};
use crate::store::{StoreError, Transaction};

/// The change that makes `keys` the issuer's whole key set.
pub(crate) fn published(issuer: &str, keys: &[StoredKey]) -> Result<Change, StoreError> {
    Ok(Change::IssuerKeys {
        issuer: issuer.to_owned(),
        realm: keys.first().map(|key| key.realm.clone()),
        keys: verification_keys(keys)?,
        token_types: Vec::new(),
    })
}

pub(super) fn issuers_of(settings: &KeySettings, keys: &[StoredKey]) -> Result<Issuers, StoreError> {
    let mut issuers = Issuers::default();
    let realm = Some(settings.realm.clone());
    issuers.set(Issuer::new(settings.issuer.clone(), realm, verification_keys(keys)?));
    Ok(issuers)
}

fn verification_keys(keys: &[StoredKey]) -> Result<Vec<VerificationKey>, StoreError> {
    keys.iter()
        .filter_map(|key| Some((key, key.record.state.published()?)))
        .map(|(key, state)| {
            VerificationKey::from_spki(&key.record.kid, key.record.algorithm, &key.spki, state)
                .map_err(|error| crate::store::corrupt("public key", error))
        })
        .collect()
}

/// A realm has one issuer: keys of a former one leave the feed.
pub(super) async fn withdraw_other_issuers(
    transaction: &mut Transaction,
    KeySettings { issuer, realm, .. }: &KeySettings,
) -> Result<(), StoreError> {
    let now: UnixMillis = wall_now();
    for other in
        signing_keys::issuers_of_realm(transaction, realm).await?.into_iter().filter(|other| other != issuer)
    {
        let mut keys = signing_keys::locked(transaction, &other).await?;
        let mut withdrawn = false;
        for key in keys.iter_mut().filter(|key| key.record.state.published().is_some()) {
            key.record.state = SigningKeyState::Retired;
            key.record.retired_at = Some(now.0);
            key.wrapped.clear();
            signing_keys::update(transaction, key).await?;
            withdrawn = true;
        }
        if withdrawn {
            tracing::warn!(
                issuer = other,
                "the configured issuer has changed; keys of the former one are withdrawn"
            );
            publish(transaction, &other, &keys).await?;
        }
    }
    Ok(())
}
