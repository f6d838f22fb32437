//! Takes values out of a YAML document and the environment, and remembers what nobody took.

use std::collections::{BTreeMap, BTreeSet};

use serde_norway::Value;

use super::{ConfigError, Environment, Mistake};

/// What all overrides begin with.
const PREFIX: &str = "ATM_";
/// Between the parts of a path. Variables without it override top-level keys, or belong to other programs.
const SEPARATOR: &str = "__";

/// The scalars of a document by path, with overrides applied.
pub(super) struct Reader<'a> {
    /// Scalars by path, as in `nats.url`. None: a list, which no key of ours takes.
    values: BTreeMap<String, Option<String>>,
    /// Paths of mappings.
    sections: BTreeSet<String>,
    /// Overrides by folded name: (variable, value).
    overrides: BTreeMap<String, (&'a str, &'a str)>,
    taken: BTreeSet<String>,
    /// Of those taken, the ones that had a value.
    given: BTreeSet<String>,
    mistakes: Vec<Mistake>,
}

impl<'a> Reader<'a> {
    /// A document that is no YAML mapping is the one mistake that hides all others.
    pub(super) fn new(text: &str, environment: &'a Environment) -> Result<Self, ConfigError> {
        let whole =
            |message: String| ConfigError(vec![Mistake { path: "configuration".to_owned(), message }]);
        let document: Value =
            serde_norway::from_str(text).map_err(|error| whole(format!("is not valid YAML: {error}")))?;
        let mut reader = Self {
            values: BTreeMap::new(),
            sections: BTreeSet::new(),
            overrides: environment
                .iter()
                .filter_map(|(name, value)| Some((fold_variable(name)?, (name.as_str(), value.as_str()))))
                .collect(),
            taken: BTreeSet::new(),
            given: BTreeSet::new(),
            mistakes: Vec::new(),
        };
        match document {
            Value::Null | Value::Mapping(_) => reader.flatten("", document),
            _ => return Err(whole("must be a mapping of keys to values".to_owned())),
        }
        Ok(reader)
    }

    fn flatten(&mut self, path: &str, value: Value) {
        let text = match value {
            Value::Mapping(entries) => {
                self.sections.insert(path.to_owned());
                for (key, value) in entries {
                    match key.as_str() {
                        Some(key) if path.is_empty() => self.flatten(key, value),
                        Some(key) => self.flatten(&format!("{path}.{key}"), value),
                        None => self.mistake(path, "has a key that is not text; quote it".to_owned()),
                    }
                }
                return;
            }
            Value::Null => return, // `key:` without a value is a key left out
            Value::String(text) => Some(text),
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(value) => Some(value.to_string()),
            Value::Sequence(_) | Value::Tagged(_) => None,
        };
        self.values.insert(path.to_owned(), text);
    }

    /// The value at `path`, if it is there and `check` accepts it; refused is a mistake.
    pub(super) fn optional<T>(
        &mut self,
        path: &str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.taken.insert(path.to_owned());
        let from_document = self.values.remove(path);
        let (text, source) = match (self.overrides.remove(&fold_path(path)), from_document) {
            (Some((variable, text)), _) => (text.to_owned(), Some(variable)),
            (None, Some(Some(text))) => (text, None),
            (None, Some(None)) => {
                self.mistake(path, "must be a single value, not a list".to_owned());
                return None;
            }
            (None, None) if self.sections.contains(path) => {
                self.mistake(path, "must be a single value, not a section".to_owned());
                return None;
            }
            (None, None) => return None,
        };
        self.given.insert(path.to_owned());
        let checked = if text.is_empty() { Err("must not be empty".to_owned()) } else { check(&text) };
        match (checked, source) {
            (Ok(value), _) => return Some(value),
            (Err(message), None) => self.mistake(path, message),
            (Err(message), Some(variable)) => self.mistake(path, format!("{message} (from {variable})")),
        }
        None
    }

    /// As [`Self::optional`]; absent is a mistake too.
    pub(super) fn required<T>(
        &mut self,
        path: &str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let mistakes = self.mistakes.len();
        let value = self.optional(path, check);
        if value.is_none() && self.mistakes.len() == mistakes {
            let variable = variable(path);
            self.mistake(path, format!("is missing; set it in the file or by {variable}"));
        }
        value
    }

    /// Whether a value at `path` was there when it was taken.
    pub(super) fn was_given(&self, path: &str) -> bool {
        self.given.contains(path)
    }

    /// Whether the document or an override has anything below `section`.
    pub(super) fn has_section(&self, section: &str) -> bool {
        let below = format!("{}{SEPARATOR}", fold_path(section));
        self.sections.contains(section) || self.overrides.keys().any(|name| name.starts_with(&below))
    }

    pub(super) fn mistake(&mut self, path: &str, message: String) {
        self.mistakes.push(Mistake { path: path.to_owned(), message });
    }

    pub(super) fn has_mistake(&self, path_prefix: &str) -> bool {
        self.mistakes.iter().any(|mistake| mistake.path.starts_with(path_prefix))
    }

    /// All mistakes, among them what nobody took.
    pub(super) fn finish(mut self) -> Result<(), ConfigError> {
        let known: BTreeSet<String> = self.taken.iter().flat_map(|path| ancestors(path)).collect();
        for path in std::mem::take(&mut self.values).into_keys() {
            let message = match self.nearest(&path) {
                _ if known.contains(&path) => "must be a section of keys, not a value".to_owned(),
                Some(near) => format!("is no known key; did you mean {near}?"),
                None => "is no known key; remove it".to_owned(),
            };
            self.mistake(&path, message);
        }
        for section in std::mem::take(&mut self.sections) {
            let inside_unknown = ancestors(&section).any(|above| above != section && !known.contains(&above));
            if !section.is_empty()
                && !known.contains(&section)
                && !self.taken.contains(&section)
                && !inside_unknown
            {
                self.mistake(&section, "is no known section; remove it".to_owned());
            }
        }
        for (folded, (variable, _)) in std::mem::take(&mut self.overrides) {
            if folded.contains(SEPARATOR) {
                self.mistake(variable, "overrides no known key; unset it".to_owned());
            }
        }
        if self.mistakes.is_empty() { Ok(()) } else { Err(ConfigError(self.mistakes)) }
    }

    /// A known key that differs by case or separators only.
    fn nearest(&self, path: &str) -> Option<&str> {
        self.taken.iter().find(|known| fold_path(known) == fold_path(path)).map(String::as_str)
    }
}

/// The sections that a path is in: `listen.adminTls.key` is in `listen` and in `listen.adminTls`.
fn ancestors(path: &str) -> impl Iterator<Item = String> {
    path.match_indices('.').map(|(at, _)| path[..at].to_owned())
}

/// The form in which a path and its variable are equal: `listen.adminTls.key` → `LISTEN__ADMINTLS__KEY`.
fn fold_path(path: &str) -> String {
    let parts = path.split('.').map(|part| part.replace(['_', '-'], "").to_ascii_uppercase());
    parts.collect::<Vec<_>>().join(SEPARATOR)
}

fn fold_variable(name: &str) -> Option<String> {
    let parts = name.strip_prefix(PREFIX)?.split(SEPARATOR).map(|part| part.replace('_', ""));
    Some(parts.collect::<Vec<_>>().join(SEPARATOR))
}

/// How the override of `path` is documented: `listen.adminTls.key` → `ATM_LISTEN__ADMIN_TLS__KEY`.
fn variable(path: &str) -> String {
    let mut name = PREFIX.to_owned();
    for character in path.chars() {
        match character {
            '.' => name.push_str(SEPARATOR),
            upper if upper.is_ascii_uppercase() => {
                name.push('_');
                name.push(upper);
            }
            other => name.push(other.to_ascii_uppercase()),
        }
    }
    name
}
