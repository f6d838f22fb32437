//! Compact JWS access tokens, parsed strictly (RFC 7515, RFC 7519, RFC 8725, RFC 9068 §4). Nothing here is verified yet.

use serde_json::{Map, Value};

use crate::base64url;
use crate::json;
use crate::key::{Algorithm, is_kid};
use crate::reason::Reason;

/// Length of a token at most, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Length of the decoded header at most, in bytes.
pub const MAX_HEADER_BYTES: usize = 4 * 1024;

/// Header parameters that bring or fetch a key: honouring one lets the sender choose who verifies it (RFC 8725 §3.10).
const EMBEDDED_KEYS: [&str; 4] = ["jwk", "jku", "x5u", "x5c"];
/// Header parameters of extensions that are not understood here, critical or not: `b64` (RFC 7797) changes what is signed,
/// `zip` and `enc` belong to JWE (RFC 7516).
const REFUSED_EXTENSIONS: [&str; 4] = ["crit", "b64", "zip", "enc"];

/// What of a token's header matters after it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The algorithm that the token claims; it counts only if the key is pinned to the same.
    pub algorithm: Algorithm,
    /// The key that the token names.
    pub kid: Option<String>,
    /// What the token says it is (RFC 7515 §4.1.9); which types are taken is up to its issuer.
    pub typ: Option<String>,
}

/// A well-formed token about which nothing is proved.
#[derive(Debug)]
pub struct UnverifiedToken<'a> {
    signing_input: &'a str,
    header: Header,
    claims: Map<String, Value>,
    signature: Vec<u8>,
}

impl<'a> UnverifiedToken<'a> {
    /// Reads a token in compact serialisation. Refused, each with its reason: other serialisations and JWE, sizes over
    /// [`MAX_TOKEN_BYTES`] and [`MAX_HEADER_BYTES`], base64url that is not canonical, JSON that [`json::parse_object`]
    /// refuses, algorithms that are not accepted, embedded keys, critical extensions, a `typ` that is no text. Which types
    /// are taken depends on the issuer: [`crate::token::KeyedToken::select`] says.
    pub fn parse(token: &'a str) -> Result<Self, Reason> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Reason::TokenTooLarge);
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(Reason::TokenMalformed)?;
        let (header, payload) = signing_input.split_once('.').ok_or(Reason::TokenMalformed)?;
        if payload.contains('.') {
            return Err(Reason::TokenMalformed); // five parts are a JWE, other counts are nothing
        }
        let header = parse_header(header)?;
        let payload = base64url::decode(payload).map_err(|_| Reason::TokenMalformed)?;
        let claims = json::parse_object(&payload).map_err(|_| Reason::TokenMalformed)?;
        let signature = base64url::decode(signature).map_err(|_| Reason::TokenMalformed)?;
        if signature.is_empty() {
            return Err(Reason::SignatureInvalid);
        }
        Ok(Self { signing_input, header, claims, signature })
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The issuer that the token claims, to find its keys by.
    pub fn issuer(&self) -> Result<&str, Reason> {
        match self.claims.get("iss") {
            None => Err(Reason::ClaimMissing),
            Some(Value::String(issuer)) => Ok(issuer),
            Some(_) => Err(Reason::ClaimMalformed),
        }
    }

    /// The bytes that are signed (RFC 7515 §5.2 step 8).
    pub(crate) fn signing_input(&self) -> &'a [u8] {
        self.signing_input.as_bytes()
    }

    pub(crate) fn signature(&self) -> &[u8] {
        &self.signature
    }

    pub(crate) fn into_claims(self) -> Map<String, Value> {
        self.claims
    }
}

fn parse_header(encoded: &str) -> Result<Header, Reason> {
    let bytes = base64url::decode(encoded).map_err(|_| Reason::TokenMalformed)?;
    if bytes.len() > MAX_HEADER_BYTES {
        return Err(Reason::TokenTooLarge);
    }
    let header = json::parse_object(&bytes).map_err(|_| Reason::TokenMalformed)?;
    let Some(Value::String(algorithm)) = header.get("alg") else {
        return Err(Reason::AlgorithmRefused);
    };
    let algorithm = algorithm.parse().map_err(|_| Reason::AlgorithmRefused)?;
    if EMBEDDED_KEYS.iter().any(|name| header.contains_key(*name)) {
        return Err(Reason::EmbeddedKeyRefused);
    }
    if REFUSED_EXTENSIONS.iter().any(|name| header.contains_key(*name)) {
        return Err(Reason::CriticalHeaderRefused);
    }
    let typ = match header.get("typ") {
        None => None,
        Some(Value::String(typ)) => Some(typ.clone()),
        Some(_) => return Err(Reason::TokenTypeRefused),
    };
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) if is_kid(kid) => Some(kid.clone()),
        Some(_) => return Err(Reason::TokenMalformed),
    };
    Ok(Header { algorithm, kid, typ })
}
