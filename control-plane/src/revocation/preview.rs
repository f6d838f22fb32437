//! What a revocation would hit, as far as that can be counted.

use atm_core::time::UnixMillis;
use serde::Serialize;

use super::{Order, RevocationError, Revocations, Selector};
use crate::audit::Filter;
use crate::store::StoreError;
use crate::store::reach::{self, Home};

/// Issuances that are counted in the audit chain.
const MAX_COUNTED: usize = 100_000;
/// Of one page.
const PAGE: usize = 1_000;

/// What a revocation would hit now. Numbers are of what is in force, not of what ever was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// What was issued until then would end, in milliseconds since the Unix epoch.
    pub not_after: i64,
    /// Sessions that would end.
    pub sessions: u64,
    /// API keys that would be refused.
    pub api_keys: u64,
    /// Clients that are concerned.
    pub clients: u64,
    /// Our signing keys that would be replaced.
    pub signing_keys: u64,
    /// Access tokens that were issued and have not expired, by the audit chain; none where it cannot tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_tokens: Option<IssuedTokens>,
    /// What is not in these numbers, and why.
    pub not_counted: Vec<&'static str>,
}

/// Access tokens by the audit chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IssuedTokens {
    /// How many, at least.
    pub number: usize,
    /// Whether there may be more.
    pub at_least: bool,
}

impl Revocations {
    /// Counts what `order` would hit. Changes nothing.
    pub async fn preview(&self, order: Order<'_>) -> Result<Preview, RevocationError> {
        self.check(&order)?;
        let now = self.clock.wall();
        let not_after = order.before.unwrap_or(now).min(now);
        // Instants of what was made just now may be ahead of the wall clock; all of it is covered.
        let covered = order.before.unwrap_or(UnixMillis(i64::MAX));
        let mut preview = Preview {
            not_after: not_after.0,
            sessions: 0,
            api_keys: 0,
            clients: 0,
            signing_keys: 0,
            issued_tokens: None,
            not_counted: vec![
                "access tokens are not stored: those that were issued end, however many there are",
            ],
        };
        let home = Home { realm: self.keys.realm(), issuer: self.issuer() };
        for selector in order.selectors {
            let hit = reach::of(&self.store, selector, home, covered, now).await?;
            preview.sessions += hit.sessions;
            preview.api_keys += hit.api_keys;
            preview.clients += hit.clients;
            preview.signing_keys += hit.signing_keys;
        }
        if let [selector] = order.selectors {
            preview.issued_tokens = self.issued(selector, covered, now).await?;
        }
        if order.selectors.iter().any(|selector| matches!(selector, Selector::Token { issuer: Some(_), .. }))
        {
            preview.not_counted.push("tokens of other issuers: what they issued is not known here");
        }
        Ok(preview)
    }

    /// Tokens of the last longest lifetime that the audit chain says were issued for the selector.
    async fn issued(
        &self,
        selector: &Selector,
        not_after: UnixMillis,
        now: UnixMillis,
    ) -> Result<Option<IssuedTokens>, StoreError> {
        let reference = match selector {
            Selector::Client(value) => ("client", value.clone()),
            Selector::Subject(value) => ("subject", value.clone()),
            Selector::Session(value) => ("session", value.clone()),
            _ => return Ok(None),
        };
        let lifetime = i64::try_from(self.keys.max_token_lifetime().as_millis()).unwrap_or(i64::MAX);
        let filter = Filter {
            since_ms: Some(now.0.saturating_sub(lifetime)),
            until_ms: Some(not_after.0),
            action: Some("token.".to_owned()),
            outcome: Some("success".to_owned()),
            realm: Some(self.keys.realm().to_owned()),
            references: vec![reference],
            ..Filter::default()
        };
        let (mut number, mut after) = (0, None::<String>);
        loop {
            // A preview without this number is better than none.
            let Ok(Some(page)) = self.audit.list(&filter, after.as_deref(), PAGE).await else {
                return Ok(None);
            };
            number += page.items.len();
            match page.next {
                Some(next) if number < MAX_COUNTED => after = Some(next),
                next => return Ok(Some(IssuedTokens { number, at_least: next.is_some() })),
            }
        }
    }
}
