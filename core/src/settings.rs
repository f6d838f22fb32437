//! Configuration documents, read so that every mistake is found at once and named by its path.
//!
//! A [`Section`] remembers which keys it was asked for; what is left over when it is dropped is an unknown key. Values may be
//! overridden by `ATM_<SECTION>__<KEY>` variables, which the caller passes in: nothing here reads the environment.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde_norway::{Mapping, Value};

/// One mistake: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Dotted path of the key, or the variable's name.
    pub path: String,
    /// What is wrong and what to do.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

/// A document with its overrides, and the mistakes found so far.
#[derive(Debug)]
pub struct Settings {
    root: Mapping,
    overrides: BTreeMap<String, Override>,
    mistakes: RefCell<Vec<Mistake>>,
}

#[derive(Debug)]
struct Override {
    variable: String,
    value: Value,
    used: std::cell::Cell<bool>,
}

impl Settings {
    /// Parses a YAML document. Of `environment` only variables of the form `ATM_<SECTION>__<KEY>` count; their values are read
    /// as YAML scalars.
    pub fn parse(text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut mistakes = Vec::new();
        let root = match serde_norway::from_str::<Value>(text) {
            Ok(Value::Mapping(root)) => root,
            Ok(Value::Null) => Mapping::new(),
            Ok(_) => {
                mistakes.push(mistake("(document)", "must be a mapping of keys to values"));
                Mapping::new()
            }
            Err(error) => {
                mistakes.push(mistake("(document)", &format!("is no YAML: {error}")));
                Mapping::new()
            }
        };
        let overrides = environment.into_iter().filter_map(|(variable, value)| {
            let path = variable.strip_prefix("ATM_").filter(|path| path.contains("__"))?;
            let path = path.split("__").map(fold).collect::<Vec<_>>().join(".");
            let value = serde_norway::from_str(&value).unwrap_or(Value::String(value));
            Some((path, Override { variable, value, used: false.into() }))
        });
        Self { root, overrides: overrides.collect(), mistakes: mistakes.into() }
    }

    /// The document's top level.
    pub fn root(&self) -> Section<'_> {
        Section { settings: self, path: String::new(), mapping: Some(&self.root), asked: RefCell::default() }
    }

    /// All mistakes, sorted by path; `Ok` when there are none. Every section must have been dropped.
    pub fn finish(self) -> Result<(), Vec<Mistake>> {
        let mut mistakes = self.mistakes.into_inner();
        for unused in self.overrides.values().filter(|entry| !entry.used.get()) {
            mistakes.push(mistake(&unused.variable, "names no key; remove it or correct its name"));
        }
        mistakes.sort();
        mistakes.dedup();
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
    }
}

/// One mapping of the document. An absent one has no values, and all its required keys are missing.
#[derive(Debug)]
pub struct Section<'a> {
    settings: &'a Settings,
    path: String,
    mapping: Option<&'a Mapping>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// The mapping below `key`.
    #[must_use]
    pub fn section(&self, key: &'static str) -> Section<'a> {
        self.asked.borrow_mut().push(key);
        let path = self.path_of(key);
        let mapping = match self.mapping.and_then(|mapping| mapping.get(key)) {
            None | Some(Value::Null) => None,
            Some(Value::Mapping(mapping)) => Some(mapping),
            Some(_) => {
                self.mistake(key, "must be a mapping of keys to values");
                None
            }
        };
        Section { settings: self.settings, path, mapping, asked: RefCell::default() }
    }

    /// Whether the document has the section or key at all.
    pub fn has(&self, key: &str) -> bool {
        self.mapping.is_some_and(|mapping| mapping.contains_key(key))
    }

    /// A text that must be there. `example` shows what it looks like.
    pub fn required(&self, key: &'static str, example: &str) -> String {
        self.text(key).unwrap_or_else(|| {
            if self.value(key).is_none() {
                self.mistake(key, &format!("is missing; give for example {example}"));
            }
            String::new()
        })
    }

    /// A text that may be left out.
    pub fn text(&self, key: &'static str) -> Option<String> {
        match self.value(key)? {
            Value::String(text) if !text.is_empty() => Some(text),
            Value::Number(number) => Some(number.to_string()),
            _ => {
                self.mistake(key, "must be a text that is not empty");
                None
            }
        }
    }

    /// A text that `parse` must understand; its error is what is said.
    pub fn parsed<T, E: fmt::Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        parse(&self.text(key)?).map_err(|error| self.mistake(key, &error.to_string())).ok()
    }

    /// A whole number within `range`.
    pub fn number(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(value) = self.value(key) else { return default };
        match value.as_u64() {
            Some(number) if range.contains(&number) => number,
            _ => {
                self.mistake(
                    key,
                    &format!("must be a whole number from {} to {}", range.start(), range.end()),
                );
                default
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &'static str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(Value::Bool(value)) => value,
            Some(_) => {
                self.mistake(key, "must be true or false");
                default
            }
        }
    }

    /// A list of texts; empty where it is left out. A single text is a list of one.
    pub fn list(&self, key: &'static str) -> Vec<String> {
        let entries = match self.value(key) {
            None => return Vec::new(),
            Some(Value::String(entry)) => return vec![entry],
            Some(Value::Sequence(entries)) => entries,
            Some(_) => {
                self.mistake(key, "must be a list of texts");
                return Vec::new();
            }
        };
        let text = |entry: Value| match entry {
            Value::String(text) if !text.is_empty() => Some(text),
            _ => {
                self.mistake(key, "must be a list of texts");
                None
            }
        };
        entries.into_iter().filter_map(text).collect()
    }

    /// Notes a mistake at `key`.
    pub fn mistake(&self, key: &str, problem: &str) {
        self.settings.mistakes.borrow_mut().push(mistake(&self.path_of(key), problem));
    }

    fn value(&self, key: &'static str) -> Option<Value> {
        self.asked.borrow_mut().push(key);
        let path = self.path_of(key).split('.').map(fold).collect::<Vec<_>>().join(".");
        if let Some(entry) = self.settings.overrides.get(&path) {
            entry.used.set(true);
            return Some(entry.value.clone()).filter(|value| !value.is_null());
        }
        self.mapping?.get(key).filter(|value| !value.is_null()).cloned()
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        for key in self.mapping.into_iter().flat_map(Mapping::keys) {
            match key.as_str() {
                Some(name) if asked.contains(&name) => {}
                Some(name) => {
                    let mut known = asked
                        .iter()
                        .filter(|known| fold(known) == fold(name))
                        .map(|known| format!("; did you mean {known}?"));
                    self.mistake(
                        name,
                        &format!("is not a known key{}", known.next_back().unwrap_or_default()),
                    );
                }
                None => self.mistake("(key)", "must be a text"),
            }
        }
    }
}

/// Names without case and underscores: `LISTEN__GRPC_UNIX` means `listen.grpcUnix`.
fn fold(name: &str) -> String {
    name.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

fn mistake(path: &str, problem: &str) -> Mistake {
    Mistake { path: path.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str, environment: &[(&str, &str)], read: impl FnOnce(&Section<'_>)) -> Vec<String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let settings = Settings::parse(text, environment);
        read(&settings.root());
        settings.finish().err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_is_found_at_once() {
        let found = mistakes("nats: {ulr: x, port: 70000}\nlisten: 3\nextra: 1", &[], |root| {
            let nats = root.section("nats");
            nats.required("url", "nats://127.0.0.1:4222");
            nats.number("port", 1, 1..=65535);
            let _ = root.section("listen");
        });
        assert_eq!(
            found,
            [
                "extra: is not a known key",
                "listen: must be a mapping of keys to values",
                "nats.port: must be a whole number from 1 to 65535",
                "nats.ulr: is not a known key",
                "nats.url: is missing; give for example nats://127.0.0.1:4222",
            ]
        );
    }

    #[test]
    fn a_variable_overrides_a_key_and_must_name_one() {
        let found = mistakes(
            "listen: {grpcUnix: /a}",
            &[("ATM_LISTEN__GRPC_UNIX", "/b"), ("ATM_LISTEN__NONE", "1"), ("ATM_CACHE", "/x")],
            |root| assert_eq!(root.section("listen").text("grpcUnix").as_deref(), Some("/b")),
        );
        assert_eq!(found, ["ATM_LISTEN__NONE: names no key; remove it or correct its name"]);
    }

    #[test]
    fn what_is_no_yaml_is_said_once_and_with_its_place() {
        let found = mistakes("a: [", &[], |_| ());
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("line"), "{found:?}");
    }
}
