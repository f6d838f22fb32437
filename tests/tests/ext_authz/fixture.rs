//! A sidecar with a policy, an upstream, and Envoys that ask it in either way.

use atm_tests::envoy::{self, Envoy};
use atm_tests::feed::{FeedAuthor, policies};
use atm_tests::http::{self, Answer};
use atm_tests::nats::NatsServer;
use atm_tests::sidecar::Sidecar;
use atm_tests::token::TokenMint;
use atm_tests::upstream::Upstream;
use serde_json::Value;

const POLICY: &str = include_str!("policy.yaml");

/// How Envoy asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// gRPC over the unix socket.
    Grpc,
    /// HTTP over TCP.
    Http,
}

impl Asked {
    pub(crate) const BOTH: [Self; 2] = [Self::Grpc, Self::Http];
}

/// What stands behind every Envoy of a test.
pub(crate) struct Fixture {
    pub(crate) sidecar: Sidecar,
    pub(crate) author: FeedAuthor,
    pub(crate) mint: TokenMint,
    pub(crate) upstream: Upstream,
    pub(crate) nats: NatsServer,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// `configure` may set keys of the sidecar's configuration before it starts.
    pub(crate) async fn start_with(configure: impl FnOnce(&Sidecar)) -> Self {
        let mint = TokenMint::new("https://issuer.test", "main", &[("one", "ES256")]);
        let nats = NatsServer::start().await;
        let author = FeedAuthor::start(&nats).await;
        let revision = author.publish(vec![mint.to_change(), policies(1, &[POLICY])]).await;
        let mut sidecar = Sidecar::configure(&nats.url(), &author.public_key());
        configure(&sidecar);
        sidecar.start().await;
        sidecar.until_ready().await;
        sidecar.until_applied(revision).await;
        Self { sidecar, author, mint, upstream: Upstream::start().await, nats }
    }

    /// An Envoy before the upstream that asks the sidecar; `change` may change its configuration.
    pub(crate) async fn envoy(&self, asked: Asked, change: impl FnOnce(&mut Value)) -> Envoy {
        let mut config = self.config_of(asked, &self.sidecar);
        change(&mut config);
        Envoy::start_config(&config).await
    }

    /// The configuration of an Envoy that asks `sidecar`.
    pub(crate) fn config_of(&self, asked: Asked, sidecar: &Sidecar) -> Value {
        let mut config = envoy::config(self.upstream.address(), &sidecar.socket());
        if asked == Asked::Http {
            envoy::ask_over_http(&mut config, sidecar.address("http"));
        }
        config
    }

    /// GET through `envoy`, with a bearer token.
    pub(crate) async fn get(&self, envoy: &Envoy, target: &str, token: Option<&str>) -> Answer {
        let authorization = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> =
            authorization.as_deref().map(|value| ("authorization", value)).into_iter().collect();
        let request = http::request("GET", target, "orders.test", &headers, "");
        http::exchange(envoy.address(), &request).await.expect("Envoy answers")
    }
}
