//! Wrong configuration and a hostile environment: every mistake is named at once, the exit status says whose fault it is, and
//! what can go on goes on and says that it is degraded.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

mod bad_input {
    pub(crate) mod control_plane;
    pub(crate) mod sidecar;
}

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use atm_tests::process::{run, stderr};
use atm_tests::programs;

const BOUND: Duration = Duration::from_secs(20);

/// Writes `config` and runs `program` on it, expecting it to end by itself.
async fn run_with_config(program: &str, config: &str, more: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, config).expect("written");
    run_with_file(program, &file, more).await
}

async fn run_with_file(program: &str, file: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["--config", file.to_str().expect("UTF-8 path")];
    arguments.extend(more);
    run(&programs::ours(program), &arguments, BOUND).await
}

/// Exit status 2, and each of `paths` at the beginning of a line of its own with what to do.
fn assert_mistakes(output: &Output, paths: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for path in paths {
        let line = text.lines().find(|line| line.trim_start().starts_with(&format!("{path}:")));
        assert!(line.is_some(), "{path} is not named:\n{text}");
    }
}

/// Exit status 1 and one line that holds all of `words`.
fn assert_one_line(output: &Output, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.lines().any(|line| words.iter().all(|word| line.contains(word))),
        "no line with {words:?}:\n{text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

#[tokio::test]
async fn no_configuration_file_is_a_usage_error() {
    for program in ["atm-control-plane", "atm-sidecar"] {
        let output = run_with_file(program, Path::new("/nonexistent/config.yaml"), &[]).await;
        assert_eq!(output.status.code(), Some(2), "{program}: {}", stderr(&output));
        assert!(stderr(&output).contains("/nonexistent/config.yaml"), "{program}: {}", stderr(&output));
        let output = run(&programs::ours(program), &[], BOUND).await;
        assert_eq!(output.status.code(), Some(2), "{program} without arguments: {}", stderr(&output));
    }
}

#[tokio::test]
async fn text_that_is_no_yaml_is_refused_with_its_line() {
    for program in ["atm-control-plane", "atm-sidecar"] {
        let output = run_with_config(program, "realmGroup: default\n  bad: [", &[]).await;
        assert_eq!(output.status.code(), Some(2), "{program}: {}", stderr(&output));
        assert!(stderr(&output).contains("line 2"), "{program}: {}", stderr(&output));
    }
}
