//! Policy sets from outside: what operators write and what it does.

#[path = "support/fixtures.rs"] // in a folder, so that it is no test program of its own
mod support;

use atm_core::path::normalise;
use atm_core::policy::compile;
use atm_core::reason::Reason;
use atm_core::request::Request;
use proptest::prelude::*;
use support::policies;

fn routed(set: &atm_core::policy::PolicySet, host: &str, target: &str) -> Result<String, Reason> {
    let path = normalise(target)?;
    let request = Request { method: "GET", host, target, ..Request::default() };
    set.route(&request, &path).map(|route| route.rule.name.to_string())
}

#[test]
fn the_documented_example_compiles() {
    let text = r#"
apiVersion: atm.dev/v1
kind: TokenPolicy
metadata: { name: orders }
spec:
  issuers: ["http://127.0.0.1:8080"]
  audiences: ["orders-api"]
  clockSkewSeconds: 30
  onStale: deny
  credential: { header: authorization, scheme: Bearer }
  forwardToken: true
  rules:
    - name: read
      hosts: ["*"]
      methods: [GET, HEAD]
      paths: ["/orders", "/orders/{id}", "/orders/{id}/{rest...}"]
      extensions: { atm-policy: orders }
      scopes: { all: ["orders.read"], any: [] }
    - name: health
      paths: ["/healthz"]
      allowAnonymous: true
"#;
    let set = compile(&[text.to_owned()]).unwrap();
    assert_eq!(set.names().collect::<Vec<_>>(), ["orders"]);
    let shown = set.rules()[0].paths().collect::<Vec<_>>();
    assert_eq!(shown, ["/orders", "/orders/{id}", "/orders/{id}/{rest...}"]);
    assert_eq!(set.rules()[0].hosts().map(|host| host.to_string()).collect::<Vec<_>>(), ["*"]);
}

#[test]
fn an_error_points_into_the_document() {
    let text = "apiVersion: atm.dev/v1\nkind: TokenPolicy\nmetadata: { name: a }\nspec:\n  audiences: [x]\n  rules:\n    - paths: [/ok, /b/**]\n";
    let errors = compile(&[text.to_owned()]).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "documents[0]:7:20: spec.rules[0].paths[1]: `*` is no wildcard here: write `{name}` for one segment, \
         `{name...}` at the end for more\n 7 |     - paths: [/ok, /b/**]\n   |                    ^"
    );
}

#[test]
fn a_thousand_rules_each_find_their_own() {
    let rules: Vec<String> = (0..1_000)
        .map(|n| {
            format!(
                "    - {{ name: r{n}, paths: ['/v1/t{n}/{{id}}', '/v1/t{n}'], hosts: [h{n}, '*.h{n}'] }}\n"
            )
        })
        .collect();
    let set = policies(&rules.concat());
    for n in (0..1_000).step_by(37) {
        let name = format!("r{n}");
        assert_eq!(routed(&set, &format!("h{n}"), &format!("/v1/t{n}/7")), Ok(name.clone()));
        assert_eq!(routed(&set, &format!("x.y.h{n}:80"), &format!("/v1/t{n}")), Ok(name));
        assert_eq!(routed(&set, &format!("h{n}"), &format!("/v1/t{}", n + 1)), Err(Reason::NoPolicy));
    }
}

#[test]
fn the_slash_at_the_end_opens_no_other_rule() {
    let set = policies(
        "    - { name: guarded, paths: [/admin] }\n    - { name: open, paths: ['/{rest...}'], allowAnonymous: true }\n",
    );
    for target in ["/admin", "/admin/", "/%61dmin", "/admin?x", "/admin/?x"] {
        assert_eq!(routed(&set, "h", target).as_deref(), Ok("guarded"), "{target}");
    }
    for target in
        ["//admin", "/admin//", "/admin/.", "/x/../admin", "/admin;x", "/admin%2f", "/admin.", "/admin%20"]
    {
        assert_eq!(routed(&set, "h", target), Err(Reason::AmbiguousPath), "{target}");
    }
}

proptest! {
    /// Whoever compares hosts otherwise than servers do is walked around.
    #[test]
    fn case_port_and_dot_never_change_the_host(host in "[a-z0-9]{1,8}(\\.[a-z0-9-]{1,8}){0,3}", port: u16, upper: bool, dot: bool) {
        let set = policies(&format!("    - {{ name: it, hosts: ['{host}'], paths: [/] }}\n    - {{ name: other, paths: [/] }}\n"));
        let name = if upper { host.to_ascii_uppercase() } else { host };
        let authority = format!("{name}{}:{port}", if dot { "." } else { "" });
        prop_assert_eq!(routed(&set, &authority, "/"), Ok("it".to_owned()));
    }
}
