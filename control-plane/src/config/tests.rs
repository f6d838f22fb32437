use super::*;

const COMPLETE: &str = "
issuer: http://127.0.0.1:8080
listen: { oauth: 127.0.0.1:0, admin: 127.0.0.1:0 }
store: { path: /tmp/atm.db }
nats: { url: nats://127.0.0.1:4222 }
keys: { wrappingKeyFile: /tmp/wrapping.key }
admin: { tokenFile: /tmp/admin.token }
feed: { signingKeyFile: /tmp/feed.key }
";

fn none() -> Environment {
    Environment::new()
}

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn mistakes(text: &str, environment: &Environment) -> Vec<String> {
    let error = Config::parse(text, environment).unwrap_err();
    error.0.into_iter().map(|mistake| mistake.path).collect()
}

#[test]
fn what_is_left_out_has_its_documented_default() {
    let config = Config::parse(COMPLETE, &none()).unwrap();
    assert_eq!(config.realm_group, "default");
    assert_eq!(config.algorithm, Algorithm::ES256);
    assert_eq!(config.token_lifetime, Duration::from_mins(5));
    assert_eq!(config.max_token_lifetime, Duration::from_hours(1));
    assert_eq!(config.feed.linger, Duration::from_millis(5));
    assert_eq!(config.feed.heartbeat, Duration::from_secs(1));
    assert_eq!(config.log.format, LogFormat::Json);
    assert!(config.listen.oauth_tls.is_none());
}

#[test]
fn an_empty_file_lists_every_missing_key() {
    let expected = [
        "issuer",
        "listen.oauth",
        "listen.admin",
        "store",
        "nats.url",
        "keys",
        "admin.tokenFile",
        "feed.signingKeyFile",
    ];
    assert_eq!(mistakes("", &none()), expected);
}

#[test]
fn every_mistake_is_reported_at_once_with_its_path() {
    let text = "
issuer: ftp://x
realmGroup: a.b
listen: { oauth: localhost, admin: 0.0.0.0:1, adminTls: { certificate: /c } , port: 1 }
store: /tmp/atm.db
nats: { url: http://x }
keys: { wrappingKeyFile: /k, wrappingKeyEnv: K, algorithm: HS256 }
admin: { tokenfile: /t }
feed: { signingKeyFile: /f, lingerMs: -1, heartbeatMs: 10s }
tokens: { lifetimeSeconds: 7200 }
log: { format: xml, level: loud! }
extra: { a: { b: 1 } }
";
    let mut found = mistakes(text, &none());
    found.sort();
    let mut expected = vec![
        "issuer",
        "realmGroup",
        "listen.oauth",
        "listen.admin",
        "listen.adminTls.key",
        "listen.port",
        "store",
        "store",
        "nats.url",
        "keys",
        "keys.algorithm",
        "admin.tokenFile",
        "admin.tokenfile",
        "feed.lingerMs",
        "feed.heartbeatMs",
        "tokens.lifetimeSeconds",
        "log.format",
        "log.level",
        "extra.a.b",
        "extra",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn a_misspelt_key_is_told_what_it_could_be() {
    let text = COMPLETE.replace("tokenFile", "token_file");
    let error = Config::parse(&text, &none()).unwrap_err().to_string();
    assert!(error.contains("admin.token_file: is no known key; did you mean admin.tokenFile?"), "{error}");
}

#[test]
fn the_environment_overrides_and_completes_the_file() {
    let set = environment(&[
        ("ATM_NATS__URL", "tls://nats:4222"),
        ("ATM_REALM_GROUP", "eu"),
        ("ATM_TOKENS__LIFETIME_SECONDS", "60"),
        ("ATM_LISTEN__OAUTH_TLS__CERTIFICATE", "/c"),
        ("ATM_LISTEN__OAUTH_TLS__KEY", "/k"),
        ("ATM_DEV_DIR", "belongs to another program"),
        ("PATH", "/bin"),
    ]);
    let config = Config::parse(COMPLETE, &set).unwrap();
    assert_eq!(config.nats.url, "tls://nats:4222");
    assert_eq!(config.realm_group, "eu");
    assert_eq!(config.token_lifetime, Duration::from_mins(1));
    assert_eq!(config.listen.oauth_tls, Some(TlsFiles { certificate: "/c".into(), key: "/k".into() }));
    assert!(config.listen.admin_tls.is_none());
}

#[test]
fn a_wrong_override_is_named() {
    let set = environment(&[("ATM_NATS__URI", "nats://x"), ("ATM_TOKENS__LIFETIME_SECONDS", "long")]);
    let error = Config::parse(COMPLETE, &set).unwrap_err();
    assert_eq!(error.0.len(), 2, "{error}");
    assert!(error.to_string().contains("(from ATM_TOKENS__LIFETIME_SECONDS)"), "{error}");
    assert!(error.to_string().contains("ATM_NATS__URI: overrides no known key"), "{error}");
}

#[test]
fn the_admin_listener_is_remote_only_on_demand() {
    let remote = COMPLETE.replace("admin: 127.0.0.1:0 }", "admin: 0.0.0.0:9, adminAllowRemote: true }");
    assert!(Config::parse(&remote, &none()).is_ok());
    let silent = COMPLETE.replace("admin: 127.0.0.1:0 }", "admin: '[::]:9' }");
    assert_eq!(mistakes(&silent, &none()), ["listen.admin"]);
}

#[test]
fn an_issuer_is_one_clear_url() {
    for good in ["https://id.example.com", "http://[::1]:8080", "https://h/realms/a"] {
        assert!(issuer(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "h",
        "https://",
        "https://h/",
        "https://h?q",
        "https://h#f",
        "https://u@h",
        "https://h/a//b",
        "https://h/{a}",
    ] {
        assert!(issuer(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_issuers_path_is_where_its_endpoints_are() {
    let at = |issuer: &str| {
        let text = COMPLETE.replace("http://127.0.0.1:8080", issuer);
        Config::parse(&text, &none()).unwrap().issuer_path().to_owned()
    };
    assert_eq!(at("https://h"), "");
    assert_eq!(at("https://h:1/realms/a"), "/realms/a");
}

#[test]
fn secrets_report_all_that_is_wrong_and_nothing_of_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let mut config = Config::parse(COMPLETE, &none()).unwrap();
    config.wrapping_key = KeySource::File(file("missing"));
    config.feed.signing_key_file = file("feed");
    config.admin_token_file = file("token");
    std::fs::write(file("feed"), "hunter2").unwrap();
    std::fs::write(file("token"), "too short").unwrap();
    let error = Secrets::read(&config, &none()).unwrap_err();
    assert_eq!(error.0.len(), 3, "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");

    let (_, text) = crate::secret::RootKey::generate().unwrap();
    std::fs::write(
        file("feed"),
        format!("{}\n", base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, [7; 32])),
    )
    .unwrap();
    std::fs::write(file("token"), "0123456789abcdef\n").unwrap();
    config.wrapping_key = KeySource::Environment("WRAPPING".to_owned());
    let secrets = Secrets::read(&config, &environment(&[("WRAPPING", &text)])).unwrap();
    assert!(secrets.admin_access.holder(b"0123456789abcdef").is_some());
}

fn with_store(store: &str) -> String {
    let text = COMPLETE.replace("store: { path: /tmp/atm.db }", &format!("store: {store}"));
    text.replace("feed: {", "feed: { snapshots: { directory: /tmp/segments },")
}

fn postgres(store: &str) -> crate::store::PostgresSettings {
    match Config::parse(&with_store(store), &none()).unwrap().store.settings {
        crate::store::StoreSettings::Postgres(settings) => settings,
        embedded @ crate::store::StoreSettings::Embedded(_) => panic!("{embedded:?}"),
    }
}

#[test]
fn a_store_is_a_file_or_a_server() {
    use crate::store::PostgresTls;
    let local = postgres("{ url: 'postgres://atm@127.0.0.1:5432/atm' }");
    assert_eq!((local.tls, local.max_connections), (None, 16));
    let remote = postgres("{ url: 'postgres://atm@db/atm', maxConnections: 4, acquireTimeoutMs: 500 }");
    assert_eq!((remote.tls, remote.max_connections), (Some(PostgresTls::VerifyFull), 4));
    assert_eq!(remote.acquire_timeout, Duration::from_millis(500));
    let unchecked = postgres("{ url: 'postgres://atm@db/atm', tls: require }");
    assert_eq!(unchecked.tls, Some(PostgresTls::Require));
    let said = postgres("{ url: 'postgres://atm@db/atm?sslmode=require' }");
    assert_eq!(said.tls, None);
}

#[test]
fn segments_lie_beside_the_embedded_store_and_with_a_server_where_it_is_said() {
    let directory = |text: &str| Config::parse(text, &none()).unwrap().feed.snapshots.directory;
    assert_eq!(directory(COMPLETE), std::path::Path::new("/tmp/snapshots"));
    let server = "{ url: 'postgres://atm@127.0.0.1:5432/atm' }";
    assert_eq!(directory(&with_store(server)), std::path::Path::new("/tmp/segments"));
    let unsaid = COMPLETE.replace("{ path: /tmp/atm.db }", server);
    assert_eq!(mistakes(&unsaid, &none()), ["feed.snapshots.directory"]);
}

#[test]
fn mistakes_of_the_store_are_named() {
    for (store, paths) in [
        ("{ path: /a, url: 'postgres://a@b/c' }", &["store"][..]),
        ("{ maxConnections: 4 }", &["store"]),
        ("{ path: /a, maxConnections: 4, tls: require }", &["store.tls", "store.maxConnections"]),
        ("{ url: 'mysql://a@b/c' }", &["store.url"]),
        ("{ url: 'postgres://a:hunter2@b/c' }", &["store.url"]),
        ("{ url: 'postgres://a@b/c?password=hunter2' }", &["store.url"]),
        ("{ url: 'postgres://a@b/c', tls: maybe }", &["store.tls"]),
        ("{ url: 'postgres://a@b/c', certificateFile: /c }", &["store.keyFile"]),
        ("{ url: 'postgres://a@b/c', maxConnections: 1 }", &["store.maxConnections"]),
    ] {
        let error = Config::parse(&with_store(store), &none()).unwrap_err();
        let found: Vec<_> = error.0.iter().map(|mistake| mistake.path.as_str()).collect();
        assert_eq!(found, paths, "{store}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
