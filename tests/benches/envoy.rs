//! What a request through Envoy costs: with the sidecar, with a server that allows everything, with one that does so and has Envoy set
//! the headers and metadata that the sidecar's answer has, with Envoy's own `jwt_authn`, and with no filter. Real programs; 8 connections; the same token in every request; Envoy answers by itself, so that no upstream counts.
//!
//! Run by `make bench` with release builds (`ATM_BIN_DIR`). They take turns; processor time is that of Envoy and of whoever it
//! asks. The turns are short
//! and many, so that a noisy moment meets all; `ATM_BENCH_SECONDS` sets the time of one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a benchmark that cannot go on stops

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use atm_core::jwk;
use atm_core::key::Algorithm;
use atm_tests::envoy::{self, Envoy};
use atm_tests::feed::{FeedAuthor, policies};
use atm_tests::http;
use atm_tests::nats::NatsServer;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::TokenMint;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, OkHttpResponse};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::{protobuf, rpc};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

// As the sidecar has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 8;
const TURNS: usize = 24;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match &arguments[..] {
        [_, flag, socket] if flag == "--allow-all" => runtime.block_on(allow_all(Path::new(socket), bare())),
        [_, flag, socket] if flag == "--allow-all-and-tell" => {
            runtime.block_on(allow_all(Path::new(socket), telling()));
        }
        _ => runtime.block_on(measure()),
    }
}

struct Way {
    name: &'static str,
    envoy: Envoy,
    /// Whose processor time counts.
    pids: Vec<u32>,
    requests: u32,
    wall: Duration,
    /// Of each of `pids`, Envoy first.
    processor: Vec<Duration>,
}

impl Way {
    /// Microseconds of processor time a request: Envoy's, and that of whoever it asks.
    fn cost(&self) -> (f64, f64) {
        let of = |time: &Duration| time.as_secs_f64() * 1e6 / f64::from(self.requests);
        (of(&self.processor[0]), self.processor.get(1).map_or(0.0, of))
    }
}

async fn measure() {
    let seconds = std::env::var("ATM_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0.5);
    let turn = Duration::from_secs_f64(seconds);
    let mint = TokenMint::new("https://issuer.test", "main", &[("one", "ES256")]);
    let nats = NatsServer::start().await;
    let author = FeedAuthor::start(&nats).await;
    let policy = policy();
    let revision = author.publish(vec![mint.to_change(), policies(1, &[&policy])]).await;
    let mut sidecar = Sidecar::configure(&nats.url(), &author.public_key());
    sidecar.set("listen.workers", json!(1));
    sidecar.start().await;
    sidecar.until_ready().await;
    sidecar.until_applied(revision).await;

    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("allow-all.sock");
    let allowing = AllowAllServer::start("--allow-all", &socket);
    let telling_socket = directory.path().join("telling.sock");
    let telling = AllowAllServer::start("--allow-all-and-tell", &telling_socket);
    let (asking_sidecar, asking_nobody) = (answering(&sidecar.socket()), answering(&socket));
    let mut ways = Vec::new();
    for (name, config, asked) in [
        ("no filter", without_filter(asking_nobody.clone()), None),
        ("jwt_authn", with_jwt_authn(asking_nobody.clone(), &mint), None),
        ("allow-all", asking_nobody, Some(allowing.0.id())),
        ("the same, told as much", answering(&telling_socket), Some(telling.0.id())),
        ("sidecar", asking_sidecar, Some(sidecar.process().id())),
    ] {
        let envoy = Envoy::start_config(&config).await;
        let pids: Vec<u32> = std::iter::once(envoy.id()).chain(asked).collect();
        let processor = vec![Duration::ZERO; pids.len()];
        ways.push(Way { name, envoy, pids, requests: 0, wall: Duration::ZERO, processor });
    }
    let token = mint.token().claim("padding", "x".repeat(200)).sign();
    let request = request(&token);
    for way in &ways {
        let answer = http::exchange(way.envoy.address(), &request).await.unwrap();
        assert_eq!(answer.status, 200, "{}: {}", way.name, answer.text());
        load(way.envoy.address(), &request, Duration::from_secs(1)).await; // warm
    }
    // Forth and back, so that no way always follows the same one.
    for _ in 0..TURNS {
        for way in &mut ways {
            let before: Vec<_> = way.pids.iter().copied().map(processor_time).collect();
            let begun = Instant::now();
            way.requests += load(way.envoy.address(), &request, turn).await;
            way.wall += begun.elapsed();
            for ((pid, total), before) in way.pids.iter().zip(&mut way.processor).zip(before) {
                *total += processor_time(*pid).checked_sub(before).unwrap();
            }
        }
        ways.reverse();
    }
    report(&ways, token.len());
}

fn report(ways: &[Way], token: usize) {
    let rate = |way: &Way| f64::from(way.requests) / way.wall.as_secs_f64();
    let cost = |way: &Way| way.cost().0 + way.cost().1;
    let of = |name: &str| ways.iter().find(|way| way.name == name).unwrap();
    println!(
        "through Envoy, one worker, {CONNECTIONS} connections, 11 headers, one ES256 token of {token} bytes"
    );
    for way in ways {
        let (envoys, servers) = way.cost();
        println!(
            "  {:<22} {:>7.0} requests/s ({:>4.2} x allow-all)  {:>6.1} us of processor time ({:>4.2} x allow-all): Envoy's {envoys:>5.1}, \
             the server's {servers:>5.1}",
            way.name,
            rate(way),
            rate(way) / rate(of("allow-all")),
            cost(way),
            cost(way) / cost(of("allow-all")),
        );
    }
}

fn policy() -> String {
    let mut text = String::from(
        "apiVersion: atm.dev/v1\nkind: TokenPolicy\nmetadata: { name: orders }\nspec:\n  audiences: [orders-api]\n  rules:\n\
         \x20   - { name: read, methods: [GET], paths: [\"/orders/{id}\"], scopes: { all: [orders.read] } }\n",
    );
    for rule in 1..20 {
        text.push_str(&format!("    - {{ name: other-{rule}, paths: [\"/service-{rule}/{{id}}\"] }}\n"));
    }
    text
}

/// An Envoy that asks at `socket`, and answers what is let through by itself.
fn answering(socket: &Path) -> Value {
    let mut config = envoy::config("127.0.0.1:9", socket);
    let routes = &mut envoy::connection_manager_of(&mut config)["route_config"]["virtual_hosts"][0]["routes"];
    *routes = json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": "ok" } } }]);
    envoy::ext_authz(&mut config)["encode_raw_headers"] = json!(true);
    config
}

fn without_filter(mut config: Value) -> Value {
    let filters = envoy::connection_manager_of(&mut config)["http_filters"].as_array_mut().unwrap();
    filters.remove(0);
    config
}

/// Envoy's own filter, with the key in its configuration and without its cache: every signature is verified.
fn with_jwt_authn(mut config: Value, mint: &TokenMint) -> Value {
    let key = jwk::jwk_from_spki("one", Algorithm::ES256, &mint.key("one").spki()).unwrap();
    envoy::connection_manager_of(&mut config)["http_filters"][0] = json!({
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": { "issuer": {
                "issuer": mint.issuer(),
                "audiences": ["orders-api"],
                "local_jwks": { "inline_string": json!({ "keys": [key] }).to_string() },
                "forward": true,
            } },
            "rules": [{ "match": { "prefix": "/" }, "requires": { "provider_name": "issuer" } }],
        },
    });
    config
}

fn request(token: &str) -> Vec<u8> {
    format!(
        "GET /orders/4711?expand=lines HTTP/1.1\r\nhost: orders.example.com\r\nauthorization: Bearer {token}\r\n\
         accept: application/json, text/plain, */*\r\naccept-encoding: gzip, deflate, br\r\naccept-language: en-GB,en;q=0.9\r\n\
         user-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36\r\n\
         cookie: session=8c1f0e7d5b; theme=dark\r\nreferer: https://shop.example.com/orders\r\n\
         traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n"
    )
    .into_bytes()
}

/// Keeps one request under way on each connection for `time`; gives how many were answered.
async fn load(address: &str, request: &[u8], time: Duration) -> u32 {
    let end = Instant::now() + time;
    let connections = (0..CONNECTIONS).map(|_| async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut answered, mut buffer) = (0, Vec::with_capacity(4_096));
        while Instant::now() < end {
            stream.write_all(request).await.unwrap();
            buffer.clear();
            // The body is `ok`, and nothing in the head ends like it.
            while !buffer.ends_with(b"\r\n\r\nok") {
                assert!(stream.read_buf(&mut buffer).await.unwrap() > 0, "Envoy closed the connection");
            }
            assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer));
            answered += 1;
        }
        answered
    });
    futures::future::join_all(connections).await.into_iter().sum()
}

/// `utime` and `stime` of proc(5), in hundredths of a second.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// This program in a second process; killed when dropped.
struct AllowAllServer(Child);

impl AllowAllServer {
    fn start(flag: &str, socket: &Path) -> Self {
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program).arg(flag).arg(socket).spawn().unwrap();
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Self(child)
    }
}

impl Drop for AllowAllServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The least answer that lets a request through.
fn bare() -> CheckResponse {
    CheckResponse { status: Some(rpc::Status::default()), ..CheckResponse::default() }
}

/// An answer with the headers and the metadata of the sidecar's to the token of this benchmark.
fn telling() -> CheckResponse {
    let header = |(name, value): (&str, &str)| HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value: value.to_owned(), ..HeaderValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    };
    let field = |(name, value): (&str, &str)| {
        (name.to_owned(), protobuf::Value { kind: Some(Kind::StringValue(value.to_owned())) })
    };
    let set = [
        ("x-atm-subject", "alice"),
        ("x-atm-client", "shop"),
        ("x-atm-issuer", "https://issuer.test"),
        ("x-atm-scope", "orders.read orders.write"),
        ("x-atm-session", "session-1"),
        ("x-atm-token-id", "0b4ddc85d1d94a66b1f21c8b3a8e5f17"),
        ("x-atm-policy", "orders"),
    ];
    let metadata = [("reason", "permit"), ("policy", "orders"), ("rule", "read")];
    CheckResponse {
        http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
            headers: set.into_iter().map(header).collect(),
            ..OkHttpResponse::default()
        })),
        dynamic_metadata: Some(protobuf::Struct { fields: metadata.into_iter().map(field).collect() }),
        ..bare()
    }
}

struct AllowAll(CheckResponse);

#[tonic::async_trait]
impl Authorization for AllowAll {
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(self.0.clone()))
    }
}

async fn allow_all(socket: &Path, answer: CheckResponse) {
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::bind(socket).unwrap());
    Server::builder()
        .add_service(AuthorizationServer::new(AllowAll(answer)))
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}
