//! Scopes that rules ask for and nobody can have: most often a typo, or a client that is still to be registered.

use std::collections::BTreeSet;

use atm_core::policy::{Access, PolicySet, Rule};

use crate::store::{Store, StoreError, api_keys, clients, trusted_issuers};

/// Clients, keys and issuers that are looked at; with more than that nothing is said.
const MAX_LOOKED_AT: usize = 20_000;
/// Rows of one query.
const PAGE: u32 = 500;
/// Sentences at most.
const MAX_WARNINGS: usize = 20;

/// A sentence for each scope that a rule asks for and no client or API key of ours may have, where no external issuer could
/// have given it.
pub(super) async fn warnings(store: &Store, set: &PolicySet) -> Result<Vec<String>, StoreError> {
    let Some((granted, external)) = known(store).await? else { return Ok(Vec::new()) };
    let mut warnings = Vec::new();
    for rule in set.rules() {
        let Access::Token(requirements) = &rule.access else { continue };
        let may_be_external = if requirements.issuers.is_empty() {
            !external.is_empty()
        } else {
            requirements.issuers.iter().any(|issuer| external.contains(issuer))
        };
        if may_be_external {
            continue;
        }
        let asked = requirements.all_scopes.iter().chain(&requirements.any_scopes);
        warnings.extend(asked.filter(|scope| !granted.contains(*scope)).map(|scope| sentence(rule, scope)));
    }
    warnings.truncate(MAX_WARNINGS);
    Ok(warnings)
}

fn sentence(rule: &Rule, scope: &str) -> String {
    format!(
        "rule {} of policy {} asks for scope {scope}, which no client and no API key may have",
        rule.name, rule.policy
    )
}

/// All scopes that may be had, and the names of all external issuers; none where there are too many to look at.
async fn known(store: &Store) -> Result<Option<(BTreeSet<String>, BTreeSet<String>)>, StoreError> {
    let (mut scopes, mut issuers, mut count) = (BTreeSet::new(), BTreeSet::new(), 0);
    let mut after = String::new();
    loop {
        let page = clients::of_all_realms(store, &after, PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        (after, count) = (last.clone(), count + page.len());
        scopes.extend(page.into_iter().flat_map(|(_, client)| client.configuration.scopes));
        if count > MAX_LOOKED_AT {
            return Ok(None);
        }
    }
    after.clear();
    loop {
        let page = api_keys::list(store, &after, PAGE).await?;
        let Some(last) = page.last() else { break };
        (after, count) = (last.id.clone(), count + page.len());
        scopes.extend(page.into_iter().flat_map(|key| key.scopes));
        if count > MAX_LOOKED_AT {
            return Ok(None);
        }
    }
    after.clear();
    loop {
        let page = trusted_issuers::list(store, &after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.settings.issuer);
        issuers.extend(page.into_iter().map(|issuer| issuer.settings.issuer));
    }
    Ok(Some((scopes, issuers)))
}
