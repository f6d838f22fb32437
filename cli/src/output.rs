//! How results reach people and scripts. Colour only on a terminal, and not where NO_COLOR is set.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde_json::Value;

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Tables and sentences.
    Human,
    /// One JSON document.
    Json,
}

/// What a cell's content means; decides its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Attention,
    /// Not as it should be.
    Bad,
}

/// Writes `text` to standard output, ended by a line break.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Writes a JSON document to standard output.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    print(&format!("{value:#}"))
}

/// Writes a result: the document, or what it means in words.
pub(crate) fn show(value: &Value, format: Format, words: &str) -> Result<()> {
    match format {
        Format::Json => print_json(value),
        Format::Human => print(words),
    }
}

/// A table with a header line and no frame.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [Cell; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !colourful() {
        table.force_no_tty();
    }
    table.set_header(header.map(|name| Cell::new(name.to_uppercase())));
    table.add_rows(rows);
    // Columns are apart by two spaces, and the first one starts the line.
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A cell of plain text; a dash where there is nothing to say.
pub(crate) fn cell(text: impl AsRef<str>) -> Cell {
    let text = text.as_ref();
    Cell::new(if text.is_empty() { "-" } else { text })
}

/// A number, to the right.
pub(crate) fn number(value: Option<u64>) -> Cell {
    cell(value.map(|value| value.to_string()).unwrap_or_default()).set_alignment(CellAlignment::Right)
}

/// A cell with a meaning.
pub(crate) fn toned(text: impl AsRef<str>, tone: Tone) -> Cell {
    cell(text).fg(match tone {
        Tone::Good => Color::Green,
        Tone::Attention => Color::Yellow,
        Tone::Bad => Color::Red,
    })
}

/// The text of a JSON value: strings as they are, lists with spaces, nothing for null.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(entries) => entries.iter().map(text).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// Milliseconds since the Unix epoch as UTC, to the second.
pub(crate) fn instant(millis: &Value) -> String {
    let timestamp = millis.as_i64().and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    timestamp.map(|at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()).unwrap_or_default()
}

fn colourful() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether the reader of standard output has gone.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
