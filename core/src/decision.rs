//! The decision: may this request pass?
//!
//! [`decide`] reads like its specification. Each step consumes the evidence that the step before made, and only that step
//! can make its own; so a step that is left out does not compile.

use std::sync::Arc;

use crate::freshness::Freshness;
use crate::path::{self, NormalisedPath};
use crate::policy::{Access, PolicySet, Route, Rule, StaleAction, TokenRequirements};
use crate::reason::Reason;
use crate::request::Request;
use crate::time::UnixMillis;
pub use crate::token::AuthenticToken;
use crate::view::View;

mod authenticity;
mod authorisation;
mod binding;
mod credential;
mod memory;
mod outcome;
mod trace;

use authenticity::authentic_token;
use authorisation::{Authorised, LiveToken, ValidToken};
use binding::BoundToken;
use credential::Credential;
pub use memory::{Known, Memory, NoMemory, ProofUse};
pub use outcome::{Decision, Denial, Permit, Verdict};
pub use trace::{NoTrace, Step, Trace};

/// A credential that the control plane is to be asked about: SHA-256 over its text.
pub type CredentialDigest = [u8; 32];

/// How old a control plane's answer may be where a rule says `onStale: introspect`, in milliseconds.
const INTROSPECTED_LATELY_MS: i64 = 5_000;

/// The time of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The wall clock.
    pub wall: UnixMillis,
    /// How old what the view knows is, by the thresholds of whoever holds it.
    pub freshness: Freshness,
    /// That age, in milliseconds.
    pub feed_age_ms: u64,
}

/// Decides one request by what is known in `view` at `now`. Pure: equal arguments give equal verdicts, whatever `memory` kept of
/// verified signatures. What an opaque credential stands for is the memory's to know; where it does not, the verdict says so,
/// and the caller asks and decides again.
pub fn decide(view: &View, memory: &impl Memory, request: &Request<'_>, now: Now) -> Verdict {
    decide_traced(view, memory, request, now, &mut NoTrace)
}

/// As [`decide`], telling each step to `trace`.
pub fn decide_traced(
    view: &View,
    memory: &impl Memory,
    request: &Request<'_>,
    now: Now,
    trace: &mut impl Trace,
) -> Verdict {
    // 1. Route: no rule, no permit.
    match Routed::find(&view.policies, request) {
        Ok(routed) => routed.judge(view, memory, request, now, trace),
        Err(reason) => {
            trace.failed(Step::Route, reason);
            Verdict::Decided(Decision::Denial(Denial::new(reason)))
        }
    }
}

/// What the policies in shadow mode would have decided, if one of their rules fits the request. Nothing is asked of the
/// control plane for them, and no proof counts as used.
pub fn decide_shadow(view: &View, memory: &impl Memory, request: &Request<'_>, now: Now) -> Option<Decision> {
    let path = path::normalise(request.target).ok()?;
    let route = view.policies.route_shadow(request, &path)?;
    match (Routed { route, path }).judge(view, &memory::Unrecorded(memory), request, now, &mut NoTrace) {
        Verdict::Decided(decision) => Some(decision),
        Verdict::Verify | Verdict::Introspect(_) => None,
    }
}

/// Evidence that what is known is fresh enough for the rule.
#[derive(Debug)]
struct FreshEnough(());

/// A request for which one rule was found.
#[derive(Debug)]
struct Routed<'v, 'r> {
    route: Route<'v>,
    path: NormalisedPath<'r>,
}

impl<'v, 'r> Routed<'v, 'r> {
    /// Step 1: route. The rule is chosen by the normalised path; a request that no rule covers is refused.
    fn find(policies: &'v PolicySet, request: &Request<'r>) -> Result<Self, Reason> {
        let path = path::normalise(request.target)?;
        Ok(Self { route: policies.route(request, &path)?, path })
    }

    fn rule(&self) -> &'v Arc<Rule> {
        self.route.rule
    }

    fn judge(
        &self,
        view: &View,
        memory: &impl Memory,
        request: &Request<'_>,
        now: Now,
        trace: &mut impl Trace,
    ) -> Verdict {
        let rule = self.rule();
        trace.passed(Step::Route, || {
            format!("rule `{}` of policy `{}`, by path `{}`", rule.name, rule.policy, self.route.template())
        });
        let Access::Token(requirements) = &rule.access else {
            trace.passed(Step::Credential, || "the rule asks for none".to_owned());
            let fresh = self.fresh(None, now);
            let permit = fresh.map(|fresh| self.permit(fresh, None, now));
            return Verdict::Decided(
                permit.map_err(|reason| self.refuse(reason, trace, Step::Freshness)).into(),
            );
        };
        // 2. Credential.
        let credential = match Credential::read(request, &rule.credential) {
            Ok(credential) => credential,
            Err(reason) => return self.refuse(reason, trace, Step::Credential).into(),
        };
        trace.passed(Step::Credential, || credential.to_string());
        // 3. Token, 4. key, 5. signature; or what the control plane said of an opaque credential.
        let recent =
            matches!(self.rule().on_stale, StaleAction::Introspect) && now.freshness == Freshness::Stale;
        let oldest = recent.then(|| UnixMillis(now.wall.0.saturating_sub(INTROSPECTED_LATELY_MS)));
        let token = match authentic_token(view, memory, &credential, requirements, now.wall, oldest) {
            Ok(token) => token,
            Err(authenticity::Halt::Refuse(reason)) => {
                return self.refuse(reason, trace, Step::Authenticity).into();
            }
            Err(authenticity::Halt::Verify) => return Verdict::Verify,
            Err(authenticity::Halt::Introspect(digest)) => {
                trace.passed(Step::Authenticity, || "the control plane is to be asked".to_owned());
                return Verdict::Introspect(digest);
            }
        };
        trace.passed(Step::Authenticity, || {
            let by = if token.kid.is_empty() { "introspection" } else { "signature" };
            format!("issuer `{}`, by {by}", token.issuer.name())
        });
        let judged = self.judge_token(&token, &credential, requirements, view, memory, request, now, trace);
        Verdict::Decided(judged.map_err(|denial| denial.about(&token)).into())
    }

    /// Steps 6 to 10: at every request, whether the token was known or not.
    #[expect(clippy::too_many_arguments, reason = "all that a token is judged by")]
    fn judge_token(
        &self,
        token: &Arc<AuthenticToken>,
        credential: &Credential<'_>,
        requirements: &TokenRequirements,
        view: &View,
        memory: &impl Memory,
        request: &Request<'_>,
        now: Now,
        trace: &mut impl Trace,
    ) -> Result<Permit, Denial> {
        // 6. Claims, 7. revocation.
        let valid = ValidToken::check(token, requirements, now.wall)
            .map_err(|reason| self.refuse(reason, trace, Step::Claims))?;
        trace.passed(Step::Claims, || "issuer, audience and times fit".to_owned());
        let live = LiveToken::check(valid, &view.revocations)
            .map_err(|reason| self.refuse(reason, trace, Step::Revocation))?;
        trace.passed(Step::Revocation, || "nothing known revokes it".to_owned());
        // 8. Binding.
        let bound = BoundToken::check(live, credential, requirements, memory, request, now.wall)
            .map_err(|reason| self.refuse(reason, trace, Step::Binding).with_nonce(memory, now.wall))?;
        trace.passed(Step::Binding, || bound.to_string());
        // 9. Policy.
        let facts = authorisation::RequestFacts::new(request, &self.route, &self.path, token, now.wall);
        let authorised = Authorised::check(bound, requirements, &facts).map_err(|reason| {
            let denial = self.refuse(reason, trace, Step::Policy);
            if reason == Reason::ScopeInsufficient {
                denial.lacking_scopes(requirements, token)
            } else {
                denial
            }
        })?;
        trace.passed(Step::Policy, || "scopes and condition hold".to_owned());
        // 10. Freshness. A proof counts as used when nothing else refuses.
        let fresh =
            self.fresh(Some(token), now).map_err(|reason| self.refuse(reason, trace, Step::Freshness))?;
        trace.passed(Step::Freshness, || format!("the state is {}", now.freshness));
        let used = authorised.use_proof(memory, now.wall);
        let used = used.map_err(|reason| self.refuse(reason, trace, Step::Binding))?;
        let nonce = if used.nonce_ends() { memory.nonce_key().map(|key| key.issue(now.wall)) } else { None };
        Ok(self.permit(fresh, Some((used, credential)), now).with_nonce(nonce))
    }

    /// Step 10: freshness. Knowledge that is stale permits only where the rule says so.
    fn fresh(&self, token: Option<&AuthenticToken>, now: Now) -> Result<FreshEnough, Reason> {
        let stays = now.freshness != Freshness::Stale
            || match self.rule().on_stale {
                StaleAction::Deny => false,
                // Step 3 took a recent answer only.
                StaleAction::Introspect => token.is_some_and(|token| token.learnt_at.is_some()),
                StaleAction::Allow(bound) => {
                    bound.is_none_or(|seconds| now.feed_age_ms <= u64::from(seconds) * 1_000)
                }
            };
        if stays { Ok(FreshEnough(())) } else { Err(Reason::Stale) }
    }

    fn permit(
        &self,
        _fresh: FreshEnough,
        token: Option<(authorisation::Used<'_>, &Credential<'_>)>,
        now: Now,
    ) -> Permit {
        let source = token.as_ref().map(|(_, credential)| credential.source());
        let token = token.map(|(used, _)| Arc::clone(used.token()));
        Permit::new(Arc::clone(self.rule()), token, source, now.freshness)
    }

    fn refuse(&self, reason: Reason, trace: &mut impl Trace, step: Step) -> Denial {
        trace.failed(step, reason);
        Denial::by_rule(reason, self.rule())
    }
}
