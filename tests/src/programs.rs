//! Where the programs under test and the tools they stand on are found.

use std::env;
use std::path::{Path, PathBuf};

/// The workspace's root directory.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

/// One of our programs (`atm-control-plane`, `atm-sidecar`, `atmctl`): in `ATM_BIN_DIR`, or in the directory that cargo
/// builds into.
pub fn ours(name: &str) -> PathBuf {
    let directory = env::var_os("ATM_BIN_DIR").map_or_else(
        || {
            env::var_os("CARGO_TARGET_DIR")
                .map_or_else(|| workspace().join("target"), PathBuf::from)
                .join("debug")
        },
        PathBuf::from,
    );
    existing(&directory.join(name), "run `make build`")
}

/// One of the example programs that cargo builds with the tests.
pub fn example(name: &str) -> PathBuf {
    let examples = ours("atmctl").with_file_name("examples");
    existing(&examples.join(name), "run `cargo build -p atm-tests --examples`")
}

/// A pinned tool (`nats-server`, `envoy`): in `ATM_TOOLS_DIR`, or in `.tools/bin` of the workspace.
pub fn tool(name: &str) -> PathBuf {
    existing(&tools_dir().join(name), "run `make tools`")
}

/// `python` with the pinned packages of `tools/requirements.txt`, or `node`, which comes with them.
pub fn interpreter(name: &str) -> PathBuf {
    existing(&tools_dir().with_file_name("python").join("bin").join(name), "run `make tools`")
}

/// The directory that holds the pinned tools.
pub fn tools_dir() -> PathBuf {
    env::var_os("ATM_TOOLS_DIR").map_or_else(|| workspace().join(".tools/bin"), PathBuf::from)
}

fn existing(path: &Path, remedy: &str) -> PathBuf {
    assert!(path.exists(), "{} is missing: {remedy}", path.display());
    path.to_path_buf()
}
