//! gRPC callers, gRPC streams and websockets.

use std::time::Duration;

use atm_tests::envoy;
use atm_tests::http;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::fixture::{Asked, Fixture};

const BOUND: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_7_grpc_callers_get_a_grpc_status() {
    let fixture = Fixture::start().await;
    let token = format!("Bearer {}", fixture.mint.token().sign());
    for asked in Asked::BOTH {
        let envoy = fixture.envoy(asked, |_| {}).await;
        let call = async |target: &str, authorization: Option<&str>| {
            let mut headers = vec![("content-type", "application/grpc"), ("te", "trailers")];
            headers.extend(authorization.map(|value| ("authorization", value)));
            let request = http::request("POST", target, "orders.test", &headers, "");
            http::exchange(envoy.address(), &request).await.unwrap()
        };
        for (target, authorization, status, reason) in [
            ("/shop.Orders/Watch", None, "16", "credential_missing"),
            ("/shop.Orders/Purge", Some(token.as_str()), "7", "scope_insufficient"),
            ("/shop.Orders/Nothing", Some(token.as_str()), "7", "no_policy"),
        ] {
            let answer = call(target, authorization).await;
            assert_eq!(answer.status, 200, "{asked:?} {target}: {answer:?}");
            assert_eq!(answer.header("grpc-status"), Some(status), "{asked:?} {target}: {answer:?}");
            assert_eq!(answer.header("x-atm-reason"), Some(reason), "{asked:?} {target}: {answer:?}");
            assert!(!answer.reached_upstream(), "{asked:?} {target}");
            let message = answer.header("grpc-message").unwrap_or_default();
            assert!(
                !message.is_empty() && !message.contains('{'),
                "{asked:?}: a sentence, no JSON: {message}"
            );
        }
        assert!(call("/shop.Orders/Watch", Some(&token)).await.reached_upstream(), "{asked:?}");
    }
}

/// A peer that takes an upgrade, and then sends back what it gets.
async fn echo_after_upgrade(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let answer =
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
            stream.write_all(answer).await?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_7_a_websocket_is_checked_once_when_it_is_opened() {
    let fixture = Fixture::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap().port();
    tokio::spawn(echo_after_upgrade(listener));
    for (opened, asked) in (1..).zip(Asked::BOTH) {
        let envoy = fixture
            .envoy(asked, |config| {
                envoy::connection_manager_of(config)["upgrade_configs"] =
                    json!([{ "upgrade_type": "websocket" }]);
                let endpoint =
                    &mut config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0];
                endpoint["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] =
                    json!(upstream);
            })
            .await;
        let open = |authorization: &str| {
            format!(
                "GET /socket HTTP/1.1\r\nhost: orders.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{authorization}\r\n"
            )
        };
        let mut refused = TcpStream::connect(envoy.address()).await.unwrap();
        refused.write_all(open("").as_bytes()).await.unwrap();
        let head = read_head(&mut refused).await;
        assert!(head.starts_with("HTTP/1.1 401") && head.contains("credential_missing"), "{asked:?}: {head}");

        let authorization = format!("authorization: Bearer {}\r\n", fixture.mint.token().sign());
        let mut stream = TcpStream::connect(envoy.address()).await.unwrap();
        stream.write_all(open(&authorization).as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{asked:?}: {head}");
        for frame in [&b"one"[..], b"two", b"three"] {
            stream.write_all(frame).await.unwrap();
            let mut back = vec![0; frame.len()];
            tokio::time::timeout(BOUND, stream.read_exact(&mut back)).await.expect("an echo").unwrap();
            assert_eq!(back, frame, "{asked:?}");
        }
        let permits = fixture.sidecar.count("atm_sidecar_decisions_total{reason=\"permit\"}").await;
        assert_eq!(permits, opened, "{asked:?}: one decision for each socket");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_7_a_stream_of_messages_is_checked_once() {
    let fixture = Fixture::start().await;
    let envoy = fixture.envoy(Asked::Grpc, |_| {}).await;
    let head = format!(
        "POST /shop.Orders/Watch HTTP/1.1\r\nhost: orders.test\r\nconnection: close\r\ncontent-type: application/grpc\r\n\
         transfer-encoding: chunked\r\nauthorization: Bearer {}\r\n\r\n",
        fixture.mint.token().sign()
    );
    let mut stream = TcpStream::connect(envoy.address()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The check comes with the first bytes; the messages after it must bring no other.
    fixture.sidecar.until_metric("atm_sidecar_decisions_total{reason=\"permit\"}", 1.0).await;
    for _ in 0..5 {
        stream.write_all(b"5\r\n\0\0\0\0\0\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(BOUND, stream.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    assert!(answer.contains("x-echo: 1"), "{answer}");
    assert_eq!(fixture.sidecar.count("atm_sidecar_decisions_total{reason=\"permit\"}").await, 1);
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let reading = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(BOUND, reading).await.expect("an answer");
    String::from_utf8_lossy(&head).into_owned()
}
