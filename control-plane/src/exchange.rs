//! Token exchange (RFC 8693): a token for another one, never worth more than it.
//!
//! What is issued names the same subject, is for no other targets and scopes, lives no longer, is bound to the same key, belongs
//! to the same session, and names the tokens that it was derived from, so that whatever ends one of them ends it.

use atm_core::claims::{Ancestor, Claims, MAX_ACTORS, MAX_ANCESTORS};
use atm_core::token::AuthenticToken;
use serde_json::{Map, Value};

use crate::issuance::{IssuanceError, Possession, narrowing};
use crate::registry::Client;

/// The token type identifier of an OAuth access token (RFC 8693 §3).
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// The token type identifier of a JWT (RFC 8693 §3).
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// Why an exchange is refused.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A parameter is wrong (`invalid_request`).
    #[error("{0}")]
    Request(&'static str),
    /// The client may not do it (`unauthorized_client`).
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The subject's token is bound, and the request does not prove to hold its key (`invalid_grant`).
    #[error("the subject token is bound to a key; prove in this request to hold it")]
    NotHeld,
    /// Beyond what the subject's token is worth.
    #[error(transparent)]
    Issuance(#[from] IssuanceError),
}

/// What an exchange asks for.
#[derive(Debug, Clone, Copy)]
pub struct Exchange<'a> {
    /// Who asks.
    pub client: &'a Client,
    /// On whose behalf: a token in force.
    pub subject: &'a AuthenticToken,
    /// Who acts: a token in force; none: the client takes the subject's place.
    pub actor: Option<&'a AuthenticToken>,
    /// Out of the subject's; none: all that both may have.
    pub scope: Option<&'a str>,
    /// Out of the subject's; none: the ones that both may have.
    pub audience: &'a [String],
    /// What the request has proved to hold.
    pub possession: &'a Possession,
}

/// What may be issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchanged {
    /// `sub`
    pub subject: String,
    /// `scope`
    pub scope: Option<String>,
    /// `aud`
    pub audience: Vec<String>,
    /// `cnf`
    pub possession: Possession,
    /// `act`
    pub actor: Option<Value>,
    /// The tokens that it is derived from, the nearest last.
    pub ancestors: Vec<Ancestor>,
    /// Its `exp` at most.
    pub latest_expiry: i64,
    /// `sid`
    pub session: Option<String>,
}

/// Decides an exchange.
pub fn exchange(request: Exchange<'_>) -> Result<Exchanged, ExchangeError> {
    let subject = &request.subject.claims;
    concerns(request.client, subject)?;
    let actor = actor(&request)?;
    let possession = kept_binding(subject, request.possession)?;
    let configuration = &request.client.configuration;
    let of_both: Vec<String> = subject.scope.clone();
    let registered = |scope: &str| configuration.scopes.iter().any(|own| own == scope);
    let scopes = narrowing::scopes(registered, &of_both, request.scope)?;
    let targets: Vec<String> =
        subject.audience.iter().filter(|target| configuration.audiences.contains(target)).cloned().collect();
    let audience = if request.audience.is_empty() && !targets.is_empty() {
        targets
    } else {
        narrowing::audience(&targets, request.audience)?
    };
    let (ancestors, latest_expiry) = ancestors(&request)?;
    Ok(Exchanged {
        subject: subject.subject.clone(),
        scope: narrowing::joined(&scopes),
        audience,
        possession,
        actor,
        ancestors,
        latest_expiry,
        session: subject.session.clone(),
    })
}

/// A client exchanges tokens that were issued to it, or that are meant for it: one of its targets is the client itself, or the
/// client is registered for a target of it. Others it has no business to hold.
fn concerns(client: &Client, subject: &Claims) -> Result<(), ExchangeError> {
    let own =
        |target: &String| *target == client.client_id || client.configuration.audiences.contains(target);
    if subject.client_id.as_ref() == Some(&client.client_id) || subject.audience.iter().any(own) {
        return Ok(());
    }
    Err(ExchangeError::Unauthorized("the subject token is neither the client's nor meant for it"))
}

/// The `act` claim: the current actor outermost, those before it inside (RFC 8693 §4.1).
fn actor(request: &Exchange<'_>) -> Result<Option<Value>, ExchangeError> {
    let subject = &request.subject.claims;
    let rules = request.client.configuration.exchange;
    let before = subject.raw.get("act");
    let Some(actor) = request.actor else {
        if !rules.impersonation {
            return Err(ExchangeError::Unauthorized(
                "the client may not impersonate (exchange.impersonation); give an actor_token",
            ));
        }
        if subject.raw.contains_key("may_act") {
            return Err(ExchangeError::Unauthorized(
                "the subject token names who may act; give an actor_token",
            ));
        }
        return Ok(before.cloned());
    };
    if !rules.delegation {
        return Err(ExchangeError::Unauthorized("the client may not act for others (exchange.delegation)"));
    }
    let actor = &actor.claims;
    let own_actor = actor.client_id.as_ref() == Some(&request.client.client_id)
        || actor.audience.contains(&request.client.client_id);
    if !own_actor {
        return Err(ExchangeError::Unauthorized("the actor token is neither the client's nor meant for it"));
    }
    if actor.confirmation.is_some() && kept_binding(actor, request.possession).is_err() {
        return Err(ExchangeError::NotHeld);
    }
    may_act(subject, actor)?;
    if subject.actors.len() >= MAX_ACTORS {
        return Err(ExchangeError::Request("the chain of actors would be longer than four"));
    }
    let mut act = Map::new();
    act.insert("sub".to_owned(), actor.subject.as_str().into());
    if let Some(client_id) = &actor.client_id {
        act.insert("client_id".to_owned(), client_id.as_str().into());
    }
    if let Some(before) = before {
        act.insert("act".to_owned(), before.clone());
    }
    Ok(Some(Value::Object(act)))
}

/// RFC 8693 §4.4: where the subject's token names who may act, nobody else may.
fn may_act(subject: &Claims, actor: &Claims) -> Result<(), ExchangeError> {
    let Some(named) = subject.raw.get("may_act") else { return Ok(()) };
    let refused = ExchangeError::Unauthorized("the subject token names another actor (may_act)");
    let Some(named) = named.as_object().filter(|named| !named.is_empty()) else { return Err(refused) };
    // Every claim that identifies the actor must be the actor's own.
    if named.iter().all(|(name, value)| actor.raw.get(name) == Some(value)) { Ok(()) } else { Err(refused) }
}

/// The sender constraint is kept, and only who meets it may exchange: a stolen token is no more worth here than elsewhere.
fn kept_binding(claims: &Claims, held: &Possession) -> Result<Possession, ExchangeError> {
    let Some(bound) = &claims.confirmation else { return Ok(held.clone()) };
    let meets = |bound: &Option<String>, held: &Option<String>| bound.is_none() || bound == held;
    if bound.unsupported || !meets(&bound.jkt, &held.jkt) || !meets(&bound.x5t_s256, &held.x5t_s256) {
        return Err(ExchangeError::NotHeld);
    }
    Ok(Possession { jkt: bound.jkt.clone(), x5t_s256: bound.x5t_s256.clone() })
}

/// Both tokens are parents. What ends one of them ends the new one, which lives no longer than either.
fn ancestors(request: &Exchange<'_>) -> Result<(Vec<Ancestor>, i64), ExchangeError> {
    let mut ancestors: Vec<Ancestor> = Vec::new();
    let mut latest_expiry = i64::MAX;
    for claims in [Some(request.subject), request.actor].into_iter().flatten().map(|token| &token.claims) {
        latest_expiry = latest_expiry.min(claims.expires_at);
        let own = claims.jti.clone().map(|jti| Ancestor {
            // The realm's own, as that of the token to be issued.
            issuer: None,
            session: claims.session.clone(),
            client_id: claims.client_id.clone(),
            jti,
            expires_at: claims.expires_at,
        });
        for ancestor in claims.ancestors.iter().cloned().chain(own) {
            if !ancestors.contains(&ancestor) {
                ancestors.push(ancestor);
            }
        }
    }
    if ancestors.len() > MAX_ANCESTORS {
        return Err(ExchangeError::Request("the token would be derived from more than eight others"));
    }
    Ok((ancestors, latest_expiry))
}

/// What a response says of the token (RFC 8693 §2.2.1).
pub fn issued_token_type(requested: Option<&str>, is_jwt: bool) -> Result<&'static str, ExchangeError> {
    match requested {
        None | Some(ACCESS_TOKEN) => Ok(ACCESS_TOKEN),
        Some(JWT) if is_jwt => Ok(JWT),
        Some(JWT) => Err(ExchangeError::Request("the client's access tokens are opaque, not JWTs")),
        Some(_) => Err(ExchangeError::Request("requested_token_type must be of an access token or a JWT")),
    }
}

#[cfg(test)]
mod tests;
