//! What ends a session, a derived token or an opaque one ends it at the sidecar, by push: the programs as a user starts them,
//! with a real nats-server and Envoy.

#![allow(clippy::expect_used, clippy::unwrap_used)] // helpers of tests fail the test

use atm_tests::dev::{DevClient, DevStack};
use atm_tests::http::{self, Answer};
use atm_tests::wait;
use serde_json::{Value, json};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

struct Mesh {
    stack: DevStack,
    client: DevClient,
}

/// A client of the control plane.
struct Registered {
    id: String,
    secret: String,
}

impl Mesh {
    async fn start() -> Self {
        let stack = DevStack::up().await;
        let client = stack.client();
        client.until_settled().await;
        Self { stack, client }
    }

    async fn admin(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.client.admin(method, path, &body).await.unwrap();
        assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
        answer.json()
    }

    async fn register(&self, mut members: Value) -> Registered {
        members["scopes"] = json!(["orders.read"]);
        members["audiences"] = json!(["orders-api"]);
        let created = self.admin("POST", "/admin/v1/clients", members).await;
        Registered { id: text(&created, "client_id"), secret: text(&created, "client_secret") }
    }

    async fn open(&self, client: &Registered, subject: &str) -> Value {
        let body = json!({ "subject": subject, "client_id": client.id });
        self.admin("POST", "/admin/v1/sessions", body).await
    }

    async fn oauth(&self, path: &str, client: &Registered, form: &[(&str, &str)]) -> Answer {
        let address = http::authority(self.stack.field("issuer"));
        let mut body = format!("client_id={}&client_secret={}", client.id, client.secret);
        for (name, value) in form {
            body.extend(["&", name, "=", value]);
        }
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        http::exchange(address, &http::request("POST", path, address, &headers, &body)).await.unwrap()
    }

    async fn grant(&self, client: &Registered, form: &[(&str, &str)]) -> Value {
        let answer = self.oauth("/oauth2/token", client, form).await;
        assert_eq!(answer.status, 200, "{form:?}: {}", answer.text());
        answer.json()
    }

    async fn token(&self, client: &Registered) -> String {
        text(&self.grant(client, &[("grant_type", "client_credentials")]).await, "access_token")
    }

    /// What a request with this token comes to at Envoy.
    async fn expect(&self, token: &str, reason: &str) {
        let answer = self.client.use_token(token).await.unwrap();
        let found = answer.header("x-atm-reason").unwrap_or("permit");
        assert_eq!(found, reason, "{} {}", answer.status, answer.text());
        assert_eq!(answer.status == 200, reason == "permit");
    }

    /// Waits until the sidecar has what the control plane has put in force.
    async fn until_applied(&self) {
        self.client.until_settled().await;
    }

    /// How often the sidecar has asked the control plane about an opaque token that is in force.
    async fn questions(&self) -> String {
        let metrics = self.client.sidecar("/metrics").await.unwrap().text();
        let name = "atm_sidecar_introspections_total{outcome=\"active\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in\n{metrics}")).to_owned()
    }
}

/// The token endpoint and the admin API of one realm.
impl Mesh {
    async fn admin_of(&self, realm: &str, method: &str, path: &str, body: Value) -> Value {
        self.admin(method, &format!("/admin/v1/realms/{realm}{path}"), body).await
    }

    async fn client_of(&self, realm: &str, mut members: Value) -> Registered {
        members["scopes"] = json!(["orders.read"]);
        members["audiences"] = json!(["orders-api"]);
        let created = self.admin_of(realm, "POST", "/clients", members).await;
        Registered { id: text(&created, "client_id"), secret: text(&created, "client_secret") }
    }

    async fn token_of(&self, realm: &str, client: &Registered) -> String {
        let path = format!("/realms/{realm}/oauth2/token");
        let answer = self.oauth(&path, client, &[("grant_type", "client_credentials")]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        text(&answer.json(), "access_token")
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}")).to_owned()
}

fn refresh(token: &str) -> [(&str, &str); 2] {
    [("grant_type", "refresh_token"), ("refresh_token", token)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_is_refused_at_the_sidecar() {
    let mesh = Mesh::start().await;
    let app = mesh.register(json!({ "grant_types": ["refresh_token"] })).await;
    let (ended, other) = (mesh.open(&app, "alice").await, mesh.open(&app, "alice").await);
    let refreshed = mesh.grant(&app, &refresh(&text(&ended, "refresh_token"))).await;
    let tokens = [text(&ended, "access_token"), text(&refreshed, "access_token")];
    for token in &tokens {
        mesh.expect(token, "permit").await;
    }
    mesh.admin("DELETE", &format!("/admin/v1/sessions/{}", text(&ended, "id")), Value::Null).await;
    mesh.until_applied().await;
    for token in &tokens {
        mesh.expect(token, "revoked_session").await;
    }
    let over = mesh.oauth("/oauth2/token", &app, &refresh(&text(&refreshed, "refresh_token"))).await;
    assert_eq!((over.status, &over.json()["error"]), (400, &json!("invalid_grant")));
    mesh.expect(&text(&other, "access_token"), "permit").await;
    // Global logout, and a login after it.
    mesh.admin("POST", "/admin/v1/sessions/end", json!({ "subject": "alice" })).await;
    mesh.until_applied().await;
    mesh.expect(&text(&other, "access_token"), "revoked_subject").await;
    mesh.expect(&text(&mesh.open(&app, "alice").await, "access_token"), "permit").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_that_is_used_again_ends_its_session_at_the_sidecar() {
    let mesh = Mesh::start().await;
    let app = mesh.register(json!({ "grant_types": ["refresh_token"] })).await;
    let opened = mesh.open(&app, "alice").await;
    let stolen = text(&opened, "refresh_token");
    let second = mesh.grant(&app, &refresh(&stolen)).await;
    let third = mesh.grant(&app, &refresh(&text(&second, "refresh_token"))).await;
    mesh.expect(&text(&third, "access_token"), "permit").await;
    let reused = mesh.oauth("/oauth2/token", &app, &refresh(&stolen)).await;
    assert_eq!((reused.status, &reused.json()["error"]), (400, &json!("invalid_grant")));
    mesh.until_applied().await;
    for answer in [&opened, &second, &third] {
        mesh.expect(&text(answer, "access_token"), "revoked_session").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_exchanged_ends_with_the_one_that_it_came_from() {
    let mesh = Mesh::start().await;
    let app = mesh.register(json!({})).await;
    let gateway =
        mesh.register(json!({ "grant_types": [EXCHANGE], "exchange": { "impersonation": true } })).await;
    let exchange = async |token: &str| {
        let form = [("grant_type", EXCHANGE), ("subject_token", token), ("subject_token_type", ACCESS_TOKEN)];
        text(&mesh.grant(&gateway, &form).await, "access_token")
    };
    let (parent, other) = (mesh.token(&app).await, mesh.token(&app).await);
    let child = exchange(&parent).await;
    let grandchild = exchange(&child).await;
    let spared = exchange(&other).await;
    for token in [&parent, &child, &grandchild, &spared] {
        mesh.expect(token, "permit").await;
    }
    assert_eq!(mesh.oauth("/oauth2/revoke", &app, &[("token", &parent)]).await.status, 200);
    mesh.until_applied().await;
    mesh.expect(&parent, "revoked_token").await;
    mesh.expect(&child, "revoked_ancestor").await;
    mesh.expect(&grandchild, "revoked_ancestor").await;
    mesh.expect(&spared, "permit").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opaque_token_is_asked_about_once_and_refused_when_it_is_revoked() {
    let mut mesh = Mesh::start().await;
    let members =
        json!({ "grant_types": ["client_credentials", "refresh_token"], "access_token_format": "opaque" });
    let app = mesh.register(members).await;
    let (revoked, kept) = (mesh.token(&app).await, mesh.token(&app).await);
    let opened = mesh.open(&app, "alice").await;
    let of_session = text(&opened, "access_token");
    for token in [&revoked, &kept, &of_session] {
        assert!(token.starts_with("atm_at_"));
        mesh.expect(token, "permit").await;
        mesh.expect(token, "permit").await;
    }
    assert_eq!(mesh.questions().await, "3", "one each");
    assert_eq!(mesh.oauth("/oauth2/revoke", &app, &[("token", &revoked)]).await.status, 200);
    mesh.admin("DELETE", &format!("/admin/v1/sessions/{}", text(&opened, "id")), Value::Null).await;
    mesh.until_applied().await;
    // By push: nobody is there who could be asked.
    mesh.stack.kill("control_plane");
    mesh.expect(&revoked, "revoked_token").await;
    mesh.expect(&of_session, "revoked_session").await;
    mesh.expect(&kept, "permit").await;
    // Through a restart of the sidecar, too.
    mesh.stack.start_again("control_plane");
    mesh.client.until_settled().await;
    mesh.stack.kill("sidecar");
    mesh.stack.start_again("sidecar");
    wait::until("the sidecar to be ready again", wait::USUAL, || async {
        match mesh.client.sidecar("/readyz").await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(other.map(|answer| answer.text())),
        }
    })
    .await;
    mesh.client.until_settled().await;
    mesh.expect(&revoked, "revoked_token").await;
    mesh.expect(&kept, "permit").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_realm_is_trusted_when_it_is_made_and_ends_alone() {
    let mesh = Mesh::start().await;
    for name in ["acme", "other"] {
        mesh.admin("POST", "/admin/v1/realms", json!({ "name": name })).await;
    }
    mesh.until_applied().await;
    let jwt = mesh.client_of("acme", json!({ "client_id": "app" })).await;
    let opaque = mesh.client_of("acme", json!({ "access_token_format": "opaque" })).await;
    let namesake = mesh.client_of("other", json!({ "client_id": "app" })).await;
    let ended = [mesh.token_of("acme", &jwt).await, mesh.token_of("acme", &opaque).await];
    let spared = mesh.token_of("other", &namesake).await;
    for token in ended.iter().chain([&spared]) {
        mesh.expect(token, "permit").await;
    }
    // The same name in another realm is another client.
    let selector = json!({ "selector": { "client": "app" } });
    mesh.admin_of("acme", "POST", "/revocations", selector).await;
    mesh.until_applied().await;
    mesh.expect(&ended[0], "revoked_client").await;
    mesh.expect(&ended[1], "permit").await;
    mesh.expect(&spared, "permit").await;
    mesh.admin("PATCH", "/admin/v1/realms/acme", json!({ "status": "disabled" })).await;
    mesh.until_applied().await;
    mesh.expect(&ended[1], "revoked_realm").await;
    mesh.expect(&spared, "permit").await;
}

/// Every file below `directory` but the secrets that the stack was made with, with what it holds.
fn files(directory: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "secrets" {
            found.extend(files(&path));
        } else if let Ok(content) = std::fs::read(&path) {
            found.push((path, content));
        }
    }
    found
}

/// With everything written down that the programs can write, nothing that could be used is in a log, a store or an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_credential_is_written_down() {
    let stack = DevStack::up_with(&[("ATM_LOG__LEVEL", "trace")]).await;
    let client = stack.client();
    client.until_settled().await;
    let mesh = Mesh { stack, client };
    let members = json!({ "grant_types": ["client_credentials", "refresh_token"] });
    let app = mesh.register(members.clone()).await;
    let mut opaque = members;
    opaque["access_token_format"] = "opaque".into();
    let other = mesh.register(opaque).await;
    let mut credentials = vec![app.secret.clone(), other.secret.clone()];
    for client in [&app, &other] {
        let opened = mesh.open(client, "alice").await;
        let refreshed = mesh.grant(client, &refresh(&text(&opened, "refresh_token"))).await;
        let own = mesh.token(client).await;
        for answer in [&opened, &refreshed] {
            credentials.extend([text(answer, "refresh_token"), text(answer, "access_token")]);
        }
        mesh.expect(&own, "permit").await;
        assert_eq!(mesh.oauth("/oauth2/introspect", client, &[("token", &own)]).await.status, 200);
        assert_eq!(mesh.oauth("/oauth2/revoke", client, &[("token", &own)]).await.status, 200);
        mesh.until_applied().await;
        mesh.expect(&own, "revoked_token").await;
        // Refusals say what is wrong, and not with what.
        let stolen = text(&opened, "refresh_token");
        mesh.grant(client, &refresh(&text(&refreshed, "refresh_token"))).await;
        let reused = mesh.oauth("/oauth2/token", client, &refresh(&stolen)).await;
        assert!(reused.status == 400 && !reused.text().contains(&stolen), "{}", reused.text());
        credentials.push(own);
    }
    let path = format!("/admin/v1/clients/{}/secret", app.id);
    credentials.push(text(&mesh.admin("POST", &path, json!({})).await, "client_secret"));
    // A token's signature, or the random part of a secret: its beginning is the same for all.
    let telling = |credential: &str| credential.as_bytes()[credential.len() - 30..].to_vec();
    let telling: Vec<Vec<u8>> = credentials.iter().map(|credential| telling(credential)).collect();
    let mut logged = 0;
    for (path, content) in files(mesh.stack.path()) {
        logged += content.windows(15).filter(|window| window == b"token_refreshed").count();
        for (credential, telling) in credentials.iter().zip(&telling) {
            let found = content.windows(telling.len()).any(|window| window == telling);
            assert!(!found, "{} holds a credential of kind {}", path.display(), &credential[..7]);
        }
    }
    assert!(logged > 0, "the logs have what was done");
}
