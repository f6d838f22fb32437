//! The files of a local stack.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The kernel's limit for the path of a unix socket is 107 bytes.
const LONGEST_SOCKET_PATH: usize = 100;

/// A stack's directory, absolute, and what lies in it.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes the directory, and removes what an earlier stack left in it: these names and nothing else.
    pub(crate) fn fresh(dir: &Path) -> Result<Self> {
        let name = dir.display();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make {name}"))?;
        let root = dir.canonicalize().with_context(|| format!("cannot enter {name}"))?;
        for part in ["nats", "control-plane", "sidecar", "secrets", "config", "logs"] {
            let path = root.join(part);
            if path.exists() {
                fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(Self { root })
    }

    /// The directory.
    pub(crate) fn root(&self) -> String {
        self.root.display().to_string()
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a configuration file and gives its path.
    pub(crate) fn config(&self, name: &str, content: &str) -> Result<String> {
        let path = self.text(&format!("config/{name}"));
        fs::write(&path, content).with_context(|| format!("cannot write {path}"))?;
        Ok(path)
    }

    /// Writes a secret.
    pub(crate) fn secret(&self, name: &str, content: &str) -> Result<()> {
        write_secret(&self.path("secrets").join(name), content)
    }

    /// The sidecar's unix socket; outside the directory where the directory's path is too long for one.
    pub(crate) fn socket(&self) -> Result<PathBuf> {
        let inside = self.path("sidecar/atm.sock");
        if inside.as_os_str().len() <= LONGEST_SOCKET_PATH {
            return Ok(inside);
        }
        let own = std::env::temp_dir().join(format!("atm-{}", std::process::id()));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&own)
            .with_context(|| format!("cannot make {}", own.display()))?;
        Ok(own.join("atm.sock"))
    }
}

/// Writes a file that only its owner can read, in place of one that may be there.
pub(crate) fn write_secret(path: &Path, content: &str) -> Result<()> {
    let write = || {
        // The mode counts for new files only.
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
