//! Decides requests by a set of policies, with tokens, proofs and certificates that are made for the run: every step is the one
//! that production takes.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use atm_core::decision::{Decision, Now, Step, decide_shadow, decide_traced};
use atm_core::freshness::Freshness;
use atm_core::path;
use atm_core::policy::{
    Access, BindingNeed, CredentialKind, CredentialSource, PolicySet, Rule, TokenRequirements,
};
use atm_core::reason::Reason;
use atm_core::request::{CertificateSource, Request};
use atm_core::time::UnixMillis;
use atm_core::view::View;
use serde_json::{Map, Value, json};

use super::memory::TableMemory;
use super::mint::{self, Mint};

/// What stands for the token in a header, a cookie or a target.
const PLACEHOLDER: &str = "{token}";

/// A request to be judged, and what it brings along.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) scheme: String,
    pub(crate) host: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) extensions: Vec<(String, String)>,
    pub(crate) source: Option<String>,
    /// When it is judged; now where it is none.
    pub(crate) at: Option<UnixMillis>,
    /// For how long nothing was heard from the control plane, in milliseconds.
    pub(crate) silent_ms: u64,
    pub(crate) token: Option<AskedToken>,
    pub(crate) proof: Option<AskedProof>,
    pub(crate) certificate: Option<AskedCertificate>,
    pub(crate) revoked: Vec<Revoked>,
}

/// A credential.
#[derive(Debug, Clone)]
pub(crate) struct AskedToken {
    pub(crate) claims: Map<String, Value>,
    pub(crate) kind: CredentialKind,
    pub(crate) state: TokenState,
    /// Bound to the key of the proofs.
    pub(crate) to_key: bool,
    /// Bound to the client certificate.
    pub(crate) to_certificate: bool,
}

/// Whether a credential is what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenState {
    Good,
    /// Signed by another key; for an opaque one, unknown to the control plane.
    Forged,
}

/// A DPoP proof, and how it differs from a good one.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskedProof {
    /// Its `htm`.
    pub(crate) method: Option<String>,
    /// Its `htu`.
    pub(crate) url: Option<String>,
    /// How long ago it was made, as in `90s`.
    pub(crate) age: Option<jiff::SignedDuration>,
    /// `false` leaves the nonce out.
    pub(crate) nonce: Option<bool>,
    /// Whether it was used before.
    #[serde(default)]
    pub(crate) again: bool,
    /// `other` signs with another key than the token is bound to.
    pub(crate) key: Option<Other>,
    /// `other` is made for another token.
    pub(crate) token: Option<Other>,
}

/// The only other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Other {
    Other,
}

/// A client certificate.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskedCertificate {
    /// The common name of its subject.
    pub(crate) common_name: Option<String>,
    #[serde(default)]
    pub(crate) dns: Vec<String>,
    #[serde(default)]
    pub(crate) uris: Vec<String>,
    /// Whether the token is bound to another one.
    #[serde(default)]
    pub(crate) other: bool,
}

/// What of a token was revoked just before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Revoked {
    Token,
    Ancestor,
    Session,
    Subject,
    Actor,
    Client,
    Realm,
    Issuer,
    Key,
}

/// What came of a request.
pub(crate) struct Judged {
    pub(crate) decision: Decision,
    pub(crate) steps: Vec<(Step, bool, String)>,
}

/// Decides by a set of policies, with issuers that exist for this run.
pub(crate) struct Judge {
    view: View,
    mint: Mint,
    now: UnixMillis,
    shadow: bool,
}

impl Judge {
    /// A judge by `policies`, now. A policy that is rolled out counts as in force for everybody, or with `shares` off for nobody.
    pub(crate) fn new(policies: &PolicySet, shares: bool) -> Result<Self> {
        let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let now = UnixMillis(i64::try_from(elapsed.as_millis())?);
        let policies = Arc::new(policies.clone().with_shares(shares));
        Ok(Self { view: View { policies, ..View::default() }, mint: Mint::new()?, now, shadow: false })
    }

    /// The same one, by the policies in shadow mode instead of those in force.
    pub(crate) fn of_shadow(self) -> Self {
        Self { shadow: true, ..self }
    }

    /// The decision on a request, and every step to it. Without a place of its own the token goes where the rule looks first.
    pub(crate) fn decide(&mut self, mut asked: Asked) -> Result<Judged> {
        let now = asked.at.unwrap_or(self.now);
        let rule = self.rule(&asked);
        let certificate = asked.certificate.as_ref().map(mint::certificate).transpose()?;
        let mut memory = TableMemory::default();
        let mut view = self.view.clone();
        if let Some(token) = asked.token.clone() {
            let bound_to = match (&asked.certificate, &certificate) {
                (Some(AskedCertificate { other: true, .. }), _) | (_, None) => {
                    mint::certificate(&AskedCertificate::default())?
                }
                (_, Some(certificate)) => certificate.clone(),
            };
            let minted = self.mint.token(&token, now, &bound_to.thumbprint, &mut view, &mut memory)?;
            for revoked in &asked.revoked {
                mint::revoke(&mut view, *revoked, &minted.claims, now)?;
            }
            place(&mut asked, &minted.text, token.to_key, rule.as_deref());
            let proof = asked.proof.clone();
            if let Some(proof) = &proof {
                let text = self.proof(proof, &asked, &minted.text, rule.as_deref(), now, &mut memory)?;
                asked.headers.push(("dpop".to_owned(), text));
            }
        } else if !asked.revoked.is_empty() {
            bail!("revoked: the request has no token that could be revoked");
        }
        Ok(self.judge(&view, &memory, &asked, certificate.as_ref().map(|one| one.pem.as_str()), now))
    }

    /// The rule that applies to the request, if its path can be read.
    fn rule(&self, asked: &Asked) -> Option<Arc<Rule>> {
        let headers = borrowed_bytes(&asked.headers);
        let extensions = borrowed(&asked.extensions);
        let request = request(asked, &headers, &extensions, None);
        let path = path::normalise(request.target).ok()?;
        let route = if self.shadow {
            self.view.policies.route_shadow(&request, &path)
        } else {
            self.view.policies.route(&request, &path).ok()
        };
        route.map(|route| Arc::clone(route.rule))
    }

    fn proof(
        &self,
        proof: &AskedProof,
        asked: &Asked,
        token: &str,
        rule: Option<&Rule>,
        now: UnixMillis,
        memory: &mut TableMemory,
    ) -> Result<String> {
        let origin = rule.and_then(requirements).and_then(|rule| rule.dpop.origins.first());
        let (scheme, host) =
            origin.map_or((&*asked.scheme, &*asked.host), |(scheme, host)| (scheme.as_str(), host.as_str()));
        let path = asked.target.split('?').next().unwrap_or_default();
        let url = proof.url.clone().unwrap_or_else(|| format!("{scheme}://{host}{path}"));
        let made = now.seconds() - proof.age.map_or(0, |age| age.as_secs());
        let mut claims = json!({
            "jti": "proof", "htm": proof.method.as_ref().unwrap_or(&asked.method), "htu": url, "iat": made,
            "ath": mint::hash(if proof.token.is_some() { "another" } else { token }),
        });
        if proof.nonce != Some(false) {
            claims["nonce"] = memory.nonce(now).into();
        }
        if proof.again {
            memory.refuse_proofs();
        }
        self.mint.proof(&claims, proof.key.is_some())
    }

    fn judge(
        &self,
        view: &View,
        memory: &TableMemory,
        asked: &Asked,
        certificate: Option<&str>,
        now: UnixMillis,
    ) -> Judged {
        let headers = borrowed_bytes(&asked.headers);
        let extensions = borrowed(&asked.extensions);
        let request = request(asked, &headers, &extensions, certificate);
        let now = Now { wall: now, freshness: Freshness::of(asked.silent_ms), feed_age_ms: asked.silent_ms };
        if self.shadow {
            let decision = decide_shadow(view, memory, &request, now);
            let decision = decision.unwrap_or_else(|| Decision::Denial(Reason::NoPolicy.into()));
            return Judged { decision, steps: Vec::new() };
        }
        let mut steps = Vec::new();
        let verdict = decide_traced(view, memory, &request, now, &mut steps);
        Judged { decision: verdict.or(Reason::IntrospectionUnavailable), steps }
    }

    /// A credential that the rule of this request could take, with these claims; for what was recorded without one.
    pub(crate) fn fitting(
        &self,
        asked: &Asked,
        claims: Map<String, Value>,
        opaque: bool,
        bound: bool,
    ) -> AskedToken {
        let rule = self.rule(asked);
        let requirements = rule.as_deref().and_then(requirements);
        let takes = |kind| requirements.is_some_and(|rule| rule.accepts.contains(&kind));
        let kind = match opaque {
            false => CredentialKind::Jwt,
            true if takes(CredentialKind::ApiKey) && !takes(CredentialKind::Opaque) => CredentialKind::ApiKey,
            true => CredentialKind::Opaque,
        };
        let need = requirements.map_or(BindingNeed::None, |rule| rule.binding);
        AskedToken {
            claims,
            kind,
            state: TokenState::Good,
            to_key: bound && matches!(need, BindingNeed::Dpop | BindingNeed::Any),
            to_certificate: bound && need == BindingNeed::Certificate,
        }
    }
}

fn requirements(rule: &Rule) -> Option<&TokenRequirements> {
    match &rule.access {
        Access::Token(requirements) => Some(requirements),
        Access::Anonymous => None,
    }
}

/// Puts the token where a placeholder is, else where the rule looks first, else into `authorization`.
fn place(asked: &mut Asked, token: &str, to_key: bool, rule: Option<&Rule>) {
    let texts = asked.headers.iter_mut().map(|(_, value)| value).chain([&mut asked.target]);
    let mut placed = false;
    for text in texts.filter(|text| text.contains(PLACEHOLDER)) {
        *text = text.replace(PLACEHOLDER, token);
        placed = true;
    }
    if placed {
        return;
    }
    let scheme = if to_key { "DPoP" } else { "Bearer" };
    let fits = |source: &&CredentialSource| match source {
        CredentialSource::Scheme { scheme: other, .. } => other.eq_ignore_ascii_case("DPoP") == to_key,
        _ => true,
    };
    let source = rule.and_then(|rule| rule.credential.iter().find(fits).or(rule.credential.first()));
    match source {
        Some(CredentialSource::Scheme { header, scheme }) => {
            asked.headers.push((header.to_string(), format!("{scheme} {token}")));
        }
        Some(CredentialSource::Header { header, prefix }) => {
            asked.headers.push((header.to_string(), format!("{prefix}{token}")));
        }
        Some(CredentialSource::Cookie(name)) => {
            asked.headers.push(("cookie".to_owned(), format!("{name}={token}")));
        }
        Some(CredentialSource::Query(name)) => {
            let separator = if asked.target.contains('?') { '&' } else { '?' };
            asked.target.push_str(&format!("{separator}{name}={token}"));
        }
        None => asked.headers.push(("authorization".to_owned(), format!("{scheme} {token}"))),
    }
}

fn request<'a>(
    asked: &'a Asked,
    headers: &'a [(&'a str, &'a [u8])],
    extensions: &'a [(&'a str, &'a str)],
    certificate: Option<&'a str>,
) -> Request<'a> {
    Request {
        method: &asked.method,
        scheme: &asked.scheme,
        host: &asked.host,
        target: &asked.target,
        headers,
        extensions,
        source_address: asked.source.as_deref(),
        certificate: certificate.map_or(CertificateSource::None, CertificateSource::Connection),
    }
}

fn borrowed(pairs: &[(String, String)]) -> Vec<(&str, &str)> {
    pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn borrowed_bytes(pairs: &[(String, String)]) -> Vec<(&str, &[u8])> {
    pairs.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

/// Scheme, authority and target of a URL or a path. A request that names a path only goes to `service.example`.
pub(crate) fn split_url(url: &str) -> Result<(String, String, String)> {
    if url.starts_with('/') {
        return Ok(("https".into(), "service.example".into(), url.to_owned()));
    }
    let (scheme, rest) = url.split_once("://").context("must be a URL or begin with a slash")?;
    let path = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, target) = rest.split_at(path);
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok((scheme.to_owned(), host.to_owned(), target))
}
