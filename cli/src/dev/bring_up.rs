//! Starting a stack: each program is waited for by a condition, and all end when one fails.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use atm_proto::signature::FeedSigner;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::description::Description;
use super::layout::Layout;
use super::ports::Ports;
use super::program::{PortTaken, Program};
use super::{programs, template};
use crate::admin_api::AdminApi;

const AUDIENCE: &str = "orders-api";
const SCOPE: &str = "orders.read orders.write";
/// A port can be taken by somebody else between our look and its use; so often it is tried again.
const ATTEMPTS: usize = 3;

/// Starts a fresh stack in `dir`, and returns when a request passes.
pub(crate) async fn bring_up(dir: &Path) -> Result<Description> {
    let mut attempt = 1;
    loop {
        match Stack::start(dir).await {
            Err(error) if error.is::<PortTaken>() && attempt < ATTEMPTS => {
                eprintln!("atmctl: a port was taken meanwhile; trying others");
                attempt += 1;
            }
            other => return other,
        }
    }
}

/// What has been started so far; dropping it ends it.
struct Stack {
    layout: Layout,
    ports: Ports,
    http: Client,
    programs: Vec<Program>,
    started: Instant,
}

impl Stack {
    async fn start(dir: &Path) -> Result<Description> {
        // All addresses are on this machine.
        let http = Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let layout = Layout::fresh(dir)?;
        let mut stack =
            Self { layout, ports: Ports::new()?, http, programs: Vec::new(), started: Instant::now() };
        let nats_url = stack.nats().await?;
        let (signer, admin_token) = stack.secrets()?;
        let (issuer, admin_url) = stack.control_plane(&nats_url).await?;
        let admin = AdminApi::new(&admin_url, admin_token.to_string(), None)?;
        let (client, policy_file) = stack.configure(&admin).await?;
        let sidecar = stack.sidecar(&nats_url, &signer).await?;
        let upstream_url = stack.upstream().await?;
        let envoy_url = stack.envoy(&sidecar.socket, &upstream_url).await?;
        let field = |name: &str| {
            client[name].as_str().map(str::to_owned).with_context(|| format!("the new client has no {name}"))
        };
        let description = Description {
            issuer,
            admin_url,
            admin_token: admin_token.to_string(),
            client_id: field("client_id")?,
            client_secret: field("client_secret")?,
            audience: AUDIENCE.to_owned(),
            scope: SCOPE.to_owned(),
            envoy_url,
            sidecar_uds: sidecar.socket,
            sidecar_grpc: sidecar.grpc,
            sidecar_http: sidecar.http,
            sidecar_admin_url: sidecar.admin_url,
            nats_url,
            upstream_url,
            policy_file,
            pids: stack.programs.iter().map(|program| (program.name().to_owned(), program.pid())).collect(),
            logs: stack.programs.iter().map(|program| (program.name().to_owned(), program.log())).collect(),
            commands: stack
                .programs
                .iter()
                .map(|program| (program.name().to_owned(), program.command().to_vec()))
                .collect(),
        };
        stack.until_a_request_passes(&description).await?;
        description.write(dir)?;
        stack.programs.into_iter().for_each(Program::release);
        Ok(description)
    }

    async fn nats(&mut self) -> Result<String> {
        let port = self.ports.take()?;
        let values = [("NATS_PORT", &*port.to_string()), ("DIR", &self.layout.root())];
        let config = self.layout.config("nats.conf", &template::fill(template::NATS, &values)?)?;
        let program = self.run("nats", vec![programs::tool("nats-server")?, "-c".to_owned(), config])?;
        program
            .until("its greeting", async || greeting(port).await.map_err(|error| error.to_string()))
            .await?;
        let url = format!("nats://127.0.0.1:{port}");
        self.say("nats-server", &url);
        Ok(url)
    }

    /// Fresh keys; gives the feed's signer and the admin token.
    fn secrets(&self) -> Result<(FeedSigner, Zeroizing<String>)> {
        let (signer, seed) = FeedSigner::generate().context("no feed key can be made")?;
        self.layout.secret("feed.key", &Zeroizing::new(URL_SAFE_NO_PAD.encode(*seed)))?;
        self.layout.secret("wrapping.key", &random_text()?)?;
        let admin_token = random_text()?;
        self.layout.secret("admin.token", &admin_token)?;
        Ok((signer, admin_token))
    }

    /// Gives the issuer's and the admin listener's URL.
    async fn control_plane(&mut self, nats_url: &str) -> Result<(String, String)> {
        let (oauth, admin) = (self.ports.take()?.to_string(), self.ports.take()?.to_string());
        let values = [
            ("OAUTH_PORT", &*oauth),
            ("ADMIN_PORT", &admin),
            ("NATS_URL", nats_url),
            ("DIR", &self.layout.root()),
        ];
        let config =
            self.layout.config("control-plane.yaml", &template::fill(template::CONTROL_PLANE, &values)?)?;
        let command = vec![programs::ours("atm-control-plane")?, "--config".to_owned(), config];
        let (issuer, admin_url) = (format!("http://127.0.0.1:{oauth}"), format!("http://127.0.0.1:{admin}"));
        self.run_until_ready("control_plane", command, &format!("{admin_url}/readyz")).await?;
        self.say("control plane", &format!("{issuer} (admin {admin_url})"));
        Ok((issuer, admin_url))
    }

    /// Registers the client and applies the policies; gives the client and the policies' file.
    async fn configure(&mut self, admin: &AdminApi) -> Result<(Value, String)> {
        let scopes: Vec<&str> = SCOPE.split(' ').collect();
        let client = json!({ "name": "local stack", "scopes": scopes, "audiences": [AUDIENCE] });
        let client = admin.post(&["clients"], &client).await.context("no client can be registered")?;
        let policy_file = self.layout.text("policies.yaml");
        std::fs::write(&policy_file, template::POLICY)
            .with_context(|| format!("cannot write {policy_file}"))?;
        let applied = admin.put(&["policies"], &json!({ "documents": [template::POLICY] })).await;
        let applied = applied.context("the policies are refused")?;
        self.say("client, policies", &format!("policy set {}", applied["version"]));
        Ok((client, policy_file))
    }

    async fn sidecar(&mut self, nats_url: &str, signer: &FeedSigner) -> Result<Sidecar> {
        let mut port = || self.ports.take().map(|port| port.to_string());
        let (grpc, http, admin) = (port()?, port()?, port()?);
        let socket = self.layout.socket()?.display().to_string();
        let values = [
            ("SIDECAR_ID", "dev-1"),
            ("SIDECAR_SOCKET", &*socket),
            ("SIDECAR_GRPC_PORT", &*grpc),
            ("SIDECAR_HTTP_PORT", &*http),
            ("SIDECAR_ADMIN_PORT", &*admin),
            ("FEED_PUBLIC_KEY", &signer.public_key().to_string()),
            ("NATS_URL", nats_url),
            ("DIR", &self.layout.root()),
        ];
        let config = self.layout.config("sidecar.yaml", &template::fill(template::SIDECAR, &values)?)?;
        let command = vec![programs::ours("atm-sidecar")?, "--config".to_owned(), config];
        let admin_url = format!("http://127.0.0.1:{admin}");
        self.run_until_ready("sidecar", command, &format!("{admin_url}/readyz")).await?;
        self.say("sidecar", &format!("{socket} (admin {admin_url})"));
        Ok(Sidecar {
            socket,
            grpc: format!("127.0.0.1:{grpc}"),
            http: format!("127.0.0.1:{http}"),
            admin_url,
        })
    }

    async fn upstream(&mut self) -> Result<String> {
        let address = format!("127.0.0.1:{}", self.ports.take()?);
        let this =
            std::env::current_exe().context("this program does not know where it is")?.display().to_string();
        let command = [this.as_str(), "dev", "upstream", "--listen", &address].map(str::to_owned);
        let url = format!("http://{address}");
        self.run_until_ready("upstream", command.into(), &url).await?;
        self.say("echo service", &url);
        Ok(url)
    }

    async fn envoy(&mut self, socket: &str, upstream_url: &str) -> Result<String> {
        let (port, admin) = (self.ports.take()?.to_string(), self.ports.take()?.to_string());
        let (upstream_address, upstream_port) =
            upstream_url.trim_start_matches("http://").split_once(':').context("the upstream has no port")?;
        let values = [
            ("ENVOY_ADDRESS", "127.0.0.1"),
            ("ENVOY_PORT", &*port),
            ("ENVOY_ADMIN_PORT", &*admin),
            ("SIDECAR_SOCKET", socket),
            ("UPSTREAM_ADDRESS", upstream_address),
            ("UPSTREAM_PORT", upstream_port),
        ];
        let config = self.layout.config("envoy.yaml", &template::fill(template::ENVOY, &values)?)?;
        let envoy = programs::tool("envoy")?;
        // Several stacks share a machine: no hot restart, and no shared memory that would be another Envoy's.
        let arguments = [
            "--config-path",
            &config,
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--use-dynamic-base-id",
            "--log-level",
            "warning",
        ];
        let command = std::iter::once(envoy.as_str()).chain(arguments).map(str::to_owned).collect();
        self.run_until_ready("envoy", command, &format!("http://127.0.0.1:{admin}/ready")).await?;
        let url = format!("http://127.0.0.1:{port}");
        self.say("Envoy", &url);
        Ok(url)
    }

    /// The whole way once: a token, and a request with it that reaches the echo service.
    async fn until_a_request_passes(&mut self, stack: &Description) -> Result<()> {
        let http = self.http.clone();
        let attempt = async || {
            let form = [("grant_type", "client_credentials"), ("scope", SCOPE), ("audience", AUDIENCE)];
            let url = format!("{}/oauth2/token", stack.issuer);
            let issued = http
                .post(url)
                .basic_auth(&stack.client_id, Some(&stack.client_secret))
                .form(&form)
                .send()
                .await;
            let issued = issued.map_err(|error| error.to_string())?;
            let status = issued.status();
            let issued: Value = issued.json().await.map_err(|_| format!("no token: {status}"))?;
            let token = issued["access_token"]
                .as_str()
                .ok_or_else(|| format!("no token: {status} {}", issued["error"]))?;
            let used = http.get(format!("{}/orders", stack.envoy_url)).bearer_auth(token).send().await;
            let used = used.map_err(|error| error.to_string())?;
            let reason = used
                .headers()
                .get("x-atm-reason")
                .and_then(|reason| reason.to_str().ok())
                .unwrap_or_default();
            if used.status().is_success() { Ok(()) } else { Err(format!("{} {reason}", used.status())) }
        };
        let envoy = self.programs.last_mut().context("Envoy was started last")?;
        envoy.until("a request that passes", attempt).await?;
        self.say("a request passes", &format!("{}/orders", stack.envoy_url));
        Ok(())
    }

    fn run(&mut self, name: &'static str, command: Vec<String>) -> Result<&mut Program> {
        let log = self.layout.path("logs").join(format!("{name}.log"));
        self.programs.push(Program::start(name, command, &log)?);
        self.programs.last_mut().context("it was just added")
    }

    async fn run_until_ready(&mut self, name: &'static str, command: Vec<String>, url: &str) -> Result<()> {
        let http = self.http.clone();
        let ready = async || {
            let answer = http.get(url).send().await.map_err(|_| format!("{url} does not answer"))?;
            let status = answer.status();
            if status.is_success() {
                return Ok(());
            }
            Err(format!("{status} {}", answer.text().await.unwrap_or_default().trim()))
        };
        self.run(name, command)?.until("its readiness", ready).await
    }

    /// Progress, for people who wait.
    fn say(&self, what: &str, detail: &str) {
        eprintln!("  {what:<17} {detail:<60} {:5.1} s", self.started.elapsed().as_secs_f32());
    }
}

/// Where the sidecar listens.
struct Sidecar {
    socket: String,
    grpc: String,
    http: String,
    admin_url: String,
}

/// The first line of a NATS server tells that it serves, and whether JetStream is on.
async fn greeting(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut start = [0; 5];
    tokio::time::timeout(Duration::from_secs(1), stream.read_exact(&mut start)).await??;
    if &start == b"INFO " { Ok(()) } else { Err(std::io::Error::other("somebody else listens there")) }
}

/// 256 random bits in base64url.
fn random_text() -> Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *bytes).ok().context("the system has no randomness")?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes)))
}
