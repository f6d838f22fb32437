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
mod document;
mod host;
mod locate;
mod route;
mod template;
#[cfg(test)]
mod tests;

pub use compile::compile;
pub use document::{API_VERSION, KIND, MAX_CLOCK_SKEW_SECONDS};

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
}

impl PolicySet {
    /// The same set under the version that the control plane gave it; [`compile`] alone leaves 0.
    #[must_use]
    pub fn with_version(self, version: u64) -> Self {
        Self { version, ..self }
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

    /// The one rule that applies. Of several that match, the most specific: an exact path before a template before a template
    /// with a rest; then more literal segments, then more segments; then an exact host before a wildcard (the longer first)
    /// before any; then named methods before any; then more context extensions. Compiling proved that no two are equal.
    ///
    /// # Errors
    ///
    /// [`Reason::MalformedRequest`] where host or method are not well formed, [`Reason::NoPolicy`] where no rule matches.
    pub fn route(&self, request: &Request<'_>, path: &NormalisedPath<'_>) -> Result<&Arc<Rule>, Reason> {
        if !is_token(request.method) {
            return Err(Reason::MalformedRequest);
        }
        let host = host::normalise(request.host).ok_or(Reason::MalformedRequest)?;
        let rule = self.routes.find(&self.rules, &host, path, request).ok_or(Reason::NoPolicy)?;
        Ok(&self.rules[rule])
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
    /// Methods that it applies to; empty means any.
    pub methods: Vec<String>,
    /// Context extensions that the request must have.
    pub extensions: Vec<(String, String)>,
    /// What lets a request through.
    pub access: Access,
    /// Where the credential is read from.
    pub credential: CredentialSource,
    /// Whether the credential goes upstream.
    pub forward_token: bool,
    /// What happens while the state is stale.
    pub on_stale: OnStale,
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

    /// Whether method and context extensions match; host and path were matched by the route's tables.
    fn admits(&self, request: &Request<'_>) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|method| method == request.method))
            && self.extensions.iter().all(|(name, value)| request.extension(name) == Some(value))
    }
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
}

/// Where a credential is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialSource {
    /// The header's name, in lower case.
    pub header: Arc<str>,
    /// The authentication scheme before the token; none where the header's whole value is the token.
    pub scheme: Option<Arc<str>>,
}

/// What a rule does while the state is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStale {
    /// Refuse.
    Deny,
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
