//! An access token's claims (RFC 7519 §4.1, RFC 9068 §2.2), typed strictly and judged against what a rule expects.

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::binding::Confirmation;
use crate::policy::MAX_CLOCK_SKEW_SECONDS;
use crate::reason::Reason;
use crate::time::UnixMillis;

/// Length of an identifying claim at most, in bytes.
pub const MAX_IDENTIFIER_BYTES: usize = 512;
/// Depth of a delegation chain at most (RFC 8693 §4.1).
pub const MAX_ACTORS: usize = 4;
/// Tokens that one may be derived from, one after the other.
pub const MAX_ANCESTORS: usize = 8;
/// Networks that a credential may be restricted to.
pub const MAX_NETWORKS: usize = 64;
/// The private claim with the tokens that this one was derived from: an array of `{"jti": text, "exp": seconds}`, with `iss`
/// where it is another issuer's, and with `sid` and `client_id` where they are others than this token's.
pub const ANCESTORS: &str = "atm_ancestors";
/// The private claim with the networks that a credential may be used from: an array of prefixes like `10.0.0.0/8`.
pub const NETWORKS: &str = "atm_networks";
/// The private claim with the millisecond of issuance, which `iat` in seconds cannot carry.
pub const ISSUED_AT_MS: &str = "atm_iat_ms";

/// The claims of a token whose signature was verified. Every field has the type that its specification says.
#[derive(Debug, Clone)]
pub struct Claims {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// `aud`, one or more.
    pub audience: Vec<String>,
    /// `client_id`; always there in tokens of our realms (RFC 9068 §2.2).
    pub client_id: Option<String>,
    /// `jti`; always there in tokens of our realms (RFC 9068 §2.2).
    pub jti: Option<String>,
    /// `sid`: the session (token family).
    pub session: Option<String>,
    /// `scope`, split at spaces (RFC 6749 §3.3); where there is none `scp`, a text or a list, as some identity providers write it.
    pub scope: Vec<String>,
    /// `exp`, in seconds since the Unix epoch.
    pub expires_at: i64,
    /// `nbf`, in seconds since the Unix epoch.
    pub not_before: Option<i64>,
    /// `iat` as the first millisecond it can mean, or [`ISSUED_AT_MS`] where the token has it.
    pub issued_at: UnixMillis,
    /// `cnf`: the token is bound to a key or certificate (RFC 7800).
    pub confirmation: Option<Confirmation>,
    /// The `act` chain, the current actor first (RFC 8693 §4.1).
    pub actors: Vec<Actor>,
    /// The tokens that this one was derived from ([`ANCESTORS`]), at most [`MAX_ANCESTORS`].
    pub ancestors: Vec<Ancestor>,
    /// The networks that the credential may be used from ([`NETWORKS`]); empty means any.
    pub networks: Vec<IpNet>,
    /// All claims, as signed.
    pub raw: Map<String, Value>,
}

/// One of those on whose behalf a delegated token is used (RFC 8693 §4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Its `iss`, where the token says one; the token's own issuer else.
    pub issuer: Option<String>,
    /// Its `sub`.
    pub subject: String,
}

/// A token that another one was derived from. Revoking it, its session or its client ends what was derived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// Its `iss`; that of the derived token where there is none.
    pub issuer: Option<String>,
    /// Its `sid`.
    pub session: Option<String>,
    /// Its `client_id`.
    pub client_id: Option<String>,
    /// Its `jti`.
    pub jti: String,
    /// Its `exp`, which names the bucket of its revocation.
    pub expires_at: i64,
}

/// What a rule expects of a token's claims.
#[derive(Debug, Clone, Copy)]
pub struct Expectations<'a> {
    /// Issuers that the rule accepts; empty means every trusted one.
    pub issuers: &'a [String],
    /// Audiences of which the token must name one. Empty accepts none.
    pub audiences: &'a [String],
    /// Difference between clocks that is forgiven, in seconds; taken as 0 to [`MAX_CLOCK_SKEW_SECONDS`].
    pub clock_skew: i64,
    /// Now.
    pub now: UnixMillis,
}

/// Claims that are in time, from an accepted issuer, and meant for us. Only [`Claims::validate`] makes one.
#[derive(Debug, Clone, Copy)]
pub struct ValidClaims<'a>(&'a Claims);

impl<'a> ValidClaims<'a> {
    /// The claims.
    pub fn claims(self) -> &'a Claims {
        self.0
    }
}

impl Claims {
    /// Types the claims of a verified token. A claim of the wrong type is refused, never taken as absent.
    pub fn from_object(raw: Map<String, Value>) -> Result<Self, Reason> {
        let issued_at = required_seconds(&raw, "iat")?;
        Ok(Self {
            issuer: required_identifier(&raw, "iss")?,
            subject: required_identifier(&raw, "sub")?,
            audience: audience(&raw)?,
            client_id: identifier(&raw, "client_id")?,
            jti: identifier(&raw, "jti")?,
            session: identifier(&raw, "sid")?,
            scope: scope(&raw)?,
            expires_at: required_seconds(&raw, "exp")?,
            not_before: seconds(&raw, "nbf")?,
            issued_at: issued_at_millis(&raw, issued_at)?,
            confirmation: confirmation(&raw)?,
            actors: actors(&raw)?,
            ancestors: ancestors(&raw)?,
            networks: networks(&raw)?,
            raw,
        })
    }

    /// Judges issuer, audience and times, in this order.
    pub fn validate(&self, expected: Expectations<'_>) -> Result<ValidClaims<'_>, Reason> {
        if !expected.issuers.is_empty() && !expected.issuers.contains(&self.issuer) {
            return Err(Reason::IssuerRefused);
        }
        if !self.audience.iter().any(|audience| expected.audiences.contains(audience)) {
            return Err(Reason::AudienceRefused);
        }
        let now = expected.now.seconds();
        let skew = expected.clock_skew.clamp(0, i64::from(MAX_CLOCK_SKEW_SECONDS));
        let (earliest, latest) = (now.saturating_sub(skew), now.saturating_add(skew));
        // RFC 7519 §4.1.4: on or after `exp` the token must not be accepted.
        if earliest >= self.expires_at {
            return Err(Reason::Expired);
        }
        if self.not_before.is_some_and(|not_before| latest < not_before) {
            return Err(Reason::NotYetValid);
        }
        if self.issued_at.seconds() > latest {
            return Err(Reason::IssuedInFuture);
        }
        Ok(ValidClaims(self))
    }
}

fn identifier(raw: &Map<String, Value>, name: &str) -> Result<Option<String>, Reason> {
    match raw.get(name) {
        None => Ok(None),
        Some(Value::String(value)) if is_identifier(value) => Ok(Some(value.clone())),
        Some(_) => Err(Reason::ClaimMalformed),
    }
}

fn required_identifier(raw: &Map<String, Value>, name: &str) -> Result<String, Reason> {
    identifier(raw, name)?.ok_or(Reason::ClaimMissing)
}

fn is_identifier(value: &str) -> bool {
    !value.is_empty() && value.len() <= MAX_IDENTIFIER_BYTES && !value.chars().any(char::is_control)
}

/// Whole seconds. RFC 7519 allows fractions, nobody issues them, and a string or a fraction read as absent has been a
/// hole in peers, so anything but an integer is refused.
fn seconds(raw: &Map<String, Value>, name: &str) -> Result<Option<i64>, Reason> {
    raw.get(name)
        .map(|value| value.as_i64().filter(|seconds| *seconds >= 0).ok_or(Reason::ClaimMalformed))
        .transpose()
}

fn required_seconds(raw: &Map<String, Value>, name: &str) -> Result<i64, Reason> {
    seconds(raw, name)?.ok_or(Reason::ClaimMissing)
}

fn issued_at_millis(raw: &Map<String, Value>, issued_at: i64) -> Result<UnixMillis, Reason> {
    match seconds(raw, ISSUED_AT_MS)?.map(UnixMillis) {
        None => Ok(UnixMillis::from_seconds(issued_at)),
        Some(millis) if millis.seconds() == issued_at => Ok(millis),
        Some(_) => Err(Reason::ClaimMalformed),
    }
}

fn audience(raw: &Map<String, Value>) -> Result<Vec<String>, Reason> {
    let entry = |value: &Value| match value {
        Value::String(audience) if is_identifier(audience) => Ok(audience.clone()),
        _ => Err(Reason::ClaimMalformed),
    };
    match raw.get("aud") {
        None => Err(Reason::ClaimMissing),
        Some(Value::Array(entries)) if entries.is_empty() => Err(Reason::ClaimMissing),
        Some(Value::Array(entries)) => entries.iter().map(entry).collect(),
        Some(value) => Ok(vec![entry(value)?]),
    }
}

fn scope(raw: &Map<String, Value>) -> Result<Vec<String>, Reason> {
    let split = |text: &str| text.split(' ').filter(|entry| !entry.is_empty()).map(str::to_owned).collect();
    match raw.get("scope").or_else(|| raw.get("scp").filter(|scopes| scopes.is_string())) {
        Some(Value::String(scope)) if scope.bytes().all(is_scope_byte) => return Ok(split(scope)),
        Some(_) => return Err(Reason::ClaimMalformed),
        None => {}
    }
    let entry = |value: &Value| match value {
        Value::String(scope)
            if !scope.is_empty() && scope.bytes().all(|byte| byte != b' ' && is_scope_byte(byte)) =>
        {
            Ok(scope.clone())
        }
        _ => Err(Reason::ClaimMalformed),
    };
    match raw.get("scp") {
        None => Ok(Vec::new()),
        Some(Value::Array(scopes)) => scopes.iter().map(entry).collect(),
        Some(_) => Err(Reason::ClaimMalformed),
    }
}

/// A scope-token's characters (RFC 6749 §3.3), and the space between two.
fn is_scope_byte(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

fn confirmation(raw: &Map<String, Value>) -> Result<Option<Confirmation>, Reason> {
    raw.get("cnf")
        .map(|value| Confirmation::from_value(value).map_err(|_| Reason::ClaimMalformed))
        .transpose()
}

fn bounded_array<'r>(raw: &'r Map<String, Value>, name: &str, bound: usize) -> Result<&'r [Value], Reason> {
    match raw.get(name) {
        None => Ok(&[]),
        Some(Value::Array(entries)) if entries.len() <= bound => Ok(entries),
        Some(_) => Err(Reason::ClaimMalformed),
    }
}

fn ancestors(raw: &Map<String, Value>) -> Result<Vec<Ancestor>, Reason> {
    let ancestor = |value: &Value| {
        let object = value.as_object().ok_or(Reason::ClaimMalformed)?;
        let jti = identifier(object, "jti")?.ok_or(Reason::ClaimMalformed)?;
        let expires_at = seconds(object, "exp")?.ok_or(Reason::ClaimMalformed)?;
        let (issuer, session) = (identifier(object, "iss")?, identifier(object, "sid")?);
        Ok(Ancestor { issuer, session, client_id: identifier(object, "client_id")?, jti, expires_at })
    };
    bounded_array(raw, ANCESTORS, MAX_ANCESTORS)?.iter().map(ancestor).collect()
}

fn networks(raw: &Map<String, Value>) -> Result<Vec<IpNet>, Reason> {
    let network =
        |value: &Value| value.as_str().and_then(|text| text.parse().ok()).ok_or(Reason::ClaimMalformed);
    match bounded_array(raw, NETWORKS, MAX_NETWORKS)? {
        // An empty list would allow no network, or every one: nobody issues it.
        [] if raw.contains_key(NETWORKS) => Err(Reason::ClaimMalformed),
        entries => entries.iter().map(network).collect(),
    }
}

fn actors(raw: &Map<String, Value>) -> Result<Vec<Actor>, Reason> {
    let mut actors = Vec::new();
    let mut level = raw;
    while let Some(actor) = level.get("act") {
        let Value::Object(actor) = actor else { return Err(Reason::ClaimMalformed) };
        if actors.len() == MAX_ACTORS {
            return Err(Reason::ClaimMalformed);
        }
        let subject = identifier(actor, "sub")?.ok_or(Reason::ClaimMalformed)?;
        actors.push(Actor { issuer: identifier(actor, "iss")?, subject });
        level = actor;
    }
    Ok(actors)
}

#[cfg(test)]
mod tests;
