use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{
    HttpRequest, Peer, Request as Attributes,
};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use proptest::prelude::*;
use prost::Message;

use super::*;

fn encode(http: Option<HttpRequest>, extensions: &[(&str, &str)]) -> Vec<u8> {
    let extensions =
        extensions.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let attributes = AttributeContext {
        source: Some(Peer { principal: "spiffe://x".into(), certificate: "%2D".into(), ..Peer::default() }),
        request: Some(Attributes { time: None, http }),
        context_extensions: extensions,
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }.encode_to_vec()
}

fn http(headers: &[(&str, &str)]) -> HttpRequest {
    HttpRequest {
        id: "1".into(),
        method: "GET".into(),
        path: "/orders/7?a=%2F".into(),
        host: "[::1]:8080".into(),
        scheme: "http".into(),
        size: -1,
        protocol: "HTTP/2".into(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..HttpRequest::default()
    }
}

#[test]
fn the_path_keeps_its_query_undecoded_and_the_host_its_port() {
    let message = encode(Some(http(&[])), &[("atm-policy", "orders")]);
    let received = Received::read(&message).unwrap();
    let request = received.request(false);
    assert_eq!((request.method, request.target, request.host), ("GET", "/orders/7?a=%2F", "[::1]:8080"));
    assert_eq!(request.extension("atm-policy"), Some("orders"));
}

#[test]
fn joined_headers_arrive_without_pseudo_headers() {
    let message = encode(
        Some(http(&[(":path", "/orders"), ("authorization", "Bearer a,Bearer b"), ("accept", "*/*")])),
        &[],
    );
    let received = Received::read(&message).unwrap();
    let request = received.request(false);
    assert_eq!(request.headers.len(), 2);
    assert_eq!(request.header_values("authorization").collect::<Vec<_>>(), [b"Bearer a,Bearer b"]);
}

#[test]
fn raw_headers_keep_every_value_and_every_byte() {
    let value = |raw: &[u8]| HeaderValue {
        key: "authorization".into(),
        raw_value: raw.to_vec(),
        ..Default::default()
    };
    let mut request = http(&[]);
    let plain = HeaderValue { key: "accept".into(), value: "*/*".into(), ..Default::default() };
    request.header_map = Some(HeaderMap { headers: vec![value(b"Bearer a"), value(b"\xff\x00"), plain] });
    let message = encode(Some(request), &[]);
    let received = Received::read(&message).unwrap();
    let request = received.request(false);
    let values: Vec<&[u8]> = request.header_values("authorization").collect();
    assert_eq!(values, [&b"Bearer a"[..], b"\xff\x00"]);
    assert_eq!(request.header_values("accept").collect::<Vec<_>>(), [b"*/*"]);
}

#[test]
fn a_message_without_http_attributes_is_malformed() {
    assert_eq!(Received::read(&encode(None, &[])), Err(Malformed));
    assert_eq!(Received::read(&[]), Err(Malformed));
    assert_eq!(Received::read(&CheckRequest { attributes: None }.encode_to_vec()), Err(Malformed));
}

#[test]
fn header_names_in_upper_case_are_malformed() {
    assert_eq!(Received::read(&encode(Some(http(&[("Authorization", "x")])), &[])), Err(Malformed));
}

#[test]
fn a_truncated_message_is_malformed_at_every_length() {
    let message = encode(Some(http(&[("authorization", "Bearer a")])), &[]);
    for length in 0..message.len() {
        assert_eq!(Received::read(&message[..length]), Err(Malformed), "{length}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(message in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = Received::read(&message);
    }

    #[test]
    fn reads_what_the_full_decoder_reads(
        method in ".{0,8}", path in ".{0,40}", host in ".{0,20}",
        headers in proptest::collection::hash_map("[a-z][a-z0-9-]{0,12}", ".{0,30}", 0..8),
    ) {
        let headers: HashMap<String, String> = headers;
        let request = HttpRequest { method, path, host, headers, ..HttpRequest::default() };
        let message = encode(Some(request.clone()), &[]);
        let received = Received::read(&message).unwrap();
        prop_assert_eq!(received.method, &request.method);
        prop_assert_eq!(received.target, &request.path);
        prop_assert_eq!(received.host, &request.host);
        let found: HashMap<String, String> = received
            .headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), String::from_utf8(value.to_vec()).unwrap()))
            .collect();
        prop_assert_eq!(found, request.headers);
    }
}
