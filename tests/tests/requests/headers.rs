//! Rows about where the credential stands, and requests that claim an identity by themselves.

use atm_tests::http;
use atm_tests::token::TokenMint;

use super::table::{Case, Want, case};

/// `GET /orders` with this token.
pub(crate) fn get_orders(token: &str) -> Vec<u8> {
    let authorization = format!("Bearer {token}");
    http::request("GET", "/orders", "orders.test", &[("authorization", &authorization)], "")
}

/// A request full of identity headers of the client's own making: `GET /orders` with a token, else `GET /healthz`.
pub(crate) fn spoofed(token: Option<&str>) -> Vec<u8> {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![
        ("x-atm-subject", "mallory"),
        ("X-ATM-Subject", "mallory"),
        ("x-atm-client", "mallory"),
        ("x-atm-issuer", "mallory"),
        ("x-atm-scope", "mallory"),
        ("x-atm-token-id", "mallory"),
        ("x-atm-session", "mallory"),
        ("x-atm-policy", "mallory"),
    ];
    headers.extend(authorization.as_deref().map(|value| ("authorization", value)));
    let target = if token.is_some() { "/orders" } else { "/healthz" };
    http::request("GET", target, "orders.test", &headers, "")
}

/// Credentials that are missing, doubled or in the wrong place.
pub(crate) fn credentials(mint: &TokenMint) -> Vec<Case> {
    let (one, two) = (mint.token().sign(), mint.token().sign());
    let get = |headers: &[(&str, &str)]| http::request("GET", "/orders", "orders.test", headers, "");
    let with = |name: &str, value: &str, want| case(name, get(&[("authorization", value)]), want);
    let bearer = format!("Bearer {one}");
    let multiple = Want::Denied(401, "credential_multiple");
    let missing = Want::Denied(401, "credential_missing");
    let malformed = Want::Denied(401, "credential_malformed");
    let in_query = format!("/orders?access_token={one}");
    vec![
        case("no credential", get(&[]), missing),
        case(
            "two authorization headers",
            get(&[("authorization", &bearer), ("authorization", &format!("Bearer {two}"))]),
            multiple,
        ),
        case(
            "the same authorization header twice",
            get(&[("authorization", &bearer), ("Authorization", &bearer)]),
            multiple,
        ),
        with("two credentials joined by a comma", &format!("Bearer {one}, Bearer {two}"), multiple),
        with("scheme in lower case", &format!("bearer {one}"), Want::Permit),
        with("scheme without a token", "Bearer", malformed),
        with("scheme with an empty token", "Bearer ", malformed),
        with("two tokens in one credential", &format!("Bearer {one} {two}"), malformed),
        with("a bare token without a scheme", &one, missing),
        with("characters outside token68", "Bearer a\u{e9}b", malformed),
        case("the token in the query only", http::request("GET", &in_query, "orders.test", &[], ""), missing),
        case("the token in a cookie only", get(&[("cookie", &format!("access_token={one}"))]), missing),
        case("anonymous rule", http::request("GET", "/healthz", "orders.test", &[], ""), Want::Permit),
        case(
            "anonymous rule with a broken credential",
            http::request("GET", "/healthz", "orders.test", &[("authorization", "Bearer x")], ""),
            Want::Permit,
        ),
    ]
}
