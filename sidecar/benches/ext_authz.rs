//! Processor time of one check at the server: ours beside an allow-all tonic server with the same runtime and allocator.
//!
//! Each server is a child process with one current-thread runtime on a unix socket; a tonic client keeps 64 checks under
//! way on one connection. The servers take turns, and the time is `utime + stime` of the child, so that neither the client
//! nor a busy machine counts. `ATM_BENCH_SECONDS` sets the time a turn takes, `ATM_BENCH_HELD` the revocations held.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a benchmark that cannot go on stops

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use envoy_types::pb::google::rpc;
use fixture::{Held, Mint, check_request};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

#[path = "ext_authz/fixture.rs"]
mod fixture;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const IN_FLIGHT: usize = 64;
const TURNS: usize = 6;
/// Tokens that come one after the other where none was seen before: more than the small cache keeps.
const DISTINCT: usize = 20_000;
/// A cache of some 300 tokens.
const SMALL_CACHE: u64 = 1 << 20;
const CACHE: u64 = 16 << 20;
/// Checks of a flood under way beside the others.
const FLOOD: usize = 8;

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The sidecar's server, every token seen before.
    Seen,
    /// The sidecar's server, a token each check that it has not seen.
    New,
    /// tonic, always yes.
    AllowAll,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Seen, Self::New, Self::AllowAll];

    fn name(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::New => "new",
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
    let mint = Mint::new(directory.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        measure(directory.path(), &mint).await;
        flood(directory.path(), &mint).await;
    });
}

fn number(variable: &str, default: f64) -> f64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

async fn measure(directory: &Path, mint: &Mint) {
    let turn = Duration::from_secs_f64(number("ATM_BENCH_SECONDS", 3.0));
    let one = vec![check_request(&mint.token(0))];
    let distinct: Vec<_> = (1..=DISTINCT).map(|number| check_request(&mint.token(number))).collect();
    let mut servers = Vec::new();
    for kind in Kind::ALL {
        let server = RunningServer::start(kind, directory);
        let client = server.connect().await;
        let requests = if kind == Kind::New { &distinct } else { &one };
        let answer = client.clone().check(requests[0].clone()).await.unwrap().into_inner();
        assert_eq!(answer.status.as_ref().unwrap().code, 0, "{kind:?} refuses: {answer:?}");
        load(&client, requests, IN_FLIGHT, turn / 4).await; // warm
        servers.push((kind, requests, server, client, Measured::default()));
    }
    let mut verification = Measured::default();
    for _ in 0..TURNS {
        for (_, requests, server, client, measured) in &mut servers {
            let (before, begun) = (server.processor_time(), Instant::now());
            measured.checks += load(client, requests, IN_FLIGHT, turn).await;
            measured.wall += begun.elapsed();
            measured.processor += server.processor_time().checked_sub(before).unwrap();
        }
        verify(directory, mint, turn / 4, &mut verification);
    }
    let of = |wanted| {
        let found = servers.iter().find(|(kind, ..)| *kind == wanted);
        found.map(|(.., measured)| measured.per_check()).unwrap()
    };
    let (base, raw) = (of(Kind::AllowAll), verification.per_check());
    println!(
        "ext_authz over a unix socket, {IN_FLIGHT} in flight, 15 headers, ES256 token of {} bytes, 20 rules, {} revocations",
        mint.token(0).len(),
        held(Kind::Seen).revocations,
    );
    for (kind, _, _, _, measured) in &servers {
        println!(
            "  {:<10} {:>8.0} checks/s  {:>6.2} us of processor time a check  {:>5.2} x allow-all",
            kind.name(),
            measured.rate(),
            measured.per_check(),
            measured.per_check() / base
        );
    }
    println!("  one raw ES256 verification (aws-lc-rs, ParsedPublicKey): {raw:.2} us");
    println!("  new - seen = {:.2} x one raw verification", (of(Kind::New) - of(Kind::Seen)) / raw);
    println!(
        "  new against 1.25 x allow-all + 1.15 x verification: {:.2}",
        of(Kind::New) / (1.25 * base + 1.15 * raw)
    );
}

/// Processor time of one raw verification, in this thread.
fn verify(directory: &Path, mint: &Mint, time: Duration, measured: &mut Measured) {
    let token = mint.token(0);
    let (input, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, Mint::spki(directory)).unwrap();
    let (before, end) = (processor_time("self"), Instant::now() + time);
    while Instant::now() < end {
        for _ in 0..100 {
            key.verify_sig(input.as_bytes(), &signature).unwrap();
        }
        measured.checks += 100;
    }
    measured.processor += processor_time("self").checked_sub(before).unwrap();
}

/// Latency of a token that was seen, alone and beside tokens that were not: distinct, forged and giant ones.
async fn flood(directory: &Path, mint: &Mint) {
    let time = Duration::from_secs_f64(number("ATM_BENCH_SECONDS", 3.0));
    let server = RunningServer::start(Kind::Seen, directory);
    let client = server.connect().await;
    let seen = check_request(&mint.token(0));
    let distinct = (1..=DISTINCT).map(|number| mint.token(number));
    let hostile = distinct.enumerate().map(|(number, token)| match number % 3 {
        0 => check_request(&token),
        1 => check_request(&format!("{}AAAA", &token[..token.len() - 4])),
        _ => check_request(&format!("{}{token}", "A".repeat(50_000))),
    });
    let hostile: Vec<_> = hostile.collect();
    println!(
        "a token that was seen, 8 in flight, beside a flood of distinct, forged and giant tokens, {FLOOD} in flight"
    );
    load(&client, std::slice::from_ref(&seen), 8, time / 4).await;
    let before = server.resident_kib();
    let mut alone = latencies(&client, &seen, time).await;
    // From a thread of its own: what it costs to send 50,000 bytes must not count as the server's latency.
    let socket = server.socket.clone();
    let flooding = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { load(&connect(&socket).await, &hostile, FLOOD, time).await })
    });
    let mut beside = latencies(&client, &seen, time).await;
    let flooded = flooding.join().unwrap();
    for (what, latencies) in [("alone", &mut alone), ("beside it", &mut beside)] {
        latencies.sort_unstable();
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e6;
        println!(
            "  {what:<10} median {:>7.1} us, p99 {:>8.1} us, {} checks",
            at(50),
            at(99),
            latencies.len()
        );
    }
    println!(
        "  {flooded} hostile checks; resident memory {} KiB before, {} KiB after",
        before,
        server.resident_kib()
    );
}

/// Keeps `in_flight` checks under way for `time`, taking `requests` in turn; gives how many were answered.
async fn load(
    client: &AuthorizationClient<Channel>,
    requests: &[CheckRequest],
    in_flight: usize,
    time: Duration,
) -> u32 {
    // Goes on where the last load stopped, so that a token comes again only after all the others.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let end = Instant::now() + time;
    let loops = (0..in_flight).map(|_| {
        let mut client = client.clone();
        async move {
            let mut checks = 0;
            while Instant::now() < end {
                let next = NEXT.fetch_add(1, Ordering::Relaxed) % requests.len();
                client.check(requests[next].clone()).await.unwrap();
                checks += 1;
            }
            checks
        }
    });
    futures::future::join_all(loops).await.into_iter().sum()
}

/// How long each check took, with 8 in flight.
async fn latencies(
    client: &AuthorizationClient<Channel>,
    request: &CheckRequest,
    time: Duration,
) -> Vec<Duration> {
    let end = Instant::now() + time;
    let loops = (0..8).map(|_| {
        let (mut client, request) = (client.clone(), request.clone());
        async move {
            let mut took = Vec::new();
            while Instant::now() < end {
                let begun = Instant::now();
                client.check(request.clone()).await.unwrap();
                took.push(begun.elapsed());
            }
            took
        }
    });
    futures::future::join_all(loops).await.into_iter().flatten().collect()
}

/// A client of the server at `socket`, as soon as it is there.
async fn connect(socket: &Path) -> AuthorizationClient<Channel> {
    let socket = socket.to_owned();
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
        let socket = directory.join(kind.name());
        let _ = std::fs::remove_file(&socket);
        let child = Command::new(program).args(["--serve", kind.name()]).arg(directory).spawn().unwrap();
        Self { child, socket }
    }

    async fn connect(&self) -> AuthorizationClient<Channel> {
        connect(&self.socket).await
    }

    fn processor_time(&self) -> Duration {
        processor_time(&self.child.id().to_string())
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// `utime` and `stime` of proc(5), in hundredths of a second.
fn processor_time(process: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn held(kind: Kind) -> Held {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of revocations")]
    let revocations = number("ATM_BENCH_HELD", 1_000_000.0) as usize;
    Held { cache: if kind == Kind::New { SMALL_CACHE } else { CACHE }, revocations }
}

fn serve(kind: Kind, directory: &Path) {
    let listener = UnixListener::bind(directory.join(kind.name())).unwrap();
    listener.set_nonblocking(true).unwrap();
    if kind != Kind::AllowAll {
        return fixture::serve(listener, directory, held(kind));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener).unwrap());
        let service = AuthorizationServer::new(AllowAll);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
}

struct AllowAll;

#[tonic::async_trait]
impl Authorization for AllowAll {
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(CheckResponse { status: Some(rpc::Status::default()), ..CheckResponse::default() }))
    }
}
