//! From documents to a policy set, or to every mistake in them.

use std::fmt::Display;
use std::sync::Arc;

use hashbrown::HashMap;

use super::condition::{Condition, MAX_PATTERN_BYTES};
use super::document::{API_VERSION, Document, KIND, MAX_CLOCK_SKEW_SECONDS, RuleDocument, Scopes, Spec};
use super::host::HostPattern;
use super::locate::{Place, Step, locate, locate_text, steps};
use super::route::Routes;
use super::template::Template;
use super::{
    Access, CredentialSource, Mode, PolicyError, PolicySet, Rollout, Rule, TokenRequirements, Upstream,
    is_token,
};

mod credential;
mod routes;
mod scopes;
mod settings;

/// Length of a policy's or a rule's name at most, in bytes.
const MAX_NAME_BYTES: usize = 63;

/// Compiles a whole set of policy documents (YAML; one text may hold several, separated by `---`).
///
/// The set has version 0; see [`PolicySet::with_version`]. No documents make the empty set, which covers no request.
///
/// # Errors
///
/// Every mistake found, in the order of the documents and their lines. A document that is no YAML, or has keys that do not exist, shows its
/// first mistake only; ties between rules are looked for once each rule is right by itself.
pub fn compile(documents: &[String]) -> Result<PolicySet, Vec<PolicyError>> {
    let mut compiler = Compiler { pattern_bytes: MAX_PATTERN_BYTES, ..Compiler::default() };
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

/// What the rules of a policy inherit, compiled.
struct Inherited<'s> {
    policy: Arc<str>,
    spec: &'s Spec,
    rollout: Option<Rollout>,
    upstream: Arc<Upstream>,
}

#[derive(Debug, Default)]
struct Compiler<'t> {
    errors: Vec<PolicyError>,
    names: Vec<Arc<str>>,
    rules: Vec<Arc<Rule>>,
    /// Of each rule, where it was written.
    sources: Vec<Source<'t>>,
    /// Bytes that regular expressions may still take.
    pattern_bytes: usize,
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
        self.known_scopes(source, &spec);
        let inherited = Inherited {
            policy: Arc::clone(&name),
            rollout: self.rollout(source, spec.rollout.as_ref(), spec.mode),
            upstream: Arc::new(self.upstream(source, &spec)),
            spec: &spec,
        };
        if spec.rules.is_empty() {
            self.report(source, "spec.rules", None, "a policy has at least one rule");
        }
        let mut rule_names = HashMap::new();
        for (index, rule) in spec.rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            let rule = self.rule(source, &path, index, rule, &inherited);
            if let Some(first) = rule_names.insert(Arc::clone(&rule.name), index) {
                let message = format_args!("spec.rules[{first}] has this name already");
                self.report(source, &format!("{path}.name"), Some(&rule.name), message);
            }
            self.rules.push(Arc::new(rule));
            self.sources.push(source);
        }
    }

    fn rule(
        &mut self,
        source: Source<'t>,
        path: &str,
        index: usize,
        rule: &RuleDocument,
        inherited: &Inherited<'_>,
    ) -> Rule {
        let spec = inherited.spec;
        let name = rule.name.clone().unwrap_or_else(|| format!("rule-{index}"));
        if let Err(message) = check_name(&name) {
            self.report(source, &format!("{path}.name"), Some(&name), message);
        }
        for (extension, _) in rule.extensions.0.iter().filter(|(extension, _)| extension.is_empty()) {
            self.report(source, &format!("{path}.extensions"), Some(extension), "an extension has a name");
        }
        let (hosts, paths) =
            (self.hosts(source, path, rule.hosts.as_deref()), self.paths(source, path, &rule.paths));
        let credential = self.credential(source, path, rule, spec);
        Rule {
            policy: Arc::clone(&inherited.policy),
            index,
            name: name.into(),
            mode: spec.mode,
            rollout: inherited.rollout.clone(),
            methods: self.methods(source, path, rule.methods.as_deref()),
            extensions: rule.extensions.0.clone(),
            access: self.access(source, path, rule, spec, &paths, &credential),
            credential,
            forward_token: spec.forward_token,
            on_stale: self.on_stale(source, path, rule, spec),
            upstream: Arc::clone(&inherited.upstream),
            hosts,
            paths,
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
        let patterns = self.each(source, &format!("{path}.hosts"), hosts, HostPattern::parse);
        self.repeated(source, &format!("{path}.hosts"), hosts, &patterns, PartialEq::eq);
        patterns
    }

    fn paths(&mut self, source: Source<'t>, path: &str, paths: &[String]) -> Vec<Template> {
        if paths.is_empty() {
            self.report(source, &format!("{path}.paths"), None, "a rule has at least one path");
        }
        let templates = self.each(source, &format!("{path}.paths"), paths, Template::parse);
        self.repeated(source, &format!("{path}.paths"), paths, &templates, Template::matches_the_same);
        templates
    }

    /// Reports what the same list has already. (A narrower entry beside a wider one does make a difference: it is the more
    /// specific against other rules.)
    fn repeated<T>(
        &mut self,
        source: Source<'t>,
        path: &str,
        texts: &[String],
        entries: &[T],
        same: impl Fn(&T, &T) -> bool,
    ) {
        if texts.len() != entries.len() {
            return; // some could not be read, which is reported already
        }
        for (at, entry) in entries.iter().enumerate() {
            if let Some(first) = entries[..at].iter().position(|known| same(known, entry)) {
                let message = format_args!("matches the same as `{}` before it; remove one", texts[first]);
                self.report(source, &format!("{path}[{at}]"), Some(&texts[at]), message);
            }
        }
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

    fn access(
        &mut self,
        source: Source<'t>,
        path: &str,
        rule: &RuleDocument,
        spec: &Spec,
        templates: &[Template],
        credential: &[CredentialSource],
    ) -> Access {
        let own = [
            ("issuers", rule.issuers.is_some()),
            ("audiences", rule.audiences.is_some()),
            ("scopes", rule.scopes.is_some()),
            ("condition", rule.condition.is_some()),
            ("credential", rule.credential.is_some()),
            ("accepts", rule.accepts.is_some()),
            ("binding", rule.binding.is_some()),
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
        let Scopes { all, any } = self.scopes(source, path, rule, spec);
        let (binding, dpop) = self.binding(source, path, rule, spec, credential);
        Access::Token(TokenRequirements {
            issuers: rule.issuers.as_ref().unwrap_or(&spec.issuers).clone(),
            audiences,
            clock_skew: i64::from(spec.clock_skew_seconds),
            all_scopes: all,
            any_scopes: any,
            accepts: self.accepts(source, path, rule, spec),
            condition: self.condition(source, path, rule.condition.as_deref(), templates),
            binding,
            dpop,
        })
    }

    /// Compiles a condition. A mistake in it is shown in the document's own lines.
    fn condition(
        &mut self,
        source: Source<'t>,
        path: &str,
        text: Option<&str>,
        templates: &[Template],
    ) -> Option<Condition> {
        let text = text?;
        let path = format!("{path}.condition");
        match Condition::compile_within(text, &mut self.pattern_bytes) {
            Ok(condition) => {
                if let Some(outcome) = condition.constant() {
                    let message = match outcome {
                        Ok(true) => "is always true; leave it out",
                        Ok(false) => "is always false, so that the rule permits nothing",
                        Err(_) => "has no outcome, whatever the request, so that the rule permits nothing",
                    };
                    self.report(source, &path, None, message);
                }
                for name in condition.path_parameters() {
                    if let Some(template) = templates.iter().find(|template| !template.has_parameter(name)) {
                        let message = format_args!(
                            "`request.params.{name}` is asked for, and path `{}` has no `{{{name}}}`",
                            template.as_str()
                        );
                        self.report(source, &path, Some(name), message);
                    }
                }
                Some(condition)
            }
            Err(error) => {
                let place = locate_text(source.text, &steps(&path), text, error.line, error.column);
                self.errors.push(source.at(place, &path, error.message));
                None
            }
        }
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
        let routes = Routes::build(self.rules.iter().map(AsRef::as_ref), Mode::Enforce);
        let shadow = Routes::build(self.rules.iter().map(AsRef::as_ref), Mode::Shadow);
        // Routes of rules that are not what was meant would only confuse.
        if self.errors.is_empty() {
            self.ties(&routes);
            self.ties(&shadow);
        }
        if self.errors.is_empty() {
            self.unreachable();
        }
        if !self.errors.is_empty() {
            self.errors.sort_by_key(|error| (error.document, error.line, error.column));
            self.errors.dedup(); // what several rules inherit
            return Err(self.errors);
        }
        Ok(PolicySet {
            version: 0,
            names: self.names.into(),
            rules: self.rules.into(),
            routes: Arc::new(routes),
            shadow: Arc::new(shadow),
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
