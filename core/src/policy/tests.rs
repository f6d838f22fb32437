use proptest::prelude::*;

use super::*;
use crate::path::normalise;

const HEAD: &str = "apiVersion: atm.dev/v1\nkind: TokenPolicy\nmetadata: { name: orders }\nspec:\n  audiences: [orders-api]\n";

fn set(rules: &str) -> Result<PolicySet, Vec<PolicyError>> {
    compile(&[format!("{HEAD}  rules:\n{rules}")])
}

fn request<'a>(method: &'a str, host: &'a str, target: &'a str) -> Request<'a> {
    Request { method, host, target, ..Request::default() }
}

fn routed(set: &PolicySet, method: &str, host: &str, target: &str) -> Result<String, Reason> {
    let path = normalise(target)?;
    set.route(&request(method, host, target), &path).map(|route| route.rule.name.to_string())
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
        assert_eq!(&*set.route(&request, &path).unwrap().rule.name, expected);
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
    // `/a` is the first of the list, and not a part of the second.
    let error = only_error("    - { paths: ['/a'] }\n    - { paths: ['/a', '/a/b'] }\n");
    assert_eq!((error.line, error.column), (8, 18));
    for distinct in [
        "{ paths: ['/a'], methods: [GET] }\n    - { paths: ['/a'], methods: [PUT] }",
        "{ paths: ['/a'], hosts: [x] }\n    - { paths: ['/a'], hosts: [y] }",
        "{ paths: ['/a/{x}'] }\n    - { paths: ['/b/{x}'] }",
        "{ paths: ['/a', '/{rest...}'] }",
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
fn what_never_makes_a_difference_is_a_mistake() {
    for (rule, words) in [
        ("{ paths: ['/a', '/%61'] }", "matches the same as `/a`"),
        ("{ paths: ['/a/{x}', '/a/{y}'] }", "matches the same"),
        ("{ paths: ['/a'], hosts: [h, 'H.'] }", "matches the same as `h`"),
        ("{ paths: ['/a'], scopes: { all: [x], any: [y, x] } }", "a scope of `all` is in it"),
        ("{ paths: ['/a'], onStale: deny, allowStaleSeconds: 5 }", "without `onStale: allow`"),
        ("{ paths: ['/a'], allowAnonymous: true, condition: 'true' }", "has no effect beside"),
    ] {
        let error = only_error(&format!("    - {rule}\n"));
        assert!(error.message.contains(words), "{rule}: {error}");
    }
}

#[test]
fn a_path_that_more_specific_ones_leave_nothing_of_is_a_mistake() {
    let error = only_error(
        "
    - { name: rest, paths: ['/a/{rest...}'] }
    - { name: one, paths: ['/a/{x}', '/b'] }
    - { name: more, paths: ['/a/{x}/{rest...}'] }
",
    );
    assert_eq!((error.path.as_str(), error.line), ("spec.rules[0].paths[0]", 8));
    for words in ["no request comes here", "`/a/{x}` of rule `one`", "`/a/{x}/{rest...}` of rule `more`"] {
        assert!(error.message.contains(words), "{}", error.message);
    }
    for reached in [
        // What is left: paths of three segments, other methods, other hosts, requests without the extension, the share.
        "{ paths: ['/a/{r...}'] }\n    - { paths: ['/a/{x}'] }\n    - { paths: ['/a/{x}/{y}/{r...}'] }",
        "{ paths: ['/a/{r...}'] }\n    - { paths: ['/a/{x}'], methods: [GET] }\n    - { paths: ['/a/{x}/{r...}'] }",
        "{ paths: ['/a/{r...}'] }\n    - { paths: ['/a/{x}'], hosts: [h] }\n    - { paths: ['/a/{x}/{r...}'] }",
        "{ paths: ['/a/{r...}'], hosts: [h, i] }\n    - { paths: ['/a/{x}', '/a/{x}/{r...}'], hosts: [h] }",
        "{ paths: ['/a/{r...}'] }\n    - { paths: ['/a/{x}', '/a/{x}/{r...}'], extensions: { e: v } }",
        "{ paths: ['/{r...}'] }\n    - { paths: ['/a', '/a/{r...}'] }",
    ] {
        assert!(set(&format!("    - {reached}\n")).is_ok(), "{reached}");
    }
    for taken in [
        "{ paths: ['/a/{r...}'], methods: [GET, PUT] }\n    - { paths: ['/a/{x}'] }\n    - { paths: ['/a/{x}/{r...}'], methods: [GET, PUT, POST] }",
        "{ paths: ['/a/{r...}'], hosts: [b.h] }\n    - { paths: ['/a/{x}'], hosts: ['*.h'] }\n    - { paths: ['/a/{x}/{r...}'] }",
        "{ paths: ['/a/{r...}'], extensions: { e: v, f: w } }\n    - { paths: ['/a/{x}', '/a/{x}/{r...}'], extensions: { e: v } }",
        "{ paths: ['/{r...}'] }\n    - { paths: ['/{x}', '/{x}/{y}', '/{x}/{y}/{r...}'] }",
    ] {
        assert!(only_error(&format!("    - {taken}\n")).message.contains("no request comes here"), "{taken}");
    }
    let share = [policy("all", ""), policy("share", "  rollout: { percent: 50 }").replace("/a/{id}", "/b")];
    assert!(compile(&share).is_ok());
}

#[test]
fn what_permits_nothing_is_a_mistake() {
    for (rule, path, words) in [
        ("{ paths: ['/a'], condition: '1 > 2' }", "spec.rules[0].condition", "is always false"),
        (
            "{ paths: ['/a'], condition: '1 < 2 || \"a\" in [\"b\"]' }",
            "spec.rules[0].condition",
            "is always true",
        ),
        ("{ paths: ['/a'], condition: '1 / 0 == 1' }", "spec.rules[0].condition", "has no outcome"),
        (
            "{ paths: ['/a'], credential: { scheme: Bearer }, binding: { require: dpop } }",
            "spec.rules[0].binding.require",
            "comes with the scheme `DPoP`",
        ),
        (
            "{ paths: ['/a'], accepts: [jwt], onStale: introspect }",
            "spec.rules[0].onStale",
            "the same as `deny`",
        ),
    ] {
        let error = only_error(&format!("    - {rule}\n"));
        assert_eq!(error.path, path, "{error}");
        assert!(error.message.contains(words), "{rule}: {error}");
    }
    for permits in [
        "{ paths: ['/a'], condition: 'now > timestamp(\"2026-01-01T00:00:00Z\")' }",
        "{ paths: ['/a'], credential: { cookie: t }, binding: { require: dpop } }",
        "{ paths: ['/a'], credential: [{ scheme: Bearer }, { scheme: DPoP }], binding: { require: dpop } }",
    ] {
        assert!(set(&format!("    - {permits}\n")).is_ok(), "{permits}");
    }
}

#[test]
fn a_scope_that_the_service_does_not_know_is_a_mistake() {
    let text = |known: &str, scopes: &str| {
        format!("{HEAD}  knownScopes: {known}\n  rules:\n    - paths: [/a]\n      scopes: {scopes}\n")
    };
    let errors = compile(&[text(
        "[orders.read, orders.write]",
        "{ all: [orders.raed], any: [billing, orders.write] }",
    )]);
    let errors = errors.unwrap_err();
    let found: Vec<_> = errors.iter().map(|error| (error.path.as_str(), error.line, error.column)).collect();
    assert_eq!(found, [("spec.rules[0].scopes.all[0]", 9, 23), ("spec.rules[0].scopes.any[0]", 9, 43)]);
    assert!(errors[0].message.ends_with("did you mean `orders.read`?"), "{}", errors[0]);
    assert!(errors[1].message.ends_with("there are orders.read, orders.write"), "{}", errors[1]);
    assert!(compile(&[text("[a, b]", "{ all: [a] }")]).is_ok());
    assert_eq!(compile(&[text("[]", "{}")]).unwrap_err()[0].path, "spec.knownScopes");
    assert_eq!(compile(&[text("['a b']", "{}")]).unwrap_err()[0].path, "spec.knownScopes[0]");
}

#[test]
fn regular_expressions_share_the_memory_of_the_set() {
    let rule = |number: usize| {
        format!("    - paths: ['/{number}']\n      condition: token.sub.matches('^\\\\p{{L}}+$')\n")
    };
    assert!(set(&(0..20).map(rule).collect::<String>()).is_ok());
    let errors = set(&(0..80).map(rule).collect::<String>()).unwrap_err();
    assert!(errors.iter().all(|error| error.message.contains("one too many")), "{}", errors[0]);
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: atm.dev/v1\nkind: TokenPolicy\nmetadata: {{ name: {name} }}\nspec:\n  audiences: [a]\n{spec}\n  \
         rules:\n    - {{ paths: ['/a/{{id}}'] }}\n"
    )
}

#[test]
fn settings_are_checked_where_they_stand() {
    for (spec, path, words) in [
        ("  rollout: { percent: 0 }", "spec.rollout.percent", "0.01 to 100"),
        ("  rollout: { percent: .nan }", "spec.rollout.percent", "0.01 to 100"),
        ("  rollout: { percent: 5, by: 'a b' }", "spec.rollout.by", "header's name"),
        ("  mode: shadow\n  rollout: { percent: 5 }", "spec.rollout", "no effect in shadow mode"),
        ("  credential: []", "spec.credential", "1 to 8 places"),
        ("  credential: { cookie: a, query: b }", "spec.credential", "one of"),
        ("  credential: { cookie: a, scheme: Bearer }", "spec.credential", "belong to a `header`"),
        ("  credential: { header: dpop }", "spec.credential.header", "no header that can hold"),
        ("  credential: [{ cookie: a }, { cookie: a }]", "spec.credential", "one place twice"),
        ("  accepts: []", "spec.accepts", "names no kind"),
        ("  binding: { dpop: { maxAgeSeconds: 0 } }", "spec.binding.dpop.maxAgeSeconds", "1 to 300"),
        ("  binding: { dpop: { origins: ['https://a/b'] } }", "spec.binding.dpop.origins[0]", "an origin"),
        (
            "  upstreamHeaders: [{ name: x-atm-subject, claim: a }]",
            "spec.upstreamHeaders[0].name",
            "only the gateway",
        ),
        ("  upstreamHeaders: [{ name: host, claim: a }]", "spec.upstreamHeaders[0].name", "only the gateway"),
        ("  upstreamHeaders: [{ name: x, claim: [] }]", "spec.upstreamHeaders[0].claim", "names that lead"),
        (
            "  upstreamHeaders: [{ name: x, claim: a }, { name: X, claim: b }]",
            "spec.upstreamHeaders[1].name",
            "twice",
        ),
        ("  allowStaleSeconds: 5", "spec.allowStaleSeconds", "without `onStale: allow`"),
    ] {
        let errors = compile(&[policy("p", spec)]).unwrap_err();
        assert_eq!(errors.len(), 1, "{spec}: {errors:?}");
        assert_eq!(errors[0].path, path, "{spec}");
        assert!(errors[0].message.contains(words), "{spec}: {}", errors[0].message);
    }
}

#[test]
fn a_mistake_in_a_condition_is_shown_in_the_documents_lines() {
    let at = |rules: &str| {
        let error = only_error(rules);
        assert_eq!(error.path, "spec.rules[0].condition");
        (error.line, error.column)
    };
    assert_eq!(at("    - paths: ['/a']\n      condition: token.sub == reqest.path\n"), (8, 31));
    assert_eq!(
        at("    - paths: ['/a']\n      condition: |\n        true &&\n        reqest.path == 'a'\n"),
        (10, 9)
    );
    assert_eq!(
        at("    - paths: ['/a']\n      condition: >-\n        true &&\n        reqest.path == 'a'\n"),
        (10, 9)
    );
    assert_eq!(at("    - paths: ['/a']\n      condition: \"token.sub == reqest.path\"\n"), (8, 32));
    let error = only_error("    - paths: ['/a', '/b/{id}']\n      condition: request.params.id == '1'\n");
    assert!(error.message.contains("path `/a` has no `{id}`"), "{error}");
}

#[test]
fn a_rollout_takes_its_share_and_leaves_the_rest() {
    let set = compile(&[policy("old", ""), policy("new", "  rollout: { percent: 25, by: x-user }")]).unwrap();
    let routed = |user: Option<&str>| {
        let headers: Vec<(&str, &[u8])> = user.iter().map(|user| ("x-user", user.as_bytes())).collect();
        let request = Request { headers: &headers, ..request("GET", "h", "/a/1") };
        let path = normalise("/a/1").unwrap();
        set.route(&request, &path).unwrap().rule.policy.to_string()
    };
    let users: Vec<String> = (0..2_000).map(|number| format!("user-{number}")).collect();
    let new = users.iter().filter(|user| routed(Some(user)) == "new").count();
    assert!((400..600).contains(&new), "{new} of 2000 for 25 percent");
    for user in &users[..50] {
        assert_eq!(routed(Some(user)), routed(Some(user)));
    }
    assert_eq!(routed(None), "old"); // what lacks the key falls outside
    let whole = compile(&[policy("old", ""), policy("new", "  rollout: { percent: 100 }")]).unwrap_err();
    assert!(whole[0].message.contains("neither is more specific"), "{whole:?}");
}

#[test]
fn shadow_policies_route_by_themselves() {
    let set = compile(&[policy("real", ""), policy("tried", "  mode: shadow")]).unwrap();
    let path = normalise("/a/1").unwrap();
    let request = request("GET", "h", "/a/1");
    assert_eq!(&*set.route(&request, &path).unwrap().rule.policy, "real");
    assert_eq!(&*set.route_shadow(&request, &path).unwrap().rule.policy, "tried");
    assert!(set.has_shadow());
    assert!(!compile(&[policy("real", "")]).unwrap().has_shadow());
}

#[test]
fn parameters_are_told_by_the_template_that_matched() {
    let set = set("    - { paths: ['/a/{x}/b/{rest...}', '/{y}'] }\n").unwrap();
    let found = |target, name: &str| {
        let path = normalise(target).unwrap();
        let route = set.route(&request("GET", "h", target), &path).unwrap();
        route.parameter(&path, name).map(str::to_owned)
    };
    assert_eq!(found("/a/1/b/c/d", "x").as_deref(), Some("1"));
    assert_eq!(found("/a/1/b/c/d", "rest").as_deref(), Some("c/d"));
    assert_eq!(found("/a/1/b/c", "y"), None);
    assert_eq!(found("/z", "y").as_deref(), Some("z"));
}

#[test]
fn the_schema_names_every_key_of_the_example() {
    let schema = json_schema();
    for pointer in [
        "/properties/spec",
        "/$defs/Spec/properties/upstreamHeaders",
        "/$defs/Spec/properties/rollout",
        "/$defs/RuleDocument/properties/condition",
        "/$defs/Source/properties/cookie",
    ] {
        assert!(schema.pointer(pointer).is_some(), "{pointer} in {schema:#}");
    }
    assert_eq!(schema["additionalProperties"], false);
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
        ("spec.rules[0]", 9, 5),
        ("spec.rules[0].paths[1]", 12, 8),
        ("spec.rules[0].paths[2]", 13, 7),
        ("spec.rules[0].methods[1]", 14, 20),
        ("spec.rules[1].name", 16, 11),
        ("spec.rules[1].hosts[0]", 18, 14),
        ("spec.rules[1].scopes", 20, 5),
    ];
    assert_eq!(found, expected);
    let caret = errors[4].to_string();
    assert!(caret.ends_with("\n 12 |     - \"/orders/{\"\n    |        ^"), "{caret}");
}

/// What rules inherit is wrong once, however many inherit it.
#[test]
fn a_mistake_is_reported_once() {
    let text = format!(
        "{HEAD}  binding: {{ dpop: {{ maxAgeSeconds: 0 }} }}\n  rules: [{{ paths: [/a] }}, {{ paths: [/b] }}]\n"
    );
    assert_eq!(compile(&[text]).unwrap_err().len(), 1);
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
    assert_eq!((inherited.clock_skew, a.on_stale, a.forward_token), (5, StaleAction::Allow(None), false));
    assert_eq!(*a.credential, [CredentialSource::Header { header: "x-api-token".into(), prefix: "".into() }]);
    let Access::Token(own) = &b.access else { panic!("needs a token") };
    assert_eq!((own.issuers.len(), own.audiences.len(), b.on_stale), (1, 2, StaleAction::Deny));
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
        let found = set.route(&request("GET", "h", &path), &normal).ok().and_then(|route| route.rule.paths().next().map(str::to_owned));
        prop_assert_eq!(found.as_ref(), expected);
    }
}
