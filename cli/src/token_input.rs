//! Where a command reads a token or a secret from.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use atm_core::jws::MAX_TOKEN_BYTES;

/// The variable that may hold the token.
const TOKEN: &str = "ATM_TOKEN";
/// Bytes read at most: a token and the white space around it.
const LARGEST: u64 = MAX_TOKEN_BYTES as u64 + 1024;

/// The token that `argument` names: a file, `-` for standard input, or the token itself. Without one, `ATM_TOKEN`.
pub(crate) fn token(argument: Option<&str>) -> Result<String> {
    let text = match argument {
        None => std::env::var(TOKEN).with_context(|| {
            format!("which token? give a file, or - to read it from standard input, or set {TOKEN}")
        })?,
        Some("-") => read(std::io::stdin().lock(), "standard input")?,
        Some(file) if Path::new(file).is_file() => secret_file(Path::new(file))?,
        Some(token) if looks_like_jwt(token) => {
            eprintln!(
                "atmctl: a token among the arguments can be seen by every user of this machine; a file or - cannot"
            );
            token.to_owned()
        }
        Some(other) => {
            // It may be a mistyped token: say nothing of it but its beginning.
            let start: String = other.chars().take(12).collect();
            bail!(
                "{start}... is neither a file nor a token; give a file, or - to read it from standard input"
            )
        }
    };
    Ok(text.trim().to_owned())
}

/// The content of a file with a token or secret, without the white space around it.
pub(crate) fn secret_file(file: &Path) -> Result<String> {
    let name = file.display().to_string();
    let opened = std::fs::File::open(file).with_context(|| format!("cannot read {name}"))?;
    Ok(read(opened, &name)?.trim().to_owned())
}

fn read(from: impl Read, name: &str) -> Result<String> {
    let mut text = String::new();
    from.take(LARGEST).read_to_string(&mut text).with_context(|| format!("cannot read {name} as text"))?;
    if text.trim().is_empty() {
        bail!("{name} is empty");
    }
    Ok(text)
}

fn looks_like_jwt(text: &str) -> bool {
    text.split('.').count() == 3
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_trimmed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "a.b.c\n").unwrap();
        assert_eq!(token(file.to_str()).unwrap(), "a.b.c");
        std::fs::write(&file, " \n").unwrap();
        assert!(token(file.to_str()).unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn what_is_neither_file_nor_token_is_refused_without_being_repeated() {
        let error = token(Some("secret-that-is-long-and-mistyped")).unwrap_err().to_string();
        assert!(!error.contains("mistyped"), "{error}");
    }
}
