use super::*;

fn mistakes(text: &str, environment: &[(&str, &str)], read: impl FnOnce(&Section<'_>)) -> Vec<String> {
    let environment: BTreeMap<String, String> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let reader = match Reader::new(text, &environment) {
        Ok(reader) => reader,
        Err(mistake) => return vec![mistake.to_string()],
    };
    read(&reader.root());
    reader.finish().err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn every_mistake_is_found_at_once() {
    let found = mistakes(
        "nats: {ulr: x, port: 70000, tls: maybe}\nlisten: 3\nextra: 1\nkeys: [a, 1]\nid: {a: 1}",
        &[],
        |root| {
            let nats = root.section("nats");
            nats.required("url");
            nats.number("port", 1, 1..=65535);
            nats.boolean("tls", false);
            root.section("listen").text("grpc");
            root.list("keys");
            root.text("id");
        },
    );
    assert_eq!(
        found,
        [
            "nats.url: is missing; set it in the file or by ATM_NATS__URL",
            "nats.port: must be a whole number from 1 to 65535",
            "nats.tls: must be true or false",
            "keys: must be a list of texts that are not empty",
            "id: must be a single value, not a section",
            "extra: is no known key; remove it",
            "id.a: is no known key; remove it",
            "listen: must be a section of keys, not a value",
            "nats.ulr: is no known key; remove it",
        ]
    );
}

#[test]
fn a_variable_overrides_a_key_and_must_name_one() {
    let found = mistakes(
        "listen: {grpcUnix: /a}\nkeys: [a]",
        &[
            ("ATM_LISTEN__GRPC_UNIX", "/b"),
            ("ATM_LISTEN__NONE", "1"),
            ("ATM_LISTEN__WORKERS", "many"),
            ("ATM_CACHE", "/x"),
            ("ATM_KEYS", "b, c"),
        ],
        |root| {
            let listen = root.section("listen");
            assert_eq!(listen.text("grpcUnix").as_deref(), Some("/b"));
            assert_eq!(listen.number("workers", 3, 1..=8), 3);
            assert_eq!(root.list("keys"), ["b", "c"]);
        },
    );
    assert_eq!(
        found,
        [
            "listen.workers: must be a whole number from 1 to 8 (from ATM_LISTEN__WORKERS)",
            "ATM_LISTEN__NONE: overrides no known key; unset it",
        ]
    );
}

#[test]
fn what_is_no_yaml_is_said_once_and_with_its_place() {
    let found = mistakes("a: [", &[], |_| ());
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("line"), "{found:?}");
    assert_eq!(mistakes("[a]", &[], |_| ()), ["configuration: must be a mapping of keys to values"]);
}

#[test]
fn a_section_is_present_by_the_file_or_by_a_variable() {
    let found = mistakes("a: {b: 1}", &[("ATM_C__D", "1")], |root| {
        assert!(root.section("a").is_present() && root.section("c").is_present());
        assert!(!root.section("e").is_present());
        assert_eq!(
            (root.section("a").text("b"), root.section("c").text("d")),
            (Some("1".into()), Some("1".into()))
        );
    });
    assert_eq!(found, [""; 0]);
}
