//! Requests with expected outcomes, judged by the sidecars' own decision: the tables of `atmctl policy test`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use atm_core::decision::{Decision, Step};
use atm_core::policy::{CredentialKind, PolicySet};
use atm_core::reason::Reason;
use atm_core::time::UnixMillis;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Map, Value};

mod judge;
mod memory;
mod mint;
#[cfg(test)]
mod tests;

pub(crate) use judge::{Asked, AskedToken, Judge, split_url};
use judge::{AskedCertificate, AskedProof, Revoked, TokenState};

/// Milliseconds without a word from the control plane that `stale: true` stands for.
const STALE_MS: u64 = 3_600_000;

/// A file with tests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    /// Claims of every token, where a test does not say otherwise.
    #[serde(default)]
    token: Map<String, Value>,
    /// When the requests come, where a test does not say otherwise; now when left out.
    at: Option<Timestamp>,
    /// The tests.
    pub(crate) tests: Vec<Test>,
}

/// One request and what is expected of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Test {
    /// What people call it; the request where it is left out.
    name: Option<String>,
    /// `METHOD URL` or `METHOD /path`.
    request: String,
    /// Claims beside the table's; null takes one away. `none` sends no token, `forged` one that nobody issued.
    #[serde(default)]
    token: Claims,
    /// What the token is: `jwt`, `opaque` or `apiKey`.
    #[serde(default = "jwt")]
    credential: CredentialKind,
    /// When the token ends, from the request on, as in `5m` or `-1s`.
    expires: Option<SignedDuration>,
    /// When it was issued, from the request on, as in `-1h`.
    issued: Option<SignedDuration>,
    /// What it is bound to; to a key where there is a proof.
    bound: Option<OneOrMany<Bound>>,
    /// `true`, or how the DPoP proof differs from a good one.
    proof: Option<Proof>,
    /// The client certificate of the connection.
    certificate: Option<AskedCertificate>,
    /// What was revoked just before: token, ancestor, session, subject, actor, client, realm, issuer, key.
    revoked: Option<OneOrMany<Revoked>>,
    /// Headers; `{token}` in one of them stands for the token, which then goes nowhere else.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Cookies, likewise.
    #[serde(default)]
    cookies: BTreeMap<String, String>,
    /// Context extensions of the route.
    #[serde(default)]
    extensions: BTreeMap<String, String>,
    /// The peer's address.
    source: Option<String>,
    /// When the request comes.
    at: Option<Timestamp>,
    /// Whether nothing has been heard from the control plane: for an hour, or for that long.
    stale: Option<Silence>,
    /// `permit`, or the reason of the denial.
    expect: String,
    /// The rule that must decide, as `policy/rule`.
    rule: Option<String>,
    /// Headers from claims that the service gets; null: none of that name.
    #[serde(default)]
    upstream: BTreeMap<String, Option<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Claims {
    #[default]
    Default,
    Word(String),
    Map(Map<String, Value>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Bound {
    Dpop,
    Certificate,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Proof {
    Plain(bool),
    Changed(AskedProof),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Silence {
    Plain(bool),
    For(SignedDuration),
}

impl<T> OneOrMany<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

fn jwt() -> CredentialKind {
    CredentialKind::Jwt
}

/// What a test came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What people call the test.
    pub(crate) name: String,
    /// `permit`, or a reason.
    pub(crate) found: String,
    /// The rule that decided, as `policy/rule`.
    pub(crate) rule: Option<String>,
    /// What is wrong with that; none where the test passed.
    pub(crate) problem: Option<String>,
    /// Every step.
    pub(crate) steps: Vec<(Step, bool, String)>,
}

impl Table {
    /// Reads a table.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let table: Self = serde_norway::from_str(text)?;
        for test in &table.tests {
            let expected = &test.expect;
            if expected == "permit" || Reason::ALL.iter().any(|reason| reason.as_str() == expected) {
                continue;
            }
            let reasons = Reason::ALL.iter().map(|reason| reason.as_str()).chain(["permit"]);
            let near =
                reasons.min_by_key(|reason| strsim::osa_distance(reason, expected)).unwrap_or("permit");
            bail!(
                "test `{}`: expect: `{expected}` is no reason; did you mean {near}? `atmctl reason` lists them",
                test.name()
            );
        }
        Ok(table)
    }

    /// Judges every test by `policies`; with `shadow` by those in shadow mode.
    pub(crate) fn run(&self, policies: &PolicySet, shadow: bool) -> Result<Vec<Outcome>> {
        let judge = Judge::new(policies, true)?;
        let mut judge = if shadow { judge.of_shadow() } else { judge };
        let run = |test: &Test| {
            let outcome = test.asked(self).and_then(|asked| Ok(test.outcome(judge.decide(asked)?)));
            outcome.with_context(|| format!("test `{}`", test.name()))
        };
        self.tests.iter().map(run).collect()
    }
}

impl Test {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.request)
    }

    /// The request that it describes.
    fn asked(&self, table: &Table) -> Result<Asked> {
        let (method, url) =
            self.request.trim().split_once(' ').ok_or_else(|| {
                anyhow!("request: must be a method and a URL or path, as in `GET /orders/1`")
            })?;
        let (scheme, host, target) = split_url(url.trim()).context("request")?;
        let at = self.at.or(table.at);
        let at = match at {
            Some(at) => UnixMillis(at.as_millisecond()),
            None => UnixMillis(Timestamp::now().as_millisecond()),
        };
        let mut headers: Vec<(String, String)> =
            self.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        if !self.cookies.is_empty() {
            let pairs: Vec<String> =
                self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            headers.push(("cookie".to_owned(), pairs.join("; ")));
        }
        let proof = match &self.proof {
            None | Some(Proof::Plain(false)) => None,
            Some(Proof::Plain(true)) => Some(AskedProof::default()),
            Some(Proof::Changed(proof)) => Some(proof.clone()),
        };
        let token = self.token(table, at, proof.is_some())?;
        Ok(Asked {
            method: method.to_owned(),
            scheme,
            host,
            target,
            headers,
            extensions: self.extensions.clone().into_iter().collect(),
            source: self.source.clone(),
            at: Some(at),
            silent_ms: match self.stale {
                None | Some(Silence::Plain(false)) => 0,
                Some(Silence::Plain(true)) => STALE_MS,
                Some(Silence::For(duration)) => u64::try_from(duration.as_millis())
                    .map_err(|_| anyhow!("stale: must be true, or a time as in 30s"))?,
            },
            token,
            proof,
            certificate: self.certificate.clone(),
            revoked: self.revoked.as_ref().map(|revoked| revoked.as_slice().to_vec()).unwrap_or_default(),
        })
    }

    fn token(&self, table: &Table, at: UnixMillis, has_proof: bool) -> Result<Option<AskedToken>> {
        let (own, state) = match &self.token {
            Claims::Default => (Map::new(), TokenState::Good),
            Claims::Map(claims) => (claims.clone(), TokenState::Good),
            Claims::Word(word) if word == "forged" => (Map::new(), TokenState::Forged),
            Claims::Word(word) if word == "none" => return Ok(None),
            Claims::Word(word) => bail!("token: `{word}` is neither `none` nor `forged` nor a map of claims"),
        };
        let mut claims = table.token.clone();
        let relative =
            |duration: Option<SignedDuration>| duration.map(|duration| at.seconds() + duration.as_secs());
        for (name, time) in [("exp", relative(self.expires)), ("iat", relative(self.issued))] {
            if let Some(time) = time {
                claims.insert(name.to_owned(), time.into());
            }
        }
        claims.extend(own);
        let bound = self.bound.as_ref().map(OneOrMany::as_slice);
        let to = |one: Bound| bound.is_some_and(|bound| bound.contains(&one));
        Ok(Some(AskedToken {
            claims,
            kind: self.credential,
            state,
            to_key: to(Bound::Dpop) || (bound.is_none() && has_proof),
            to_certificate: to(Bound::Certificate),
        }))
    }

    fn outcome(&self, judged: judge::Judged) -> Outcome {
        let judge::Judged { decision, steps } = judged;
        let found = decision.as_str().to_owned();
        let rule = decision.rule().map(|rule| format!("{}/{}", rule.policy, rule.name));
        let by = rule.as_deref().unwrap_or("no rule");
        let problem = if found != self.expect {
            let detail = match &decision {
                Decision::Denial(denial) => denial.detail.as_deref().unwrap_or(denial.reason.description()),
                Decision::Permit(_) => "",
            };
            Some(format!("expected {}, got {found} by {by}. {detail}", self.expect).trim_end().to_owned())
        } else if self.rule.as_ref().is_some_and(|rule| rule != by) {
            Some(format!("expected rule {}, got {by}", self.rule.as_deref().unwrap_or_default()))
        } else {
            self.upstream_problem(&decision)
        };
        Outcome { name: self.name().to_owned(), found, rule, problem, steps }
    }

    /// What is wrong with the headers that the service gets.
    fn upstream_problem(&self, decision: &Decision) -> Option<String> {
        let Decision::Permit(permit) = decision else {
            return (!self.upstream.is_empty())
                .then(|| "upstream: a request that is refused reaches no service".to_owned());
        };
        self.upstream.iter().find_map(|(name, expected)| {
            let header =
                permit.rule.upstream.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            let Some(header) = header else {
                return Some(format!("upstream: the policy sets no header {name}"));
            };
            let value = permit.token.as_ref().and_then(|token| header.value(&token.claims.raw));
            (value != *expected).then(|| {
                let shown = |value: &Option<String>| {
                    value.clone().map_or("none".to_owned(), |value| format!("`{value}`"))
                };
                format!("upstream: expected {} for {name}, got {}", shown(expected), shown(&value))
            })
        })
    }
}
