//! The decision: may this request pass?
//!
//! [`decide`] reads like its specification. Each step consumes the evidence that the step before made, and only that step
//! can make its own; so a step that is left out does not compile.

use std::sync::Arc;

use crate::claims::{Expectations, ValidClaims};
use crate::freshness::Freshness;
use crate::jws::UnverifiedToken;
use crate::path;
use crate::policy::{Access, OnStale, PolicySet, Rule, TokenRequirements};
use crate::reason::Reason;
use crate::request::Request;
use crate::revocation::{NotRevoked, RevocationIndex};
use crate::time::UnixMillis;
use crate::token::KeyedToken;
pub use crate::token::SignedToken;
use crate::view::View;

mod credential;
mod outcome;

use credential::Credential;
pub use outcome::{Decision, Denial, Permit};

/// The time of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The wall clock.
    pub wall: UnixMillis,
    /// How old what the view knows is, by the thresholds of whoever holds it.
    pub freshness: Freshness,
}

/// Tokens whose signature was verified before, so that it need not be again. Everything else is judged at each request.
pub trait VerifiedTokens {
    /// The verified form of exactly this token, if it was verified at this key generation.
    fn get(&self, token: &str, key_generation: u64) -> Option<Arc<SignedToken>>;

    /// Keeps a token that was verified at this key generation; or does not.
    fn insert(&self, token: &str, key_generation: u64, signed: Arc<SignedToken>);
}

/// Keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCache;

impl VerifiedTokens for NoCache {
    fn get(&self, _token: &str, _key_generation: u64) -> Option<Arc<SignedToken>> {
        None
    }

    fn insert(&self, _token: &str, _key_generation: u64, _signed: Arc<SignedToken>) {}
}

/// Decides one request by what is known in `view` at `now`. Pure: equal arguments give equal decisions, whatever `cache` kept.
pub fn decide(view: &View, cache: &impl VerifiedTokens, request: &Request<'_>, now: Now) -> Decision {
    // 1. Route: no rule, no permit.
    let routed = match Routed::find(&view.policies, request) {
        Ok(routed) => routed,
        Err(reason) => return Decision::Denial(Denial::new(reason)),
    };
    let Access::Token(requirements) = &routed.rule.access else {
        return routed.permit(None, now).map_err(|reason| routed.refuse(reason)).into();
    };
    // 2. Credential, then 3. token, 4. key, 5. signature.
    let signed = Credential::read(request, &routed.rule.credential)
        .and_then(|credential| signed_token(view, cache, credential));
    let signed = match signed {
        Ok(signed) => signed,
        Err(reason) => return Decision::Denial(routed.refuse(reason)),
    };
    // 6. Claims, 7. revocation, 8. binding, 9. policy, 10. freshness: at every request, cached token or not.
    ValidToken::check(&signed, requirements, now)
        .and_then(|valid| LiveToken::check(valid, &view.revocations))
        .and_then(BoundToken::check)
        .and_then(|bound| Authorised::check(bound, requirements))
        .and_then(|authorised| routed.permit(Some(authorised), now))
        .map_err(|reason| routed.refuse_token(reason, requirements, &signed))
        .into()
}

/// A request for which one rule was found.
#[derive(Debug, Clone, Copy)]
struct Routed<'v> {
    rule: &'v Arc<Rule>,
}

impl<'v> Routed<'v> {
    /// Step 1: route. The rule is chosen by the normalised path; a request that no rule covers is refused.
    fn find(policies: &'v PolicySet, request: &Request<'_>) -> Result<Self, Reason> {
        let path = path::normalise(request.target)?;
        Ok(Self { rule: policies.route(request, &path)? })
    }

    /// Step 10: freshness. Knowledge that is stale permits only where the rule says so.
    fn permit(self, authorised: Option<Authorised<'_>>, now: Now) -> Result<Permit, Reason> {
        let freshness = now.freshness;
        if freshness == Freshness::Stale && self.rule.on_stale == OnStale::Deny {
            return Err(Reason::Stale);
        }
        Ok(Permit::new(
            self.rule,
            authorised.map(|authorised| Arc::clone(authorised.bound.live.valid.signed)),
            freshness,
        ))
    }

    fn refuse(self, reason: Reason) -> Denial {
        Denial::by_rule(reason, self.rule)
    }

    fn refuse_token(
        self,
        reason: Reason,
        requirements: &TokenRequirements,
        signed: &Arc<SignedToken>,
    ) -> Denial {
        let denial = self.refuse(reason).about(signed);
        if reason == Reason::ScopeInsufficient { denial.lacking_scopes(requirements, signed) } else { denial }
    }
}

/// Steps 3 to 5: token, key, signature. A verified token is taken from the cache, where it lies under its whole text and the
/// generation of the keys; so a removed key is no longer believed.
fn signed_token(
    view: &View,
    cache: &impl VerifiedTokens,
    credential: Credential<'_>,
) -> Result<Arc<SignedToken>, Reason> {
    if let Some(signed) = cache.get(credential.token(), view.key_generation) {
        return Ok(signed);
    }
    let unverified = UnverifiedToken::parse(credential.token())?;
    let keyed = KeyedToken::select(unverified, &view.issuers)?;
    let signed = Arc::new(keyed.verify()?);
    cache.insert(credential.token(), view.key_generation, Arc::clone(&signed));
    Ok(signed)
}

/// A signed token that is in time, from an accepted issuer, and meant for us.
#[derive(Debug)]
struct ValidToken<'t> {
    signed: &'t Arc<SignedToken>,
    _claims: ValidClaims<'t>,
}

impl<'t> ValidToken<'t> {
    /// Step 6: issuer, audience, expiry, not-before and issuance, with the rule's clock skew.
    fn check(signed: &'t Arc<SignedToken>, rule: &TokenRequirements, now: Now) -> Result<Self, Reason> {
        let claims = signed.claims.validate(Expectations {
            issuers: &rule.issuers,
            audiences: &rule.audiences,
            clock_skew: rule.clock_skew,
            now: now.wall,
        })?;
        Ok(Self { signed, _claims: claims })
    }
}

/// A valid token that nothing known revokes.
#[derive(Debug)]
struct LiveToken<'t> {
    valid: ValidToken<'t>,
    _evidence: NotRevoked,
}

impl<'t> LiveToken<'t> {
    /// Step 7: token, key, session, subject and actors, client, realm, issuer.
    fn check(valid: ValidToken<'t>, revocations: &RevocationIndex) -> Result<Self, Reason> {
        let evidence = revocations.check(&valid.signed.ids, valid.signed.claims.issued_at)?;
        Ok(Self { valid, _evidence: evidence })
    }
}

/// A live token in the hands of whom it was bound to.
#[derive(Debug)]
struct BoundToken<'t> {
    live: LiveToken<'t>,
}

impl<'t> BoundToken<'t> {
    /// Step 8: binding. A bearer passes. A bound token is refused, because no proof can be checked yet, and to take it for a
    /// bearer token would give away what the binding protects.
    fn check(live: LiveToken<'t>) -> Result<Self, Reason> {
        match live.valid.signed.claims.confirmation {
            None => Ok(Self { live }),
            Some(_) => Err(Reason::BindingUnsupported),
        }
    }
}

/// A bound token that has what the rule asks for.
#[derive(Debug)]
struct Authorised<'t> {
    bound: BoundToken<'t>,
}

impl<'t> Authorised<'t> {
    /// Step 9: scopes, each of `all` and one of `any`.
    fn check(bound: BoundToken<'t>, rule: &TokenRequirements) -> Result<Self, Reason> {
        let signed = bound.live.valid.signed;
        let has = |scope: &String| signed.claims.scope.contains(scope);
        let has_any = rule.any_scopes.is_empty() || rule.any_scopes.iter().any(has);
        if has_any && rule.all_scopes.iter().all(has) {
            Ok(Self { bound })
        } else {
            Err(Reason::ScopeInsufficient)
        }
    }
}
