//! Makes what a test's request carries: tokens, proofs and certificates, with keys that exist for the run.

use anyhow::{Context, Result, anyhow, bail};
use atm_core::base64url;
use atm_core::binding::ClientCertificate;
use atm_core::decision::AuthenticToken;
use atm_core::id::{Id, IdKind};
use atm_core::jwk;
use atm_core::key::{Algorithm, Issuer, KeyState, VerificationKey};
use atm_core::opaque::{self, OpaqueKind};
use atm_core::policy::CredentialKind;
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_core::view::View;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rcgen::{CertificateParams, DnType, SanType};
use serde_json::{Map, Value, json};

use super::judge::{AskedCertificate, AskedToken, Revoked, TokenState};
use super::memory::TableMemory;

/// The issuer of tokens that name none.
const ISSUER: &str = "https://issuer.example";
/// The realm whose issuer is the first one.
const REALM: &str = "default";
const KID: &str = "test";
/// Seconds that a token lives where nothing else is said.
const LIFETIME: i64 = 300;

/// Keys of the run.
pub(super) struct Mint {
    tokens: Key,
    proofs: Key,
    others: Key,
    count: u64,
}

/// A credential as it is sent.
pub(super) struct Minted {
    pub(super) text: String,
    pub(super) claims: Map<String, Value>,
}

/// A certificate as Envoy tells of it.
#[derive(Clone)]
pub(super) struct Certificate {
    pub(super) pem: String,
    pub(super) thumbprint: String,
}

struct Key(EcdsaKeyPair);

impl Mint {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { tokens: Key::new()?, proofs: Key::new()?, others: Key::new()?, count: 0 })
    }

    /// Makes a credential; its issuer is trusted in `view`, and what an opaque one stands for is known to `memory`.
    pub(super) fn token(
        &mut self,
        asked: &AskedToken,
        now: UnixMillis,
        certificate: &str,
        view: &mut View,
        memory: &mut TableMemory,
    ) -> Result<Minted> {
        self.count += 1;
        let claims = self.claims(asked, now, certificate)?;
        let issuer = claims.get("iss").and_then(Value::as_str);
        if let Some(name) = issuer {
            // Opaque credentials are our own realms' only.
            let is_ours = name == ISSUER || asked.kind != CredentialKind::Jwt;
            let realm = is_ours.then(|| REALM.to_owned());
            view.issuers.set(Issuer::new(name, realm, vec![self.tokens.verification()?]));
        }
        let kind = match asked.kind {
            CredentialKind::Jwt => {
                let signer = if asked.state == TokenState::Forged { &self.others } else { &self.tokens };
                let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": KID});
                let text = signer.sign(&header, &Value::Object(claims.clone()))?;
                return Ok(Minted { text, claims });
            }
            CredentialKind::Opaque => OpaqueKind::AccessToken,
            CredentialKind::ApiKey => OpaqueKind::ApiKey,
        };
        let head = format!("{}{:0width$}", kind.prefix(), self.count, width = opaque::BODY_LENGTH);
        let text = format!("{head}{}", opaque::checksum(&head));
        if asked.state == TokenState::Good {
            let token =
                AuthenticToken::introspected(claims.clone(), &view.issuers, now).map_err(|reason| {
                    anyhow!("token: the control plane would not vouch for it: {}", reason.description())
                })?;
            memory.know(opaque::digest(&text), token);
        }
        Ok(Minted { text, claims })
    }

    /// Sensible claims, under those that are asked for; null takes one away.
    fn claims(&self, asked: &AskedToken, now: UnixMillis, certificate: &str) -> Result<Map<String, Value>> {
        let now = now.seconds();
        let base = json!({
            "iss": ISSUER, "sub": "test", "client_id": "test", "jti": format!("test-{}", self.count),
            "iat": now - 1, "exp": now + LIFETIME,
        });
        let Value::Object(mut claims) = base else { bail!("the default claims are no object") };
        let mut confirmation = Map::new();
        if asked.to_key {
            confirmation.insert("jkt".to_owned(), self.proofs.thumbprint()?.into());
        }
        if asked.to_certificate {
            confirmation.insert("x5t#S256".to_owned(), certificate.into());
        }
        if !confirmation.is_empty() {
            claims.insert("cnf".to_owned(), confirmation.into());
        }
        for (name, value) in asked.claims.clone() {
            if value.is_null() {
                claims.remove(&name);
            } else {
                claims.insert(name, value);
            }
        }
        Ok(claims)
    }

    /// A DPoP proof with these claims, by the key that tokens are bound to or by another one.
    pub(super) fn proof(&self, claims: &Value, other_key: bool) -> Result<String> {
        let key = if other_key { &self.others } else { &self.proofs };
        key.sign(&json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": key.jwk()?}), claims)
    }
}

impl Key {
    fn new() -> Result<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Ok(Self(pair.map_err(|_| anyhow!("the cryptographic library failed"))?))
    }

    fn spki(&self) -> Result<Vec<u8>> {
        let der: PublicKeyX509Der<'_> =
            self.0.public_key().as_der().map_err(|_| anyhow!("the cryptographic library failed"))?;
        Ok(der.as_ref().to_vec())
    }

    fn verification(&self) -> Result<VerificationKey> {
        Ok(VerificationKey::from_spki(KID, Algorithm::ES256, &self.spki()?, KeyState::Active)?)
    }

    /// The public key without anything that is not part of it.
    fn jwk(&self) -> Result<Value> {
        let full = jwk::jwk_from_spki(KID, Algorithm::ES256, &self.spki()?).context("the key has no JWK")?;
        Ok(json!({"kty": full["kty"], "crv": full["crv"], "x": full["x"], "y": full["y"]}))
    }

    fn thumbprint(&self) -> Result<String> {
        jwk::thumbprint(&self.jwk()?).context("the key has no thumbprint")
    }

    fn sign(&self, header: &Value, claims: &Value) -> Result<String> {
        let encode = |value: &Value| base64url::encode(value.to_string().as_bytes());
        let input = format!("{}.{}", encode(header), encode(claims));
        let signature = self.0.sign(&SystemRandom::new(), input.as_bytes());
        let signature = signature.map_err(|_| anyhow!("the cryptographic library failed"))?;
        Ok(format!("{input}.{}", base64url::encode(signature.as_ref())))
    }
}

/// The base64url of SHA-256 over a token (`ath`, RFC 9449 §4.2).
pub(super) fn hash(token: &str) -> String {
    base64url::encode(digest(&SHA256, token.as_bytes()).as_ref())
}

/// A client certificate with these names.
pub(super) fn certificate(asked: &AskedCertificate) -> Result<Certificate> {
    let mut params =
        CertificateParams::new(asked.dns.clone()).context("certificate: `dns` has a name that is none")?;
    let name = asked.common_name.as_deref().unwrap_or("client");
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    for uri in &asked.uris {
        let uri = rcgen::string::Ia5String::try_from(uri.as_str())
            .with_context(|| format!("certificate: `{uri}` is no URI"))?;
        params.subject_alt_names.push(SanType::URI(uri));
    }
    let key = rcgen::KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    let thumbprint = ClientCertificate::from_url_encoded_pem(&pem)?.thumbprint().to_owned();
    Ok(Certificate { pem, thumbprint })
}

/// Revokes what is asked for, at `now`, in `view`.
pub(super) fn revoke(
    view: &mut View,
    revoked: Revoked,
    claims: &Map<String, Value>,
    now: UnixMillis,
) -> Result<()> {
    let text = |object: &Map<String, Value>, name: &str| {
        object
            .get(name)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .with_context(|| format!("revoked: the token has no `{name}` to revoke by"))
    };
    let expiry = |object: &Map<String, Value>| {
        Bucket::of_expiry(object.get("exp").and_then(Value::as_i64).unwrap_or(0))
    };
    let issuer = text(claims, "iss")?;
    let (kind, id) = match revoked {
        Revoked::Token => {
            let id = Id::of(IdKind::Token, &issuer, &text(claims, "jti")?);
            view.revocations.revoke_tokens(expiry(claims), &[id]);
            return Ok(());
        }
        Revoked::Ancestor => {
            let ancestors = claims.get("atm_ancestors").and_then(Value::as_array);
            let first = ancestors.and_then(|ancestors| ancestors.first()?.as_object());
            let first = first.context("revoked: the token has no `atm_ancestors` to revoke by")?;
            let id = Id::of(IdKind::Token, &issuer, &text(first, "jti")?);
            view.revocations.revoke_tokens(expiry(first), &[id]);
            return Ok(());
        }
        Revoked::Session => (IdKind::Session, Id::of(IdKind::Session, &issuer, &text(claims, "sid")?)),
        Revoked::Subject => (IdKind::Subject, Id::of(IdKind::Subject, &issuer, &text(claims, "sub")?)),
        Revoked::Actor => {
            let actor = claims.get("act").and_then(Value::as_object);
            let actor = actor.context("revoked: the token has no `act` to revoke by")?;
            let of = text(actor, "iss").unwrap_or(issuer);
            (IdKind::Subject, Id::of(IdKind::Subject, &of, &text(actor, "sub")?))
        }
        Revoked::Client => (IdKind::Client, Id::of(IdKind::Client, &issuer, &text(claims, "client_id")?)),
        Revoked::Realm => (IdKind::Realm, Id::of(IdKind::Realm, "", REALM)),
        Revoked::Issuer => (IdKind::Issuer, Id::of(IdKind::Issuer, "", &issuer)),
        Revoked::Key => (IdKind::Key, Id::of(IdKind::Key, &issuer, KID)),
    };
    view.revocations.raise_watermark(kind, id, now);
    Ok(())
}
