//! Policies: which requests, which credential, which tokens.
//!
//! Documents are YAML in the shape of Kubernetes resources. [`compile`] checks a whole set and reports every mistake with its
//! place; what it returns routes a request to the one rule that applies. A set that does not compile has no effect.

use std::fmt;
use std::sync::Arc;

use crate::path::NormalisedPath;
use crate::reason::Reason;
use crate::request::Request;

mod compile;
mod condition;
mod document;
mod host;
mod locate;
mod reach;
mod rollout;
mod route;
mod template;
#[cfg(test)]
mod tests;
mod upstream;

pub use compile::compile;
pub use condition::{CertificateFacts, Condition, ConditionError, ConditionFault, Facts};
pub use document::{API_VERSION, KIND, MAX_CLOCK_SKEW_SECONDS, json_schema};
pub(crate) use host::normalise as normalise_host;
pub use rollout::{Rollout, Share};
pub(crate) use rollout::{cookies, query_parameters};
pub use upstream::lookup;

use host::HostPattern;
use route::Routes;
use template::Template;

/// A compiled set of policies. The default one is empty and covers no request.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    version: u64,
    names: Arc<[Arc<str>]>,
    rules: Arc<[Arc<Rule>]>,
    routes: Arc<Routes>,
    /// The ways into rules of shadow policies, which are matched by themselves.
    shadow: Arc<Routes>,
}

/// A rule that applies to a request, and the template by which it was found.
#[derive(Debug, Clone, Copy)]
pub struct Route<'p> {
    /// The rule.
    pub rule: &'p Arc<Rule>,
    template: &'p Template,
}

impl<'p> Route<'p> {
    /// The path template as written.
    pub fn template(&self) -> &'p str {
        self.template.as_str()
    }

    /// What the segment `{name}` of the template is in `path`; of `{name...}` everything from there on.
    pub fn parameter<'r>(&self, path: &'r NormalisedPath<'_>, name: &str) -> Option<&'r str> {
        self.template.parameter(path.as_str(), name)
    }
}

impl PolicySet {
    /// The same set under the version that the control plane gave it; [`compile`] alone leaves 0.
    #[must_use]
    pub fn with_version(self, version: u64) -> Self {
        Self { version, ..self }
    }

    /// The same set in which every policy that is rolled out takes all of its requests, or none: for trying a set where the
    /// share that a request falls into would be chance.
    #[must_use]
    pub fn with_shares(self, inside: bool) -> Self {
        let rules = self.rules.iter().map(|rule| match &rule.rollout {
            None => Arc::clone(rule),
            Some(rollout) => {
                let per_ten_thousand = if inside { 10_000 } else { 0 };
                let rollout = Some(Rollout { per_ten_thousand, ..rollout.clone() });
                Arc::new(Rule { rollout, ..Rule::clone(rule) })
            }
        });
        Self { rules: rules.collect(), ..self }
    }

    /// Counts applied sets, from 1; 0 where nobody numbered it.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The policies' names, in the documents' order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// Every rule, in the documents' order.
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// Whether any policy is in shadow mode.
    pub fn has_shadow(&self) -> bool {
        !self.shadow.is_empty()
    }

    /// The one rule that applies. Of several that match, the most specific: an exact path before a template before a template
    /// with a rest; then more literal segments, then more segments; then an exact host before a wildcard (the longer first)
    /// before any; then named methods before any; then more context extensions; then one that is being rolled out, for its
    /// share of the requests. Compiling proved that no two are equal.
    ///
    /// # Errors
    ///
    /// [`Reason::MalformedRequest`] where host or method are not well formed, [`Reason::NoPolicy`] where no rule matches.
    pub fn route(&self, request: &Request<'_>, path: &NormalisedPath<'_>) -> Result<Route<'_>, Reason> {
        self.find(&self.routes, request, path)?.ok_or(Reason::NoPolicy)
    }

    /// The rule that would apply if the policies in shadow mode were the only ones.
    pub fn route_shadow(&self, request: &Request<'_>, path: &NormalisedPath<'_>) -> Option<Route<'_>> {
        self.find(&self.shadow, request, path).ok().flatten()
    }

    fn find<'p>(
        &'p self,
        routes: &Routes,
        request: &Request<'_>,
        path: &NormalisedPath<'_>,
    ) -> Result<Option<Route<'p>>, Reason> {
        if !is_token(request.method) {
            return Err(Reason::MalformedRequest);
        }
        let host = host::normalise(request.host).ok_or(Reason::MalformedRequest)?;
        let found = routes.find(&self.rules, &host, path, request);
        Ok(found.map(|(rule, path)| {
            let rule = &self.rules[rule];
            Route { rule, template: &rule.paths[path] }
        }))
    }
}

/// One compiled rule of a policy, with what it inherits from the policy filled in.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The policy's name.
    pub policy: Arc<str>,
    /// The rule's place in the policy, from 0.
    pub index: usize,
    /// The rule's name, unique within the policy.
    pub name: Arc<str>,
    /// Whether it decides.
    pub mode: Mode,
    /// The share of the requests that it is for; all where there is none.
    pub rollout: Option<Rollout>,
    /// Methods that it applies to; empty means any.
    pub methods: Vec<String>,
    /// Context extensions that the request must have.
    pub extensions: Vec<(String, String)>,
    /// What lets a request through.
    pub access: Access,
    /// Where the credential may be; never empty.
    pub credential: Arc<[CredentialSource]>,
    /// Whether the credential goes upstream.
    pub forward_token: bool,
    /// What happens while the state is stale.
    pub on_stale: StaleAction,
    /// What else the upstream service and Envoy learn.
    pub upstream: Arc<Upstream>,
    hosts: Vec<HostPattern>,
    paths: Vec<Template>,
}

impl Rule {
    /// The host patterns as written: exact, `*.example.com` or `*`.
    pub fn hosts(&self) -> impl Iterator<Item = impl fmt::Display> {
        self.hosts.iter()
    }

    /// The path templates as written.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().map(Template::as_str)
    }

    /// Whether method, context extensions and rollout fit; host and path were matched by the route's tables.
    fn admits(&self, request: &Request<'_>) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|method| method == request.method))
            && self.extensions.iter().all(|(name, value)| request.extension(name) == Some(value))
            && self.rollout.as_ref().is_none_or(|rollout| rollout.includes(self, request))
    }
}

/// Whether a policy decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It does.
    #[default]
    Enforce,
    /// It is compared with what decides, and counted.
    Shadow,
}

/// What a rule asks of a request.
#[derive(Debug, Clone)]
pub enum Access {
    /// Nothing; a credential is not looked at.
    Anonymous,
    /// A valid token.
    Token(TokenRequirements),
}

/// What a rule asks of a token.
#[derive(Debug, Clone)]
pub struct TokenRequirements {
    /// Accepted issuers; empty means every trusted one.
    pub issuers: Vec<String>,
    /// Accepted audiences, of which the token must name one; never empty.
    pub audiences: Vec<String>,
    /// Difference between clocks that is forgiven, in seconds.
    pub clock_skew: i64,
    /// Scopes of which the token must have every one.
    pub all_scopes: Vec<String>,
    /// Scopes of which the token must have one; empty asks for none.
    pub any_scopes: Vec<String>,
    /// Kinds of credentials that are accepted; never empty.
    pub accepts: Vec<CredentialKind>,
    /// What must be true.
    pub condition: Option<Condition>,
    /// The binding that a token must have.
    pub binding: BindingNeed,
    /// How DPoP proofs are judged.
    pub dpop: DpopRequirements,
}

/// Kinds of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CredentialKind {
    /// A signed access token, judged here.
    Jwt,
    /// An opaque access token of the control plane (`atm_at_`).
    Opaque,
    /// An API key of the control plane (`atm_ak_`).
    ApiKey,
}

impl CredentialKind {
    /// The name in documents and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::Opaque => "opaque",
            Self::ApiKey => "apiKey",
        }
    }
}

/// The binding that a token must have. One that it has is always checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BindingNeed {
    /// None: bearer tokens pass.
    #[default]
    None,
    /// One of them.
    Any,
    /// A DPoP key (RFC 9449).
    Dpop,
    /// A client certificate (RFC 8705).
    Certificate,
}

/// How DPoP proofs are judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DpopRequirements {
    /// Whether a proof needs a nonce.
    pub nonce: bool,
    /// Age of a proof at most, in seconds.
    pub max_age_seconds: i64,
    /// Scheme and authority that clients address; empty: the request's own.
    pub origins: Vec<(String, String)>,
}

/// One place where a credential may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// In a header, after an authentication scheme.
    Scheme {
        /// The header's name, in lower case.
        header: Arc<str>,
        /// The authentication scheme.
        scheme: Arc<str>,
    },
    /// A header's value, after a prefix that may be empty.
    Header {
        /// The header's name, in lower case.
        header: Arc<str>,
        /// What stands before the token, exactly.
        prefix: Arc<str>,
    },
    /// A cookie's value.
    Cookie(Arc<str>),
    /// A query parameter's value.
    Query(Arc<str>),
}

/// As people would say it, for explanations.
impl fmt::Display for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme { header, scheme } => write!(f, "header `{header}` with scheme {scheme}"),
            Self::Header { header, .. } => write!(f, "header `{header}`"),
            Self::Cookie(name) => write!(f, "cookie `{name}`"),
            Self::Query(name) => write!(f, "query parameter `{name}`"),
        }
    }
}

/// What else the upstream service and Envoy learn of a permitted request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upstream {
    /// Headers from claims. Where a claim is missing or cannot be a header, the header is removed.
    pub headers: Vec<ClaimHeader>,
    /// Claims for the dynamic metadata.
    pub metadata: Vec<Vec<String>>,
}

/// A header made from a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimHeader {
    /// The header's name, in lower case.
    pub name: Arc<str>,
    /// The names that lead to the claim; never empty.
    pub claim: Vec<String>,
    /// How an array or object is written.
    pub encode: Option<Encoding>,
}

/// How an array or object becomes a header's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The texts of an array, with commas between; none of them may have one.
    Comma,
    /// The texts of an array, with spaces between; none of them may have one.
    Space,
    /// JSON in ASCII.
    Json,
    /// The base64url of JSON.
    Base64url,
}

/// What a rule does while the state is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaleAction {
    /// Refuse.
    Deny,
    /// Ask the control plane anew, for credentials that it can be asked about; refuse a JWT.
    Introspect,
    /// Decide by what is known, for so many seconds of silence at most.
    Allow(Option<u32>),
}

/// What documents say of a stale state; see [`StaleAction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnStale {
    /// Refuse.
    Deny,
    /// Ask the control plane anew where that is possible.
    Introspect,
    /// Decide by what is known.
    Allow,
}

/// A mistake in a policy document, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    /// The document in the list that was compiled, from 0.
    pub document: usize,
    /// The line in that document, from 1.
    pub line: usize,
    /// The column in that line, in characters from 1.
    pub column: usize,
    /// The key, like `spec.rules[1].paths[0]`; empty where the document cannot be read at all.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
    /// The text of that line.
    pub excerpt: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { document, line, column, path, message, excerpt } = self;
        write!(f, "documents[{document}]:{line}:{column}: ")?;
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        let (margin, indent) = (line.to_string().len(), column.saturating_sub(1));
        write!(f, "{message}\n {line} | {excerpt}\n {:margin$} | {:indent$}^", "", "")
    }
}

/// `token` of RFC 9110 §5.6.2: methods, header names, authentication schemes.
fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}
