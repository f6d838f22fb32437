//! The evidence that a token gathers on its way: each type is made from the one before, and only by its check.
//!
//! [`UnverifiedToken`] → [`KeyedToken`] (its issuer is trusted and has the key) → [`AuthenticToken`] (that key signed it). An opaque
//! credential becomes an [`AuthenticToken`] by what the control plane says of it.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::claims::{Ancestor, Claims};
use crate::id::{Id, IdKind};
use crate::jws::UnverifiedToken;
use crate::key::{Issuer, Issuers, VerificationKey};
use crate::reason::Reason;
use crate::revocation::Bucket;
use crate::time::UnixMillis;

/// A token whose issuer is trusted and has the key that it names, pinned to the algorithm that it claims.
#[derive(Debug)]
pub struct KeyedToken<'a> {
    token: UnverifiedToken<'a>,
    issuer: Arc<Issuer>,
    key: VerificationKey,
}

impl<'a> KeyedToken<'a> {
    /// Finds the key by issuer and kid, for a token of a type that the issuer's access tokens have. A token without a kid is
    /// taken only where the issuer has one key.
    pub fn select(token: UnverifiedToken<'a>, issuers: &Issuers) -> Result<Self, Reason> {
        let issuer = issuers.get(token.issuer()?).ok_or(Reason::IssuerUnknown)?;
        if !issuer.takes_type(token.header().typ.as_deref()) {
            return Err(Reason::TokenTypeRefused);
        }
        let key = match (&token.header().kid, issuer.keys()) {
            (Some(kid), _) => issuer.key(kid).ok_or(Reason::KeyUnknown)?,
            (None, [key]) => key,
            (None, []) => return Err(Reason::KeyUnknown),
            (None, _) => return Err(Reason::KeyAmbiguous),
        };
        if key.algorithm() != token.header().algorithm {
            return Err(Reason::AlgorithmRefused);
        }
        Ok(Self { issuer: Arc::clone(issuer), key: key.clone(), token })
    }

    /// Verifies the signature, then types the claims.
    pub fn verify(self) -> Result<AuthenticToken, Reason> {
        let (issuer, kid) = (Arc::clone(&self.issuer), self.key.shared_kid());
        AuthenticToken::new(issuer, kid, Claims::from_object(self.verify_untyped()?)?, None)
    }

    /// Verifies the signature alone: for signed tokens that are no access tokens, such as assertions (RFC 7523), whose claims
    /// the caller judges.
    pub fn verify_untyped(self) -> Result<Map<String, Value>, Reason> {
        let verified = self.key.verify(self.token.signing_input(), self.token.signature());
        verified.map_err(|_| Reason::SignatureInvalid)?;
        Ok(self.token.into_claims())
    }
}

/// A token that a trusted key signed, or that the control plane vouched for, with typed claims. Whether it is in time, meant
/// for us or revoked is still open, so that it can be kept and judged again at each request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuthenticToken {
    /// Who issued it.
    pub issuer: Arc<Issuer>,
    /// The key that verified it; empty for an opaque one.
    pub kid: Arc<str>,
    /// Its claims.
    pub claims: Claims,
    /// What revocations name it by.
    pub ids: TokenIds,
    /// For an opaque one: the control plane's instant of its answer.
    pub learnt_at: Option<UnixMillis>,
}

/// The ids under which a token may be revoked.
#[derive(Debug, Clone)]
pub struct TokenIds {
    /// The bucket that a revocation of the token alone is kept in.
    pub bucket: Bucket,
    /// The token, if it has a `jti`.
    pub token: Option<Id>,
    /// The tokens that it was derived from, each with the bucket of its own expiry.
    pub ancestors: Vec<(Bucket, Id)>,
    /// Its session, if it belongs to one, and those of the tokens that it was derived from.
    pub session: Vec<Id>,
    /// Its subject, and those of its actors, each within its own issuer.
    pub subjects: Vec<Id>,
    /// Its client, and those of the tokens that it was derived from.
    pub client: Vec<Id>,
    /// Its issuer's realm, if one of ours.
    pub realm: Option<Id>,
    /// Its issuer.
    pub issuer: Id,
    /// The key that signed it; none for an opaque one.
    pub key: Option<Id>,
}

impl AuthenticToken {
    /// What the control plane says that an opaque credential stands for, at the instant `learnt_at` of its clock. Whoever calls
    /// this has verified that it is the control plane's answer. The issuer must be one of its realms.
    pub fn introspected(
        claims: Map<String, Value>,
        issuers: &Issuers,
        learnt_at: UnixMillis,
    ) -> Result<Self, Reason> {
        let claims = Claims::from_object(claims)?;
        let issuer = issuers.get(&claims.issuer).filter(|issuer| issuer.realm().is_some());
        Self::new(Arc::clone(issuer.ok_or(Reason::IssuerUnknown)?), "".into(), claims, Some(learnt_at))
    }

    fn new(
        issuer: Arc<Issuer>,
        kid: Arc<str>,
        claims: Claims,
        learnt_at: Option<UnixMillis>,
    ) -> Result<Self, Reason> {
        // RFC 9068 §2.2 requires both, and our realms issue nothing else. An external issuer need not follow it.
        if issuer.realm().is_some() && (claims.client_id.is_none() || claims.jti.is_none()) {
            return Err(Reason::ClaimMissing);
        }
        let ids = TokenIds::of(&issuer, &kid, &claims);
        Ok(Self { issuer, kid, claims, ids, learnt_at })
    }
}

impl TokenIds {
    fn of(issuer: &Issuer, kid: &str, claims: &Claims) -> Self {
        let name = issuer.name();
        let of_ancestor = |ancestor: &Ancestor| {
            let id = Id::of(IdKind::Token, ancestor.issuer.as_deref().unwrap_or(name), &ancestor.jti);
            (Bucket::of_expiry(ancestor.expires_at), id)
        };
        Self {
            bucket: Bucket::of_expiry(claims.expires_at),
            token: claims.jti.as_deref().map(|jti| Id::of(IdKind::Token, name, jti)),
            ancestors: claims.ancestors.iter().map(of_ancestor).collect(),
            session: lineage_ids(IdKind::Session, name, claims, claims.session.as_deref(), |ancestor| {
                ancestor.session.as_deref()
            }),
            subjects: subject_ids(name, claims),
            client: lineage_ids(IdKind::Client, name, claims, claims.client_id.as_deref(), |ancestor| {
                ancestor.client_id.as_deref()
            }),
            realm: issuer.realm().map(|realm| Id::of(IdKind::Realm, "", realm)),
            issuer: Id::of(IdKind::Issuer, "", name),
            key: (!kid.is_empty()).then(|| Id::of(IdKind::Key, name, kid)),
        }
    }
}

/// The token's own value and those of its ancestors, each within its issuer.
fn lineage_ids<'c>(
    kind: IdKind,
    issuer: &'c str,
    claims: &'c Claims,
    own: Option<&'c str>,
    of: impl Fn(&'c Ancestor) -> Option<&'c str>,
) -> Vec<Id> {
    let own = own.map(|value| (issuer, value));
    let inherited = claims
        .ancestors
        .iter()
        .filter_map(|ancestor| Some((ancestor.issuer.as_deref().unwrap_or(issuer), of(ancestor)?)));
    own.into_iter().chain(inherited).map(|(issuer, value)| Id::of(kind, issuer, value)).collect()
}

fn subject_ids(issuer: &str, claims: &Claims) -> Vec<Id> {
    let actors =
        claims.actors.iter().map(|actor| (actor.issuer.as_deref().unwrap_or(issuer), &*actor.subject));
    std::iter::once((issuer, &*claims.subject))
        .chain(actors)
        .map(|(issuer, subject)| Id::of(IdKind::Subject, issuer, subject))
        .collect()
}
