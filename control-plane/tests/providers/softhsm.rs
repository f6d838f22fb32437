//! PKCS #11 with SoftHSM 2.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{Program, directory};

/// Debian's place, and other systems'.
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

fn module() -> PathBuf {
    let module = MODULES.iter().map(PathBuf::from).find(|path| path.exists());
    module.expect("SoftHSM 2 is missing; run: make tools")
}

/// A token in `dir`, and the configuration that SoftHSM reads.
fn token(dir: &Path) -> String {
    let tokens = dir.join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let configuration = dir.join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    std::fs::write(&configuration, text).unwrap();
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "atm", "--so-pin", "so-1234", "--pin", "user-1234"])
        .env("SOFTHSM2_CONF", &configuration)
        .output()
        .expect("softhsm2-util is missing; run: make tools");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(dir.join("pin"), "user-1234\n").unwrap();
    configuration.display().to_string()
}

fn keys(dir: &Path, algorithm: &str) -> String {
    format!(
        "  provider: pkcs11\n  algorithm: {algorithm}\n  pkcs11: {{ module: {}, token: atm, pinFile: {} }}",
        module().display(),
        dir.join("pin").display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_every_kind_of_key_verify_and_a_restart_finds_the_key_again() {
    for algorithm in ["ES256", "ES384", "RS256", "PS256"] {
        let dir = directory();
        let configuration = token(dir.path());
        let environment = [("SOFTHSM2_CONF", configuration.as_str())];
        let program = Program::start(dir.path(), &keys(dir.path(), algorithm), &environment).await;
        let client = program.client().await;
        let kid = program.verified_token(&client).await;
        drop(program);
        let program = Program::start(dir.path(), &keys(dir.path(), algorithm), &environment).await;
        assert_eq!(program.verified_token(&client).await, kid, "{algorithm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_in_the_token_signs_nothing_and_nothing_else_does() {
    let dir = directory();
    let configuration = token(dir.path());
    let environment = [("SOFTHSM2_CONF", configuration.as_str())];
    let program = Program::start(dir.path(), &keys(dir.path(), "ES256"), &environment).await;
    let client = program.client().await;
    program.verified_token(&client).await;
    drop(program);
    // Another token of the same label: the module works, the key is not there.
    std::fs::remove_dir_all(dir.path().join("tokens")).unwrap();
    token(dir.path());
    let program = Program::start(dir.path(), &keys(dir.path(), "ES256"), &environment).await;
    program.assert_outage(&client).await;
}
