use proptest::prelude::*;

use super::*;
use crate::path::normalise;

const HEAD: &str = "apiVersion: atm.dev/v1\nkind: TokenPolicy\nmetadata: { name: orders }\nspec:\n  audiences: [orders-api]\n";

fn set(rules: &str) -> Result<PolicySet, Vec<PolicyError>> {
    compile(&[format!("{HEAD}  rules:\n{rules}")])
}

fn request<'a>(method: &'a str, host: &'a str, target: &'a str) -> Request<'a> {
    Request { method, host, target, headers: &[], extensions: &[] }
}

fn routed(set: &PolicySet, method: &str, host: &str, target: &str) -> Result<String, Reason> {
    let path = normalise(target)?;
    set.route(&request(method, host, target), &path).map(|rule| rule.name.to_string())
}

fn only_error(rules: &str) -> PolicyError {
    let mut errors = set(rules).expect_err(rules);
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

#[test]
fn the_most_specific_rule_applies() {
    let set = set("
    - { name: everything, paths: ['/{rest...}'] }
    - { name: root, paths: ['/'] }
    - { name: below-a, paths: ['/a/{rest...}'] }
    - { name: deep-below-a, paths: ['/a/{x}/{rest...}'] }
    - { name: one, paths: ['/a/{id}'] }
    - { name: exact, paths: ['/a/me'] }
    - { name: exact-get, paths: ['/a/me'], methods: [GET] }
    - { name: exact-host, paths: ['/a/{id}'], hosts: [api.example.com] }
    - { name: wild-host, paths: ['/a/{id}'], hosts: ['*.example.com'] }
    - { name: deep-wild-host, paths: ['/a/{id}'], hosts: ['*.eu.example.com'] }
")
    .unwrap();
    for (method, host, target, expected) in [
        ("GET", "x", "/", "root"),
        ("GET", "x", "/zzz", "everything"),
        ("GET", "x", "/a", "everything"),
        ("GET", "x", "/a/1", "one"),
        ("GET", "x", "/a/1/", "one"),
        ("GET", "x", "/a/1?q=/a/me", "one"),
        ("GET", "x", "/a/1/2", "deep-below-a"),
        ("PUT", "x", "/a/me", "exact"),
        ("GET", "x", "/a/me", "exact-get"),
        ("GET", "x", "/a/%6de/", "exact-get"),
        ("GET", "API.Example.com.:8443", "/a/1", "exact-host"),
        ("GET", "example.com", "/a/1", "one"),
        ("GET", "b.example.com", "/a/1", "wild-host"),
        ("GET", "c.b.example.com", "/a/1", "wild-host"),
        ("GET", "x.eu.example.com", "/a/1", "deep-wild-host"),
        // An exact path wins over an exact host.
        ("GET", "api.example.com", "/a/me", "exact-get"),
    ] {
        assert_eq!(routed(&set, method, host, target).as_deref(), Ok(expected), "{method} {host} {target}");
    }
}

#[test]
fn what_no_rule_names_has_no_policy() {
    let set =
        set("    - { name: a, paths: ['/a/{id}', '/b/{rest...}'], methods: [GET], hosts: [h] }\n").unwrap();
    for (method, host, target) in [
        ("GET", "h", "/"),
        ("GET", "h", "/a"),
        ("GET", "h", "/a/"),
        ("GET", "h", "/a/1/2"),
        ("GET", "h", "/b"),
        ("GET", "h", "/A/1"),
        ("get", "h", "/a/1"),
        ("POST", "h", "/a/1"),
        ("GET", "i", "/a/1"),
        ("GET", "h.i", "/a/1"),
        ("GET", "i.h", "/a/1"),
    ] {
        assert_eq!(routed(&set, method, host, target), Err(Reason::NoPolicy), "{method} {host} {target}");
    }
    let empty = PolicySet::default();
    assert_eq!(routed(&empty, "GET", "h", "/"), Err(Reason::NoPolicy));
}

#[test]
fn hosts_have_one_form() {
    let set = set(
        "    - { name: six, paths: ['/'], hosts: ['[2001:DB8::0:1]'] }\n    - { name: any, paths: ['/'] }\n",
    )
    .unwrap();
    for host in ["[2001:db8::1]", "[2001:db8:0::1]:443", "[2001:DB8::1]:"] {
        assert_eq!(routed(&set, "GET", host, "/").as_deref(), Ok("six"), "{host}");
    }
    for host in ["a", "a:80", "A_b.c-d", "127.0.0.1:8080", "a."] {
        assert_eq!(routed(&set, "GET", host, "/").as_deref(), Ok("any"), "{host}");
    }
    let label = "a".repeat(64);
    for host in [
        "", ".", ":80", "a..", "a..b", "a b", "u@h", "a/b", "a:x", "a:65536", "a:1:2", "::1", "[::1",
        "[::1]x", "[x]", "é", "*", &label,
    ] {
        assert_eq!(routed(&set, "GET", host, "/"), Err(Reason::MalformedRequest), "{host}");
    }
    assert_eq!(routed(&set, "G T", "a", "/"), Err(Reason::MalformedRequest));
}

#[test]
fn context_extensions_select_and_separate() {
    let set = set("
    - { name: a, paths: ['/'], extensions: { atm-policy: a } }
    - { name: b, paths: ['/'], extensions: { atm-policy: b } }
    - { name: none, paths: ['/'] }
")
    .unwrap();
    let path = normalise("/").unwrap();
    for (extensions, expected) in [
        (&[("atm-policy", "b")][..], "b"),
        (&[("atm-policy", "c")], "none"),
        (&[("x", "y"), ("atm-policy", "a")], "a"),
    ] {
        let request = Request { extensions, ..request("GET", "h", "/") };
        assert_eq!(&*set.route(&request, &path).unwrap().name, expected);
    }
}

#[test]
fn a_tie_is_an_error_of_the_later_rule() {
    let error = only_error(
        "
    - name: first
      paths: ['/{x}/b']
    - name: second
      methods: [GET, PUT]
      paths: ['/z']
    - name: third
      paths: ['/q', '/a/{y}']
",
    );
    assert_eq!((error.path.as_str(), error.line, error.column), ("spec.rules[2].paths[1]", 14, 22));
    assert!(error.message.contains("`/{x}/b` of rule `first` of policy `orders`"), "{}", error.message);
    for distinct in [
        "{ paths: ['/a'], methods: [GET] }\n    - { paths: ['/a'], methods: [PUT] }",
        "{ paths: ['/a'], hosts: [x] }\n    - { paths: ['/a'], hosts: [y] }",
        "{ paths: ['/a/{x}'] }\n    - { paths: ['/b/{x}'] }",
        "{ paths: ['/a', '/a/', '/a'] }".replace(", '/a/'", "").as_str(),
    ] {
        assert!(set(&format!("    - {distinct}\n")).is_ok(), "{distinct}");
    }
    for tied in [
        "{ paths: ['/a'] }\n    - { paths: ['/%61'] }",
        "{ paths: ['/a'], methods: [GET, PUT] }\n    - { paths: ['/a'], methods: [PUT] }",
        "{ paths: ['/a'], hosts: [x, y] }\n    - { paths: ['/a'], hosts: [Y.] }",
        "{ paths: ['/{a...}'] }\n    - { paths: ['/{b...}'] }",
        "{ paths: ['/a'], extensions: {x: a} }\n    - { paths: ['/a'], extensions: {y: a} }",
    ] {
        assert!(
            only_error(&format!("    - {tied}\n")).message.contains("neither is more specific"),
            "{tied}"
        );
    }
}

#[test]
fn every_mistake_is_reported_with_its_place() {
    let text = "\
# The orders service.
apiVersion: atm.dev/v2
kind: TokenPolicy
metadata:
  name: Orders
spec:
  clockSkewSeconds: 301
  rules:
  - name: read
    paths:
    - /orders
    - \"/orders/{\"
    - /orders/**
    methods: [GET, put]
  -
    name: read
    allowAnonymous: true
    hosts: ['a:1']
    paths: [/x]
    scopes: { all: [a] }
";
    let errors = compile(&[text.to_owned()]).unwrap_err();
    let found: Vec<_> = errors.iter().map(|error| (error.path.as_str(), error.line, error.column)).collect();
    let expected = [
        ("apiVersion", 2, 13),
        ("metadata.name", 5, 9),
        ("spec.clockSkewSeconds", 7, 3),
        ("spec.rules[0].methods[1]", 14, 20),
        ("spec.rules[0]", 9, 5),
        ("spec.rules[0].paths[1]", 12, 8),
        ("spec.rules[0].paths[2]", 13, 7),
        ("spec.rules[1].scopes", 20, 5),
        ("spec.rules[1].hosts[0]", 18, 14),
        ("spec.rules[1].name", 16, 11),
    ];
    assert_eq!(found, expected);
    let caret = errors[5].to_string();
    assert!(caret.ends_with("\n 12 |     - \"/orders/{\"\n    |        ^"), "{caret}");
}

#[test]
fn unknown_keys_and_broken_yaml_have_a_place() {
    let error = only_error("    - name: a\n      paths: ['/a']\n      allowAnonymos: true\n");
    assert_eq!((error.path.as_str(), error.line, error.column), ("spec.rules[0]", 9, 7));
    assert!(error.message.starts_with("unknown field `allowAnonymos`"), "{}", error.message);
    let error = only_error("    - name: [a\n");
    assert!(error.line >= 7, "{error:?}");
    let error = only_error("    - { paths: ['/a'], extensions: { a: x, a: y } }\n");
    assert!(error.message.contains("duplicate extension `a`"), "{}", error.message);
    for text in ["", "# nothing\n", "---\n---\n"] {
        let errors = compile(&[text.to_owned()]).unwrap_err();
        assert_eq!(errors[0].message, "the document is empty");
    }
}

#[test]
fn a_text_may_hold_several_documents() {
    let other = HEAD.replace("name: orders", "name: stock");
    let text = format!("---\n{HEAD}  rules: [{{ paths: [/a] }}]\n---\n{other}  rules: [{{ paths: [b] }}]\n");
    let errors = compile(&["# no document".to_owned(), text.clone()]).unwrap_err();
    let places: Vec<_> = errors.iter().map(|error| (error.document, error.line)).collect();
    assert_eq!(places, [(0, 1), (1, 14)]);
    let set = compile(&[text.replace("[b]", "[/b]")]).unwrap().with_version(7);
    assert_eq!(set.names().collect::<Vec<_>>(), ["orders", "stock"]);
    assert_eq!((set.version(), set.rules().len()), (7, 2));
    let twice = format!("{HEAD}  rules: [{{ paths: [/a] }}]\n---\n{HEAD}  rules: [{{ paths: [/b] }}]\n");
    assert_eq!(compile(&[twice]).unwrap_err()[0].path, "metadata.name");
}

#[test]
fn a_rule_inherits_from_its_policy() {
    let text = "\
apiVersion: atm.dev/v1
kind: TokenPolicy
metadata: { name: p }
spec:
  issuers: [https://a]
  audiences: [x]
  clockSkewSeconds: 5
  onStale: allow
  forwardToken: false
  credential: { header: X-Api-Token }
  rules:
    - { paths: [/a] }
    - { paths: [/b], issuers: [https://b], audiences: [y, z], onStale: deny, scopes: { all: [s], any: [t, u] } }
    - { paths: [/c], allowAnonymous: true }
";
    let set = compile(&[text.to_owned()]).unwrap();
    let [a, b, c] = set.rules() else { panic!("three rules") };
    let Access::Token(inherited) = &a.access else { panic!("needs a token") };
    assert_eq!(
        (&inherited.issuers, &inherited.audiences),
        (&vec!["https://a".to_owned()], &vec!["x".to_owned()])
    );
    assert_eq!((inherited.clock_skew, a.on_stale, a.forward_token), (5, OnStale::Allow, false));
    assert_eq!(a.credential, CredentialSource { header: "x-api-token".into(), scheme: None });
    let Access::Token(own) = &b.access else { panic!("needs a token") };
    assert_eq!((own.issuers.len(), own.audiences.len(), b.on_stale), (1, 2, OnStale::Deny));
    assert_eq!((own.all_scopes.len(), own.any_scopes.len()), (1, 2));
    assert!(matches!(c.access, Access::Anonymous));
}

#[test]
fn templates_say_what_is_wrong_with_them() {
    for (path, words) in [
        ("a", "begins with"),
        ("", "begins with"),
        ("/a/", "slash at the end"),
        ("//", "slash at the end"),
        ("/a//b", "empty segments"),
        ("/a?b", "no query"),
        ("/{a...}/b", "last segment"),
        ("/{a}/{a}", "occurs twice"),
        ("/x-{a}", "whole segment"),
        ("/{}", "placeholder's name"),
        ("/a/**", "no wildcard"),
        ("/a/../b", "no segment"),
        ("/a b", "no segment"),
    ] {
        let error = template::Template::parse(path).unwrap_err();
        assert!(error.contains(words), "{path}: {error}");
    }
}

/// A template over few segments, so that several match one path.
fn any_template() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec!["a", "b", "{}"]);
    (prop::collection::vec(segment, 1..4), any::<bool>()).prop_map(|(segments, rest)| {
        let names = segments.iter().enumerate().map(|(at, text)| text.replace("{}", &format!("{{p{at}}}")));
        let rest = rest.then(|| "{rest...}".to_owned());
        format!("/{}", names.chain(rest).collect::<Vec<_>>().join("/"))
    })
}

fn matches(template: &str, path: &str) -> bool {
    let (mut template, mut path) = (template[1..].split('/'), path[1..].split('/'));
    loop {
        match (template.next(), path.next()) {
            (None, None) | (Some("{rest...}"), Some(_)) => return true,
            (Some(part), Some(segment)) if part.starts_with('{') || part == segment => {}
            _ => return false,
        }
    }
}

proptest! {
    #[test]
    fn the_parser_never_panics_and_places_lie_in_the_text(text in ".{0,200}", at in 0..400_usize, cut in 0..40_usize) {
        let valid = format!("{HEAD}  rules:\n    - name: a\n      hosts: ['*']\n      paths: ['/a/{{id}}']\n      methods: [GET]\n");
        let at = at.min(valid.len());
        let end = (at + cut).min(valid.len());
        for text in [text.clone(), format!("{}{text}{}", &valid[..at], &valid[end..])] {
            if let Err(errors) = compile(std::slice::from_ref(&text)) {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    prop_assert!(error.line >= 1 && error.column >= 1);
                    prop_assert!(error.line <= text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() + 1, "{:?}", error);
                    let _ = error.to_string();
                }
            }
        }
    }

    #[test]
    fn the_tables_find_what_a_scan_finds(
        templates in prop::collection::hash_set(any_template(), 1..12),
        path in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..5),
    ) {
        let rules: Vec<_> = templates.iter().map(|path| format!("    - {{ paths: ['{path}'] }}\n")).collect();
        let path = format!("/{}", path.join("/"));
        let Ok(set) = set(&rules.concat()) else { return Ok(()) }; // a tie
        let rank = |template: &&String| {
            let kind = if template.contains('{') { usize::from(!template.contains("...")) } else { 2 };
            let literals = template[1..].split('/').filter(|part| !part.starts_with('{')).count();
            (kind, literals, template.matches('/').count())
        };
        let expected = templates.iter().filter(|template| matches(template, &path)).max_by_key(rank);
        let normal = normalise(&path).unwrap();
        let found = set.route(&request("GET", "h", &path), &normal).ok().and_then(|rule| rule.paths().next().map(str::to_owned));
        prop_assert_eq!(found.as_ref(), expected);
    }
}
