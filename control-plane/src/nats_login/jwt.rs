//! The JWTs of NATS's auth callout (ADR-26): a server's question, and the answer with a user's JWT in it.

use atm_core::{base64url, json};
use nkeys::KeyPair;
use serde_json::{Map, Value, json};

use super::Refusal;
use crate::secret;

/// Bytes of a text of the client's that is kept.
const MAX_TEXT: usize = 256;
/// Subscriptions of one sidecar at most; it has four, and one for each batch that it reads.
const MAX_SUBSCRIPTIONS: u32 = 64;

/// What a server asks.
#[derive(Debug)]
pub(super) struct Request {
    /// The server's public key.
    server: String,
    /// The key that the server made for this connection; the answer holds for it alone.
    user: String,
    /// What the client showed.
    pub(super) token: Option<String>,
    /// What the client calls itself.
    pub(super) name: String,
    /// Where it comes from.
    pub(super) address: String,
}

/// What is granted.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) account: String,
    pub(super) name: String,
    /// Seconds since the Unix epoch.
    pub(super) expires_at: i64,
    pub(super) publish: Vec<String>,
    pub(super) subscribe: Vec<String>,
}

impl Request {
    /// Reads a question and checks that the server that it names has signed it.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (signed, signature) = text.rsplit_once('.')?;
        let claims = json::parse_object(&base64url::decode(signed.split_once('.')?.1).ok()?).ok()?;
        let server = string(&claims, "iss").filter(|key| key.starts_with('N'))?.to_owned();
        KeyPair::from_public_key(&server)
            .ok()?
            .verify(signed.as_bytes(), &base64url::decode(signature).ok()?)
            .ok()?;
        let nats = claims.get("nats")?.as_object()?;
        if string(nats, "type") != Some("authorization_request")
            || string(nats.get("server_id")?.as_object()?, "id") != Some(&server)
        {
            return None;
        }
        let user = string(nats, "user_nkey").filter(|key| key.starts_with('U'))?.to_owned();
        KeyPair::from_public_key(&user).ok()?;
        let shown = |section: &str, name: &str| string(nats.get(section)?.as_object()?, name);
        let short = |text: Option<&str>| text.unwrap_or_default().chars().take(MAX_TEXT).collect();
        Some(Self {
            token: shown("connect_opts", "auth_token").filter(|token| !token.is_empty()).map(str::to_owned),
            name: short(shown("connect_opts", "name")),
            address: short(shown("client_info", "host")),
            server,
            user,
        })
    }

    /// The answer, signed by the account key `signer`. `now` is in seconds since the Unix epoch.
    pub(super) fn answer(
        &self,
        signer: &KeyPair,
        granted: Result<Grant, Refusal>,
        now: i64,
    ) -> Result<String, AnswerError> {
        let mut nats = json!({ "type": "authorization_response", "version": 2 });
        match granted {
            Ok(grant) => nats["jwt"] = self.user_jwt(signer, &grant, now)?.into(),
            Err(refusal) => nats["error"] = refusal.to_string().into(),
        }
        let claims = json!({ "aud": self.server, "sub": self.user, "nats": nats });
        signed(signer, claims, now)
    }

    fn user_jwt(&self, signer: &KeyPair, grant: &Grant, now: i64) -> Result<String, AnswerError> {
        let claims = json!({
            "sub": self.user,
            "aud": grant.account,
            "name": grant.name,
            "exp": grant.expires_at,
            "nats": {
                "type": "user",
                "version": 2,
                "pub": { "allow": grant.publish },
                "sub": { "allow": grant.subscribe },
                "subs": MAX_SUBSCRIPTIONS,
                "data": -1,
                "payload": -1,
            },
        });
        signed(signer, claims, now)
    }
}

/// Why an answer cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error(transparent)]
    Key(#[from] nkeys::error::Error),
    #[error(transparent)]
    Randomness(#[from] secret::SecretError),
}

fn signed(signer: &KeyPair, mut claims: Value, now: i64) -> Result<String, AnswerError> {
    claims["iss"] = signer.public_key().into();
    claims["iat"] = now.into();
    claims["jti"] = secret::random_id()?.into();
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let encode = |value: &Value| base64url::encode(value.to_string().as_bytes());
    let input = format!("{}.{}", encode(&header), encode(&claims));
    let signature = signer.sign(input.as_bytes())?;
    Ok(format!("{input}.{}", base64url::encode(&signature)))
}

fn string<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}
