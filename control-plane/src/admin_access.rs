//! Who may use the admin API: named credentials, each with a role. Kept as hashes; a changed file is taken up while running.
//!
//! Tokens are long and random, so a plain SHA-256 keeps them: there is nothing to guess.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::secret::{constant_time_equal, sha256};

/// How often a credentials file is looked at.
const PERIOD: Duration = Duration::from_secs(2);
/// Credentials of a file at most; each request is compared with all of them.
const MAX_CREDENTIALS: usize = 256;
/// Bytes of a credentials file at most.
const MAX_FILE: u64 = 256 * 1024;

/// What a credential allows; a higher one includes the lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads everything but the audit chain.
    Viewer,
    /// Registers clients and API keys, and revokes.
    Operator,
    /// Changes keys, policies and trusted issuers, and reads the audit chain.
    SecurityOfficer,
    /// Everything.
    Administrator,
}

impl Role {
    /// The name in files and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::SecurityOfficer => "security_officer",
            Self::Administrator => "administrator",
        }
    }
}

/// The holder of a credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its name, for the record.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// A credential without the token.
#[derive(Debug, Clone)]
struct Credential {
    holder: Holder,
    token_hash: [u8; 32],
}

/// A line of the credentials file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    name: String,
    role: Role,
    /// SHA-256 of the token, 64 hexadecimal digits.
    token_sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    credentials: Vec<Entry>,
}

/// The credentials in force; clones share them.
#[derive(Debug, Clone)]
pub struct AdminAccess(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The one of `admin.tokenFile`: an administrator.
    root: Credential,
    file: Option<PathBuf>,
    listed: ArcSwap<Vec<Credential>>,
}

impl AdminAccess {
    /// The holder of `root_token` is the administrator `admin`; others are in `file`, which must be in order now.
    pub fn load(root_token: &str, file: Option<PathBuf>) -> Result<Self, String> {
        let root = Credential {
            holder: Holder { name: "admin".to_owned(), role: Role::Administrator },
            token_hash: sha256(root_token.as_bytes()),
        };
        let listed = file.as_deref().map(read).transpose()?.unwrap_or_default();
        Ok(Self(Arc::new(Inner { root, file, listed: ArcSwap::from_pointee(listed) })))
    }

    /// Who holds `token`. Every credential is looked at, whichever fits, so that time tells nothing.
    pub fn holder(&self, token: &[u8]) -> Option<Holder> {
        let presented = sha256(token);
        let listed = self.0.listed.load();
        let mut found = None;
        for credential in std::iter::once(&self.0.root).chain(listed.iter()) {
            if constant_time_equal(&presented, &credential.token_hash) {
                found = Some(credential.holder.clone());
            }
        }
        found
    }

    /// Takes up changes of the file until `stop`. One with mistakes is not taken: the credentials before stay.
    pub async fn follow(self, stop: CancellationToken) {
        let Some(file) = self.0.file.clone() else { return stop.cancelled().await };
        let mut seen = modified(&file);
        while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            let now = modified(&file);
            if now == seen {
                continue;
            }
            seen = now;
            match read(&file) {
                Ok(listed) => {
                    tracing::info!(number = listed.len(), "admin credentials taken up");
                    self.0.listed.store(Arc::new(listed));
                }
                Err(problem) => tracing::error!(problem, "the admin credentials before stay in force"),
            }
        }
    }
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|data| data.modified()).ok()
}

/// Reads all, or says what is wrong; no message holds a hash.
fn read(file: &Path) -> Result<Vec<Credential>, String> {
    let said = |problem: String| format!("{} {problem}", file.display());
    let data = std::fs::metadata(file).map_err(|error| said(format!("cannot be read: {error}")))?;
    if data.len() > MAX_FILE {
        return Err(said("is too large for a credentials file".to_owned()));
    }
    let text = std::fs::read_to_string(file).map_err(|error| said(format!("cannot be read: {error}")))?;
    let document: Document = serde_norway::from_str(&text).map_err(|error| said(format!("{error}")))?;
    if document.credentials.len() > MAX_CREDENTIALS {
        return Err(said(format!("has more than {MAX_CREDENTIALS} credentials")));
    }
    let mut names = BTreeSet::from(["admin".to_owned()]);
    let mut hashes = BTreeSet::new();
    document
        .credentials
        .into_iter()
        .enumerate()
        .map(|(index, entry)| {
            let wrong = |what: &str| said(format!("credentials[{index}].{what}"));
            let name_fits = (1..=64).contains(&entry.name.len())
                && entry.name.chars().all(|c| c.is_ascii_alphanumeric() || "-._@".contains(c));
            if !name_fits {
                return Err(wrong("name must be 1 to 64 letters, digits or any of -._@"));
            }
            if !names.insert(entry.name.clone()) {
                return Err(wrong("name is taken; give each credential a name of its own"));
            }
            let hash = hex::decode(&entry.token_sha256).ok().and_then(|hash| <[u8; 32]>::try_from(hash).ok());
            let Some(token_hash) = hash else {
                return Err(wrong(
                    "tokenSha256 must be 64 hexadecimal digits; atmctl admin credential makes one",
                ));
            };
            if !hashes.insert(token_hash) {
                return Err(wrong("tokenSha256 is another credential's; one token is one name"));
            }
            Ok(Credential { holder: Holder { name: entry.name, role: entry.role }, token_hash })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, role: &str, token: &str) -> String {
        format!(
            "- {{ name: {name}, role: {role}, tokenSha256: {} }}\n",
            hex::encode(sha256(token.as_bytes()))
        )
    }

    #[test]
    fn a_token_is_one_name_with_one_role() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials.yaml");
        let text = format!(
            "credentials:\n{}{}",
            entry("ann", "viewer", "t1"),
            entry("bob", "security_officer", "t2")
        );
        std::fs::write(&file, text).unwrap();
        let access = AdminAccess::load("root", Some(file)).unwrap();
        let holder = |token: &[u8]| access.holder(token).map(|holder| (holder.name, holder.role));
        assert_eq!(holder(b"root"), Some(("admin".to_owned(), Role::Administrator)));
        assert_eq!(holder(b"t1"), Some(("ann".to_owned(), Role::Viewer)));
        assert_eq!(holder(b"t2"), Some(("bob".to_owned(), Role::SecurityOfficer)));
        assert_eq!(holder(b"t3"), None);
    }

    #[test]
    fn mistakes_name_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials.yaml");
        let doubled = format!("{}{}", entry("ann", "viewer", "t1"), entry("ann", "viewer", "t2"));
        for (text, problem) in [
            ("credentials: [{ name: a, role: king, tokenSha256: x }]".to_owned(), "king"),
            ("credentials: [{ name: a, role: viewer, tokenSha256: x }]".to_owned(), "[0].tokenSha256"),
            (format!("credentials:\n{doubled}"), "[1].name is taken"),
            (format!("credentials:\n{}", entry("admin", "viewer", "t")), "[0].name is taken"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = AdminAccess::load("root", Some(file.clone())).unwrap_err();
            assert!(error.contains(problem) && error.contains("credentials.yaml"), "{error}");
        }
    }
}
