use atm_core::policy;

use super::*;

const POLICY: &str = include_str!("../../../examples/policies/orders.yaml");
const TABLE: &str = include_str!("../../../examples/policies/orders.test.yaml");
const PAYMENTS: &str = include_str!("../../../examples/policies/payments.yaml");
const PAYMENTS_TABLE: &str = include_str!("../../../examples/policies/payments.test.yaml");

fn set(text: &str) -> PolicySet {
    policy::compile(&[text.to_owned()]).unwrap_or_else(|errors| panic!("{}", errors[0]))
}

fn problems(policy: &str, table: &str) -> Vec<(String, String)> {
    let outcomes = Table::parse(table).unwrap().run(&set(policy), false).unwrap();
    outcomes.into_iter().filter_map(|outcome| Some((outcome.name, outcome.problem?))).collect()
}

#[test]
fn the_examples_tables_hold_and_a_changed_policy_fails_them() {
    assert_eq!(problems(POLICY, TABLE), []);
    assert_eq!(problems(PAYMENTS, PAYMENTS_TABLE), []);
    assert_ne!(problems(&POLICY.replace("orders.read", "orders.see"), TABLE), []);
    assert_ne!(problems(&PAYMENTS.replace("require: dpop", "require: none"), PAYMENTS_TABLE), []);
}

#[test]
fn a_table_with_a_mistake_says_which_test_has_it() {
    for (text, words) in [
        ("tests: [{ request: GET /, expect: permited }]", "did you mean permit?"),
        ("tests: [{ request: GET /, expect: expird }]", "did you mean expired?"),
        ("tests: [{ request: GET /, expects: permit }]", "expects"),
        ("tests: [{ request: GET /, expect: permit, credential: jwd }]", "jwd"),
    ] {
        let error = Table::parse(text).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    for (test, words) in [
        ("request: /orders", "test `/orders`: request: must be a method"),
        ("request: GET /orders, token: nobody", "neither `none` nor `forged`"),
        ("request: GET /orders, revoked: session", "has no `sid`"),
        ("request: GET /orders, token: none, revoked: token", "no token that could be revoked"),
        ("request: GET /orders, certificate: { uris: ['ä'] }", "is no URI"),
    ] {
        let table = Table::parse(&format!("tests: [{{ {test}, expect: permit }}]")).unwrap();
        let error = table.run(&set(POLICY), false).unwrap_err();
        assert!(format!("{error:#}").contains(words), "{error:#}");
    }
}

/// Each column of a table makes the difference that it says.
#[test]
fn every_column_counts() {
    let policy = "
apiVersion: atm.dev/v1
kind: TokenPolicy
metadata: { name: p }
spec:
  audiences: [a]
  accepts: [jwt, opaque, apiKey]
  upstreamHeaders: [{ name: x-org, claim: org }]
  rules:
    - { name: any, paths: [/any] }
    - { name: jwt, paths: [/jwt], accepts: [jwt] }
    - { name: stale, paths: [/stale], onStale: allow, allowStaleSeconds: 60 }
    - { name: asked, paths: [/asked], onStale: introspect }
    - { name: cookie, paths: [/cookie], credential: { cookie: session } }
    - { name: query, paths: [/query], credential: { query: token } }
    - { name: inner, paths: [/inner], extensions: { zone: inner }, condition: \"request.source.address.startsWith('10.')\" }
    - { name: office, paths: [/office], condition: 'now.getHours() < 18' }
    - { name: key, paths: [/key], binding: { require: dpop, dpop: { nonce: true, origins: ['https://front.example'] } } }
    - { name: tls, paths: [/tls], binding: { require: certificate }, condition: \"'a.example' in client_certificate.dns_names\" }
";
    let table = "
token: { aud: a, sid: s, act: { sub: agent }, atm_ancestors: [{ jti: first, exp: 4102444800 }] }
at: 2026-11-24T12:00:00Z
tests:
  - { request: GET /any, expect: permit, rule: p/any, upstream: { x-org: null } }
  - { request: GET /any, token: { org: acme }, expect: permit, upstream: { x-org: acme } }
  - { request: GET /any, credential: opaque, expect: permit }
  - { request: GET /any, credential: apiKey, expect: permit }
  - { request: GET /jwt, credential: apiKey, expect: credential_kind_refused }
  - { request: GET /any, token: forged, expect: signature_invalid }
  - { request: GET /any, token: forged, credential: opaque, expect: token_inactive }
  - { request: GET /any, token: none, expect: credential_missing }
  - { request: GET /any, expires: -1m, expect: expired }
  - { request: GET /any, issued: 1h, expect: issued_in_future }
  - { request: GET /any, issued: -1h, expires: 1s, expect: permit }
  - { request: GET /any, token: { client_id: null }, expect: claim_missing }
  - { request: GET /any, revoked: token, expect: revoked_token }
  - { request: GET /any, revoked: ancestor, expect: revoked_ancestor }
  - { request: GET /any, revoked: session, expect: revoked_session }
  - { request: GET /any, revoked: subject, expect: revoked_subject }
  - { request: GET /any, revoked: actor, expect: revoked_subject }
  - { request: GET /any, revoked: [client], expect: revoked_client }
  - { request: GET /any, revoked: realm, expect: revoked_realm }
  - { request: GET /any, revoked: issuer, expect: revoked_issuer }
  - { request: GET /any, revoked: key, expect: revoked_key }
  - { request: GET /any, credential: opaque, revoked: subject, expect: revoked_subject }
  - { request: GET /any, stale: true, expect: stale }
  - { request: GET /any, stale: 10s, expect: permit }
  - { request: GET /stale, stale: 59s, expect: permit }
  - { request: GET /stale, stale: 61s, expect: stale }
  - { request: GET /asked, stale: true, expect: stale }
  - { request: GET /asked, stale: true, credential: opaque, expect: permit }
  - { request: GET /cookie, expect: permit }
  - { request: GET /cookie, cookies: { session: '{token}', other: x }, expect: permit }
  - { request: GET /cookie, headers: { authorization: 'Bearer {token}' }, expect: credential_missing }
  - { request: GET /query, expect: permit }
  - { request: 'GET /query?token={token}&token=x', expect: credential_multiple }
  - { request: GET /inner, expect: no_policy }
  - { request: GET /inner, extensions: { zone: inner }, source: 10.0.0.1, expect: permit }
  - { request: GET /inner, extensions: { zone: inner }, source: 192.0.2.1, expect: condition_false }
  - { request: GET /office, expect: permit }
  - { request: GET /office, at: 2026-11-24T20:00:00Z, expect: condition_false }
  - { request: GET /key, expect: binding_required }
  - { request: GET /key, proof: true, expect: permit }
  - { request: GET /key, proof: true, credential: opaque, expect: permit }
  - { request: GET /key, bound: dpop, expect: dpop_proof_missing }
  - { request: GET /key, proof: true, headers: { authorization: 'Bearer {token}' }, expect: scheme_mismatch }
  - { request: GET /key, proof: { nonce: false }, expect: dpop_nonce_required }
  - { request: GET /key, proof: { age: 5m }, expect: dpop_proof_expired }
  - { request: GET /key, proof: { age: -5m }, expect: dpop_proof_expired }
  - { request: GET /key, proof: { again: true }, expect: dpop_proof_replayed }
  - { request: GET /key, proof: { method: PUT }, expect: dpop_request_mismatch }
  - { request: GET /key, proof: { url: 'https://service.example/key' }, expect: dpop_request_mismatch }
  - { request: GET /key, proof: { token: other }, expect: dpop_token_mismatch }
  - { request: GET /key, proof: { key: other }, expect: dpop_token_mismatch }
  - { request: GET /tls, bound: certificate, expect: certificate_missing }
  - { request: GET /tls, bound: certificate, certificate: { dns: [a.example] }, expect: permit }
  - { request: GET /tls, bound: certificate, certificate: { dns: [b.example] }, expect: condition_false }
  - { request: GET /tls, bound: certificate, certificate: { dns: [a.example], other: true }, expect: certificate_mismatch }
  - { request: GET /tls, certificate: { dns: [a.example] }, expect: binding_required }
";
    assert_eq!(problems(policy, table), []);
}

#[test]
fn a_policy_that_is_rolled_out_counts_and_shadow_policies_are_judged_on_demand() {
    let rolled = POLICY.replace("spec:\n", "spec:\n  rollout: { percent: 1 }\n");
    assert_eq!(problems(&rolled, TABLE), []);
    let shadow = set(&POLICY.replace("spec:\n", "spec:\n  mode: shadow\n"));
    let failed = |on: bool| {
        let outcomes = Table::parse(TABLE).unwrap().run(&shadow, on).unwrap();
        outcomes.iter().filter(|outcome| outcome.problem.is_some()).count()
    };
    assert!(failed(false) > 5);
    // A path that cannot be read, or that nothing covers, is no shadow policy's business: both are `no_policy`.
    assert_eq!(failed(true), 1);
}
