//! Assertions by which a client authenticates (RFC 7523 §2.2, §3; OpenID Connect Core §9 `private_key_jwt`).

use atm_core::jws::UnverifiedToken;
use atm_core::key::{Algorithm, Issuer, Issuers, KeyState, NO_TOKEN_TYPE, VerificationKey};
use atm_core::time::UnixMillis;
use atm_core::token::KeyedToken;
use serde_json::{Map, Value};

use crate::secret::sha256;

/// `client_assertion_type` of a JWT (RFC 7523 §2.2).
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Seconds that an assertion may live at most: so long its `jti` is remembered.
pub const MAX_LIFETIME_SECONDS: i64 = 3_600;
/// Difference between clocks that is forgiven, in seconds.
pub const CLOCK_SKEW_SECONDS: i64 = 60;
/// Bytes of a `jti`.
const MAX_JTI: usize = 256;
/// `typ` values of assertions; most have `JWT` or none.
const TYPES: [&str; 3] = ["JWT", "client-authentication+jwt", NO_TOKEN_TYPE];

/// Why an assertion is not taken. Holds nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AssertionError {
    /// No compact JWS, or one that no key of the client verifies.
    #[error("the assertion is not signed by a key of the client")]
    Signature,
    /// `iss` or `sub` is not the client (RFC 7523 §3 items 1 and 2).
    #[error("the assertion's iss and sub must both be the client's id")]
    Identity,
    /// `aud` is not the issuer and nothing else.
    #[error("the assertion's aud must be the issuer and nothing else")]
    Audience,
    /// `exp` is missing, past or too far off; or `nbf` or `iat` lies in the future (RFC 7523 §3 items 4 to 6).
    #[error("the assertion must be in time, and its exp at most an hour off")]
    Time,
    /// `jti` is missing, empty or too long.
    #[error("the assertion must have a jti of 1 to 256 bytes")]
    Id,
}

/// An assertion that fits. It counts only once nobody has used it before: see [`Self::replay_id`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    /// What it is remembered by.
    pub replay_id: [u8; 32],
    /// Until when: afterwards it is too old by itself.
    pub expires_at: UnixMillis,
    /// All claims, as signed.
    pub claims: Map<String, Value>,
}

/// The client that an assertion says it is of, to find its keys by: its `sub`, which must be its `iss`.
pub fn claimed_client(assertion: &str) -> Option<String> {
    UnverifiedToken::parse(assertion).ok()?.issuer().ok().map(ToOwned::to_owned)
}

/// The id of the key that an assertion says it is signed by.
pub fn key_id(assertion: &str) -> Option<String> {
    UnverifiedToken::parse(assertion).ok()?.header().kid.clone()
}

/// The keys of `jwks` that can verify. A key without a `kid` gets one by its place, which no header names.
pub fn keys(jwks: &Value) -> Vec<VerificationKey> {
    let entries = jwks.get("keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    entries.iter().enumerate().flat_map(|(at, jwk)| keys_of(at, jwk)).collect()
}

/// One key for each algorithm that the JWK may be used with: RFC 7517 §4.4 leaves `alg` optional, and an RSA key fits six.
fn keys_of(at: usize, jwk: &Value) -> Vec<VerificationKey> {
    let Ok(public) = atm_core::jwk::spki_from_jwk(jwk) else { return Vec::new() };
    let kid = public.kid.unwrap_or_else(|| format!("unnamed.{at}"));
    let rsa = [
        Algorithm::RS256,
        Algorithm::PS256,
        Algorithm::RS384,
        Algorithm::PS384,
        Algorithm::RS512,
        Algorithm::PS512,
    ];
    let algorithms: Vec<Algorithm> = if jwk.get("alg").is_none() && rsa.contains(&public.algorithm) {
        rsa.to_vec()
    } else {
        vec![public.algorithm]
    };
    algorithms
        .into_iter()
        .filter_map(|alg| VerificationKey::from_spki(&kid, alg, &public.spki, KeyState::Active).ok())
        .collect()
}

/// Judges the assertion of `client_id`, which has `keys`, as one for `issuer`.
pub fn verify(
    assertion: &str,
    client_id: &str,
    keys: &[VerificationKey],
    issuer: &str,
    now: UnixMillis,
) -> Result<Assertion, AssertionError> {
    let claims = signed_claims(assertion, client_id, keys, &TYPES).ok_or(AssertionError::Signature)?;
    let is = |name: &str| claims.get(name).and_then(Value::as_str) == Some(client_id);
    if !is("iss") || !is("sub") {
        return Err(AssertionError::Identity);
    }
    check_audience(&claims, issuer)?;
    let expires_at = check_times(&claims, now, MAX_LIFETIME_SECONDS)?;
    let replay_id = replay_id(client_id, issuer, &claims)?;
    Ok(Assertion { replay_id, expires_at: remembered_until(expires_at), claims })
}

/// The claims, if one of `keys` signed them. A header without `kid` is tried against each key of its algorithm.
pub(crate) fn signed_claims(
    assertion: &str,
    issuer: &str,
    keys: &[VerificationKey],
    types: &[&str],
) -> Option<Map<String, Value>> {
    let token = UnverifiedToken::parse(assertion).ok()?;
    let header = token.header();
    let fits = |key: &&VerificationKey| {
        key.algorithm() == header.algorithm && header.kid.as_deref().is_none_or(|kid| kid == key.kid())
    };
    let candidates: Vec<VerificationKey> = keys.iter().filter(fits).cloned().collect();
    candidates.into_iter().find_map(|key| {
        let mut issuers = Issuers::default();
        let types = types.iter().map(|typ| (*typ).to_owned()).collect();
        issuers.set(Issuer::new(issuer, None, vec![key]).with_token_types(types));
        KeyedToken::select(UnverifiedToken::parse(assertion).ok()?, &issuers).ok()?.verify_untyped().ok()
    })
}

/// RFC 7523 §3 item 3, narrowed: a list that names others beside us could be replayed by one of them.
pub(crate) fn check_audience(claims: &Map<String, Value>, issuer: &str) -> Result<(), AssertionError> {
    match claims.get("aud") {
        Some(Value::String(audience)) if audience == issuer => Ok(()),
        Some(Value::Array(audiences)) if audiences.len() == 1 && audiences[0] == issuer => Ok(()),
        _ => Err(AssertionError::Audience),
    }
}

/// `exp` in seconds. A time that is there in another type than a number is refused, never taken as absent.
pub(crate) fn check_times(
    claims: &Map<String, Value>,
    now: UnixMillis,
    max_lifetime: i64,
) -> Result<i64, AssertionError> {
    let time = |name: &str| match claims.get(name) {
        None => Ok(None),
        // Whole seconds; a fraction (RFC 7519 §2 allows one) is rounded down.
        Some(value) => match value.as_f64() {
            #[expect(clippy::cast_possible_truncation, reason = "checked to be within ±2^53")]
            Some(seconds) if seconds.abs() < 9_007_199_254_740_992.0 => Ok(Some(seconds.floor() as i64)),
            _ => Err(AssertionError::Time),
        },
    };
    let now = now.seconds();
    let expires_at = time("exp")?.ok_or(AssertionError::Time)?;
    let in_future = |instant: Option<i64>| instant.is_some_and(|instant| instant > now + CLOCK_SKEW_SECONDS);
    let is_over = expires_at + CLOCK_SKEW_SECONDS <= now;
    let is_too_far = expires_at > now + max_lifetime + CLOCK_SKEW_SECONDS;
    if is_over || is_too_far || in_future(time("nbf")?) || in_future(time("iat")?) {
        return Err(AssertionError::Time);
    }
    Ok(expires_at)
}

/// What the assertion of `issuer` for `audience`, one of our issuers, is remembered by.
pub(crate) fn replay_id(
    issuer: &str,
    audience: &str,
    claims: &Map<String, Value>,
) -> Result<[u8; 32], AssertionError> {
    let jti = claims.get("jti").and_then(Value::as_str).filter(|jti| !jti.is_empty() && jti.len() <= MAX_JTI);
    let jti = jti.ok_or(AssertionError::Id)?;
    // The lengths keep ("ab", "c") and ("a", "bc") apart.
    let text = format!("assertion\n{}\n{}\n{issuer}\n{audience}\n{jti}", issuer.len(), audience.len());
    Ok(sha256(text.as_bytes()))
}

/// To the end of the last second in which it would be taken.
pub(crate) fn remembered_until(expires_at: i64) -> UnixMillis {
    UnixMillis::from_seconds(expires_at + CLOCK_SKEW_SECONDS + 1)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::*;

    const ISSUER: &str = "https://id.example.com";
    const NOW: i64 = 1_763_942_400;

    struct Signing {
        pair: EcdsaKeyPair,
        jwks: Value,
    }

    impl Signing {
        fn new() -> Self {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            let spki = pair.public_key().as_der().unwrap().as_ref().to_vec();
            let jwk = atm_core::jwk::jwk_from_spki("k1", Algorithm::ES256, &spki).unwrap();
            Self { pair, jwks: json!({"keys": [jwk]}) }
        }

        /// A good assertion with changes; null removes a claim.
        fn assertion(&self, header: &Value, changes: &Value) -> String {
            let mut claims = json!({
                "iss": "c", "sub": "c", "aud": ISSUER, "exp": NOW + 60, "iat": NOW, "jti": "one",
            });
            for (name, value) in changes.as_object().unwrap() {
                match value {
                    Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                    value => claims[name] = value.clone(),
                }
            }
            let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let input = format!("{}.{}", encode(header), encode(&claims));
            let signature = self.pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
            format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
        }

        fn verify(&self, assertion: &str) -> Result<Assertion, AssertionError> {
            verify(assertion, "c", &keys(&self.jwks), ISSUER, UnixMillis::from_seconds(NOW))
        }

        fn judged(&self, changes: &Value) -> Result<Assertion, AssertionError> {
            self.verify(&self.assertion(&json!({"alg": "ES256", "kid": "k1"}), changes))
        }
    }

    #[test]
    fn a_good_assertion_is_taken_and_remembered_until_it_is_too_old() {
        let signing = Signing::new();
        let taken = signing.judged(&json!({})).unwrap();
        assert_eq!(taken.expires_at, UnixMillis::from_seconds(NOW + 60 + CLOCK_SKEW_SECONDS + 1));
        assert_eq!(taken.replay_id, signing.judged(&json!({"exp": NOW + 90})).unwrap().replay_id);
        assert_ne!(taken.replay_id, signing.judged(&json!({"jti": "two"})).unwrap().replay_id);
        assert!(signing.judged(&json!({"aud": [ISSUER], "iat": null})).is_ok());
        for typ in ["JWT", "client-authentication+jwt"] {
            let header = json!({"alg": "ES256", "typ": typ});
            assert!(signing.verify(&signing.assertion(&header, &json!({}))).is_ok(), "{typ}");
        }
    }

    /// RFC 7523 §3, item by item.
    #[test]
    fn each_must_of_rfc_7523_is_one_refusal() {
        let signing = Signing::new();
        for (changes, expected) in [
            // Keys are looked for by iss, so another's are none of the client's.
            (json!({"iss": "another"}), AssertionError::Signature),
            (json!({"sub": "another"}), AssertionError::Identity),
            (json!({"sub": null}), AssertionError::Identity),
            (json!({"aud": null}), AssertionError::Audience),
            (json!({"aud": "https://id.example.com/oauth2/token"}), AssertionError::Audience),
            (json!({"aud": [ISSUER, "https://another.example"]}), AssertionError::Audience),
            (json!({"aud": []}), AssertionError::Audience),
            (json!({"exp": null}), AssertionError::Time),
            (json!({"exp": (NOW + 60).to_string()}), AssertionError::Time),
            (json!({"exp": NOW - CLOCK_SKEW_SECONDS}), AssertionError::Time),
            (json!({"exp": NOW + MAX_LIFETIME_SECONDS + CLOCK_SKEW_SECONDS + 1}), AssertionError::Time),
            (json!({"nbf": NOW + CLOCK_SKEW_SECONDS + 1}), AssertionError::Time),
            (json!({"nbf": "soon"}), AssertionError::Time),
            (json!({"iat": NOW + CLOCK_SKEW_SECONDS + 1}), AssertionError::Time),
            (json!({"jti": null}), AssertionError::Id),
            (json!({"jti": ""}), AssertionError::Id),
            (json!({"jti": "x".repeat(MAX_JTI + 1)}), AssertionError::Id),
        ] {
            assert_eq!(signing.judged(&changes), Err(expected), "{changes}");
        }
    }

    #[test]
    fn only_a_key_of_the_client_signs_for_it() {
        let (signing, another) = (Signing::new(), Signing::new());
        let good = json!({"alg": "ES256", "kid": "k1"});
        assert_eq!(signing.verify(&another.assertion(&good, &json!({}))), Err(AssertionError::Signature));
        for header in [
            json!({"alg": "ES256", "kid": "k2"}),
            json!({"alg": "none"}),
            json!({"alg": "HS256"}),
            json!({"alg": "ES256", "typ": "at+jwt"}),
            json!({"alg": "ES256", "jwk": signing.jwks["keys"][0]}),
        ] {
            let assertion = signing.assertion(&header, &json!({}));
            assert_eq!(signing.verify(&assertion), Err(AssertionError::Signature), "{header}");
        }
        for broken in ["", "a.b.c", "x"] {
            assert_eq!(signing.verify(broken), Err(AssertionError::Signature));
        }
        assert!(keys(&json!({"keys": [{"kty": "oct", "k": "AQ"}]})).is_empty());
    }
}
