//! Refresh tokens at several replicas: one successor, whoever rotates; and what ends a session at one ends it at all.

use std::collections::BTreeSet;

use atm_tests::control_plane::{AdminClient, ControlPlane};
use atm_tests::http::{self, Answer};
use atm_tests::wait;
use futures::future::join_all;
use serde_json::{Value, json};

use super::fleet::Replicas;

/// Sessions that are ended while they are refreshed.
const RACES: usize = 12;

/// A client of all replicas.
struct App {
    id: String,
    secret: String,
}

impl App {
    async fn register(admin: &AdminClient) -> Self {
        let members = json!({
            "grant_types": ["refresh_token"], "scopes": ["orders.read"], "audiences": ["orders-api"],
        });
        let created = call(admin, "POST", "/admin/v1/clients", &members).await;
        Self { id: text(&created, "client_id"), secret: text(&created, "client_secret") }
    }

    async fn open(&self, admin: &AdminClient) -> Value {
        let body = json!({ "subject": "alice", "client_id": self.id });
        call(admin, "POST", "/admin/v1/sessions", &body).await
    }

    async fn post(&self, plane: &ControlPlane, path: &str, form: &[(&str, &str)]) -> Answer {
        let mut body = format!("client_id={}&client_secret={}", self.id, self.secret);
        for (name, value) in form {
            body.extend(["&", name, "=", value]);
        }
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let request = http::request("POST", path, plane.oauth(), &headers, &body);
        http::exchange(plane.oauth(), &request).await.unwrap()
    }

    async fn refresh(&self, plane: &ControlPlane, token: &str) -> Answer {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        self.post(plane, "/oauth2/token", &form).await
    }

    async fn refreshed(&self, plane: &ControlPlane, token: &str) -> Value {
        let answer = self.refresh(plane, token).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    async fn assert_refused(&self, plane: &ControlPlane, token: &str) {
        let answer = self.refresh(plane, token).await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_grant")));
    }

    async fn is_active(&self, plane: &ControlPlane, token: &str) -> bool {
        let answer = self.post(plane, "/oauth2/introspect", &[("token", token)]).await;
        answer.json()["active"].as_bool().unwrap_or_else(|| panic!("{} {}", answer.status, answer.text()))
    }
}

async fn call(admin: &AdminClient, method: &str, path: &str, body: &Value) -> Value {
    let answer = admin.call(method, path, body).await.unwrap();
    assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
    answer.json()
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}")).to_owned()
}

async fn start() -> Replicas {
    let url = tokio::task::spawn_blocking(atm_test_postgres::database).await.unwrap();
    Replicas::start(2, &url).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_has_one_successor_at_all_replicas() {
    let mut replicas = start().await;
    let admin = replicas.planes[0].client();
    let app = App::register(&admin).await;
    let opened = app.open(&admin).await;
    let first = text(&opened, "refresh_token");
    let planes = &replicas.planes;
    let answers = join_all((0..16).map(|number| app.refreshed(&planes[number % 2], &first))).await;
    let successors: BTreeSet<String> = answers.iter().map(|answer| text(answer, "refresh_token")).collect();
    assert_eq!(successors.len(), 1);
    let second = successors.first().unwrap();
    // The answer was lost with the replica that gave it: the other one gives the same again.
    replicas.planes[0].kill();
    assert_eq!(&text(&app.refreshed(&replicas.planes[1], &first).await, "refresh_token"), second);
    let third = app.refreshed(&replicas.planes[1], second).await;
    replicas.planes[0].start().await;
    // Used at one, it is dead at the other, through its restart; that ends the family at both.
    app.assert_refused(&replicas.planes[0], &first).await;
    for plane in &replicas.planes {
        app.assert_refused(plane, &text(&third, "refresh_token")).await;
        assert!(!app.is_active(plane, &text(&third, "access_token")).await);
    }
    let path = format!("/admin/v1/sessions/{}", text(&opened, "id"));
    let session = call(&replicas.planes[0].client(), "GET", &path, &Value::Null).await;
    assert_eq!(session["status"], "reused");
    let revocations =
        call(&replicas.planes[1].client(), "GET", "/admin/v1/revocations?limit=2", &Value::Null).await;
    let ends = revocations["items"].as_array().unwrap();
    assert_eq!((ends.len(), &ends[0]["value"]), (1, &opened["id"]), "told once: {revocations}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_at_one_replica_wins_over_refreshes_at_the_other() {
    let replicas = start().await;
    let planes = &replicas.planes;
    let admin = planes[0].client();
    let app = App::register(&admin).await;
    for number in 0..RACES {
        let opened = app.open(&admin).await;
        let token = text(&opened, "refresh_token");
        let end = async {
            // Now and then after a few refreshes instead of beside them.
            for _ in 0..number % 3 {
                tokio::task::yield_now().await;
            }
            let path = format!("/admin/v1/sessions/{}", text(&opened, "id"));
            call(&admin, "DELETE", &path, &Value::Null).await
        };
        let refreshes = join_all((0..4).map(|turn| app.refresh(&planes[turn % 2], &token)));
        let (_, refreshes) = futures::future::join(end, refreshes).await;
        for answer in refreshes.iter().filter(|answer| answer.status == 200) {
            let body = answer.json();
            for plane in planes {
                assert!(!app.is_active(plane, &text(&body, "access_token")).await, "race {number}");
                app.assert_refused(plane, &text(&body, "refresh_token")).await;
            }
        }
        app.assert_refused(&planes[1], &token).await;
    }
    // A subject that is disabled at one replica opens and refreshes nothing at the other.
    let opened = app.open(&admin).await;
    call(&admin, "POST", "/admin/v1/subjects/disable", &json!({ "subject": "alice" })).await;
    app.assert_refused(&planes[1], &text(&opened, "refresh_token")).await;
    let again = json!({ "subject": "alice", "client_id": app.id });
    let refused = planes[1].client().call("POST", "/admin/v1/sessions", &again).await.unwrap();
    assert_eq!(refused.status, 409, "{}", refused.text());
}

/// What a refresh or an exchange gets beside a revocation of a wider scope is dead when that has returned, at whichever replica it
/// was asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_of_a_scope_wins_over_grants_at_the_other_replica() {
    let replicas = start().await;
    let planes = &replicas.planes;
    let admin = planes[0].client();
    let app = App::register(&admin).await;
    let exchange = "urn:ietf:params:oauth:grant-type:token-exchange";
    let members = json!({
        "grant_types": [exchange], "scopes": ["orders.read"], "audiences": ["orders-api"],
        "exchange": { "impersonation": true },
    });
    let created = call(&admin, "POST", "/admin/v1/clients", &members).await;
    let gateway = App { id: text(&created, "client_id"), secret: text(&created, "client_secret") };
    for number in 0..RACES {
        let opened = app.open(&admin).await;
        let (refresh, access) = (text(&opened, "refresh_token"), text(&opened, "access_token"));
        let selector = match number % 3 {
            0 => json!({ "client": app.id }),
            1 => json!({ "subject": "alice" }),
            _ => json!({ "session": opened["id"] }),
        };
        let revoke = async {
            for _ in 0..number % 4 {
                tokio::task::yield_now().await;
            }
            call(&admin, "POST", "/admin/v1/revocations", &json!({ "selector": selector })).await
        };
        let form = [
            ("grant_type", exchange),
            ("subject_token", access.as_str()),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ];
        let refreshes = join_all((0..4).map(|_| app.refresh(&planes[1], &refresh)));
        let exchanges = join_all((0..4).map(|_| gateway.post(&planes[1], "/oauth2/token", &form)));
        let grants = futures::future::join(refreshes, exchanges);
        let (_, (refreshes, exchanges)) = futures::future::join(revoke, grants).await;
        for (client, answers) in [(&app, refreshes), (&gateway, exchanges)] {
            for answer in answers.iter().filter(|answer| answer.status == 200) {
                let token = text(&answer.json(), "access_token");
                for plane in planes {
                    assert!(!client.is_active(plane, &token).await, "race {number}: {selector}");
                }
            }
        }
        app.assert_refused(&planes[1], &refresh).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_realm_that_is_disabled_at_one_replica_issues_at_none() {
    let replicas = start().await;
    let planes = &replicas.planes;
    let (one, other) = (planes[0].client(), planes[1].client());
    call(&one, "POST", "/admin/v1/realms", &json!({ "name": "acme" })).await;
    let members = json!({ "scopes": ["orders.read"], "audiences": ["orders-api"] });
    let created = call(&other, "POST", "/admin/v1/realms/acme/clients", &members).await;
    let app = App { id: text(&created, "client_id"), secret: text(&created, "client_secret") };
    let ask = async |plane: &ControlPlane| {
        let path = "/realms/acme/oauth2/token";
        app.post(plane, path, &[("grant_type", "client_credentials")]).await.status
    };
    for _ in 0..3 {
        assert_eq!((ask(&planes[0]).await, ask(&planes[1]).await), (200, 200));
        call(&one, "PATCH", "/admin/v1/realms/acme", &json!({ "status": "disabled" })).await;
        assert_eq!((ask(&planes[1]).await, ask(&planes[0]).await), (404, 404));
        call(&other, "PATCH", "/admin/v1/realms/acme", &json!({ "status": "active" })).await;
    }
}

/// A replica is killed while it rotates: whatever was committed, the client's token gives the one successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_dies_amid_refreshes_costs_nobody_a_session() {
    let mut replicas = start().await;
    let admin = replicas.planes[1].client();
    let app = App::register(&admin).await;
    for _ in 0..4 {
        let opened = app.open(&admin).await;
        let token = text(&opened, "refresh_token");
        let address = replicas.planes[0].oauth().to_owned();
        let body = format!(
            "grant_type=refresh_token&client_id={}&client_secret={}&refresh_token={token}",
            app.id, app.secret
        );
        let sent = tokio::spawn(async move {
            let headers = [("content-type", "application/x-www-form-urlencoded")];
            let request = http::request("POST", "/oauth2/token", &address, &headers, &body);
            http::exchange(&address, &request).await
        });
        tokio::task::yield_now().await;
        replicas.planes[0].kill();
        let lost = sent.await.unwrap();
        let again = app.refreshed(&replicas.planes[1], &token).await;
        if let Ok(answer) = lost
            && answer.status == 200
        {
            assert_eq!(answer.json()["refresh_token"], again["refresh_token"]);
        }
        app.refreshed(&replicas.planes[1], &text(&again, "refresh_token")).await;
        replicas.planes[0].start().await;
    }
    wait::until("the replica that was killed to serve", wait::USUAL, || async {
        let opened = app.open(&replicas.planes[0].client()).await;
        let answer = app.refresh(&replicas.planes[0], &text(&opened, "refresh_token")).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}
