//! The built control plane with a key provider, as an operator runs it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use atm_core::key::{KeyState, VerificationKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tempfile::TempDir;

const ADMIN_TOKEN: &str = "admin-token-of-the-tests";
const BOUND: Duration = Duration::from_secs(30);

/// A running control plane; killed when dropped.
pub(crate) struct Program {
    child: Child,
    http: reqwest::Client,
    oauth: String,
    admin: String,
}

/// A directory with everything but the provider's part of the configuration.
pub(crate) fn directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("wrapping.key", URL_SAFE_NO_PAD.encode([1; 32])),
        ("feed.key", URL_SAFE_NO_PAD.encode([2; 32])),
        ("admin.token", ADMIN_TOKEN.to_owned()),
    ] {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

impl Program {
    /// Starts it in `dir` with `keys`, lines of that section, and `environment`.
    pub(crate) async fn start(dir: &Path, keys: &str, environment: &[(&str, &str)]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let path = |name: &str| dir.join(name).display().to_string();
        // Port 1: nobody listens there, so the feed goes on without its carrier.
        let text = format!(
            "issuer: http://127.0.0.1:8080\nstore: {{ path: {} }}\nnats: {{ url: 'nats://127.0.0.1:1' }}\n\
             listen: {{ oauth: '127.0.0.1:0', admin: '127.0.0.1:0', addressFile: {} }}\n\
             admin: {{ tokenFile: {} }}\nfeed: {{ signingKeyFile: {} }}\nlog: {{ level: warn }}\n\
             keys:\n  wrappingKeyFile: {}\n{keys}\n",
            path("atm.db"),
            path("addresses.json"),
            path("admin.token"),
            path("feed.key"),
            path("wrapping.key"),
        );
        std::fs::write(path("config.yaml"), text).unwrap();
        let _ = std::fs::remove_file(path("addresses.json"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_atm-control-plane"))
            .args(["--config", &path("config.yaml")])
            .envs(environment.iter().copied())
            .stderr(std::fs::File::create(path("log")).unwrap())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + BOUND;
        let addresses: Value = loop {
            if let Ok(bytes) = std::fs::read(path("addresses.json")) {
                break serde_json::from_slice(&bytes).unwrap();
            }
            let log = || std::fs::read_to_string(path("log")).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none(), "it has ended: {}", log());
            assert!(Instant::now() < deadline, "it does not start: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let url = |name: &str| format!("http://{}", addresses[name].as_str().unwrap());
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { child, http, oauth: url("oauth"), admin: url("admin") }
    }

    pub(crate) async fn admin(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = self.http.request(method.parse().unwrap(), format!("{}{path}", self.admin));
        let response = request.bearer_auth(ADMIN_TOKEN).json(body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }

    /// A client's id and secret.
    pub(crate) async fn client(&self) -> (String, String) {
        let body = json!({ "scopes": ["a"], "audiences": ["api"] });
        let (status, client) = self.admin("POST", "/admin/v1/clients", &body).await;
        assert_eq!(status, 201, "{client}");
        let text = |name: &str| client[name].as_str().unwrap().to_owned();
        (text("client_id"), text("client_secret"))
    }

    /// The token endpoint's answer.
    pub(crate) async fn ask(&self, (id, secret): &(String, String)) -> reqwest::Response {
        let request = self.http.post(format!("{}/oauth2/token", self.oauth)).basic_auth(id, Some(secret));
        request.form(&[("grant_type", "client_credentials")]).send().await.unwrap()
    }

    /// A token, whose signature is verified with the published key. Returns its `kid`.
    pub(crate) async fn verified_token(&self, client: &(String, String)) -> String {
        let response = self.ask(client).await;
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status, 200, "{body}");
        let token = body["access_token"].as_str().unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let header = URL_SAFE_NO_PAD.decode(message.split('.').next().unwrap()).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        let kid = header["kid"].as_str().unwrap();
        let jwks: Value =
            self.http.get(format!("{}/oauth2/jwks", self.oauth)).send().await.unwrap().json().await.unwrap();
        let jwk = jwks["keys"].as_array().unwrap().iter().find(|key| key["kid"] == kid).unwrap();
        let spki = atm_core::jwk::spki_from_jwk(jwk).unwrap().spki;
        let algorithm = jwk["alg"].as_str().unwrap().parse().unwrap();
        let key = VerificationKey::from_spki(kid, algorithm, &spki, KeyState::Active).unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        assert!(key.verify(message.as_bytes(), &signature).is_ok(), "the published key verifies");
        kid.to_owned()
    }

    pub(crate) async fn readiness(&self) -> Value {
        self.http.get(format!("{}/readyz", self.admin)).send().await.unwrap().json().await.unwrap()
    }

    /// The provider is away: 503 within the bound, said in readiness and in the audit chain, and no other key takes over.
    pub(crate) async fn assert_outage(&self, client: &(String, String)) {
        let response = self.ask(client).await;
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"], "temporarily_unavailable", "{body}");
        let ready = self.readiness().await;
        assert!(ready["degraded"].as_str().unwrap().contains("tokens are not signed"), "{ready}");
        let (_, keys) = self.admin("GET", "/admin/v1/keys", &Value::Null).await;
        assert_eq!(keys["items"].as_array().unwrap().len(), 1, "no other key: {keys}");
        assert!(keys["outage"].is_string(), "{keys}");
        let deadline = Instant::now() + BOUND;
        loop {
            let path = "/admin/v1/audit?action=key.signing_outage";
            let (_, events) = self.admin("GET", path, &Value::Null).await;
            if events["items"]
                .as_array()
                .is_some_and(|events| events.iter().any(|event| event["outcome"] == "failed"))
            {
                return;
            }
            assert!(Instant::now() < deadline, "{events}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
