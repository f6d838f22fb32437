//! Assertions of trusted issuers as grants (RFC 7523 §2.1): a workload shows the token that its platform gave it, such as a
//! Kubernetes service-account token, and gets what a client of ours may have, as a rule says.

use std::collections::BTreeMap;
use std::sync::Arc;

use atm_core::jws::UnverifiedToken;
use atm_core::key::{NO_TOKEN_TYPE, VerificationKey};
use atm_core::time::UnixMillis;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::authentication::assertion::{
    AssertionError, check_audience, check_times, remembered_until, replay_id, signed_claims,
};
use crate::clock::IssueClock;
use crate::registry::{Client, ClientStatus, FieldError, GrantType};
use crate::secret::{self, SecretError};
use crate::store::{Store, StoreError, assertion_rules, clients, single_use, trusted_issuers};

/// Rules of one realm and issuer at most.
const MAX_RULES: usize = 256;
/// Conditions of one rule at most.
const MAX_CONDITIONS: usize = 16;
/// Seconds that an assertion may live, where the rule says nothing else.
const DEFAULT_LIFETIME_SECONDS: u32 = 3_600;
/// Seconds that a rule may allow at most: a day, as long as Kubernetes extends a token.
const MAX_LIFETIME_SECONDS: u32 = 86_400;

/// Which assertions stand for which client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssertionRule {
    /// A trusted issuer, exactly as in its `iss`.
    pub issuer: String,
    /// What the claims must be: a JSON pointer (RFC 6901) such as `/sub` or `/kubernetes.io/namespace`, and the text there; one
    /// that ends in `*` must only begin so. At least one.
    pub claims: BTreeMap<String, String>,
    /// The client whose tokens it gets.
    pub client_id: String,
    /// Whether one assertion may be used as long as it lives. For platforms that give a workload one token and not one a use;
    /// others are taken once, by their `jti`.
    #[serde(default)]
    pub reusable: bool,
    /// Seconds that an assertion may live on at most, 1 to 86,400.
    #[serde(default = "default_lifetime")]
    pub max_lifetime_seconds: u32,
}

fn default_lifetime() -> u32 {
    DEFAULT_LIFETIME_SECONDS
}

/// A rule that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredRule {
    /// Random.
    pub id: String,
    /// What it says.
    #[serde(flatten)]
    pub rule: AssertionRule,
    /// When, in milliseconds since the Unix epoch.
    pub created_at: i64,
}

/// An assertion that is taken.
#[derive(Debug)]
pub struct Granted {
    /// Whose tokens it gets.
    pub client: Client,
    /// All claims of the assertion, as signed.
    pub claims: Map<String, Value>,
    /// When it ends; what is issued for it ends no later.
    pub expires_at: i64,
}

/// Why an assertion is not taken.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// Not signed by a trusted issuer, or not as RFC 7523 §3 has it (`invalid_grant`).
    #[error(transparent)]
    Assertion(#[from] AssertionError),
    /// No rule gives it to a client that may have it (`invalid_grant`).
    #[error("no rule takes this assertion")]
    NoRule,
    /// Several rules do (`invalid_grant`).
    #[error("rules give this assertion to several clients; name one with client_id")]
    Ambiguous,
    /// It was used before (`invalid_grant`).
    #[error("the assertion has been used before")]
    Replayed,
    /// Could not be told.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a rule was not made.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// Fields that cannot be accepted, all of them.
    #[error("{} fields cannot be accepted", .0.len())]
    Invalid(Vec<FieldError>),
    /// No such rule.
    #[error("there is no rule with this id")]
    NotFound,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// The rules of one realm; clones share everything.
#[derive(Debug, Clone)]
pub struct AssertionGrants {
    store: Store,
    clock: Arc<IssueClock>,
    realm: Arc<str>,
    issuer: Arc<str>,
}

impl AssertionGrants {
    /// The rules in `store` of `realm`, whose assertions are for `issuer`.
    pub fn new(store: Store, clock: Arc<IssueClock>, realm: &str, issuer: &str) -> Self {
        Self { store, clock, realm: realm.into(), issuer: issuer.into() }
    }

    /// Makes a rule.
    pub async fn create(&self, rule: AssertionRule) -> Result<StoredRule, RulesError> {
        let mut errors = check(&rule);
        if trusted_issuers::published_keys(&self.store, &rule.issuer).await?.is_none() {
            errors.push(error("issuer", "is no trusted issuer with usable keys; register it first"));
        }
        match clients::get(&self.store, &self.realm, &rule.client_id).await? {
            None => errors.push(error("client_id", "there is no client with this id")),
            Some((client, _)) if !client.configuration.grant_types.contains(&GrantType::JwtBearer) => {
                errors.push(error("client_id", "the client has no jwt-bearer in its grant_types"));
            }
            Some(_) => {}
        }
        if assertion_rules::of_issuer(&self.store, &self.realm, &rule.issuer).await?.len() >= MAX_RULES {
            errors.push(error("issuer", "has 256 rules already; remove one"));
        }
        if !errors.is_empty() {
            return Err(RulesError::Invalid(errors));
        }
        let stored = StoredRule { id: secret::random_id()?, rule, created_at: self.clock.wall().0 };
        assertion_rules::insert(&self.store, &self.realm, &stored).await?;
        Ok(stored)
    }

    /// Rules in the order of their ids, those after `after`, at most `limit`.
    pub async fn list(&self, after: Option<&str>, limit: u32) -> Result<Vec<StoredRule>, RulesError> {
        Ok(assertion_rules::list(&self.store, &self.realm, after.unwrap_or_default(), limit).await?)
    }

    /// Removes a rule. Tokens that were issued by it live on until they end.
    pub async fn remove(&self, id: &str) -> Result<(), RulesError> {
        let removed = assertion_rules::delete(&self.store, &self.realm, id).await?;
        if removed { Ok(()) } else { Err(RulesError::NotFound) }
    }

    /// Judges an assertion. `client_id` is the one that the request names, if it names one.
    pub async fn judge(&self, assertion: &str, client_id: Option<&str>) -> Result<Granted, GrantError> {
        let issuer = UnverifiedToken::parse(assertion).map_err(|_| AssertionError::Signature)?;
        let issuer = issuer.issuer().map_err(|_| AssertionError::Signature)?.to_owned();
        let keys =
            trusted_issuers::published_keys(&self.store, &issuer).await?.ok_or(AssertionError::Signature)?;
        let claims = verified(assertion, &issuer, &keys).ok_or(AssertionError::Signature)?;
        check_audience(&claims, &self.issuer)?;
        let rules = assertion_rules::of_issuer(&self.store, &self.realm, &issuer).await?;
        let rule = choose(&rules, &claims, client_id)?;
        let now = self.clock.wall();
        let expires_at = check_times(&claims, now, i64::from(rule.max_lifetime_seconds))?;
        let (client, _) =
            clients::get(&self.store, &self.realm, &rule.client_id).await?.ok_or(GrantError::NoRule)?;
        let may = client.status == ClientStatus::Active
            && client.configuration.grant_types.contains(&GrantType::JwtBearer);
        if !may {
            return Err(GrantError::NoRule);
        }
        if !rule.reusable {
            self.use_once(&issuer, &claims, expires_at).await?;
        }
        Ok(Granted { client, claims, expires_at })
    }

    async fn use_once(
        &self,
        issuer: &str,
        claims: &Map<String, Value>,
        expires_at: i64,
    ) -> Result<(), GrantError> {
        let id = replay_id(issuer, &self.issuer, claims)?;
        let until: UnixMillis = remembered_until(expires_at);
        if single_use::first_use(&self.store, &id, until).await? { Ok(()) } else { Err(GrantError::Replayed) }
    }
}

fn verified(assertion: &str, issuer: &str, keys: &[VerificationKey]) -> Option<Map<String, Value>> {
    signed_claims(assertion, issuer, keys, &["JWT", NO_TOKEN_TYPE])
}

/// The rule that takes these claims; of several the one of the named client, and all must agree on one client.
fn choose<'r>(
    rules: &'r [StoredRule],
    claims: &Map<String, Value>,
    client_id: Option<&str>,
) -> Result<&'r AssertionRule, GrantError> {
    let fits =
        |rule: &&AssertionRule| client_id.is_none_or(|named| named == rule.client_id) && rule.takes(claims);
    let mut fitting = rules.iter().map(|stored| &stored.rule).filter(fits);
    let first = fitting.next().ok_or(GrantError::NoRule)?;
    if fitting.any(|other| other.client_id != first.client_id) {
        return Err(GrantError::Ambiguous);
    }
    Ok(first)
}

impl AssertionRule {
    /// Whether every condition is met.
    fn takes(&self, claims: &Map<String, Value>) -> bool {
        !self.claims.is_empty()
            && self.claims.iter().all(|(pointer, expected)| {
                let text = at(claims, pointer).and_then(Value::as_str);
                text.is_some_and(|text| match expected.strip_suffix('*') {
                    Some(beginning) => text.starts_with(beginning),
                    None => text == expected,
                })
            })
    }
}

/// The value at a JSON pointer (RFC 6901).
pub(crate) fn at<'c>(claims: &'c Map<String, Value>, pointer: &str) -> Option<&'c Value> {
    let rest = pointer.strip_prefix('/')?;
    let (first, rest) = rest.split_once('/').map_or((rest, None), |(first, rest)| (first, Some(rest)));
    let value = claims.get(&first.replace("~1", "/").replace("~0", "~"))?;
    rest.map_or(Some(value), |rest| value.pointer(&format!("/{rest}")))
}

fn check(rule: &AssertionRule) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if rule.claims.is_empty() || rule.claims.len() > MAX_CONDITIONS {
        errors.push(error(
            "claims",
            "must be 1 to 16 conditions: without one, every token of the issuer would do",
        ));
    }
    for (pointer, expected) in &rule.claims {
        let field = format!("claims.{pointer}");
        if !pointer.starts_with('/') || pointer.len() > 256 {
            errors.push(error(
                &field,
                "must be named by a JSON pointer, as in /sub or /kubernetes.io/namespace",
            ));
        }
        if expected.is_empty() || expected == "*" || expected.len() > 512 {
            errors.push(error(&field, "must be 1 to 512 bytes, and more than a lone *"));
        }
    }
    if rule.max_lifetime_seconds == 0 || rule.max_lifetime_seconds > MAX_LIFETIME_SECONDS {
        errors.push(error("max_lifetime_seconds", "must be 1 to 86400"));
    }
    errors
}

fn error(field: &str, message: &str) -> FieldError {
    FieldError { field: field.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(client_id: &str, claims: &[(&str, &str)]) -> StoredRule {
        let claims = claims.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let rule = AssertionRule {
            issuer: "https://kubernetes.default.svc".into(),
            claims,
            client_id: client_id.into(),
            reusable: false,
            max_lifetime_seconds: 60,
        };
        StoredRule { id: client_id.into(), rule, created_at: 0 }
    }

    fn claims() -> Map<String, Value> {
        json!({
            "sub": "system:serviceaccount:prod:orders",
            "kubernetes.io": {"namespace": "prod", "serviceaccount": {"name": "orders"}},
        })
        .as_object()
        .unwrap()
        .clone()
    }

    #[test]
    fn conditions_reach_into_the_claims_and_all_must_hold() {
        let takes = |conditions: &[(&str, &str)]| rule("c", conditions).rule.takes(&claims());
        assert!(takes(&[("/sub", "system:serviceaccount:prod:orders")]));
        assert!(takes(&[
            ("/kubernetes.io/namespace", "prod"),
            ("/kubernetes.io/serviceaccount/name", "ord*")
        ]));
        assert!(takes(&[("/sub", "system:serviceaccount:prod:*")]));
        assert!(!takes(&[("/kubernetes.io/namespace", "prod"), ("/sub", "another")]));
        assert!(!takes(&[("/kubernetes.io", "prod")]) && !takes(&[("/missing", "*a")]) && !takes(&[]));
        assert!(!takes(&[("/sub", "system:serviceaccount:prod")]), "a beginning needs its star");
    }

    #[test]
    fn an_assertion_for_several_clients_needs_a_name() {
        let rules = [rule("a", &[("/sub", "system:*")]), rule("b", &[("/kubernetes.io/namespace", "prod")])];
        assert!(matches!(choose(&rules, &claims(), None), Err(GrantError::Ambiguous)));
        assert_eq!(choose(&rules, &claims(), Some("b")).unwrap().client_id, "b");
        assert!(matches!(choose(&rules, &claims(), Some("c")), Err(GrantError::NoRule)));
        assert!(matches!(choose(&[], &claims(), None), Err(GrantError::NoRule)));
    }

    #[test]
    fn a_rule_that_takes_everything_is_refused() {
        for wrong in [rule("c", &[]), rule("c", &[("/sub", "*")]), rule("c", &[("sub", "a")])] {
            assert!(!check(&wrong.rule).is_empty());
        }
        assert!(check(&rule("c", &[("/sub", "a*")]).rule).is_empty());
    }
}
