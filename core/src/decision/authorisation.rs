//! Steps 6, 7 and 9: claims, revocation, and what the rule asks of a token.

use std::cell::OnceCell;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::binding::BoundToken;
use super::memory::{Memory, ProofUse};
use crate::binding::{CertificateDetails, ClientCertificate, VerifiedProof};
use crate::claims::{Expectations, ValidClaims};
use crate::path::NormalisedPath;
use crate::policy::{CertificateFacts, Facts, Route, TokenRequirements};
use crate::reason::Reason;
use crate::request::Request;
use crate::revocation::{NotRevoked, RevocationIndex};
use crate::time::UnixMillis;
use crate::token::AuthenticToken;

/// An authentic token that is in time, from an accepted issuer, and meant for us.
#[derive(Debug)]
pub(super) struct ValidToken<'t> {
    token: &'t Arc<AuthenticToken>,
    _claims: ValidClaims<'t>,
}

impl<'t> ValidToken<'t> {
    /// Step 6: issuer, audience, expiry, not-before and issuance, with the rule's clock skew.
    pub(super) fn check(
        token: &'t Arc<AuthenticToken>,
        rule: &TokenRequirements,
        now: UnixMillis,
    ) -> Result<Self, Reason> {
        let claims = token.claims.validate(Expectations {
            issuers: &rule.issuers,
            audiences: &rule.audiences,
            clock_skew: rule.clock_skew,
            now,
        })?;
        Ok(Self { token, _claims: claims })
    }
}

/// A valid token that nothing known revokes.
#[derive(Debug)]
pub(super) struct LiveToken<'t> {
    valid: ValidToken<'t>,
    _evidence: NotRevoked,
}

impl<'t> LiveToken<'t> {
    /// Step 7: token, key, ancestors, session, subject and actors, client, realm, issuer.
    pub(super) fn check(valid: ValidToken<'t>, revocations: &RevocationIndex) -> Result<Self, Reason> {
        let evidence = revocations.check(&valid.token.ids, valid.token.claims.issued_at)?;
        Ok(Self { valid, _evidence: evidence })
    }

    pub(super) fn token(&self) -> &'t Arc<AuthenticToken> {
        self.valid.token
    }
}

/// A bound token that has what the rule asks for.
#[derive(Debug)]
pub(super) struct Authorised<'t> {
    bound: BoundToken<'t>,
}

impl<'t> Authorised<'t> {
    /// Step 9: scopes, each of `all` and one of `any`; then the condition.
    pub(super) fn check(
        bound: BoundToken<'t>,
        rule: &TokenRequirements,
        facts: &RequestFacts<'_>,
    ) -> Result<Self, Reason> {
        let token = bound.token();
        let has = |scope: &String| token.claims.scope.contains(scope);
        let has_any = rule.any_scopes.is_empty() || rule.any_scopes.iter().any(has);
        if !has_any || !rule.all_scopes.iter().all(has) {
            return Err(Reason::ScopeInsufficient);
        }
        match rule.condition.as_ref().map(|condition| condition.evaluate(facts)) {
            None | Some(Ok(true)) => Ok(Self { bound }),
            Some(Ok(false)) => Err(Reason::ConditionFalse),
            Some(Err(_)) => Err(Reason::ConditionFault),
        }
    }

    /// Notes the use of the proof that the token came with, if it came with one.
    pub(super) fn use_proof(self, memory: &impl Memory, now: UnixMillis) -> Result<Used<'t>, Reason> {
        let nonce_ends = self.bound.proof().is_some_and(VerifiedProof::nonce_ends);
        match self.bound.proof().map(|proof| memory.first_use(proof, now)) {
            None | Some(ProofUse::First) => Ok(Used { token: self.bound.token(), nonce_ends }),
            Some(ProofUse::Again) => Err(Reason::ProofReplayed),
            Some(ProofUse::Full) => Err(Reason::ProofsExhausted),
        }
    }
}

/// An authorised token whose proof, if it needs one, is used here for the first time.
#[derive(Debug)]
pub(super) struct Used<'t> {
    token: &'t Arc<AuthenticToken>,
    nonce_ends: bool,
}

impl<'t> Used<'t> {
    pub(super) fn token(&self) -> &'t Arc<AuthenticToken> {
        self.token
    }

    /// Whether the client needs another nonce soon.
    pub(super) fn nonce_ends(&self) -> bool {
        self.nonce_ends
    }
}

/// What a condition may ask about a request; the certificate is read when it is asked for.
#[derive(Debug)]
pub(super) struct RequestFacts<'a> {
    request: &'a Request<'a>,
    route: &'a Route<'a>,
    path: &'a NormalisedPath<'a>,
    token: &'a AuthenticToken,
    now: UnixMillis,
    certificate: OnceCell<Option<(String, CertificateDetails)>>,
}

impl<'a> RequestFacts<'a> {
    pub(super) fn new(
        request: &'a Request<'a>,
        route: &'a Route<'a>,
        path: &'a NormalisedPath<'a>,
        token: &'a AuthenticToken,
        now: UnixMillis,
    ) -> Self {
        Self { request, route, path, token, now, certificate: OnceCell::new() }
    }
}

impl Facts for RequestFacts<'_> {
    fn method(&self) -> &str {
        self.request.method
    }

    fn host(&self) -> &str {
        self.request.host
    }

    fn path(&self) -> &str {
        self.path.as_str()
    }

    fn query(&self) -> Option<&str> {
        self.request.query()
    }

    fn scheme(&self) -> &str {
        self.request.scheme
    }

    fn source_address(&self) -> Option<&str> {
        self.request.source_address
    }

    fn header(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self.request.header_values(name).map(String::from_utf8_lossy).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    fn extension(&self, name: &str) -> Option<&str> {
        self.request.extension(name)
    }

    fn path_parameter(&self, name: &str) -> Option<&str> {
        self.route.parameter(self.path, name)
    }

    fn claims(&self) -> Option<&Map<String, Value>> {
        Some(&self.token.claims.raw)
    }

    fn certificate(&self) -> Option<CertificateFacts<'_>> {
        let read = || {
            let certificate = ClientCertificate::of(self.request).ok()??;
            Some((certificate.thumbprint().to_owned(), certificate.details().ok()?))
        };
        let (sha256, details) = self.certificate.get_or_init(read).as_ref()?;
        Some(CertificateFacts {
            sha256,
            subject: details.subject(),
            dns_names: details.dns_names(),
            uris: details.uris(),
        })
    }

    fn now_seconds(&self) -> i64 {
        self.now.seconds()
    }
}
