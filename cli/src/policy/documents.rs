//! Policy documents in files: read, divided, compiled, with every mistake shown where it stands.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use atm_core::policy::{self, PolicyError, PolicySet};
use serde::Serialize;

/// Policy documents, and where each came from.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// The documents, each by itself.
    pub(super) texts: Vec<String>,
    /// File, and number of lines in it before the document.
    origins: Vec<(PathBuf, usize)>,
}

impl Documents {
    /// Reads files, and those of directories.
    pub(super) fn read(files: &[PathBuf]) -> Result<Self> {
        let mut documents = Self::default();
        for file in files {
            for file in expand(file)? {
                let text = std::fs::read_to_string(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                documents.split(&file, &text);
            }
        }
        if documents.texts.is_empty() {
            bail!("no policy document in these files; give files that hold a TokenPolicy");
        }
        Ok(documents)
    }

    /// Adds the documents of a stream, which `---` lines divide. What is empty or comment alone is none.
    fn split(&mut self, file: &Path, text: &str) {
        let (mut document, mut first) = (String::new(), 0);
        let mut end = |document: &mut String, first: usize| {
            if document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')) {
                self.texts.push(std::mem::take(document));
                self.origins.push((file.to_path_buf(), first));
            }
            document.clear();
        };
        for (at, line) in text.lines().enumerate() {
            if line.trim_end() == "---" {
                end(&mut document, first);
                first = at + 1;
            } else {
                document.push_str(line);
                document.push('\n');
            }
        }
        end(&mut document, first);
    }

    /// The compiled set, or every mistake with its file, line and column.
    pub(super) fn compile(&self) -> Result<PolicySet, Mistakes> {
        policy::compile(&self.texts)
            .map_err(|errors| Mistakes(errors.into_iter().map(|error| self.mistake(error)).collect()))
    }

    fn mistake(&self, error: PolicyError) -> Mistake {
        let PolicyError { document, line, column, path, message, excerpt } = error;
        let (file, before) = self.origins.get(document).map_or_else(
            || (format!("document {document}"), 0),
            |(file, before)| (file.display().to_string(), *before),
        );
        Mistake { file, line: line + before, column, path, message, excerpt }
    }
}

/// What is wrong in policy files.
#[derive(Debug, Serialize, thiserror::Error)]
#[serde(transparent)]
pub(super) struct Mistakes(pub(super) Vec<Mistake>);

/// One mistake, and where it is.
#[derive(Debug, Serialize)]
pub(super) struct Mistake {
    file: String,
    /// From 1.
    line: usize,
    /// From 1, in characters.
    column: usize,
    /// The key, as in `spec.rules[1].paths[0]`.
    path: String,
    message: String,
    /// The text of that line.
    excerpt: String,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0.len();
        write!(f, "{number} mistake{} in these policies", if number == 1 { "" } else { "s" })?;
        for Mistake { file, line, column, path, message, excerpt } in &self.0 {
            let path = if path.is_empty() { String::new() } else { format!("{path}: ") };
            let indent = column.saturating_sub(1);
            write!(f, "\n{file}:{line}:{column}: {path}{message}\n    {excerpt}\n    {:indent$}^", "")?;
        }
        Ok(())
    }
}

fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let file = entry.with_context(|| format!("cannot read {}", path.display()))?.path();
        // Tables of tests lie beside the policies that they are for.
        let is_table = file.to_string_lossy().ends_with(".test.yaml");
        if !is_table && file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../examples/policies/orders.yaml");

    #[test]
    fn the_example_is_in_order() {
        let mut documents = Documents::default();
        documents.split(Path::new("orders.yaml"), GOOD);
        assert_eq!(documents.compile().unwrap().rules().len(), 3);
    }

    #[test]
    fn a_mistake_is_shown_in_its_file() {
        let mut documents = Documents::default();
        let bad = GOOD.replace("name: orders }", "name: other }").replace("audiences:", "audience:");
        documents.split(Path::new("two.yaml"), &format!("# only a comment\n---\n{GOOD}---\n{bad}"));
        let error = documents.compile().unwrap_err().to_string();
        let line = 2
            + GOOD.lines().count()
            + 1
            + GOOD.lines().position(|line| line.contains("audiences:")).unwrap()
            + 1;
        assert!(error.contains(&format!("two.yaml:{line}:")), "{error}");
    }
}
