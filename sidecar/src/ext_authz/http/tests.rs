use super::*;

fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = axum::http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn line(parts: &Parts, original: &OriginalRequest) -> Option<(String, String, String)> {
    Line::of(parts, original).map(|line| (line.method.into(), line.host.into(), line.target.into()))
}

#[allow(clippy::unnecessary_wraps)] // it is compared with what may be none
fn expected(method: &str, host: &str, target: &str) -> Option<(String, String, String)> {
    Some((method.into(), host.into(), target.into()))
}

#[test]
fn envoy_asks_with_the_request_itself() {
    let original = OriginalRequest::default();
    let request =
        parts("PUT", "/orders/%2e%2e?a=1", &[("host", "orders.test:80"), ("x-forwarded-uri", "/healthz")]);
    assert_eq!(line(&request, &original), expected("PUT", "orders.test:80", "/orders/%2e%2e?a=1"));
    let two = parts("GET", "/", &[("host", "a"), ("host", "b")]);
    assert_eq!(line(&two, &original), None);
    assert_eq!(line(&parts("GET", "/", &[]), &original), None);
}

#[test]
fn a_prefix_is_taken_off_and_must_be_there() {
    for prefix in ["/authz", "/authz/"] {
        let original = OriginalRequest { path_prefix: Some(prefix.into()), ..OriginalRequest::default() };
        let of = |uri: &str| line(&parts("GET", uri, &[("host", "h")]), &original);
        assert_eq!(of("/authz/orders?x"), expected("GET", "h", "/orders?x"));
        assert_eq!(of("/authzorders"), None);
        assert_eq!(of("/orders"), None);
    }
}

#[test]
fn forwarded_headers_count_only_where_they_are_trusted_and_agree() {
    let original = OriginalRequest { trust_forwarded: true, ..OriginalRequest::default() };
    let complete =
        [("x-forwarded-method", "POST"), ("x-forwarded-host", "h"), ("x-forwarded-uri", "/orders?x")];
    assert_eq!(line(&parts("GET", "/check", &complete), &original), expected("POST", "h", "/orders?x"));
    for missing in 0..complete.len() {
        let mut headers = complete.to_vec();
        headers.remove(missing);
        headers.push(("host", "h"));
        assert_eq!(line(&parts("GET", "/check", &headers), &original), None);
    }
    let mut two = complete.to_vec();
    two.push(("x-original-uri", "/healthz"));
    assert_eq!(line(&parts("GET", "/check", &two), &original), None);
}
