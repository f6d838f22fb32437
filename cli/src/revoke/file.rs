//! `atmctl revoke --file`: up to millions of values from a file, part by part, in memory that does not grow with the file.
//!
//! A file is named by the hash of its content and of what is done with it, so the control plane knows which parts are in force:
//! the same command goes on where it was stopped, and run twice it changes nothing the second time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest::{Context as Digest, SHA256};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::admin_api::AdminApi;

/// Values of one part: one change of the feed.
const PART: usize = 20_000;
/// Bytes of a line at most.
const MAX_LINE: usize = 8 * 1024;

/// What the values of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Token ids, each with its expiry behind a comma, a tab or a space where it is known; or a JSON object a line with `jti`,
    /// `expires_at`, `issuer`
    Token,
    /// Session ids
    Session,
    /// Subjects
    Subject,
    /// Client ids
    Client,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Session => "session",
            Self::Subject => "subject",
            Self::Client => "client",
        }
    }
}

/// What is to be done with a file.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    /// Issuer of tokens for which the file names none.
    pub(crate) issuer: Option<String>,
    pub(crate) before_ms: Option<i64>,
    pub(crate) reason: Option<String>,
    /// What the last part waits for.
    pub(crate) wait: Option<Value>,
}

/// The name of a file's import, and how many values it holds.
#[derive(Debug, PartialEq, Eq)]
struct Survey {
    batch: String,
    values: u64,
}

impl Import {
    /// Puts all of it in force. Returns the answer to the last part, with `parts` and `batch`.
    pub(crate) async fn run(&self, admin: &AdminApi) -> Result<Value> {
        let survey = self.survey()?;
        if survey.values == 0 {
            bail!("{} holds no values", self.path.display());
        }
        let parts = survey.values.div_ceil(PART as u64);
        let progress = admin.get(&["revocations", "batches", &survey.batch]).await?;
        // The last part is sent in any case: its answer has the receipt.
        let done = progress["next"].as_u64().unwrap_or(0).min(parts - 1);
        let bar = bar(survey.values);
        if done > 0 {
            bar.println(format!("{done} of {parts} parts are in force already"));
        }
        let mut lines = Lines::open(&self.path)?;
        let mut answer = Value::Null;
        for part in 0..parts {
            let values = self.part(&mut lines)?;
            let number = values.as_array().map_or(0, Vec::len) as u64;
            if part >= done {
                let body = self.body(values, part + 1 == parts);
                let path = ["revocations", "batches", &survey.batch, &part.to_string()];
                answer = admin.put(&path, &body).await.with_context(|| {
                    format!("part {} of {parts}; run the same command again to go on from there", part + 1)
                })?;
            }
            bar.inc(number);
        }
        bar.finish_and_clear();
        answer["revoked"] = survey.values.into();
        answer["parts"] = parts.into();
        answer["batch"] = survey.batch.into();
        Ok(answer)
    }

    fn body(&self, values: Value, is_last: bool) -> Value {
        let list = if self.kind == Kind::Token { "tokens" } else { "selectors" };
        let mut body = Map::from_iter([(list.to_owned(), values)]);
        let optional = [
            ("before_ms", self.before_ms.map(Value::from)),
            ("reason", self.reason.clone().map(Value::from)),
            ("wait", self.wait.clone().filter(|_| is_last)),
        ];
        body.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        body.into()
    }

    /// Reads the whole file once: every line must be in order before the first is sent.
    fn survey(&self) -> Result<Survey> {
        let mut digest = Digest::new(&SHA256);
        let what = json!([self.kind.as_str(), self.issuer, self.before_ms, self.reason]).to_string();
        digest.update(what.as_bytes());
        let mut lines = Lines::open(&self.path)?;
        let mut values = 0;
        while let Some((number, line)) = lines.next()? {
            self.value(number, line)?;
            digest.update(line.as_bytes());
            digest.update(b"\n");
            values += 1;
        }
        let batch = hex::encode(&digest.finish().as_ref()[..16]);
        Ok(Survey { batch, values })
    }

    /// The next part's values.
    fn part(&self, lines: &mut Lines) -> Result<Value> {
        let mut values = Vec::with_capacity(PART);
        while values.len() < PART
            && let Some((number, line)) = lines.next()?
        {
            values.push(self.value(number, line)?);
        }
        Ok(values.into())
    }

    /// One line as the API takes it.
    fn value(&self, number: u64, line: &str) -> Result<Value> {
        if self.kind != Kind::Token {
            return Ok(json!({ self.kind.as_str(): line }));
        }
        let wrong = |what: &str| format!("{}: line {number}: {what}", self.path.display());
        let mut token = if line.starts_with('{') {
            let token: Map<String, Value> =
                serde_json::from_str(line).with_context(|| wrong("is no JSON object"))?;
            let known = token.keys().all(|key| ["jti", "issuer", "expires_at"].contains(&key.as_str()));
            if !known || !token.get("jti").is_some_and(Value::is_string) {
                bail!(wrong("must have jti, and may have issuer and expires_at"));
            }
            token
        } else {
            let (jti, expiry) = match line.split_once([',', '\t', ' ']) {
                Some((jti, expiry)) => (jti, Some(expiry.trim())),
                None => (line, None),
            };
            let mut token = Map::from_iter([("jti".to_owned(), Value::from(jti))]);
            if let Some(expiry) = expiry {
                let expiry: i64 =
                    expiry.parse().with_context(|| wrong("its expiry must be seconds since 1970"))?;
                token.insert("expires_at".to_owned(), expiry.into());
            }
            token
        };
        if let Some(issuer) = &self.issuer {
            token.entry("issuer").or_insert_with(|| issuer.as_str().into());
        }
        Ok(token.into())
    }
}

/// The lines of a file without blank ones and comments (`#`), trimmed.
struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    number: u64,
    line: String,
}

impl Lines {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Ok(Self {
            reader: BufReader::with_capacity(1 << 16, file),
            path: path.to_owned(),
            number: 0,
            line: String::new(),
        })
    }

    fn next(&mut self) -> Result<Option<(u64, &str)>> {
        loop {
            self.line.clear();
            self.number += 1;
            let place = || format!("{}: line {}", self.path.display(), self.number);
            let read = self
                .reader
                .by_ref()
                .take(MAX_LINE as u64 + 1)
                .read_line(&mut self.line)
                .with_context(place)?;
            if read == 0 {
                return Ok(None);
            }
            if read > MAX_LINE {
                bail!("{} is longer than {MAX_LINE} bytes; name a file with one value a line", place());
            }
            let line = self.line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                break;
            }
        }
        Ok(Some((self.number, self.line.trim())))
    }
}

fn bar(values: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(values), ProgressDrawTarget::stderr());
    // The template is ours and in order.
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} ({per_sec}, {eta} left)")
    {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(content: &str, kind: Kind) -> (tempfile::TempDir, Import) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        std::fs::write(&path, content).unwrap();
        (dir, Import { path, kind, issuer: None, before_ms: None, reason: None, wait: None })
    }

    #[test]
    fn every_form_of_a_line_is_understood() {
        let content = "# ids\na\n\nb,5\nc\t6\n {\"jti\":\"d\",\"issuer\":\"i\"}\n";
        let (_dir, import) = import(content, Kind::Token);
        let values = import.part(&mut Lines::open(&import.path).unwrap()).unwrap();
        let expected = json!([{ "jti": "a" }, { "jti": "b", "expires_at": 5 }, { "jti": "c", "expires_at": 6 },
                              { "jti": "d", "issuer": "i" }]);
        assert_eq!(values, expected);
        assert_eq!(import.survey().unwrap().values, 4);
    }

    #[test]
    fn a_line_that_is_wrong_is_named_before_anything_is_sent() {
        let (_dir, import) = import("a\nb,tomorrow\n", Kind::Token);
        let error = format!("{:#}", import.survey().unwrap_err());
        assert!(error.contains("line 2") && error.contains("seconds since 1970"), "{error}");
    }

    #[test]
    fn the_same_work_has_the_same_name_and_other_work_another() {
        let (_dir, first) = import("a\nb\n", Kind::Subject);
        let name = |import: &Import| import.survey().unwrap().batch;
        let (_dir2, same) = import("# again\na\nb\n", Kind::Subject);
        assert_eq!(name(&first), name(&same));
        let (_dir3, other) = import("a\nb\n", Kind::Client);
        assert_ne!(name(&first), name(&other));
        let with_reason = Import { reason: Some("r".into()), ..other };
        let (_dir4, other) = import("a\nb\n", Kind::Client);
        assert_ne!(name(&with_reason), name(&other));
    }
}
