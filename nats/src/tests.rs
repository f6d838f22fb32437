use atm_core::settings::Reader;

use super::*;

/// What a section `nats` with these lines is read as, and the paths of the mistakes in it.
fn read_section(lines: &str) -> (NatsAccess, Vec<String>) {
    let text = format!("nats:\n  {}", lines.replace('\n', "\n  "));
    let reader = Reader::new(&text, std::iter::empty()).expect("YAML");
    let access = NatsAccess::read(&reader.root().section("nats"));
    let mistakes = reader.finish().err().unwrap_or_default();
    (access, mistakes.into_iter().map(|mistake| mistake.path).collect())
}

#[test]
fn one_way_to_log_in_at_most() {
    let login = |lines| {
        let (access, mistakes) = read_section(lines);
        assert_eq!(mistakes, Vec::<String>::new());
        access.login
    };
    assert_eq!(login("{}"), Login::None);
    assert_eq!(login("tokenFile: t"), Login::Token("t".into()));
    assert_eq!(login("nkeySeedFile: s"), Login::Nkey("s".into()));
    assert_eq!(login("credentials: c"), Login::Credentials("c".into()));
    let password = Login::Password { user: "u".into(), file: "p".into() };
    assert_eq!(login("user: u\npasswordFile: p"), password);
    for (lines, path) in [
        ("user: u", "nats.passwordFile"),
        ("passwordFile: p", "nats.user"),
        ("credentials: c\ntokenFile: t", "nats.tokenFile"),
        ("credentials: c\nnkeySeedFile: s", "nats.nkeySeedFile"),
        ("certificate: c", "nats.certificate"),
        ("key: k", "nats.certificate"),
    ] {
        assert_eq!(read_section(lines).1, [path], "{lines}");
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named_and_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    let password = Login::Password { user: "u".into(), file: file.clone() };
    let logins = [
        password.clone(),
        Login::Nkey(file.clone()),
        Login::Credentials(file.clone()),
        Login::Token(file.clone()),
    ];
    for content in [None, Some("\n".to_owned()), Some("x".repeat(20_000))] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        for login in &logins {
            let error = login.options().expect_err("refused").to_string();
            assert!(error.contains("/secret") && !error.contains("xxx"), "{login:?}: {error}");
        }
    }
    std::fs::write(&file, "SUAnot-a-seed\n").unwrap();
    let error = Login::Nkey(file.clone()).options().expect_err("refused").to_string();
    assert!(error.contains("/secret") && !error.contains("SUAnot"), "{error}");
}

#[test]
fn what_was_replaced_counts_at_the_next_connection() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "first\n").unwrap();
    let token = Login::Token(file.clone());
    assert_eq!(token.show(&[]).unwrap().token.as_deref(), Some("first"));
    std::fs::write(&file, "second\n").unwrap();
    assert_eq!(token.show(&[]).unwrap().token.as_deref(), Some("second"));
}

#[test]
fn the_servers_nonce_is_signed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    let pair = KeyPair::new_user();
    let seed = pair.seed().unwrap();
    std::fs::write(&file, &seed).unwrap();
    let shown = Login::Nkey(file.clone()).show(b"nonce").unwrap();
    assert_eq!(shown.nkey, Some(pair.public_key()));
    pair.verify(b"nonce", &shown.signature.unwrap()).unwrap();

    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\neyJ0.e30.c2ln\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(&file, credentials).unwrap();
    let shown = Login::Credentials(file).show(b"nonce").unwrap();
    assert_eq!((shown.jwt.as_deref(), shown.nkey), (Some("eyJ0.e30.c2ln"), None));
    pair.verify(b"nonce", &shown.signature.unwrap()).unwrap();
}
