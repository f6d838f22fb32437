//! From documents to a policy set, or to every mistake in them.

use std::fmt::Display;
use std::sync::Arc;

use hashbrown::HashMap;

use super::document::{
    API_VERSION, Credential, Document, KIND, MAX_CLOCK_SKEW_SECONDS, RuleDocument, Scopes, Spec,
};
use super::host::HostPattern;
use super::locate::{Place, Step, locate, steps};
use super::route::Routes;
use super::template::Template;
use super::{Access, CredentialSource, OnStale, PolicyError, PolicySet, Rule, TokenRequirements, is_token};

/// Length of a policy's or a rule's name at most, in bytes.
const MAX_NAME_BYTES: usize = 63;
/// The header and scheme of RFC 6750 §2.1.
const DEFAULT_HEADER: &str = "authorization";
const DEFAULT_SCHEME: &str = "Bearer";

/// Compiles a whole set of policy documents (YAML; one text may hold several, separated by `---`).
///
/// The set has version 0; see [`PolicySet::with_version`]. No documents make the empty set, which covers no request.
///
/// # Errors
///
/// Every mistake found, in the order of the documents. A document that is no YAML, or has keys that do not exist, shows its
/// first mistake only; ties between rules are looked for once each rule is right by itself.
pub fn compile(documents: &[String]) -> Result<PolicySet, Vec<PolicyError>> {
    let mut compiler = Compiler::default();
    for (index, text) in documents.iter().enumerate() {
        compiler.text(index, text);
    }
    compiler.finish()
}

/// One YAML document within a text, with what is needed to point into it.
#[derive(Debug, Clone, Copy)]
struct Source<'t> {
    /// Index of the text.
    index: usize,
    /// Lines of the text before this document.
    offset: usize,
    text: &'t str,
}

#[derive(Debug, Default)]
struct Compiler<'t> {
    errors: Vec<PolicyError>,
    names: Vec<Arc<str>>,
    rules: Vec<Arc<Rule>>,
    /// Of each rule, where it was written.
    sources: Vec<Source<'t>>,
}

impl<'t> Compiler<'t> {
    fn text(&mut self, index: usize, text: &'t str) {
        let mut is_empty = true;
        for (offset, text) in split(text) {
            is_empty = false;
            let source = Source { index, offset, text };
            match serde_norway::from_str::<Document>(text) {
                Ok(document) => self.document(source, document),
                Err(error) => self.errors.push(source.unreadable(&error)),
            }
        }
        if is_empty {
            self.report(Source { index, offset: 0, text }, "", None, "the document is empty");
        }
    }

    fn document(&mut self, source: Source<'t>, document: Document) {
        let Document { api_version, kind, metadata, spec } = document;
        if api_version != API_VERSION {
            self.report(source, "apiVersion", Some(&api_version), format_args!("must be `{API_VERSION}`"));
        }
        if kind != KIND {
            self.report(source, "kind", Some(&kind), format_args!("must be `{KIND}`"));
        }
        let name: Arc<str> = metadata.name.into();
        if let Err(message) = check_name(&name) {
            self.report(source, "metadata.name", Some(&name), message);
        } else if self.names.contains(&name) {
            self.report(source, "metadata.name", Some(&name), "another policy of the set has this name");
        }
        self.names.push(Arc::clone(&name));
        if spec.clock_skew_seconds > MAX_CLOCK_SKEW_SECONDS {
            let message = format_args!("must be 0 to {MAX_CLOCK_SKEW_SECONDS} seconds");
            self.report(source, "spec.clockSkewSeconds", None, message);
        }
        self.identifiers(source, "spec.issuers", &spec.issuers);
        self.identifiers(source, "spec.audiences", &spec.audiences);
        let credential = self.credential(source, &spec.credential);
        if spec.rules.is_empty() {
            self.report(source, "spec.rules", None, "a policy has at least one rule");
        }
        let mut rule_names = HashMap::new();
        for (index, rule) in spec.rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            let rule = self.rule(source, &path, index, rule, &spec, &name, &credential);
            if let Some(first) = rule_names.insert(Arc::clone(&rule.name), index) {
                let message = format_args!("spec.rules[{first}] has this name already");
                self.report(source, &format!("{path}.name"), Some(&rule.name), message);
            }
            self.rules.push(Arc::new(rule));
            self.sources.push(source);
        }
    }

    fn credential(&mut self, source: Source<'t>, credential: &Credential) -> CredentialSource {
        let header = credential.header.as_deref().unwrap_or(DEFAULT_HEADER).to_ascii_lowercase();
        if !is_token(&header) {
            self.report(source, "spec.credential.header", credential.header.as_deref(), "is no header name");
        }
        let default_scheme = (header == DEFAULT_HEADER).then_some(DEFAULT_SCHEME);
        let scheme = credential
            .scheme
            .as_deref()
            .map_or(default_scheme, |scheme| (!scheme.is_empty()).then_some(scheme));
        if scheme.is_some_and(|scheme| !is_token(scheme)) {
            self.report(source, "spec.credential.scheme", scheme, "is no authentication scheme");
        }
        CredentialSource { header: header.into(), scheme: scheme.map(Into::into) }
    }

    #[expect(clippy::too_many_arguments, reason = "one rule needs its place and all that it inherits")]
    fn rule(
        &mut self,
        source: Source<'t>,
        path: &str,
        index: usize,
        rule: &RuleDocument,
        spec: &Spec,
        policy: &Arc<str>,
        credential: &CredentialSource,
    ) -> Rule {
        let name = rule.name.clone().unwrap_or_else(|| format!("rule-{index}"));
        if let Err(message) = check_name(&name) {
            self.report(source, &format!("{path}.name"), Some(&name), message);
        }
        for (extension, _) in rule.extensions.0.iter().filter(|(extension, _)| extension.is_empty()) {
            self.report(source, &format!("{path}.extensions"), Some(extension), "an extension has a name");
        }
        // A rule that asks for no token decides nothing by what can grow stale, unless it says so itself.
        let inherited = if rule.allow_anonymous { Some(OnStale::Allow) } else { spec.on_stale };
        Rule {
            policy: Arc::clone(policy),
            index,
            name: name.into(),
            methods: self.methods(source, path, rule.methods.as_deref()),
            extensions: rule.extensions.0.clone(),
            access: self.access(source, path, rule, spec),
            credential: credential.clone(),
            forward_token: spec.forward_token,
            on_stale: rule.on_stale.or(inherited).unwrap_or(OnStale::Deny),
            hosts: self.hosts(source, path, rule.hosts.as_deref()),
            paths: self.paths(source, path, &rule.paths),
        }
    }

    fn hosts(&mut self, source: Source<'t>, path: &str, hosts: Option<&[String]>) -> Vec<HostPattern> {
        let Some(hosts) = hosts else { return vec![HostPattern::Any] };
        if hosts.is_empty() {
            self.report(
                source,
                &format!("{path}.hosts"),
                None,
                "names no host; leave it out, or write [\"*\"], for any",
            );
        }
        self.each(source, &format!("{path}.hosts"), hosts, HostPattern::parse)
    }

    fn paths(&mut self, source: Source<'t>, path: &str, paths: &[String]) -> Vec<Template> {
        if paths.is_empty() {
            self.report(source, &format!("{path}.paths"), None, "a rule has at least one path");
        }
        self.each(source, &format!("{path}.paths"), paths, Template::parse)
    }

    fn methods(&mut self, source: Source<'t>, path: &str, methods: Option<&[String]>) -> Vec<String> {
        let Some(methods) = methods else { return Vec::new() };
        if methods.is_empty() {
            self.report(source, &format!("{path}.methods"), None, "names no method; leave it out for any");
        }
        self.each(source, &format!("{path}.methods"), methods, |method| {
            // Methods are case-sensitive (RFC 9110 §9.1), and none in use has small letters.
            if is_token(method) && !method.bytes().any(|byte| byte.is_ascii_lowercase()) {
                Ok(method.to_owned())
            } else {
                Err("a method is written in capitals, as in `GET`".into())
            }
        })
    }

    fn access(&mut self, source: Source<'t>, path: &str, rule: &RuleDocument, spec: &Spec) -> Access {
        let own = [
            ("issuers", rule.issuers.is_some()),
            ("audiences", rule.audiences.is_some()),
            ("scopes", rule.scopes.is_some()),
        ];
        if rule.allow_anonymous {
            for (key, _) in own.iter().filter(|(_, given)| *given) {
                let message = "has no effect beside `allowAnonymous: true`, which asks for no token; remove one of them";
                self.report(source, &format!("{path}.{key}"), None, message);
            }
            return Access::Anonymous;
        }
        self.identifiers(source, &format!("{path}.issuers"), rule.issuers.as_deref().unwrap_or_default());
        self.identifiers(source, &format!("{path}.audiences"), rule.audiences.as_deref().unwrap_or_default());
        let audiences = rule.audiences.as_ref().unwrap_or(&spec.audiences).clone();
        if audiences.is_empty() {
            let message = "the rule needs `audiences`, here or in `spec`, or `allowAnonymous: true`";
            self.report(source, path, None, message);
        }
        let no_scopes = Scopes::default();
        let Scopes { all, any } = rule.scopes.as_ref().unwrap_or(&no_scopes);
        for (key, scopes) in [("all", all), ("any", any)] {
            self.each(source, &format!("{path}.scopes.{key}"), scopes, check_scope);
        }
        Access::Token(TokenRequirements {
            issuers: rule.issuers.as_ref().unwrap_or(&spec.issuers).clone(),
            audiences,
            clock_skew: i64::from(spec.clock_skew_seconds),
            all_scopes: all.clone(),
            any_scopes: any.clone(),
        })
    }

    fn identifiers(&mut self, source: Source<'t>, path: &str, values: &[String]) {
        self.each(source, path, values, |value| {
            let is_identifier =
                !value.is_empty() && !value.chars().any(|c| c.is_control() || c.is_whitespace());
            if is_identifier { Ok(()) } else { Err("must not be empty or have spaces".into()) }
        });
    }

    /// Reads each value of a list, and reports those that cannot be read.
    fn each<T>(
        &mut self,
        source: Source<'t>,
        path: &str,
        values: &[String],
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let mut results = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            match read(value) {
                Ok(result) => results.push(result),
                Err(message) => self.report(source, &format!("{path}[{index}]"), Some(value), message),
            }
        }
        results
    }

    fn report(&mut self, source: Source<'t>, path: &str, value: Option<&str>, message: impl Display) {
        self.errors.push(source.error(path, value, message));
    }

    fn finish(mut self) -> Result<PolicySet, Vec<PolicyError>> {
        let routes = Routes::build(self.rules.iter().map(AsRef::as_ref));
        if self.errors.is_empty() {
            for tie in routes.ties(&self.rules) {
                let ((rule, path), (other, other_path)) = (tie.later, tie.earlier);
                let (later, earlier) = (&self.rules[rule], &self.rules[other]);
                let message = format_args!(
                    "some requests match this and path `{}` of rule `{}` of policy `{}`, and neither is more specific; \
                     tell them apart by path, host, methods or extensions",
                    earlier.paths[other_path].as_str(),
                    earlier.name,
                    earlier.policy,
                );
                let place = format!("spec.rules[{}].paths[{path}]", later.index);
                self.errors.push(self.sources[rule].error(&place, Some(later.paths[path].as_str()), message));
            }
        }
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        Ok(PolicySet {
            version: 0,
            names: self.names.into(),
            rules: self.rules.into(),
            routes: Arc::new(routes),
        })
    }
}

impl Source<'_> {
    fn error(&self, path: &str, value: Option<&str>, message: impl Display) -> PolicyError {
        self.at(locate(self.text, &steps(path), value), path, message)
    }

    fn at(&self, place: Place, path: &str, message: impl Display) -> PolicyError {
        PolicyError {
            document: self.index,
            line: self.offset + place.line,
            column: place.column,
            path: path.to_owned(),
            message: message.to_string(),
            excerpt: self.text.lines().nth(place.line - 1).unwrap_or_default().to_owned(),
        }
    }

    /// What the YAML parser says, with its path and place taken out of the message.
    fn unreadable(&self, error: &serde_norway::Error) -> PolicyError {
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
        let is_path =
            |path: &str| ["metadata", "spec"].iter().any(|key| path.starts_with(key)) && !path.contains(' ');
        let (path, message) = text.split_once(": ").filter(|(path, _)| is_path(path)).unwrap_or(("", text));
        let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
        let place = match (unknown, error.location()) {
            (Some((key, _)), _) => {
                let mut steps = steps(path);
                steps.push(Step::Key(key));
                locate(self.text, &steps, Some(key))
            }
            (None, Some(place)) => Place { line: place.line().max(1), column: place.column().max(1) },
            (None, None) => locate(self.text, &steps(path), None),
        };
        self.at(place, path, message)
    }
}

/// The documents in a text, each with the number of lines before it; those without content are left out.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut offset, mut position) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_end() == "---" {
            documents.push((offset, &text[start..position]));
            (start, offset) = (position + line.len(), number + 1);
        }
        position += line.len();
    }
    documents.push((offset, &text[start..]));
    let has_content =
        |text: &str| text.lines().any(|line| !matches!(line.trim().chars().next(), None | Some('#')));
    documents.retain(|(_, text)| has_content(text));
    documents
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    if !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(is_name) {
        Ok(())
    } else {
        Err("a name has 1 to 63 small letters, digits, `-`, `.` and `_`")
    }
}

/// `scope-token` of RFC 6749 §3.3.
fn check_scope(scope: &str) -> Result<(), String> {
    if !scope.is_empty() && scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)) {
        Ok(())
    } else {
        Err("is no scope: printable ASCII without spaces, quotes and backslashes".into())
    }
}
