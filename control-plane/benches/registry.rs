//! Whether calls keep their speed when the tables are full: the same calls on an empty and on a filled store, side by side, on
//! the embedded store and on PostgreSQL; and how refreshes gain by being many at once, because they share commits.
//!
//! One control plane for each engine, in this process; clients call it over HTTP, [`IN_FLIGHT`] at a time. The rows are made by
//! the engine itself, in batches. `ATM_BENCH_ROWS` sets how many sessions there are (100,000), and with them how many rows of the other
//! tables; `ATM_BENCH_SECONDS` the time a measurement takes (3).

#![allow(clippy::unwrap_used, clippy::expect_used)] // a benchmark that cannot go on stops

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use atm_control_plane::app::App;
use atm_control_plane::config::{Config, Environment, Secrets};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::sync::Mutex;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const IN_FLIGHT: usize = 16;
/// Refreshes at once whose speed is compared.
const AT_ONCE: [usize; 4] = [1, 8, 32, 64];
/// Rows of one statement.
const BATCH: u64 = 50_000;
/// Sessions that are refreshed in turn: their rows lie all over the table once it is filled.
const REFRESHED: usize = 2_000;
const ADMIN_TOKEN: &str = "admin-token-of-the-benchmark";

/// A table, and how each engine makes rows `$1` to `$2` of it out of nothing. `{n}` is the row's number; `{now}` the time in
/// milliseconds.
struct Fill {
    table: &'static str,
    /// Of so many sessions comes one row.
    sessions_a_row: u64,
    columns: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

/// What fills up in a busy realm. A table that is added to the store and grows with its use goes here too.
const FILLS: [Fill; 5] = [
    Fill {
        table: "sessions",
        sessions_a_row: 1,
        columns: "id, realm, client_id, subject, subject_id, details, bound_to, generation, status, opened_at, refreshed_at, \
                  idle_expires_at, expires_at",
        // A year of them, each of some two hundred bytes.
        sqlite: "hex(randomblob(16)), 'default', 'fill', 'subject-' || {n}, randomblob(16), \
                 '{\"scopes\":[\"read\"],\"audiences\":[\"api\"]}', '', 1 + {n} % 50, 'active', {now} - {n}, {now} - {n}, \
                 {now} + 1000000000, {now} + 3153 * ({n} % 10000000)",
        postgres: "md5('s' || {n}), 'default', 'fill', 'subject-' || {n}, decode(md5('u' || {n}), 'hex'), \
                   '{\"scopes\":[\"read\"],\"audiences\":[\"api\"]}', '', 1 + {n} % 50, 'active', {now} - {n}, {now} - {n}, \
                   {now} + 1000000000, {now} + 3153 * ({n} % 10000000)",
    },
    Fill {
        table: "revoked_tokens",
        sessions_a_row: 10,
        columns: "bucket, id",
        // Spread over a day of expiries.
        sqlite: "({now} / 3600000 + {n} % 24 + 2), randomblob(16)",
        postgres: "({now} / 3600000 + {n} % 24 + 2), decode(md5('t' || {n}), 'hex')",
    },
    Fill {
        table: "watermarks",
        sessions_a_row: 10,
        columns: "kind, id, not_after",
        sqlite: "3, randomblob(16), {now}",
        postgres: "3, decode(md5('w' || {n}), 'hex'), {now}",
    },
    Fill {
        table: "clients",
        sessions_a_row: 100,
        columns: "client_id, secret_hash, scopes, audiences, status, created_at, updated_at",
        sqlite: "'fill-' || hex(randomblob(8)), randomblob(32), '[\"read\"]', '[\"api\"]', 'active', {now}, {now}",
        postgres: "'fill-' || md5('c' || {n}), decode(md5('h' || {n}), 'hex'), '[\"read\"]', '[\"api\"]', 'active', {now}, {now}",
    },
    Fill {
        table: "revocations",
        sessions_a_row: 10,
        columns: "id, kind, value, number, not_after, actor, created_at",
        sqlite: "hex(randomblob(12)), 'token', 'jti-' || {n}, 1, {now}, 'fill', {now} - {n}",
        postgres: "md5('r' || {n}), 'token', 'jti-' || {n}, 1, {now}, 'fill', {now} - {n}",
    },
];

/// A store that can be filled past the control plane that has it open.
enum Target {
    Embedded(TempDir),
    Postgres(String, TempDir),
}

impl Target {
    fn directory(&self) -> &Path {
        match self {
            Self::Embedded(directory) | Self::Postgres(_, directory) => directory.path(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Postgres(..) => "PostgreSQL",
        }
    }

    fn store(&self) -> Value {
        match self {
            Self::Embedded(directory) => json!({ "path": directory.path().join("atm.db") }),
            Self::Postgres(url, _) => json!({ "url": url }),
        }
    }

    async fn fill(&self, sessions: u64) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis().to_string();
        for fill in &FILLS {
            let rows = sessions / fill.sessions_a_row;
            for from in (1..=rows).step_by(usize::try_from(BATCH).unwrap()) {
                let to = rows.min(from + BATCH - 1);
                let Fill { table, columns, .. } = fill;
                match self {
                    Self::Embedded(directory) => {
                        let url = format!("sqlite://{}", directory.path().join("atm.db").display());
                        let mut connection = SqliteConnection::connect(&url).await.unwrap();
                        let values = fill.sqlite.replace("{n}", "i").replace("{now}", &now);
                        let sql = format!(
                            "PRAGMA busy_timeout = 60000; INSERT INTO {table} ({columns}) WITH RECURSIVE n(i) AS \
                             (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i < {to}) SELECT {values} FROM n"
                        );
                        connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
                    }
                    Self::Postgres(url, _) => {
                        let mut connection = PgConnection::connect(url).await.unwrap();
                        let values = fill.postgres.replace("{n}", "i").replace("{now}", &now);
                        let sql = format!(
                            "INSERT INTO {table} ({columns}) SELECT {values} FROM generate_series({from}::bigint, {to}::bigint) i"
                        );
                        connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
                    }
                }
            }
        }
        if let Self::Postgres(url, _) = self {
            let mut connection = PgConnection::connect(url).await.unwrap();
            connection.execute("VACUUM ANALYZE").await.unwrap();
        }
    }
}

/// A control plane, with what its callers need.
struct Bench {
    app: App,
    http: reqwest::Client,
    client: (String, String),
    token: String,
    next: AtomicU64,
    /// Refresh tokens, each the newest of its session.
    sessions: Vec<Mutex<String>>,
}

impl Bench {
    async fn start(target: &Target) -> Self {
        let path = |name: &str| target.directory().join(name).display().to_string();
        for (name, content) in [
            ("wrapping.key", URL_SAFE_NO_PAD.encode([1; 32])),
            ("feed.key", URL_SAFE_NO_PAD.encode([2; 32])),
            ("admin.token", ADMIN_TOKEN.to_owned()),
        ] {
            std::fs::write(path(name), content).unwrap();
        }
        let config = json!({
            "issuer": "http://127.0.0.1:8080",
            "listen": { "oauth": "127.0.0.1:0", "admin": "127.0.0.1:0" },
            "store": target.store(),
            "nats": { "url": "nats://127.0.0.1:1" },
            "keys": { "wrappingKeyFile": path("wrapping.key") },
            "admin": { "tokenFile": path("admin.token") },
            "feed": { "signingKeyFile": path("feed.key"), "snapshots": { "directory": path("snapshots") } },
            "limits": { "clientRequestsPerSecond": 1_000_000, "clientBurst": 1_000_000 },
        });
        let environment = Environment::new();
        let config = Config::parse(&config.to_string(), &environment).unwrap();
        let secrets = Secrets::read(&config, &environment).unwrap();
        let app = App::start(config, secrets).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut bench = Self {
            app,
            http,
            client: Default::default(),
            token: String::new(),
            next: AtomicU64::new(0),
            sessions: Vec::new(),
        };
        let body = json!({
            "audiences": ["api"], "scopes": ["read"], "grant_types": ["client_credentials", "refresh_token"],
        });
        let made = bench.json(bench.admin("/admin/v1/clients").json(&body)).await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        bench.client = (text(&made["client_id"]), text(&made["client_secret"]));
        bench.token = text(&bench.json(bench.issue()).await["access_token"]);
        for number in 0..REFRESHED {
            let body = json!({ "subject": format!("refreshed-{number}"), "client_id": bench.client.0 });
            let opened = bench.json(bench.admin("/admin/v1/sessions").json(&body)).await;
            bench.sessions.push(Mutex::new(text(&opened["refresh_token"])));
        }
        bench
    }

    async fn json(&self, request: RequestBuilder) -> Value {
        request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
    }

    fn admin(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("http://{}{path}", self.app.bound().admin)).bearer_auth(ADMIN_TOKEN)
    }

    fn oauth(&self, path: &str, form: &[(&str, &str)]) -> RequestBuilder {
        let url = format!("http://{}{path}", self.app.bound().oauth);
        self.http.post(url).basic_auth(&self.client.0, Some(&self.client.1)).form(form)
    }

    fn issue(&self) -> RequestBuilder {
        self.oauth("/oauth2/token", &[("grant_type", "client_credentials")])
    }

    fn introspect(&self) -> RequestBuilder {
        self.oauth("/oauth2/introspect", &[("token", &self.token)])
    }

    fn revoke(&self) -> RequestBuilder {
        let jti = format!("bench-{}", self.next());
        self.admin("/admin/v1/revocations").json(&json!({ "selector": { "token": { "jti": jti } } }))
    }

    async fn refresh(&self) {
        let turn = usize::try_from(self.next()).unwrap() % self.sessions.len();
        let mut token = self.sessions[turn].lock().await;
        let form = [("grant_type", "refresh_token"), ("refresh_token", token.as_str())];
        let answer = self.json(self.oauth("/oauth2/token", &form)).await;
        answer["refresh_token"].as_str().unwrap().clone_into(&mut token);
    }

    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    async fn send(&self, request: RequestBuilder) {
        request.send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap();
    }
}

type Call = for<'b> fn(&'b Bench) -> Pin<Box<dyn Future<Output = ()> + Send + 'b>>;
const CALLS: [(&str, Call); 4] = [
    ("issue", |bench| Box::pin(bench.send(bench.issue()))),
    ("introspect", |bench| Box::pin(bench.send(bench.introspect()))),
    ("refresh", |bench| Box::pin(bench.refresh())),
    ("revoke", |bench| Box::pin(bench.send(bench.revoke()))),
];

/// Calls a second.
async fn measure(bench: &Arc<Bench>, call: Call, in_flight: usize, time: Duration) -> f64 {
    let begun = Instant::now();
    let callers = (0..in_flight).map(|_| {
        let bench = Arc::clone(bench);
        tokio::spawn(async move {
            let mut done = 0_u32;
            while begun.elapsed() < time {
                call(&bench).await;
                done += 1;
            }
            done
        })
    });
    let done: u32 = futures::future::join_all(callers).await.into_iter().map(Result::unwrap).sum();
    f64::from(done) / begun.elapsed().as_secs_f64()
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let rows = from_environment("ATM_BENCH_ROWS", 100_000);
    let time = Duration::from_secs(from_environment("ATM_BENCH_SECONDS", 3));
    let directory = || tempfile::tempdir().unwrap();
    let url = tokio::task::spawn_blocking(atm_test_postgres::database).await.unwrap();
    let mut at_once = Vec::new();
    println!("| Store | Call | empty, a second | {rows} sessions | times slower |\n|---|---|---|---|---|");
    for target in [Target::Embedded(directory()), Target::Postgres(url, directory())] {
        let bench = Arc::new(Bench::start(&target).await);
        let mut empty = Vec::new();
        for (_, call) in CALLS {
            empty.push(measure(&bench, call, IN_FLIGHT, time).await);
        }
        for in_flight in AT_ONCE {
            let refreshes = measure(&bench, |bench| Box::pin(bench.refresh()), in_flight, time).await;
            at_once.push(format!("| {} | {in_flight} | {refreshes:.0} |", target.name()));
        }
        target.fill(rows).await;
        for ((name, call), empty) in CALLS.into_iter().zip(empty) {
            let full = measure(&bench, call, IN_FLIGHT, time).await;
            println!("| {} | {name} | {empty:.0} | {full:.0} | {:.2} |", target.name(), empty / full);
        }
        let Ok(bench) = Arc::try_unwrap(bench) else { panic!("a caller is left") };
        assert!(bench.app.drain().await);
    }
    println!("\n| Store | refreshes at once | a second |\n|---|---|---|\n{}", at_once.join("\n"));
}
