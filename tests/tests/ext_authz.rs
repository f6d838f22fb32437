//! What authors of ext_authz servers get wrong, each point through a real Envoy: the numbers are those of the list that the
//! project keeps of what has broken others.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

mod ext_authz {
    pub(crate) mod certificates;
    pub(crate) mod fixture;
    pub(crate) mod metrics;
    pub(crate) mod replay;
    pub(crate) mod streams;
    pub(crate) mod traces;
    pub(crate) mod unconfirmed;
}

use atm_tests::envoy::{self, Envoy};
use atm_tests::http;
use atm_tests::programs;
use atm_tests::sidecar::Sidecar;
use ext_authz::fixture::{Asked, Fixture};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_1_a_refusal_sets_a_status_that_envoy_takes_for_one() {
    let fixture = Fixture::start().await;
    for asked in Asked::BOTH {
        let envoy = fixture.envoy(asked, |_| {}).await;
        let expired = fixture.mint.token().claim("exp", 1).sign();
        let narrow = fixture.mint.token().claim("scope", "profile").sign();
        let cases = [
            ("/orders", None, 401, "credential_missing"),
            ("/orders", Some(&expired), 401, "expired"),
            ("/orders", Some(&narrow), 403, "scope_insufficient"),
            ("/nothing", None, 403, "no_policy"),
            ("/healthz/%2e%2e/orders", None, 400, "ambiguous_path"),
        ];
        for (target, token, status, reason) in cases {
            let answer = fixture.get(&envoy, target, token.map(String::as_str)).await;
            assert_eq!(
                (answer.status, answer.header("x-atm-reason")),
                (status, Some(reason)),
                "{asked:?} {target}: {}",
                answer.text()
            );
            assert!(!answer.reached_upstream(), "{asked:?} {target}");
            assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{asked:?}");
            let body = answer.json();
            assert_eq!((&body["status"], &body["reason"]), (&json!(status), &json!(reason)), "{asked:?}");
        }
        let answer = fixture.get(&envoy, "/orders", Some(&fixture.mint.token().sign())).await;
        assert!(answer.reached_upstream(), "{asked:?}: {}", answer.text());
    }
}

/// Envoy is told to let through what it takes for an error of the server's. Nothing that a client sends, and no state of the
/// sidecar's, may look like one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_2_failure_mode_allow_lets_no_refusal_through() {
    let fixture = Fixture::start().await;
    let mut unready = Sidecar::configure(&fixture.nats.url(), &fixture.author.public_key());
    unready.set("realmGroup", json!("nobody"));
    unready.start().await;
    for asked in Asked::BOTH {
        for raw in [false, true] {
            let envoy = fixture
                .envoy(asked, |config| {
                    let filter = envoy::ext_authz(config);
                    filter["failure_mode_allow"] = json!(true);
                    if asked == Asked::Grpc {
                        filter["encode_raw_headers"] = json!(raw);
                    }
                })
                .await;
            for (what, request) in odd_requests() {
                let Ok(answer) = http::exchange(envoy.address(), &request).await else { continue };
                assert!(!answer.reached_upstream(), "{asked:?} raw={raw} {what}: {}", answer.text());
                assert!((400..500).contains(&answer.status), "{asked:?} {what}: {}", answer.status);
            }
        }
        let mut config = fixture.config_of(asked, &unready);
        envoy::ext_authz(&mut config)["failure_mode_allow"] = json!(true);
        let envoy = Envoy::start_config(&config).await;
        let answer = fixture.get(&envoy, "/orders", None).await;
        let expected = if asked == Asked::Grpc { 503 } else { 403 };
        assert_eq!(
            (answer.status, answer.header("x-atm-reason"), answer.reached_upstream()),
            (expected, Some("not_ready"), false),
            "{asked:?}"
        );
    }
}

/// Requests without a credential that no reader may trip over.
fn odd_requests() -> Vec<(&'static str, Vec<u8>)> {
    let with = |head: &[u8]| [head, b"\r\nconnection: close\r\n\r\n"].concat();
    let orders = |line: &[u8]| with(&[b"GET /orders HTTP/1.1\r\nhost: orders.test\r\n", line].concat());
    vec![
        ("bytes that are no UTF-8 in a credential", orders(b"authorization: Bearer \xff\xfe\x80")),
        ("bytes that are no UTF-8 in another header", orders(b"x-name: caf\xe9 \xf0\x28")),
        ("bytes that are no UTF-8 in a cookie", orders(b"cookie: session=\xc3\x28")),
        ("a header of 50,000 bytes", orders(&[b"authorization: Bearer ", &[b'a'; 50_000][..]].concat())),
        ("bytes that are no UTF-8 in the path", with(b"GET /healthz\xff HTTP/1.1\r\nhost: orders.test")),
        ("bytes that are no UTF-8 in the query", with(b"GET /orders?\xff\xfe HTTP/1.1\r\nhost: orders.test")),
        ("bytes that are no UTF-8 in the host", with(b"GET /orders HTTP/1.1\r\nhost: \xff.test")),
        ("a host of nothing", with(b"GET /orders HTTP/1.1\r\nhost: ")),
        ("a method of its own", with(b"BREW /orders HTTP/1.1\r\nhost: orders.test")),
        ("an empty header name", orders(b": x")),
        ("a target that is a URL", with(b"GET http://orders.test/orders HTTP/1.1\r\nhost: orders.test")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_3_the_path_alone_chooses_the_rule_whatever_the_query_holds() {
    let fixture = Fixture::start().await;
    let token = fixture.mint.token().sign();
    for asked in Asked::BOTH {
        let envoy = fixture.envoy(asked, |_| {}).await;
        for target in ["/orders?next=/healthz", "/orders?/../healthz", "/orders/1?a=%2F..%2Fhealthz&b=?"] {
            let refused = fixture.get(&envoy, target, None).await;
            assert_eq!(refused.header("x-atm-reason"), Some("credential_missing"), "{asked:?} {target}");
            let passed = fixture.get(&envoy, target, Some(&token)).await;
            assert_eq!(passed.json()["target"], json!(target), "{asked:?}: the query goes on as it came");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_4_two_credentials_are_refused_joined_or_raw() {
    let fixture = Fixture::start().await;
    let (one, two) = (fixture.mint.token().sign(), fixture.mint.token().sign());
    let headers = [("Authorization", format!("Bearer {one}")), ("authorization", format!("Bearer {two}"))];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let request = http::request("GET", "/orders", "orders.test", &headers, "");
    for raw in [false, true] {
        let envoy = fixture
            .envoy(Asked::Grpc, |config| envoy::ext_authz(config)["encode_raw_headers"] = json!(raw))
            .await;
        let answer = http::exchange(envoy.address(), &request).await.unwrap();
        assert_eq!(
            answer.header("x-atm-reason"),
            Some("credential_multiple"),
            "raw={raw}: {}",
            answer.text()
        );
        let answer = fixture.get(&envoy, "/orders", Some(&one)).await;
        assert!(answer.reached_upstream(), "raw={raw}: {}", answer.text());
    }
    let envoy = fixture.envoy(Asked::Http, |_| {}).await;
    let answer = http::exchange(envoy.address(), &request).await.unwrap();
    assert!(!answer.reached_upstream() && answer.status == 401, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_5_identity_headers_are_the_sidecars_and_hold_no_control_characters() {
    let fixture = Fixture::start().await;
    let plain = fixture.mint.token().claim("sub", "alice").claim("tenant", "a\r\nx-admin: 1").sign();
    let split = fixture.mint.token().claim("sub", "alice\r\nx-admin: 1").sign();
    for asked in Asked::BOTH {
        let envoy = fixture.envoy(asked, |_| {}).await;
        let authorization = format!("Bearer {plain}");
        let headers = [
            ("authorization", authorization.as_str()),
            ("x-atm-subject", "mallory"),
            ("X-Atm-Client", "mallory"),
            ("x-atm-session", "mallory"),
            ("x-tenant", "mallory"),
        ];
        let request = http::request("GET", "/orders", "orders.test", &headers, "");
        let answer = http::exchange(envoy.address(), &request).await.unwrap();
        assert!(answer.reached_upstream(), "{asked:?}: {}", answer.text());
        let seen = answer.json()["headers"].clone();
        assert!(!seen.to_string().contains("mallory"), "{asked:?}: {seen}");
        assert_eq!(
            (&seen["x-admin"], &seen["x-atm-subject"]),
            (&Value::Null, &json!(["alice"])),
            "{asked:?}"
        );
        let tenant = seen["x-tenant"][0].as_str().unwrap_or_default();
        assert_eq!(tenant, "", "{asked:?}: a value that would break a header takes the client's with it");
        let answer = fixture.get(&envoy, "/orders", Some(&split)).await;
        assert_eq!(answer.header("x-atm-reason"), Some("claim_malformed"), "{asked:?}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_6_metadata_tells_who_it_was_and_neither_size_nor_host_trips_it() {
    let fixture = Fixture::start().await;
    let told = |name: &str, path: &str| {
        let value = format!("%DYNAMIC_METADATA(envoy.filters.http.ext_authz:{path})%");
        json!({ "header": { "key": name, "value": value } })
    };
    let envoy = fixture
        .envoy(Asked::Grpc, |config| {
            envoy::connection_manager_of(config)["route_config"]["response_headers_to_add"] = json!([
                told("told-subject", "claims:sub"),
                told("told-rule", "rule"),
                told("told-roles", "claims:roles"),
                told("told-reason", "reason"),
                told("told-freshness", "freshness"),
            ]);
        })
        .await;
    let token = fixture.mint.token().claim("sub", "alice").claim("roles", json!(["admin"])).sign();
    let answer = fixture.get(&envoy, "/orders", Some(&token)).await;
    let told = |name: &str| answer.header(name).unwrap_or_default().to_owned();
    assert_eq!((told("told-subject"), told("told-rule")), ("alice".to_owned(), "orders".to_owned()));
    assert_eq!((told("told-roles"), told("told-reason")), ("[\"admin\"]".to_owned(), "permit".to_owned()));
    assert_eq!(answer.header("told-freshness"), None, "said where there is something to say");
    let refused = fixture.get(&envoy, "/orders", None).await;
    assert_eq!(refused.header("told-reason"), Some("credential_missing"), "{refused:?}");

    let authorization = format!("Bearer {token}");
    for host in ["[::1]:8080", "ORDERS.test.:443", "127.0.0.1"] {
        let request = http::request("GET", "/orders", host, &[("authorization", &authorization)], "");
        let answer = http::exchange(envoy.address(), &request).await.unwrap();
        assert!(answer.reached_upstream(), "{host}: {}", answer.text());
    }
    // Envoy does not know how long a chunked body is, and says -1.
    let chunked = format!(
        "PUT /orders HTTP/1.1\r\nhost: orders.test\r\nconnection: close\r\nauthorization: {authorization}\r\n\
         transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    );
    let answer = http::exchange(envoy.address(), chunked.as_bytes()).await.unwrap();
    assert!(answer.reached_upstream(), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_8_no_spelling_of_a_path_walks_around_a_rule() {
    let fixture = Fixture::start().await;
    let token = fixture.mint.token().sign();
    for asked in Asked::BOTH {
        // Envoy passes paths on as they came (`atm_tests::envoy`).
        let envoy = fixture.envoy(asked, |_| {}).await;
        for target in [
            "/healthz/../orders",
            "/healthz/%2e%2e/orders",
            "/healthz%2f..%2forders",
            "/healthz%5c..%5corders",
            "//healthz",
            "/healthz;/../orders",
            "/healthz/%252e%252e/orders",
            "/healthz%00",
        ] {
            for token in [None, Some(token.as_str())] {
                let answer = fixture.get(&envoy, target, token).await;
                let reason = answer.header("x-atm-reason").unwrap_or_default();
                assert_eq!((answer.status, reason), (400, "ambiguous_path"), "{asked:?} {target}");
            }
        }
        // A path without a slash (grpc-go CVE-2026-33186) gets to nobody.
        let answer = fixture.get(&envoy, "healthz", None).await;
        assert!(!answer.reached_upstream(), "{asked:?}: {}", answer.text());
    }
}

/// A cluster's name is the `:authority` of its calls unless `authority` is set, and Istio's names are not valid ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_10_a_cluster_of_any_name_asks_with_the_authority_that_is_shipped() {
    const NAME: &str = "outbound|9000||atm-sidecar.mesh.svc.cluster.local";
    let fixture = Fixture::start().await;
    let token = fixture.mint.token().sign();
    let envoy = fixture
        .envoy(Asked::Grpc, |config| {
            config["static_resources"]["clusters"][1]["name"] = json!(NAME);
            config["static_resources"]["clusters"][1]["load_assignment"]["cluster_name"] = json!(NAME);
            envoy::ext_authz(config)["grpc_service"]["envoy_grpc"]["cluster_name"] = json!(NAME);
        })
        .await;
    let answer = fixture.get(&envoy, "/orders", Some(&token)).await;
    assert!(answer.reached_upstream(), "{} {}", answer.status, answer.text());
    let shipped = std::fs::read_to_string(programs::workspace().join("examples/envoy/envoy.yaml")).unwrap();
    for setting in ["envoy_grpc:", "authority: atm-sidecar", "allowed_headers:"] {
        assert!(shipped.contains(setting), "the shipped configuration lacks {setting}");
    }
}

/// `error_response` is for an authorization server that failed: Envoy then does as `failure_mode_allow` says, and would let
/// the request through. What the sidecar itself cannot tell is therefore a denial to Envoy; only its absence is an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_11_what_cannot_be_told_is_a_denial_and_only_an_absent_sidecar_an_error() {
    let mut fixture = Fixture::start().await;
    let mut unready = Sidecar::configure(&fixture.nats.url(), &fixture.author.public_key());
    unready.set("realmGroup", json!("nobody"));
    unready.start().await;
    let envoy = Envoy::start_config(&fixture.config_of(Asked::Grpc, &unready)).await;
    let answer = fixture.get(&envoy, "/orders", None).await;
    assert_eq!((answer.status, answer.header("x-atm-reason")), (503, Some("not_ready")));
    assert_eq!((envoy.counter("ext_authz.denied").await, envoy.counter("ext_authz.error").await), (1, 0));

    let envoy = fixture.envoy(Asked::Grpc, |_| {}).await;
    fixture.get(&envoy, "/nothing", None).await;
    assert_eq!((envoy.counter("ext_authz.denied").await, envoy.counter("ext_authz.error").await), (1, 0));
    fixture.sidecar.kill();
    let answer = fixture.get(&envoy, "/orders", Some(&fixture.mint.token().sign())).await;
    assert_eq!((answer.status, answer.header("x-atm-reason"), answer.reached_upstream()), (503, None, false));
    assert_eq!((envoy.counter("ext_authz.denied").await, envoy.counter("ext_authz.error").await), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_11_a_route_names_its_policy_and_a_client_cannot() {
    let fixture = Fixture::start().await;
    let token = fixture.mint.token().sign();
    let named = fixture
        .envoy(Asked::Grpc, |config| {
            let settings = json!({ "context_extensions": { "route": "named" } });
            let per_route = json!({
                "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
                "check_settings": settings,
            });
            let route =
                &mut envoy::connection_manager_of(config)["route_config"]["virtual_hosts"][0]["routes"][0];
            route["typed_per_filter_config"] = json!({ "envoy.filters.http.ext_authz": per_route });
        })
        .await;
    let answer = fixture.get(&named, "/named", Some(&token)).await;
    assert!(answer.reached_upstream(), "{}", answer.text());
    let unnamed = fixture.envoy(Asked::Grpc, |_| {}).await;
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", authorization.as_str()), ("route", "named"), ("x-route", "named")];
    let request = http::request("GET", "/named?route=named", "orders.test", &headers, "");
    let answer = http::exchange(unnamed.address(), &request).await.unwrap();
    assert_eq!(answer.header("x-atm-reason"), Some("no_policy"), "{}", answer.text());
}
