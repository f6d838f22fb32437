//! What a token costs: the server's CPU a request, beside one raw ES256 signature of the same machine in the same run.
//!
//! `cargo bench -p atm-control-plane --bench oauth -- [REQUESTS]`. The program runs as it is shipped, on each engine; CPU is
//! read from `/proc`, so what the load generator takes is not counted. Method and figures: docs/benchmarks.md.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints its figures and ends where it cannot go on"
)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

const ADMIN_TOKEN: &str = "admin-token-of-the-benchmark";
/// Requests under way at one time.
const CONCURRENCY: usize = 16;

struct Server {
    child: Child,
    oauth: String,
    admin: String,
    http: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

#[derive(Clone)]
struct Client {
    id: String,
    secret: String,
}

impl Server {
    fn start(store: &str, dir: tempfile::TempDir) -> Self {
        let path = |name: &str| dir.path().join(name).display().to_string();
        for (name, content) in [
            ("wrapping.key", URL_SAFE_NO_PAD.encode([1; 32])),
            ("feed.key", URL_SAFE_NO_PAD.encode([2; 32])),
            ("admin.token", ADMIN_TOKEN.to_owned()),
        ] {
            std::fs::write(path(name), content).unwrap();
        }
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (oauth, admin) = (port(), port());
        let config = format!(
            "issuer: http://127.0.0.1:{oauth}\nlisten: {{ oauth: '127.0.0.1:{oauth}', admin: '127.0.0.1:{admin}' }}\n\
             store: {store}\nnats: {{ url: 'nats://127.0.0.1:1' }}\nkeys: {{ wrappingKeyFile: {} }}\n\
             admin: {{ tokenFile: {} }}\nfeed: {{ signingKeyFile: {}, snapshots: {{ directory: {} }} }}\nlog: {{ level: error }}\n\
             limits: {{ clientRequestsPerSecond: 1000000, clientBurst: 1000000 }}\n",
            path("wrapping.key"),
            path("admin.token"),
            path("feed.key"),
            path("snapshots"),
        );
        std::fs::write(path("config.yaml"), config).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_atm-control-plane"))
            .args(["--config", &path("config.yaml")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        while std::net::TcpStream::connect(("127.0.0.1", admin)).is_err() {
            std::thread::yield_now();
        }
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = |port| format!("http://127.0.0.1:{port}");
        Self { child, oauth: url(oauth), admin: url(admin), http, _dir: dir }
    }

    /// CPU that the program has used.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // USER_HZ is 100 on every Linux that we run on.
        Duration::from_millis(ticks * 10)
    }

    async fn admin(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}/admin/v1{path}", self.admin);
        let response = self.http.post(url).bearer_auth(ADMIN_TOKEN).json(body).send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
        response.json().await.unwrap()
    }

    async fn client(&self, fields: &Value) -> Client {
        let made = self.admin("/clients", fields).await;
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        Client { id: text("client_id"), secret: text("client_secret") }
    }

    async fn post(&self, path: &str, client: &Client, form: &[(&str, &str)]) -> Value {
        let request =
            self.http.post(format!("{}{path}", self.oauth)).basic_auth(&client.id, Some(&client.secret));
        let response = request.form(form).send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
        response.json().await.unwrap()
    }
}

/// Runs `requests` of `one`, `CONCURRENCY` at a time, and prints what each cost.
async fn measure<F, O>(name: &str, server: &Arc<Server>, requests: usize, signature: Duration, one: F)
where
    F: Fn(Arc<Server>, usize) -> O,
    O: Future<Output = ()> + Send + 'static,
{
    let (cpu, started) = (server.cpu(), Instant::now());
    let mut running = tokio::task::JoinSet::new();
    for lane in 0..CONCURRENCY {
        let share = requests / CONCURRENCY;
        let all: Vec<O> = (0..share).map(|number| one(Arc::clone(server), lane * share + number)).collect();
        running.spawn(async move {
            for request in all {
                request.await;
            }
        });
    }
    running.join_all().await;
    let done = u32::try_from(requests / CONCURRENCY * CONCURRENCY).unwrap();
    let (cpu, elapsed) = (server.cpu().saturating_sub(cpu) / done, started.elapsed());
    println!(
        "{name:<44} {:>7.1} µs CPU  {:>5.1} × a signature  {:>6.0} /s",
        cpu.as_secs_f64() * 1e6,
        cpu.as_secs_f64() / signature.as_secs_f64(),
        f64::from(done) / elapsed.as_secs_f64(),
    );
}

/// The CPU of one raw ES256 signature.
fn raw_signature() -> Duration {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let random = SystemRandom::new();
    let message = [7; 400];
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < Duration::from_secs(1) {
        std::hint::black_box(pair.sign(&random, &message).unwrap());
        count += 1;
    }
    started.elapsed() / count
}

async fn engine(name: &str, server: Server, requests: usize) {
    let signature = raw_signature();
    println!("{name}: one ES256 signature takes {:.1} µs", signature.as_secs_f64() * 1e6);
    let server = Arc::new(server);
    let client = server.client(&json!({ "scopes": ["a"], "audiences": ["api"] })).await;
    let grant = |client: Client| {
        move |server: Arc<Server>, _| {
            let client = client.clone();
            async move {
                server.post("/oauth2/token", &client, &[("grant_type", "client_credentials")]).await;
            }
        }
    };
    // Connections and caches first.
    measure("  (warm up)", &server, requests / 10, signature, grant(client.clone())).await;
    measure("  client_credentials, JWT", &server, requests, signature, grant(client)).await;

    let opaque = json!({ "scopes": ["a"], "audiences": ["api"], "access_token_format": "opaque" });
    let client = server.client(&opaque).await;
    let token = server.post("/oauth2/token", &client, &[("grant_type", "client_credentials")]).await;
    let token = token["access_token"].as_str().unwrap().to_owned();
    measure("  introspection, opaque", &server, requests, signature, |server, _| {
        let (client, token) = (client.clone(), token.clone());
        async move {
            let answer = server.post("/oauth2/introspect", &client, &[("token", &token)]).await;
            assert_eq!(answer["active"], true);
        }
    })
    .await;

    let fields = json!({ "scopes": ["a"], "audiences": ["api"], "grant_types": ["refresh_token"] });
    let client = server.client(&fields).await;
    let mut tokens = Vec::new();
    for number in 0..(requests / 4).max(CONCURRENCY) {
        let body = json!({ "subject": format!("s{number}"), "client_id": client.id });
        tokens.push(server.admin("/sessions", &body).await["refresh_token"].as_str().unwrap().to_owned());
    }
    let tokens = Arc::new(tokens);
    let number = tokens.len();
    measure("  refresh, each of another session", &server, number, signature, |server, at| {
        let (client, tokens) = (client.clone(), Arc::clone(&tokens));
        async move {
            let form = [("grant_type", "refresh_token"), ("refresh_token", tokens[at].as_str())];
            server.post("/oauth2/token", &client, &form).await;
        }
    })
    .await;
}

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let requests = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(20_000);
    let dir = tempfile::tempdir().unwrap();
    let store = format!("{{ path: {} }}", Path::new(dir.path()).join("atm.db").display());
    engine("embedded store", Server::start(&store, dir), requests).await;
    let url = tokio::task::spawn_blocking(atm_test_postgres::database).await.unwrap();
    let store = format!("{{ url: '{url}', tls: disable }}");
    engine("PostgreSQL", Server::start(&store, tempfile::tempdir().unwrap()), requests).await;
}
