//! What a decision comes to.

use std::sync::Arc;

use crate::freshness::Freshness;
use crate::policy::{Access, Rule, TokenRequirements};
use crate::reason::Reason;
use crate::token::SignedToken;

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
    /// The policy that permits.
    pub policy: Arc<str>,
    /// The rule's place in the policy, from 0.
    pub rule: usize,
    /// The rule's name.
    pub rule_name: Arc<str>,
    /// Whose request it is; none where the rule asks for no token.
    pub token: Option<Arc<SignedToken>>,
    /// How fresh the knowledge was.
    pub freshness: Freshness,
    /// The header that carries the credential, in lower case.
    pub credential_header: Arc<str>,
    /// Whether that header goes upstream; where not, it is to be removed.
    pub forward_token: bool,
}

impl Permit {
    pub(super) fn new(rule: &Rule, token: Option<Arc<SignedToken>>, freshness: Freshness) -> Self {
        Self {
            policy: Arc::clone(&rule.policy),
            rule: rule.index,
            rule_name: Arc::clone(&rule.name),
            token,
            freshness,
            credential_header: Arc::clone(&rule.credential.header),
            forward_token: rule.forward_token,
        }
    }
}

/// A refusal, and what may be said of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// The policy that refuses, once a rule was found.
    pub policy: Option<Arc<str>>,
    /// The rule's place in the policy, from 0.
    pub rule: Option<usize>,
    /// The scopes that the rule asks for, for the challenge (RFC 6750 §3): those of `all`, then those of `any`.
    pub scope: Vec<String>,
    /// More than the reason says, safe for the caller: nothing of the token is in it.
    pub detail: Option<String>,
    /// The token, if its signature was verified; for logs.
    pub token: Option<Arc<SignedToken>>,
}

impl Denial {
    /// A refusal outside any rule; also for what precedes a decision, such as [`Reason::NotReady`].
    pub fn new(reason: Reason) -> Self {
        Self { reason, policy: None, rule: None, scope: Vec::new(), detail: None, token: None }
    }

    /// The verified token's `jti`.
    pub fn jti(&self) -> Option<&str> {
        self.token.as_ref()?.claims.jti.as_deref()
    }

    /// The verified token's `client_id`.
    pub fn client_id(&self) -> Option<&str> {
        self.token.as_ref()?.claims.client_id.as_deref()
    }

    pub(super) fn by_rule(reason: Reason, rule: &Rule) -> Self {
        let scope = match &rule.access {
            Access::Anonymous => Vec::new(),
            Access::Token(rule) => rule.all_scopes.iter().chain(&rule.any_scopes).cloned().collect(),
        };
        Self { policy: Some(Arc::clone(&rule.policy)), rule: Some(rule.index), scope, ..Self::new(reason) }
    }

    pub(super) fn about(self, signed: &Arc<SignedToken>) -> Self {
        Self { token: Some(Arc::clone(signed)), ..self }
    }

    /// Names the scopes that are asked for and missing; the policy's words, not the token's.
    pub(super) fn lacking_scopes(self, rule: &TokenRequirements, signed: &SignedToken) -> Self {
        let lacks = |scope: &&String| !signed.claims.scope.contains(scope);
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
