//! Where the programs of a stack are.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// One of ours: in `ATM_BIN_DIR`, or beside this program.
pub(crate) fn ours(name: &str) -> Result<String> {
    let directory = if let Some(directory) = env::var_os("ATM_BIN_DIR") {
        PathBuf::from(directory)
    } else {
        let this = env::current_exe().context("this program does not know where it is")?;
        this.parent().map(PathBuf::from).unwrap_or_default()
    };
    let path = directory.join(name);
    if !path.is_file() {
        bail!("{} is missing; build it with `make build`, or set ATM_BIN_DIR to where it is", path.display());
    }
    Ok(path.display().to_string())
}

/// A tool (`nats-server`, `envoy`): in `ATM_TOOLS_DIR`, else in `.tools/bin` of this directory or one above, else on `PATH`.
pub(crate) fn tool(name: &str) -> Result<String> {
    let here = env::current_dir().unwrap_or_default();
    let named = env::var_os("ATM_TOOLS_DIR").map(PathBuf::from);
    let above = here.ancestors().map(|directory| directory.join(".tools/bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let candidates = named.into_iter().chain(above).chain(env::split_paths(&path));
    let found = candidates.map(|directory| directory.join(name)).find(|path| path.is_file());
    let found = found.with_context(|| {
        format!("{name} is not installed; run `make tools` in the source tree, or set ATM_TOOLS_DIR to its directory")
    })?;
    Ok(found.display().to_string())
}
