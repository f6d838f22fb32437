//! What a decision comes to.

use std::sync::Arc;

use super::{CredentialDigest, Memory};
use crate::freshness::Freshness;
use crate::policy::{Access, CredentialSource, Rule, TokenRequirements};
use crate::reason::Reason;
use crate::time::UnixMillis;
use crate::token::AuthenticToken;

/// A decision, or what is missing for one.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// The request is decided.
    Decided(Decision),
    /// The request carries a signed token that is not known here, and the memory let no signature be verified now: decide again
    /// with one that does.
    Verify,
    /// The request carries an opaque credential of which nothing is known here: ask the control plane, and decide again.
    Introspect(CredentialDigest),
}

impl Verdict {
    /// The decision; where something would have to be done first, a refusal for `reason`.
    pub fn or(self, reason: Reason) -> Decision {
        match self {
            Self::Decided(decision) => decision,
            Self::Verify | Self::Introspect(_) => Decision::Denial(Denial::new(reason)),
        }
    }
}

impl From<Denial> for Verdict {
    fn from(denial: Denial) -> Self {
        Self::Decided(Decision::Denial(denial))
    }
}

/// The outcome of a decision.
#[derive(Debug, Clone)]
pub enum Decision {
    /// The request may pass.
    Permit(Permit),
    /// The request may not pass.
    Denial(Denial),
}

impl Decision {
    /// The metric label and log code: `permit`, or the reason of the denial.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Permit(_) => "permit",
            Self::Denial(denial) => denial.reason.as_str(),
        }
    }

    /// The rule that decided, once one was found.
    pub fn rule(&self) -> Option<&Arc<Rule>> {
        match self {
            Self::Permit(permit) => Some(&permit.rule),
            Self::Denial(denial) => denial.rule.as_ref(),
        }
    }

    /// The token, if one was found authentic.
    pub fn token(&self) -> Option<&Arc<AuthenticToken>> {
        match self {
            Self::Permit(permit) => permit.token.as_ref(),
            Self::Denial(denial) => denial.token.as_ref(),
        }
    }
}

impl From<Result<Permit, Denial>> for Decision {
    fn from(result: Result<Permit, Denial>) -> Self {
        result.map_or_else(Self::Denial, Self::Permit)
    }
}

/// Evidence that every step was passed. Only [`decide`](super::decide) makes one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Permit {
    /// The rule that permits.
    pub rule: Arc<Rule>,
    /// Whose request it is; none where the rule asks for no token.
    pub token: Option<Arc<AuthenticToken>>,
    /// How fresh the knowledge was.
    pub freshness: Freshness,
    /// The nonce for the next DPoP proof, where the one that was used ends soon (RFC 9449 §8.2).
    pub nonce: Option<String>,
    /// Where in the rule's list the credential came from.
    source: Option<usize>,
}

impl Permit {
    pub(super) fn new(
        rule: Arc<Rule>,
        token: Option<Arc<AuthenticToken>>,
        source: Option<usize>,
        freshness: Freshness,
    ) -> Self {
        Self { rule, token, freshness, nonce: None, source }
    }

    pub(super) fn with_nonce(self, nonce: Option<String>) -> Self {
        Self { nonce, ..self }
    }

    /// Where the credential came from; none where the rule asks for none.
    pub fn credential(&self) -> Option<&CredentialSource> {
        self.rule.credential.get(self.source?)
    }

    /// What must not go upstream: every place where the rule looks for a credential, unless it goes on.
    pub fn stripped(&self) -> &[CredentialSource] {
        if self.rule.forward_token { &[] } else { &self.rule.credential }
    }
}

/// A refusal, and what may be said of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// The rule that refuses, once one was found.
    pub rule: Option<Arc<Rule>>,
    /// More than the reason says, safe for the caller: nothing of the token is in it.
    pub detail: Option<String>,
    /// The token, if it was found authentic; for logs.
    pub token: Option<Arc<AuthenticToken>>,
    /// The nonce for the next DPoP proof (RFC 9449 §9), where one is asked for.
    pub nonce: Option<String>,
}

impl Denial {
    /// A refusal outside any rule; also for what precedes a decision, such as [`Reason::NotReady`].
    pub fn new(reason: Reason) -> Self {
        Self { reason, rule: None, detail: None, token: None, nonce: None }
    }

    /// The scopes that the rule asks for, for the challenge (RFC 6750 §3): those of `all`, then those of `any`.
    pub fn scope(&self) -> impl Iterator<Item = &str> {
        let requirements = self.requirements();
        requirements
            .into_iter()
            .flat_map(|rule| rule.all_scopes.iter().chain(&rule.any_scopes))
            .map(String::as_str)
    }

    /// What the rule asks of a token, if a rule was found that asks for one.
    pub fn requirements(&self) -> Option<&TokenRequirements> {
        match &self.rule.as_ref()?.access {
            Access::Token(requirements) => Some(requirements),
            Access::Anonymous => None,
        }
    }

    pub(super) fn by_rule(reason: Reason, rule: &Arc<Rule>) -> Self {
        Self { rule: Some(Arc::clone(rule)), ..Self::new(reason) }
    }

    pub(super) fn about(self, token: &Arc<AuthenticToken>) -> Self {
        Self { token: Some(Arc::clone(token)), ..self }
    }

    /// Brings the nonce along that the rule asks for.
    pub(super) fn with_nonce(self, memory: &impl Memory, now: UnixMillis) -> Self {
        let asked = self.requirements().is_some_and(|rule| rule.dpop.nonce);
        let key = memory.nonce_key().filter(|_| asked && self.reason.is_of_proof());
        Self { nonce: key.map(|key| key.issue(now)), ..self }
    }

    /// Names the scopes that are asked for and missing; the policy's words, not the token's.
    pub(super) fn lacking_scopes(self, rule: &TokenRequirements, token: &AuthenticToken) -> Self {
        let lacks = |scope: &&String| !token.claims.scope.contains(scope);
        let missing: Vec<&str> = rule.all_scopes.iter().filter(lacks).map(String::as_str).collect();
        let detail = if missing.is_empty() {
            format!("The token needs one of the scopes: {}.", rule.any_scopes.join(" "))
        } else {
            format!("The token lacks these scopes: {}.", missing.join(" "))
        };
        Self { detail: Some(detail), ..self }
    }
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}
