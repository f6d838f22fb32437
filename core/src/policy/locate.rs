//! Finds the line of a key in a YAML text, for messages about values that parsed well.
//!
//! It reads block style by its indentation. Within flow style it stops at the line where that begins, and looks for the
//! value there: close enough for people.

/// One step into a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// A place in a text: line and column in characters, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A line of block style: its number from 0, its indentation, and what stands after that.
#[derive(Debug, Clone, Copy)]
struct Line<'t> {
    number: usize,
    indent: usize,
    content: &'t str,
}

/// The deepest place along `path` that can be found. `value` is looked for in that line, to point at it.
pub(super) fn locate(text: &str, path: &[Step<'_>], value: Option<&str>) -> Place {
    let mut lines: Vec<_> =
        text.lines().enumerate().filter_map(|(number, line)| read(number, line)).collect();
    let mut found: Option<Line<'_>> = None;
    for step in path {
        let Some((line, below)) = descend(&lines, *step) else { break };
        found = Some(line);
        lines = below;
    }
    let line = found.or_else(|| text.lines().enumerate().find_map(|(number, line)| read(number, line)));
    let Some(Line { number, indent, .. }) = line else { return Place { line: 1, column: 1 } };
    let full = text.lines().nth(number).unwrap_or_default();
    let byte = value.filter(|value| !value.is_empty()).and_then(|value| find(full, value)).unwrap_or(indent);
    let column = full.get(..byte).map_or(1, |before| before.chars().count() + 1);
    Place { line: number + 1, column }
}

/// Where `value` stands in a line: the last time by itself, else the last time as a part of another one.
fn find(line: &str, value: &str) -> Option<usize> {
    let is_edge = |character: char| character.is_whitespace() || "'\"[]{},:".contains(character);
    let whole = line.match_indices(value).filter(|(at, _)| {
        line[..*at].chars().next_back().is_none_or(is_edge)
            && line[at + value.len()..].chars().next().is_none_or(is_edge)
    });
    whole.last().map(|(at, _)| at).or_else(|| line.rfind(value))
}

/// The place of a position within a text value: in a block scalar (`|`, `>-`) on one of the lines below the key, else behind
/// it. `line` and `column` count within the value, from 1.
pub(super) fn locate_text(text: &str, path: &[Step<'_>], value: &str, line: usize, column: usize) -> Place {
    let key = locate(text, path, None);
    let full = text.lines().nth(key.line - 1).unwrap_or_default();
    let written = value.lines().nth(line - 1).unwrap_or_default();
    if line == 1
        && !written.is_empty()
        && let Some(at) = full.find(written)
    {
        return Place { line: key.line, column: full[..at].chars().count() + column };
    }
    // A folded scalar joins its lines, so the column counts on over them.
    let mut column = column;
    let below = text.lines().enumerate().skip(key.line).filter(|(_, line)| !line.trim().is_empty());
    let folded = full.trim_end().trim_end_matches(['-', '+']).ends_with('>');
    for (number, full) in below.skip(if folded { 0 } else { line - 1 }) {
        let content = full.trim_start_matches(' ');
        let length = content.trim_end().chars().count();
        if !folded || column <= length + 1 {
            return Place { line: number + 1, column: full.len() - content.len() + column };
        }
        column -= length + 1;
    }
    key
}

/// `spec.rules[1].paths[0]` as steps; the compiler's paths have this form.
pub(super) fn steps(path: &str) -> Vec<Step<'_>> {
    let parts = path.split(['.', '[']).filter(|part| !part.is_empty());
    let step = |part: &'_ str| part.strip_suffix(']').and_then(|index| index.parse().ok());
    parts.map(|part| step(part).map_or(Step::Key(part), Step::Index)).collect()
}

fn read(number: usize, line: &str) -> Option<Line<'_>> {
    let content = line.trim_start_matches(' ');
    let is_comment = content.starts_with('#') || content.trim().is_empty() || line.starts_with("---");
    (!is_comment).then_some(Line { number, indent: line.len() - content.len(), content })
}

/// The line of one step in a block, and the block below it.
fn descend<'t>(lines: &[Line<'t>], step: Step<'_>) -> Option<(Line<'t>, Vec<Line<'t>>)> {
    let indent = lines.first()?.indent;
    let here = |line: &Line<'_>| line.indent == indent;
    match step {
        Step::Key(key) => {
            let at = lines.iter().position(|line| here(line) && is_key(line.content, key))?;
            // The items of a sequence may stand as far left as the key that holds them.
            let belongs = |line: &&Line<'_>| line.indent > indent || (here(line) && is_item(line.content));
            Some((lines[at], lines[at + 1..].iter().take_while(belongs).copied().collect()))
        }
        Step::Index(index) => {
            let mut items = lines.iter().enumerate().filter(|(_, line)| here(line) && is_item(line.content));
            let (at, item) = items.nth(index)?;
            let content = item.content[1..].trim_start_matches(' ');
            let first = Line { indent: indent + item.content.len() - content.len(), content, ..*item };
            let below = lines[at + 1..].iter().take_while(|line| line.indent > indent).copied();
            // A dash alone: its block begins on the next line.
            let head = (!content.trim().is_empty()).then_some(first);
            Some((first, head.into_iter().chain(below).collect()))
        }
    }
}

fn is_item(content: &str) -> bool {
    content == "-" || content.starts_with("- ")
}

fn is_key(content: &str, key: &str) -> bool {
    let rest = content.strip_prefix(key).or_else(|| {
        let quoted = content.strip_prefix(['"', '\''])?;
        quoted.strip_prefix(key)?.strip_prefix(['"', '\''])
    });
    rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
}
