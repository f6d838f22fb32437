//! Rows about methods, hosts and the ways around a path rule. Envoy passes paths on as they came here (see
//! `atm_tests::envoy`), so each trick meets the sidecar.

use atm_tests::http;
use atm_tests::token::TokenMint;

use super::table::{Case, Want, case};

const NO_POLICY: Want = Want::Denied(403, "no_policy");
const MALFORMED: Want = Want::Denied(400, "malformed_request");
const AMBIGUOUS: Want = Want::Denied(400, "ambiguous_path");

/// Methods and hosts.
pub(crate) fn methods_and_hosts(mint: &TokenMint) -> Vec<Case> {
    let authorization = format!("Bearer {}", mint.token().claim("scope", "orders.read").sign());
    let admin = format!("Bearer {}", mint.token().claim("scope", "admin").sign());
    let with = |method: &str, target: &str, host: &str, value: &str| {
        http::request(method, target, host, &[("authorization", value)], "")
    };
    let read = |name: &str, method: &str, want| {
        case(name, with(method, "/orders", "orders.test", &authorization), want)
    };
    let host = |name: &str, host: &str, want| case(name, with("GET", "/admin", host, &admin), want);
    let insufficient = Want::Denied(403, "scope_insufficient");
    vec![
        read("HEAD is read", "HEAD", Want::Permit),
        read("POST needs another scope", "POST", insufficient),
        read("DELETE needs another scope", "DELETE", insufficient),
        read("a method that no rule names", "PATCH", NO_POLICY),
        read("a method in lower case", "get", Want::Envoy(&[400])),
        case(
            "method override by a header",
            http::request(
                "POST",
                "/orders",
                "orders.test",
                &[("authorization", &authorization), ("x-http-method-override", "GET")],
                "",
            ),
            insufficient,
        ),
        host("a rule for one host", "admin.orders.test", Want::Permit),
        host("its host in another case", "ADMIN.orders.Test", Want::Permit),
        host("its host with a dot at the end", "admin.orders.test.", Want::Permit),
        host("its host with a port", "admin.orders.test:8080", Want::Permit),
        host("another host", "orders.test", NO_POLICY),
        host("its host as a prefix", "admin.orders.test.evil.test", NO_POLICY),
        case(
            "a rest of several segments",
            with("GET", "/reports/2026/11/24", "orders.test", &admin),
            Want::Permit,
        ),
        case("a rest of no segment", with("GET", "/reports", "orders.test", &admin), NO_POLICY),
        case(
            "a query does not matter to the path",
            with("GET", "/orders?x=/../healthz", "orders.test", &authorization),
            Want::Permit,
        ),
        case(
            "absolute form",
            with("GET", "http://orders.test/orders", "orders.test", &authorization),
            Want::Permit,
        ),
    ]
}

/// Ways around a path rule, all without a credential: whatever reaches the upstream has got around it.
pub(crate) fn tricks(mint: &TokenMint) -> Vec<Case> {
    let bare = |name: &str, target: &str, want| {
        case(name, http::request("GET", target, "orders.test", &[], ""), want)
    };
    let authorization = format!("Bearer {}", mint.token().sign());
    let good = |name: &str, target: &str, want| {
        case(
            name,
            http::request("GET", target, "orders.test", &[("authorization", &authorization)], ""),
            want,
        )
    };
    vec![
        bare("no rule for the path", "/nothing", NO_POLICY),
        bare("dot segments", "/healthz/../orders", AMBIGUOUS),
        bare("dot segments encoded", "/healthz/%2e%2e/orders", AMBIGUOUS),
        bare("dot segments half encoded", "/healthz/.%2E/orders", AMBIGUOUS),
        bare("encoded slash", "/healthz%2forders", AMBIGUOUS),
        bare("encoded backslash", "/healthz%5corders", AMBIGUOUS),
        bare("backslash", "/healthz\\orders", AMBIGUOUS),
        bare("doubly encoded dots", "/healthz/%252e%252e/orders", AMBIGUOUS),
        bare("doubly encoded slash", "/healthz%252forders", AMBIGUOUS),
        bare("encoded NUL", "/healthz%00", AMBIGUOUS),
        bare("broken percent encoding", "/healthz%zz", MALFORMED),
        bare("two slashes first", "//healthz", AMBIGUOUS),
        bare("two slashes within", "/orders//1", AMBIGUOUS),
        bare("matrix parameters", "/healthz;/../orders", AMBIGUOUS),
        bare("matrix parameters on a rule", "/orders;jsessionid=1", AMBIGUOUS),
        bare("a slash at the end of a public path", "/healthz/", Want::Permit),
        bare("a slash at the end of a protected path", "/orders/", Want::Denied(401, "credential_missing")),
        bare("another case", "/Healthz", NO_POLICY),
        bare("percent encoded letters are the letters", "/h%65althz", Want::Permit),
        bare("a path without a slash", "healthz", Want::Envoy(&[400, 404])),
        bare("a fragment", "/healthz#/orders", Want::Envoy(&[400])),
        bare("a space in the target", "/healthz /orders", Want::Envoy(&[400])),
        bare("OPTIONS in asterisk form", "*", Want::Envoy(&[400, 404])),
        good("dot segments with a good token", "/orders/../admin", AMBIGUOUS),
        good("a template takes one segment only", "/orders/1/items", NO_POLICY),
        good("an encoded character in a template", "/orders/a%20b", Want::Permit),
    ]
}

/// The same tricks before the shipped Envoy configuration, which resolves or refuses most of them before the sidecar is asked.
pub(crate) fn tricks_that_envoy_resolves() -> Vec<Case> {
    let missing = Want::Denied(401, "credential_missing");
    let refused = Want::Envoy(&[400]);
    let bare = |name: &str, target: &str, want| {
        case(name, http::request("GET", target, "orders.test", &[], ""), want)
    };
    vec![
        bare("dot segments", "/healthz/../orders", missing),
        bare("dot segments encoded", "/healthz/%2e%2e/orders", missing),
        bare("dot segments above the root", "/../../orders", missing),
        bare("two slashes", "/healthz/..//orders", missing),
        bare("encoded slash", "/healthz%2f..%2forders", refused),
        bare("encoded backslash", "/healthz%5c..%5corders", refused),
        bare("doubly encoded dots", "/healthz/%252e%252e/orders", AMBIGUOUS),
        bare("matrix parameters", "/healthz;/../orders", missing),
        bare("matrix parameters on a rule", "/healthz;x", AMBIGUOUS),
        bare("encoded NUL", "/healthz%00", refused),
        case(
            "an identity header with underscores",
            http::request("GET", "/healthz", "orders.test", &[("x_atm_subject", "mallory")], ""),
            refused,
        ),
    ]
}
