//! One control plane a test, with a store of its own.

use std::path::Path;

use atm_control_plane::app::App;
use atm_control_plane::config::{Config, Environment, Secrets};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const ISSUER: &str = "http://127.0.0.1:8080";
pub(crate) const ADMIN_TOKEN: &str = "admin-token-of-the-tests";

/// A running control plane.
pub(crate) struct Server {
    pub(crate) app: App,
    pub(crate) http: reqwest::Client,
    pub(crate) dir: TempDir,
}

/// A registered client.
pub(crate) struct Registered {
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// The status and the JSON of an answer; null where the body is empty.
pub(crate) async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let body = response.bytes().await.unwrap();
    (status, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() })
}

pub(crate) fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("{name} is missing")).to_str().unwrap()
}

/// The configuration in `dir`, with `extra` lines.
pub(crate) fn configuration(dir: &Path, extra: &str) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    for (name, content) in [
        ("wrapping.key", URL_SAFE_NO_PAD.encode([1; 32])),
        ("feed.key", URL_SAFE_NO_PAD.encode([2; 32])),
        ("admin.token", ADMIN_TOKEN.to_owned()),
    ] {
        std::fs::write(dir.join(name), content).unwrap();
    }
    // Port 1: nobody listens there, so the feed goes on without its carrier.
    format!(
        "issuer: {ISSUER}\nstore: {{ path: {} }}\nnats: {{ url: 'nats://127.0.0.1:1' }}\n\
         keys: {{ wrappingKeyFile: {} }}\nadmin: {{ tokenFile: {} }}\nfeed: {{ signingKeyFile: {} }}\n{extra}\n",
        path("atm.db"),
        path("wrapping.key"),
        path("admin.token"),
        path("feed.key"),
    )
}

const LISTEN: &str = "listen: { oauth: '127.0.0.1:0', admin: '127.0.0.1:0' }";

pub(crate) async fn try_start(text: &str) -> Result<App, String> {
    // The first test of the process installs it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let environment = Environment::new();
    let config = Config::parse(text, &environment).unwrap();
    let secrets = Secrets::read(&config, &environment).unwrap();
    App::start(config, secrets).await.map_err(|error| error.to_string())
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(LISTEN).await
    }

    /// With more in the section `admin`, which begins with a comma.
    pub(crate) async fn with_admin(more: &str) -> Self {
        Self::changed(|text| text.replace("admin.token }", &format!("admin.token{more} }}"))).await
    }

    /// With a configuration that `change` makes of the usual one.
    pub(crate) async fn changed(change: impl FnOnce(String) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let app = try_start(&change(configuration(dir.path(), LISTEN))).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { app, http, dir }
    }

    pub(crate) async fn with(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let app = try_start(&configuration(dir.path(), extra)).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { app, http, dir }
    }

    /// Ends it and starts another one over the same store.
    pub(crate) async fn restarted(self) -> Self {
        assert!(self.app.drain().await);
        let app = try_start(&configuration(self.dir.path(), LISTEN)).await.unwrap();
        Self { app, ..self }
    }

    pub(crate) fn oauth(&self, path: &str) -> String {
        format!("http://{}{path}", self.app.bound().oauth)
    }

    pub(crate) fn admin(&self, method: &str, path: &str) -> RequestBuilder {
        let url = format!("http://{}{path}", self.app.bound().admin);
        self.http.request(method.parse().unwrap(), url).bearer_auth(ADMIN_TOKEN)
    }

    /// A form as it stands, without credentials.
    pub(crate) fn form(&self, path: &str, body: &str) -> RequestBuilder {
        self.http
            .post(self.oauth(path))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.to_owned())
    }

    /// A form of a client that authenticates by `client_secret_basic`.
    pub(crate) fn post(&self, path: &str, client: &Registered, form: &[(&str, &str)]) -> RequestBuilder {
        self.http.post(self.oauth(path)).basic_auth(&client.id, Some(&client.secret)).form(form)
    }

    pub(crate) async fn register(&self, fields: Value) -> Registered {
        let (status, body) = answer(self.admin("POST", "/admin/v1/clients").json(&fields)).await;
        assert_eq!(status, 201, "{body}");
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        Registered { id: text("client_id"), secret: text("client_secret") }
    }

    /// A client with two scopes and one audience.
    pub(crate) async fn client(&self) -> Registered {
        self.register(json!({ "scopes": ["orders.read", "orders.write"], "audiences": ["orders-api"] })).await
    }

    /// An access token of `client`.
    pub(crate) async fn token(&self, client: &Registered) -> String {
        let request = self.post("/oauth2/token", client, &[("grant_type", "client_credentials")]);
        let (status, body) = answer(request).await;
        assert_eq!(status, 200, "{body}");
        body["access_token"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn introspect(&self, client: &Registered, token: &str) -> Value {
        let (status, body) = answer(self.post("/oauth2/introspect", client, &[("token", token)])).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    pub(crate) async fn is_active(&self, client: &Registered, token: &str) -> bool {
        self.introspect(client, token).await["active"].as_bool().unwrap()
    }

    pub(crate) async fn revoke(&self, body: Value) -> Value {
        let (status, body) = answer(self.admin("POST", "/admin/v1/revocations").json(&body)).await;
        assert_eq!(status, 200, "{body}");
        body
    }
}

/// Header or claims of a compact JWS.
pub(crate) fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// An error response as RFC 6749 §5.2 has it, never kept by a cache.
pub(crate) async fn assert_oauth_error(request: RequestBuilder, status: u16, error: &str) {
    let response = request.send().await.unwrap();
    assert_eq!(header(&response, "cache-control"), "no-store");
    assert_eq!(header(&response, "pragma"), "no-cache");
    assert_eq!(header(&response, "content-type"), "application/json");
    if response.status() == StatusCode::UNAUTHORIZED {
        assert!(header(&response, "www-authenticate").starts_with("Basic realm="));
    }
    let found = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    assert_eq!((found, body["error"].as_str()), (status, Some(error)), "{body}");
}

/// A problem as RFC 9457 has it.
pub(crate) async fn assert_problem(request: RequestBuilder, status: u16) -> Value {
    let response = request.send().await.unwrap();
    assert_eq!(header(&response, "content-type"), "application/problem+json");
    let found = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    assert_eq!(found, status, "{body}");
    assert_eq!(body["status"], status);
    assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
    body
}
