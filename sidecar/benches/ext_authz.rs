//! Processor time of one check at the server: ours beside an allow-all tonic server with the same runtime and allocator.
//!
//! Each server is a child process with one current-thread runtime on a unix socket; a tonic client keeps 64 checks under
//! way on one connection. The servers take turns, and the time is `utime + stime` of the child, so that neither the client
//! nor a busy machine counts. `ATM_BENCH_SECONDS` sets the time a turn takes.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a benchmark that cannot go on stops

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atm_core::binding::NonceKey;
use atm_core::key::{Algorithm, Issuer, KeyState, VerificationKey};
use atm_core::time::UnixMillis;
use atm_proto::change::{Change, apply};
use atm_proto::signature::TrustedFeedKeys;
use atm_sidecar::config::FreshnessSettings;
use atm_sidecar::decision_log::{self, DecisionLogSettings};
use atm_sidecar::ext_authz::{Judge, JudgeParts, grpc};
use atm_sidecar::introspection::{IntrospectionSettings, Introspector};
use atm_sidecar::memory::{Limits, Memory};
use atm_sidecar::metrics::DecisionMetrics;
use atm_sidecar::state::{self, Position, State};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request as Attributes};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use envoy_types::pb::google::rpc;
use serde_json::json;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const IN_FLIGHT: usize = 64;
const TURNS: usize = 4;
const POLICY: &str = r#"
apiVersion: atm.dev/v1
kind: TokenPolicy
metadata: { name: orders }
spec:
  audiences: ["orders-api"]
  rules:
    - { name: list, methods: [GET], paths: ["/orders"], scopes: { all: ["orders.read"] } }
    - { name: read, methods: [GET], paths: ["/orders/{id}"], scopes: { all: ["orders.read"] } }
    - { name: write, methods: [POST, PUT], paths: ["/orders/{id}"], scopes: { all: ["orders.write"] } }
"#;

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The sidecar's server, every token seen before.
    Seen,
    /// The sidecar's server without a cache: each check verifies the signature.
    Unseen,
    /// tonic, always yes.
    AllowAll,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Seen, Self::Unseen, Self::AllowAll];

    fn name(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Unseen => "unseen",
            Self::AllowAll => "allow-all",
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, kind, directory] = &arguments[..]
        && flag == "--serve"
    {
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind).expect("a known server");
        return serve(kind, Path::new(directory));
    }
    let directory = tempfile::TempDir::new().unwrap();
    let token = make_token(directory.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure(directory.path(), &check_request(&token)));
}

async fn measure(directory: &Path, request: &CheckRequest) {
    let seconds = std::env::var("ATM_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3.0);
    let turn = Duration::from_secs_f64(seconds);
    let mut servers = Vec::new();
    for kind in Kind::ALL {
        let server = RunningServer::start(kind, directory);
        let client = server.connect().await;
        let answer = client.clone().check(request.clone()).await.unwrap().into_inner();
        assert_eq!(answer.status.as_ref().unwrap().code, 0, "{kind:?} refuses: {answer:?}");
        load(&client, request, turn / 4).await; // warm
        servers.push((kind, server, client, Measured::default()));
    }
    for _ in 0..TURNS {
        for (_, server, client, measured) in &mut servers {
            let (before, begun) = (server.processor_time(), Instant::now());
            measured.checks += load(client, request, turn).await;
            measured.wall += begun.elapsed();
            measured.processor += server.processor_time().checked_sub(before).unwrap();
        }
    }
    let base = servers
        .iter()
        .find(|(kind, ..)| *kind == Kind::AllowAll)
        .map(|(.., measured)| measured.per_check())
        .unwrap();
    println!("ext_authz over a unix socket, {IN_FLIGHT} in flight, 15 headers, ES256 token");
    for (kind, _, _, measured) in &servers {
        println!(
            "  {:<10} {:>8.0} checks/s  {:>6.2} us of processor time a check  {:>5.2} x allow-all",
            kind.name(),
            measured.rate(),
            measured.per_check(),
            measured.per_check() / base
        );
    }
}

/// Keeps checks under way for `time`; gives how many were answered.
async fn load(client: &AuthorizationClient<Channel>, request: &CheckRequest, time: Duration) -> u32 {
    let end = Instant::now() + time;
    let loops = (0..IN_FLIGHT).map(|_| {
        let (mut client, request) = (client.clone(), request.clone());
        async move {
            let mut checks = 0;
            while Instant::now() < end {
                client.check(request.clone()).await.unwrap();
                checks += 1;
            }
            checks
        }
    });
    futures::future::join_all(loops).await.into_iter().sum()
}

#[derive(Debug, Default)]
struct Measured {
    checks: u32,
    wall: Duration,
    processor: Duration,
}

impl Measured {
    /// Microseconds.
    fn per_check(&self) -> f64 {
        self.processor.as_secs_f64() * 1e6 / f64::from(self.checks)
    }

    fn rate(&self) -> f64 {
        f64::from(self.checks) / self.wall.as_secs_f64()
    }
}

/// A child process that serves; killed when dropped.
struct RunningServer {
    child: Child,
    socket: PathBuf,
}

impl RunningServer {
    fn start(kind: Kind, directory: &Path) -> Self {
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program).args(["--serve", kind.name()]).arg(directory).spawn().unwrap();
        Self { child, socket: socket(kind, directory) }
    }

    async fn connect(&self) -> AuthorizationClient<Channel> {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        loop {
            let endpoint = Endpoint::from_static("http://sidecar");
            match endpoint.connect_with_connector(connector.clone()).await {
                Ok(channel) => return AuthorizationClient::new(channel),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// `utime` and `stime` of proc(5), in hundredths of a second.
    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket(kind: Kind, directory: &Path) -> PathBuf {
    directory.join(kind.name())
}

fn serve(kind: Kind, directory: &Path) {
    let listener = UnixListener::bind(socket(kind, directory)).unwrap();
    listener.set_nonblocking(true).unwrap();
    match kind {
        Kind::Seen => serve_sidecar(listener, directory, 16 << 20),
        Kind::Unseen => serve_sidecar(listener, directory, 0),
        Kind::AllowAll => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener).unwrap());
                let service = AuthorizationServer::new(AllowAll);
                Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
            });
        }
    }
}

struct AllowAll;

#[tonic::async_trait]
impl Authorization for AllowAll {
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(CheckResponse { status: Some(rpc::Status::default()), ..CheckResponse::default() }))
    }
}

fn serve_sidecar(listener: UnixListener, directory: &Path, cache: u64) {
    let spki = std::fs::read(directory.join("spki")).unwrap();
    let key = VerificationKey::from_spki("k1", Algorithm::ES256, &spki, KeyState::Active).unwrap();
    let position = Position { revision: 1, ..Position::START };
    let mut state = State { position, verified: true, ..State::default() };
    state.view.issuers.set(Issuer::new("https://issuer.test", Some("default".into()), vec![key]));
    apply(&Change::Policies { version: 1, documents: vec![POLICY.into()] }, &mut state.view).unwrap();
    let now = now();
    let (publisher, reader) = state::channel(state, Some(now), now);
    publisher.caught_up(Instant::now()); // ready from the first check on
    let metrics = DecisionMetrics::register(&prometheus::Registry::new()).unwrap();
    let freshness = FreshnessSettings { degraded_after_ms: 3_000, stale_after_ms: 15_000 };
    let stop = CancellationToken::new();
    // Neither is used: no credential is opaque, and nothing is recorded but the sampled permits, which go nowhere.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
    let client = runtime.block_on(options.connect("nats://127.0.0.1:1")).unwrap();
    let settings = DecisionLogSettings { permit_sample: 100, stdout: false, subject: None };
    let (log, _writing) = decision_log::start(client.clone(), settings, stop.clone());
    let limits = Limits { verified_bytes: cache, introspected_bytes: 1 << 20, proofs: 1_000 };
    let memory = Arc::new(Memory::new(limits, NonceKey::new(&[1; 32])));
    let settings = IntrospectionSettings {
        subject: "introspect".into(),
        realm_group: "default".into(),
        sidecar_id: "bench".into(),
        trusted: TrustedFeedKeys::new(Vec::new()),
        timeout: Duration::from_millis(500),
        concurrency: 1,
    };
    let judge = Judge::new(JudgeParts {
        reader: reader.clone(),
        introspector: Introspector::new(client, settings, Arc::clone(&memory), reader),
        memory,
        metrics,
        log,
        freshness,
        trust_forwarded_certificate: false,
    });
    let (_reporter, health) = tonic_health::server::health_reporter();
    let _workers =
        grpc::serve(&grpc::Listener::Unix(listener), &Arc::clone(&judge), &health, 1, &stop).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        publisher.caught_up(Instant::now());
    }
}

fn now() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    UnixMillis(i64::try_from(since.as_millis()).unwrap())
}

/// Writes the public key to `directory` and gives a token of some 900 bytes.
fn make_token(directory: &Path) -> String {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    std::fs::write(directory.join("spki"), spki.as_ref()).unwrap();
    let issued = now().seconds();
    let claims = json!({
        "iss": "https://issuer.test", "sub": "service-account-7f3a9c", "aud": "orders-api",
        "client_id": "3q2x8Jf0bKc1", "jti": "9dFh2kLm5Qw8ErTy", "sid": "Zx81hGkQe0Pv", "iat": issued, "exp": issued + 3_600,
        "atm_iat_ms": issued * 1_000, "scope": "orders.read orders.write", "tenant": "acme", "padding": "x".repeat(200),
    });
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let input =
        format!("{}.{}", encode(json!({"alg": "ES256", "kid": "k1", "typ": "at+jwt"})), encode(claims));
    let signature = pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// As Envoy sends it for a browser's request: four pseudo-headers and eleven others.
fn check_request(token: &str) -> CheckRequest {
    let headers = [
        (":method", "GET"),
        (":path", "/orders/4711?expand=lines"),
        (":authority", "orders.example.com"),
        (":scheme", "https"),
        ("authorization", &format!("Bearer {token}")),
        ("accept", "application/json, text/plain, */*"),
        ("accept-encoding", "gzip, deflate, br"),
        ("accept-language", "en-GB,en;q=0.9"),
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36",
        ),
        ("cookie", "session=8c1f0e7d5b; theme=dark"),
        ("referer", "https://shop.example.com/orders"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "8f9c7b1e-51f4-4f0e-9f0a-2b7f5f0c9d11"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let headers: HashMap<String, String> =
        headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let http = HttpRequest {
        id: "8f9c7b1e".into(),
        method: "GET".into(),
        path: "/orders/4711?expand=lines".into(),
        host: "orders.example.com".into(),
        scheme: "https".into(),
        protocol: "HTTP/2".into(),
        size: -1,
        headers,
        ..HttpRequest::default()
    };
    let attributes = AttributeContext {
        request: Some(Attributes { time: None, http: Some(http) }),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }
}
