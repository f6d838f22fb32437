//! Configuration documents, read so that every mistake is found at once and named by its path.
//!
//! A [`Reader`] takes values out of a YAML document by their path and remembers what nobody took: those are unknown keys. A key
//! `nats.url` is overridden by the variable `ATM_NATS__URL`, `listen.adminTls.key` by `ATM_LISTEN__ADMIN_TLS__KEY`; the caller
//! passes the environment in, nothing here reads it. A [`Section`] is the same document seen from one of its mappings.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;

use serde_norway::Value;

#[cfg(test)]
mod tests;

/// What all overrides begin with.
const PREFIX: &str = "ATM_";
/// Between the parts of a path. Variables without it override top-level keys, or belong to other programs.
const SEPARATOR: &str = "__";

/// One mistake: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Path of the key, as in `listen.admin`, or the variable's name.
    pub path: String,
    /// What is wrong; what to do.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// A document with its overrides, and the mistakes found so far.
#[derive(Debug)]
pub struct Reader<'e> {
    /// By folded name: variable and value.
    overrides: BTreeMap<String, (&'e str, &'e str)>,
    contents: RefCell<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    /// By path, as in `nats.url`: everything but mappings and nulls.
    values: BTreeMap<String, Value>,
    /// Paths of mappings.
    sections: BTreeSet<String>,
    taken: BTreeSet<String>,
    /// Of those taken, the ones that had a value.
    given: BTreeSet<String>,
    mistakes: Vec<Mistake>,
}

/// What is found at a path.
enum Found<'e> {
    Nothing,
    Value(Value),
    Override(&'e str, &'e str),
    Section,
}

impl<'e> Reader<'e> {
    /// Parses a YAML document. Of `environment` (names and values) only what begins with `ATM_` counts.
    ///
    /// # Errors
    ///
    /// A document that is no YAML mapping: the one mistake that hides all others.
    pub fn new(
        text: &str,
        environment: impl IntoIterator<Item = (&'e String, &'e String)>,
    ) -> Result<Self, Mistake> {
        let whole = |message: String| Mistake { path: "configuration".to_owned(), message };
        let document: Value =
            serde_norway::from_str(text).map_err(|error| whole(format!("is not valid YAML: {error}")))?;
        if !matches!(document, Value::Null | Value::Mapping(_)) {
            return Err(whole("must be a mapping of keys to values".to_owned()));
        }
        let overrides = environment
            .into_iter()
            .filter_map(|(name, value)| Some((fold_variable(name)?, (name.as_str(), value.as_str()))));
        let mut contents = Contents::default();
        contents.flatten("", document);
        Ok(Self { overrides: overrides.collect(), contents: RefCell::new(contents) })
    }

    /// The document's top level.
    pub fn root(&self) -> Section<'_> {
        Section { reader: self, path: String::new() }
    }

    /// The single value at `path` (a text, number or boolean, as text), if it is there and `check` accepts it. Refused is a
    /// mistake.
    pub fn optional<T>(&self, path: &str, check: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let (text, source) = match self.take(path) {
            Found::Nothing => return None,
            Found::Override(variable, text) => (text.to_owned(), Some(variable)),
            Found::Value(Value::String(text)) => (text, None),
            Found::Value(Value::Bool(value)) => (value.to_string(), None),
            Found::Value(Value::Number(value)) => (value.to_string(), None),
            Found::Value(_) => {
                self.mistake(path, "must be a single value, not a list");
                return None;
            }
            Found::Section => {
                self.mistake(path, "must be a single value, not a section");
                return None;
            }
        };
        if text.is_empty() {
            self.refused(path, "must not be empty", source);
            return None;
        }
        check(&text).map_err(|message| self.refused(path, &message, source)).ok()
    }

    /// As [`Self::optional`]; absent is a mistake too.
    pub fn required<T>(&self, path: &str, check: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let before = self.contents.borrow().mistakes.len();
        let value = self.optional(path, check);
        if value.is_none() && self.contents.borrow().mistakes.len() == before {
            self.mistake(path, format!("is missing; set it in the file or by {}", variable(path)));
        }
        value
    }

    /// The texts at `path`; empty where it is left out. A single text is a list of one, and an override has commas between.
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = match self.take(path) {
            Found::Nothing => return Vec::new(),
            Found::Override(_, text) => {
                text.split(',').map(|entry| Value::String(entry.trim().to_owned())).collect()
            }
            Found::Value(Value::Sequence(entries)) => entries,
            Found::Value(value) => vec![value],
            Found::Section => vec![Value::Null],
        };
        let mut texts = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry {
                Value::String(text) if !text.is_empty() => texts.push(text),
                _ => {
                    self.mistake(path, "must be a list of texts that are not empty");
                    return Vec::new();
                }
            }
        }
        texts
    }

    /// Whether a value at `path` was there when it was taken.
    pub fn was_given(&self, path: &str) -> bool {
        self.contents.borrow().given.contains(path)
    }

    /// Whether the document or an override has anything below `section`.
    pub fn has_section(&self, section: &str) -> bool {
        let below = format!("{}{SEPARATOR}", fold_path(section));
        self.contents.borrow().sections.contains(section)
            || self.overrides.keys().any(|name| name.starts_with(&below))
    }

    /// Notes a mistake at `path`.
    pub fn mistake(&self, path: &str, message: impl Into<String>) {
        self.contents.borrow_mut().mistake(path, message.into());
    }

    /// Whether a mistake was noted at a path that begins like this.
    pub fn has_mistake(&self, path_prefix: &str) -> bool {
        self.contents.borrow().mistakes.iter().any(|mistake| mistake.path.starts_with(path_prefix))
    }

    /// The paths that were asked for, in order: the keys that there are.
    pub fn keys(&self) -> Vec<String> {
        self.contents.borrow().taken.iter().cloned().collect()
    }

    /// All mistakes in the order in which they were found, and at the end what nobody took; `Ok` where there are none.
    pub fn finish(self) -> Result<(), Vec<Mistake>> {
        let mut contents = self.contents.into_inner();
        let taken: BTreeSet<String> = contents.taken.iter().map(|path| fold_path(path)).collect();
        contents.refuse_unknown();
        for (folded, (variable, _)) in &self.overrides {
            if folded.contains(SEPARATOR) && !taken.contains(folded) {
                contents.mistake(variable, "overrides no known key; unset it".to_owned());
            }
        }
        if contents.mistakes.is_empty() { Ok(()) } else { Err(contents.mistakes) }
    }

    fn refused(&self, path: &str, message: &str, source: Option<&str>) {
        match source {
            None => self.mistake(path, message),
            Some(variable) => self.mistake(path, format!("{message} (from {variable})")),
        }
    }

    fn take(&self, path: &str) -> Found<'e> {
        let mut contents = self.contents.borrow_mut();
        contents.taken.insert(path.to_owned());
        let from_document = contents.values.remove(path);
        if from_document.is_some() || self.overrides.contains_key(&fold_path(path)) {
            contents.given.insert(path.to_owned());
        }
        match (self.overrides.get(&fold_path(path)), from_document) {
            (Some(&(variable, text)), _) => Found::Override(variable, text),
            (None, Some(value)) => Found::Value(value),
            (None, None) if contents.sections.contains(path) => Found::Section,
            (None, None) => Found::Nothing,
        }
    }
}

impl Contents {
    fn flatten(&mut self, path: &str, value: Value) {
        match value {
            Value::Mapping(entries) => {
                self.sections.insert(path.to_owned());
                for (key, value) in entries {
                    match key.as_str() {
                        Some(key) if path.is_empty() => self.flatten(key, value),
                        Some(key) => self.flatten(&format!("{path}.{key}"), value),
                        None => self.mistake(path, "has a key that is not text; quote it".to_owned()),
                    }
                }
            }
            Value::Null => {} // `key:` without a value is a key left out
            value => {
                self.values.insert(path.to_owned(), value);
            }
        }
    }

    fn mistake(&mut self, path: &str, message: String) {
        self.mistakes.push(Mistake { path: path.to_owned(), message });
    }

    fn refuse_unknown(&mut self) {
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
    }

    /// A known key that differs by case or separators only.
    fn nearest(&self, path: &str) -> Option<&str> {
        self.taken.iter().find(|known| fold_path(known) == fold_path(path)).map(String::as_str)
    }
}

/// One mapping of the document. An absent one has no values, and all its required keys are missing.
#[derive(Debug, Clone)]
pub struct Section<'a> {
    reader: &'a Reader<'a>,
    path: String,
}

impl<'a> Section<'a> {
    /// The mapping below `key`.
    #[must_use]
    pub fn section(&self, key: &str) -> Section<'a> {
        Section { reader: self.reader, path: self.path_of(key) }
    }

    /// Whether the document or an override has anything in it.
    pub fn is_present(&self) -> bool {
        self.reader.has_section(&self.path)
    }

    /// A text that must be there; empty where it is not.
    pub fn required(&self, key: &str) -> String {
        self.reader.required(&self.path_of(key), text).unwrap_or_default()
    }

    /// A text that may be left out.
    pub fn text(&self, key: &str) -> Option<String> {
        self.reader.optional(&self.path_of(key), text)
    }

    /// A value that `parse` must understand; its error is what is said.
    pub fn parsed<T, E: fmt::Display>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.reader.optional(&self.path_of(key), |text| parse(text).map_err(|error| error.to_string()))
    }

    /// A whole number within `range`.
    pub fn number(&self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.parsed(key, |text| number(text, range)).unwrap_or(default)
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &str, default: bool) -> bool {
        self.parsed(key, boolean).unwrap_or(default)
    }

    /// A list of texts; empty where it is left out. A single text is a list of one.
    pub fn list(&self, key: &str) -> Vec<String> {
        self.reader.list(&self.path_of(key))
    }

    /// Notes a mistake at `key`.
    pub fn mistake(&self, key: &str, message: impl Into<String>) {
        self.reader.mistake(&self.path_of(key), message);
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// `true` or `false`, for [`Reader::optional`].
pub fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".to_owned())
}

/// A whole number within `range`, for [`Reader::optional`].
pub fn number(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let number: Option<u64> = text.parse().ok();
    number
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
}

#[expect(clippy::unnecessary_wraps, reason = "the form that Reader::optional takes")]
fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
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
