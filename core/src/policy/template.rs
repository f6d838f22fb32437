//! Path templates: literal segments, `{name}` for one segment, a last `{name...}` for one or more.

use crate::path;

/// Segments of a template at most.
const MAX_SEGMENTS: usize = 64;

/// A path template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    text: String,
    segments: Vec<Segment>,
    rest: bool,
    /// Names of the placeholders by their segment's place.
    names: Vec<(usize, String)>,
}

/// One segment of a template, without the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    /// Exactly this, normalised.
    Literal(String),
    /// Any one segment.
    Parameter,
}

impl Template {
    /// Reads a template; an error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(inner) = text.strip_prefix('/') else {
            return Err("a path begins with `/`".into());
        };
        if text.contains(['?', '#']) {
            return Err("a path has no query and no fragment".into());
        }
        if inner.ends_with('/') {
            return Err("leave out the slash at the end: requests match with and without it".into());
        }
        let mut template =
            Self { text: text.to_owned(), segments: Vec::new(), rest: false, names: Vec::new() };
        for part in inner.split('/').filter(|_| !inner.is_empty()) {
            if template.rest {
                return Err("`{name...}` is the last segment".into());
            }
            let Some((name, rest)) = placeholder(part)? else {
                template.segments.push(Segment::Literal(literal(part)?));
                continue;
            };
            if template.names.iter().any(|(_, known)| known == name) {
                return Err(format!("`{name}` occurs twice"));
            }
            template.names.push((template.segments.len(), name.to_owned()));
            if rest {
                template.rest = true;
            } else {
                template.segments.push(Segment::Parameter);
            }
        }
        if template.segments.len() > MAX_SEGMENTS {
            return Err(format!("a path has at most {MAX_SEGMENTS} segments"));
        }
        Ok(template)
    }

    /// As written.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether `{name}` or `{name...}` is part of it.
    pub(super) fn has_parameter(&self, name: &str) -> bool {
        self.names.iter().any(|(_, known)| known == name)
    }

    /// What `{name}` stands for in a path that the template matches; of the rest everything from there on.
    pub(super) fn parameter<'r>(&self, path: &'r str, name: &str) -> Option<&'r str> {
        let (place, _) = self.names.iter().find(|(_, known)| known == name)?;
        let mut tail = path.strip_prefix('/')?;
        for _ in 0..*place {
            tail = tail.split_once('/')?.1;
        }
        let is_rest = *place == self.segments.len();
        Some(if is_rest { tail } else { tail.split('/').next().unwrap_or(tail) })
    }

    /// The segments before the rest.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether one or more segments follow.
    pub(super) fn has_rest(&self) -> bool {
        self.rest
    }

    /// How many segments are literal.
    pub(super) fn literals(&self) -> usize {
        self.segments.iter().filter(|segment| matches!(segment, Segment::Literal(_))).count()
    }

    /// The normalised path where the template is one, without placeholders.
    pub(super) fn exact(&self) -> Option<String> {
        if self.rest {
            return None;
        }
        let literals: Option<Vec<&str>> = self
            .segments
            .iter()
            .map(|segment| match segment {
                Segment::Literal(text) => Some(text.as_str()),
                Segment::Parameter => None,
            })
            .collect();
        literals.map(|literals| format!("/{}", literals.join("/")))
    }

    /// Whether both match the same paths, whatever their placeholders are called.
    pub(super) fn matches_the_same(&self, other: &Self) -> bool {
        self.segments == other.segments && self.rest == other.rest
    }

    /// Whether some path matches both. Only for templates of one shape: as many segments, and both with or without a rest.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.segments.iter().zip(&other.segments).all(|pair| match pair {
            (Segment::Literal(ours), Segment::Literal(theirs)) => ours == theirs,
            _ => true,
        })
    }
}

/// The name in `{name}` or `{name...}`, and whether it is a rest.
fn placeholder(part: &str) -> Result<Option<(&str, bool)>, String> {
    if !part.contains(['{', '}']) {
        return Ok(None);
    }
    let inner = part
        .strip_prefix('{')
        .and_then(|part| part.strip_suffix('}'))
        .ok_or("a placeholder is a whole segment: `{name}`, or at the end `{name...}`")?;
    let (name, rest) = inner.strip_suffix("...").map_or((inner, false), |name| (name, true));
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_name {
        Ok(Some((name, rest)))
    } else {
        Err("a placeholder's name has letters, digits and `_`".into())
    }
}

fn literal(part: &str) -> Result<String, String> {
    if part.is_empty() {
        return Err("a path has no empty segments".into());
    }
    if part.contains('*') {
        return Err(
            "`*` is no wildcard here: write `{name}` for one segment, `{name...}` at the end for more".into(),
        );
    }
    let target = format!("/{part}");
    let path = path::normalise(&target).map_err(|_| {
        format!("`{part}` is no segment of a normalised path, so that no request could match it")
    })?;
    Ok(path.as_str()[1..].to_owned())
}
