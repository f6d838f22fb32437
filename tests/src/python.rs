//! The Python programs of `tests/kubernetes`, with the pinned packages.

use std::process::Output;
use std::time::Duration;

use crate::process::run_with;
use crate::programs;

/// Runs `tests/kubernetes/<program>` to its end.
pub async fn run(program: &str, arguments: &[&str], bound: Duration) -> Output {
    let file = programs::workspace().join("tests/kubernetes").join(program).display().to_string();
    let environment = [("PYTHONDONTWRITEBYTECODE", "1")];
    run_with(&programs::interpreter("python"), &[&[file.as_str()], arguments].concat(), &environment, bound)
        .await
}
