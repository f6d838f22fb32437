//! Requests with expected outcomes, judged by the sidecars' own decision. Tokens are really signed, by keys that are made for the
//! run, so that every step is the one that production takes.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use atm_core::base64url;
use atm_core::decision::{Decision, NoMemory, Now, Step, decide_traced};
use atm_core::freshness::Freshness;
use atm_core::key::{Algorithm, Issuer, KeyState, VerificationKey};
use atm_core::policy::PolicySet;
use atm_core::reason::Reason;
use atm_core::request::Request;
use atm_core::time::UnixMillis;
use atm_core::view::View;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The issuer of a table's tokens where it names none.
const ISSUER: &str = "https://issuer.example";
/// Where a request goes that names a path only.
const HOST: &str = "service.example";
/// What stands for the token in a header or a target.
const PLACEHOLDER: &str = "{token}";

/// A file with tests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    /// Claims of every token, where a test does not say otherwise.
    #[serde(default)]
    token: Map<String, Value>,
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
    /// Claims beside the table's; null takes one away. `none` sends no token.
    #[serde(default)]
    token: Claims,
    /// Headers; `{token}` in one of them stands for the token, which then goes nowhere else.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Context extensions of the route.
    #[serde(default)]
    extensions: BTreeMap<String, String>,
    /// The peer's address.
    source: Option<String>,
    /// Whether nothing has been heard from the control plane for an hour.
    #[serde(default)]
    stale: bool,
    /// `permit`, or the reason of the denial.
    expect: String,
    /// The rule that must decide, as `policy/rule`.
    rule: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Claims {
    #[default]
    Default,
    Word(String),
    Map(Map<String, Value>),
}

/// What a test came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What people call the test.
    pub(crate) name: String,
    /// `permit`, or a reason.
    pub(crate) found: String,
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
            let known =
                test.expect == "permit" || Reason::ALL.iter().any(|reason| reason.as_str() == test.expect);
            if !known {
                let reasons: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
                bail!(
                    "test `{}`: expect: `{}` is none of permit, {}",
                    test.name(),
                    test.expect,
                    reasons.join(", ")
                );
            }
        }
        Ok(table)
    }

    /// Judges every test by `policies`.
    pub(crate) fn run(&self, policies: &PolicySet) -> Result<Vec<Outcome>> {
        let mut judge = Judge::new(policies)?;
        self.tests.iter().map(|test| test.run(&self.token, &mut judge)).collect()
    }
}

impl Test {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.request)
    }

    fn run(&self, defaults: &Map<String, Value>, judge: &mut Judge) -> Result<Outcome> {
        let context = || format!("test `{}`", self.name());
        let (method, url) = self
            .request
            .trim()
            .split_once(' ')
            .ok_or_else(|| anyhow!("request: must be a method and a URL or path, as in `GET /orders/1`"))
            .with_context(context)?;
        let (scheme, host, target) = split_url(url.trim()).with_context(context)?;
        let claims = match &self.token {
            Claims::Default => Some(Map::new()),
            Claims::Map(claims) => Some(claims.clone()),
            Claims::Word(word) if word == "none" => None,
            Claims::Word(word) => {
                bail!("{}: token: `{word}` is neither `none` nor a map of claims", context())
            }
        };
        let token = claims.map(|claims| judge.token(defaults, claims)).transpose().with_context(context)?;
        let asked = Asked {
            method: method.to_owned(),
            scheme,
            host,
            target,
            headers: self
                .headers
                .iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .collect(),
            extensions: self.extensions.clone().into_iter().collect(),
            source: self.source.clone(),
            stale: self.stale,
        };
        let (decision, steps) = judge.decide(asked, token.as_deref());
        let found = decision.as_str().to_owned();
        let by = decision.rule().map(|rule| format!("{}/{}", rule.policy, rule.name));
        let problem = if found == self.expect {
            let other = self.rule.as_ref().filter(|rule| Some(*rule) != by.as_ref());
            other.map(|rule| format!("expected rule {rule}, got {}", by.as_deref().unwrap_or("none")))
        } else {
            Some(format!("expected {}, got {found}", self.expect))
        };
        Ok(Outcome { name: self.name().to_owned(), found, problem, steps })
    }
}

/// A request to be judged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) scheme: String,
    pub(crate) host: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) extensions: Vec<(String, String)>,
    pub(crate) source: Option<String>,
    pub(crate) stale: bool,
}

/// Scheme, authority and target of a URL or a path.
pub(crate) fn split_url(url: &str) -> Result<(String, String, String)> {
    if url.starts_with('/') {
        return Ok(("https".into(), HOST.into(), url.to_owned()));
    }
    let (scheme, rest) = url.split_once("://").context("must be a URL or begin with a slash")?;
    let path = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, target) = rest.split_at(path);
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok((scheme.to_owned(), host.to_owned(), target))
}

/// Decides by a set of policies, with issuers that exist for this run.
pub(crate) struct Judge {
    view: View,
    pair: EcdsaKeyPair,
    key: VerificationKey,
    now: UnixMillis,
    tokens: u64,
}

impl Judge {
    /// A judge by `policies`, now.
    pub(crate) fn new(policies: &PolicySet) -> Result<Self> {
        let failed = |_| anyhow!("the cryptographic library failed");
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
        let key = VerificationKey::from_spki("test", Algorithm::ES256, &spki(&pair)?, KeyState::Active)?;
        let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let now = UnixMillis(i64::try_from(elapsed.as_millis())?);
        let view = View { policies: Arc::new(policies.clone()), ..View::default() };
        Ok(Self { view, pair, key, now, tokens: 0 })
    }

    /// A signed token with these claims over the defaults. Its issuer is trusted from now on.
    pub(crate) fn token(
        &mut self,
        defaults: &Map<String, Value>,
        claims: Map<String, Value>,
    ) -> Result<String> {
        self.tokens += 1;
        let now = self.now.seconds();
        let base = json!({
            "iss": ISSUER, "sub": "test", "client_id": "test", "jti": format!("test-{}", self.tokens),
            "iat": now - 1, "exp": now + 300,
        });
        let Value::Object(mut all) = base else { bail!("the default claims are no object") };
        for (name, value) in defaults.clone().into_iter().chain(claims) {
            if value.is_null() {
                all.remove(&name);
            } else {
                all.insert(name, value);
            }
        }
        if let Some(issuer) = all.get("iss").and_then(Value::as_str)
            && self.view.issuers.get(issuer).is_none()
        {
            self.view.issuers.set(Issuer::new(issuer, None, vec![self.key.clone()]));
        }
        let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": "test"}).to_string();
        let input = format!(
            "{}.{}",
            base64url::encode(header.as_bytes()),
            base64url::encode(Value::Object(all).to_string().as_bytes())
        );
        let signature = self.pair.sign(&SystemRandom::new(), input.as_bytes());
        let signature = signature.map_err(|_| anyhow!("the cryptographic library failed"))?;
        Ok(format!("{input}.{}", base64url::encode(signature.as_ref())))
    }

    /// The decision on a request with this token, and every step.
    pub(crate) fn decide(
        &self,
        mut asked: Asked,
        token: Option<&str>,
    ) -> (Decision, Vec<(Step, bool, String)>) {
        if let Some(token) = token {
            let texts = asked.headers.iter_mut().map(|(_, value)| value).chain([&mut asked.target]);
            let mut placed = false;
            for text in texts.filter(|text| text.contains(PLACEHOLDER)) {
                *text = text.replace(PLACEHOLDER, token);
                placed = true;
            }
            if !placed {
                asked.headers.push(("authorization".to_owned(), format!("Bearer {token}")));
            }
        }
        let headers: Vec<(&str, &[u8])> =
            asked.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let extensions: Vec<(&str, &str)> =
            asked.extensions.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let request = Request {
            method: &asked.method,
            scheme: &asked.scheme,
            host: &asked.host,
            target: &asked.target,
            headers: &headers,
            extensions: &extensions,
            source_address: asked.source.as_deref(),
            ..Request::default()
        };
        let (freshness, feed_age_ms) =
            if asked.stale { (Freshness::Stale, 3_600_000) } else { (Freshness::Fresh, 0) };
        let mut steps = Vec::new();
        let now = Now { wall: self.now, freshness, feed_age_ms };
        let verdict = decide_traced(&self.view, &NoMemory, &request, now, &mut steps);
        (verdict.or(Reason::IntrospectionUnavailable), steps)
    }
}

/// The public key as DER SubjectPublicKeyInfo.
fn spki(pair: &EcdsaKeyPair) -> Result<Vec<u8>> {
    let der: PublicKeyX509Der<'_> =
        pair.public_key().as_der().map_err(|_| anyhow!("the cryptographic library failed"))?;
    Ok(der.as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use atm_core::policy;

    use super::*;

    const POLICY: &str = include_str!("../../examples/policies/orders.yaml");
    const TABLE: &str = include_str!("../../examples/policies/orders.test.yaml");

    #[test]
    fn the_examples_table_holds_and_a_changed_policy_fails_it() {
        let table = Table::parse(TABLE).unwrap();
        let outcomes = table.run(&policy::compile(&[POLICY.to_owned()]).unwrap()).unwrap();
        for outcome in &outcomes {
            assert_eq!(outcome.problem, None, "{outcome:?}");
        }
        let changed = POLICY.replace("orders.read", "orders.see");
        let outcomes = table.run(&policy::compile(&[changed]).unwrap()).unwrap();
        assert!(outcomes.iter().any(|outcome| outcome.problem.is_some()));
    }

    #[test]
    fn a_table_with_a_mistake_says_which_test_has_it() {
        for (text, words) in [
            ("tests: [{ request: GET /, expect: permitted }]", "`permitted` is none of"),
            ("tests: [{ request: GET /, expects: permit }]", "expects"),
        ] {
            let error = Table::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let table = Table::parse("tests: [{ request: '/orders', expect: permit }]").unwrap();
        let error = table.run(&policy::compile(&[POLICY.to_owned()]).unwrap()).unwrap_err();
        assert!(format!("{error:#}").contains("test `/orders`: request:"), "{error:#}");
    }
}
