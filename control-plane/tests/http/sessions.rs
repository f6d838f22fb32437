//! Sessions and refresh rotation: RFC 6749 §6, RFC 7009 §2.1, RFC 9700 §4.14.

use serde_json::{Value, json};

use crate::harness::{Registered, Server, answer, assert_oauth_error, assert_problem, part};

pub(crate) const LISTEN: &str = "listen: { oauth: '127.0.0.1:0', admin: '127.0.0.1:0' }";

async fn client(server: &Server) -> Registered {
    let fields = json!({
        "scopes": ["orders.read", "orders.write"], "audiences": ["orders-api", "bills-api"],
        "grant_types": ["refresh_token"],
    });
    server.register(fields).await
}

async fn open(server: &Server, client: &Registered, subject: &str) -> Value {
    let body = json!({ "subject": subject, "client_id": client.id });
    let (status, body) = answer(server.admin("POST", "/admin/v1/sessions").json(&body)).await;
    assert_eq!(status, 201, "{body}");
    body
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

fn refresh(server: &Server, client: &Registered, token: &str) -> reqwest::RequestBuilder {
    server.post("/oauth2/token", client, &[("grant_type", "refresh_token"), ("refresh_token", token)])
}

async fn refreshed(server: &Server, client: &Registered, token: &str) -> Value {
    let (status, body) = answer(refresh(server, client, token)).await;
    assert_eq!(status, 200, "{body}");
    body
}

async fn session(server: &Server, id: &str) -> Value {
    let (status, body) = answer(server.admin("GET", &format!("/admin/v1/sessions/{id}"))).await;
    assert_eq!(status, 200, "{body}");
    body
}

#[tokio::test]
async fn a_session_gives_tokens_of_its_subject_and_a_refresh_rotates_them() {
    let server = Server::start().await;
    let client = client(&server).await;
    let opened = open(&server, &client, "alice").await;
    let claims = part(text(&opened, "access_token"), 1);
    assert_eq!((claims["sub"].as_str(), claims["client_id"].as_str()), (Some("alice"), Some(&*client.id)));
    assert_eq!((&claims["sid"], &claims["aud"]), (&opened["id"], &json!(["orders-api", "bills-api"])));
    let first = text(&opened, "refresh_token");
    assert!(first.starts_with("atm_rt_"));

    let second = refreshed(&server, &client, first).await;
    assert_ne!(text(&second, "refresh_token"), first);
    assert_eq!(part(text(&second, "access_token"), 1)["sid"], opened["id"]);
    assert_eq!(
        (&second["token_type"], &second["scope"]),
        (&json!("Bearer"), &json!("orders.read orders.write"))
    );
    assert_eq!(session(&server, text(&opened, "id")).await["generation"], 2);
    assert!(server.is_active(&client, text(&second, "access_token")).await);
}

/// RFC 6749 §6: never more than was granted.
#[tokio::test]
async fn a_refresh_may_ask_for_less_and_gets_all_of_it_back_later() {
    let server = Server::start().await;
    let client = client(&server).await;
    let opened = open(&server, &client, "alice").await;
    let token = text(&opened, "refresh_token");
    let ask = |token: &str, extra: [(&str, &str); 2]| {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token), extra[0], extra[1]];
        server.post("/oauth2/token", &client, &form)
    };
    let wider = ask(token, [("scope", "orders.read admin"), ("audience", "orders-api")]);
    assert_oauth_error(wider, 400, "invalid_scope").await;
    let other = ask(token, [("scope", "orders.read"), ("audience", "other-api")]);
    assert_oauth_error(other, 400, "invalid_target").await;
    assert_eq!(session(&server, text(&opened, "id")).await["generation"], 1, "nothing was half done");
    let (_, less) = answer(ask(token, [("scope", "orders.read"), ("audience", "bills-api")])).await;
    let claims = part(text(&less, "access_token"), 1);
    assert_eq!((&claims["scope"], &claims["aud"]), (&json!("orders.read"), &json!("bills-api")));
    let again = refreshed(&server, &client, text(&less, "refresh_token")).await;
    assert_eq!(again["scope"], "orders.read orders.write");
}

#[tokio::test]
async fn concurrent_refreshes_have_one_successor_and_a_lost_answer_is_given_again() {
    let server = Server::start().await;
    let client = client(&server).await;
    let opened = open(&server, &client, "alice").await;
    let token = text(&opened, "refresh_token");
    let answers = futures::future::join_all((0..16).map(|_| answer(refresh(&server, &client, token)))).await;
    let successors: std::collections::BTreeSet<&str> =
        answers.iter().map(|(_, body)| text(body, "refresh_token")).collect();
    assert_eq!(successors.len(), 1);
    assert_eq!(session(&server, text(&opened, "id")).await["generation"], 2);
    // The answer was lost, too: the same again, through a restart.
    let server = server.restarted().await;
    let again = refreshed(&server, &client, token).await;
    assert_eq!(Some(&text(&again, "refresh_token")), successors.first());
}

#[tokio::test]
async fn an_older_token_is_reuse_and_ends_the_family_everywhere() {
    let server = Server::start().await;
    let client = client(&server).await;
    let opened = open(&server, &client, "alice").await;
    let first = text(&opened, "refresh_token");
    let second = refreshed(&server, &client, first).await;
    let third = refreshed(&server, &client, text(&second, "refresh_token")).await;
    assert_oauth_error(refresh(&server, &client, first), 400, "invalid_grant").await;
    // For whoever holds the newest one, too, and for the access tokens.
    assert_oauth_error(refresh(&server, &client, text(&third, "refresh_token")), 400, "invalid_grant").await;
    assert!(!server.is_active(&client, text(&third, "access_token")).await);
    assert_eq!(session(&server, text(&opened, "id")).await["status"], "reused");
    let (_, revocations) = answer(server.admin("GET", "/admin/v1/revocations?limit=1")).await;
    assert_eq!(revocations["items"][0]["kind"], "session", "streamed to the fleet");
    assert_eq!(revocations["items"][0]["reason"], "refresh token used twice");
    let (_, metrics) = {
        let response = server.admin("GET", "/metrics").send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    };
    assert!(metrics.contains(r#"oauth_events_total{event="refresh_reuse"} 1"#), "{metrics}");
    let server = server.restarted().await;
    assert_oauth_error(refresh(&server, &client, text(&third, "refresh_token")), 400, "invalid_grant").await;
}

#[tokio::test]
async fn outside_the_grace_the_token_before_is_reuse_too() {
    let server = Server::with(&format!("{LISTEN}\nsessions: {{ refreshGraceSeconds: 0 }}")).await;
    let client = client(&server).await;
    let opened = open(&server, &client, "alice").await;
    let first = text(&opened, "refresh_token");
    let second = refreshed(&server, &client, first).await;
    // A grace of nothing ends with the millisecond of the rotation.
    let before = std::time::Instant::now();
    while before.elapsed().as_millis() < 2 {
        tokio::task::yield_now().await;
    }
    assert_oauth_error(refresh(&server, &client, first), 400, "invalid_grant").await;
    assert_oauth_error(refresh(&server, &client, text(&second, "refresh_token")), 400, "invalid_grant").await;
}

/// RFC 6749 §5.2 and §10.4: a token is bound to its client.
#[tokio::test]
async fn a_token_of_another_client_or_a_forged_one_changes_nothing() {
    let server = Server::start().await;
    let (client, other) = (client(&server).await, client(&server).await);
    let opened = open(&server, &client, "alice").await;
    let token = text(&opened, "refresh_token");
    assert_oauth_error(refresh(&server, &other, token), 400, "invalid_grant").await;
    let mut forged = token.to_owned();
    forged.replace_range(40..41, if &token[40..41] == "x" { "y" } else { "x" });
    for wrong in [&forged[..], &token[..token.len() - 1], "atm_rt_", "x"] {
        assert_oauth_error(refresh(&server, &client, wrong), 400, "invalid_grant").await;
    }
    refreshed(&server, &client, token).await;
    let without = server.post("/oauth2/token", &client, &[("grant_type", "refresh_token")]);
    assert_oauth_error(without, 400, "invalid_request").await;
}

#[tokio::test]
async fn a_session_ends_by_age_however_often_it_is_refreshed() {
    let server = Server::start().await;
    let client = client(&server).await;
    let body = json!({ "subject": "alice", "client_id": client.id, "lifetime_seconds": 1 });
    let (_, opened) = answer(server.admin("POST", "/admin/v1/sessions").json(&body)).await;
    assert!(opened["expires_in"].as_u64().unwrap() <= 1, "an access token ends with its session");
    let mut newest = text(&opened, "refresh_token").to_owned();
    loop {
        let (status, body) = answer(refresh(&server, &client, &newest)).await;
        if status != 200 {
            assert_eq!((status, text(&body, "error")), (400, "invalid_grant"));
            break;
        }
        newest = text(&body, "refresh_token").to_owned();
    }
    assert_eq!(
        session(&server, text(&opened, "id")).await["status"],
        "active",
        "time leaves no trace in its row"
    );
}

#[tokio::test]
async fn a_session_ends_by_idleness() {
    let server = Server::start().await;
    let client = client(&server).await;
    let body = json!({ "subject": "alice", "client_id": client.id, "idle_seconds": 1 });
    let (_, opened) = answer(server.admin("POST", "/admin/v1/sessions").json(&body)).await;
    let until = opened["idle_expires_at"].as_i64().unwrap();
    while crate::keys::now() * 1_000 <= until {
        tokio::task::yield_now().await;
    }
    assert_oauth_error(refresh(&server, &client, text(&opened, "refresh_token")), 400, "invalid_grant").await;
}

#[tokio::test]
async fn a_refresh_keeps_the_sessions_own_idle_time() {
    let server = Server::start().await;
    let client = client(&server).await;
    let body = json!({ "subject": "alice", "client_id": client.id, "idle_seconds": 600 });
    let (_, opened) = answer(server.admin("POST", "/admin/v1/sessions").json(&body)).await;
    let (status, refreshed) = answer(refresh(&server, &client, text(&opened, "refresh_token"))).await;
    assert_eq!(status, 200, "{refreshed}");
    let session = session(&server, text(&opened, "id")).await;
    let idle = |from: &str| session["idle_expires_at"].as_i64().unwrap() - session[from].as_i64().unwrap();
    assert_eq!((session["generation"].clone(), idle("refreshed_at")), (json!(2), 600_000), "{session}");
}

/// RFC 7009 §2.1: revoking a refresh token ends the access tokens of the same grant.
#[tokio::test]
async fn revoking_a_refresh_token_ends_its_access_tokens() {
    let server = Server::start().await;
    let (client, other) = (client(&server).await, client(&server).await);
    let opened = open(&server, &client, "alice").await;
    let (token, access) = (text(&opened, "refresh_token"), text(&opened, "access_token"));
    let revoke = |client| server.post("/oauth2/revoke", client, &[("token", token)]);
    assert_oauth_error(revoke(&other), 400, "invalid_grant").await;
    assert!(server.is_active(&client, access).await);
    for _ in 0..2 {
        assert_eq!(answer(revoke(&client)).await.0, 200);
    }
    assert!(!server.is_active(&client, access).await && !server.is_active(&client, token).await);
    assert_oauth_error(refresh(&server, &client, token), 400, "invalid_grant").await;
}

#[tokio::test]
async fn a_revocation_of_any_scope_wins_over_a_refresh() {
    let server = Server::start().await;
    let client = client(&server).await;
    for kind in ["session", "subject", "client", "realm", "issuer"] {
        let opened = open(&server, &client, "alice").await;
        let selector = match kind {
            "session" => json!({ "session": opened["id"] }),
            "subject" => json!({ "subject": "alice" }),
            "client" => json!({ "client": client.id }),
            "realm" => json!({ "realm": "default" }),
            _ => json!({ "issuer": crate::harness::ISSUER }),
        };
        server.revoke(json!({ "selector": selector })).await;
        let token = text(&opened, "refresh_token");
        assert_oauth_error(refresh(&server, &client, token), 400, "invalid_grant").await;
        assert!(!server.is_active(&client, text(&opened, "access_token")).await, "{kind}");
    }
    // What is opened afterwards lives.
    let opened = open(&server, &client, "alice").await;
    refreshed(&server, &client, text(&opened, "refresh_token")).await;
}

/// Whatever comes first, a revocation that has returned has no token live behind it.
#[tokio::test]
async fn refreshes_that_race_an_end_leave_nothing_alive() {
    let server = Server::start().await;
    let client = client(&server).await;
    for _ in 0..8 {
        let opened = open(&server, &client, "alice").await;
        let token = text(&opened, "refresh_token").to_owned();
        let end = answer(server.admin("DELETE", &format!("/admin/v1/sessions/{}", text(&opened, "id"))));
        let refreshes = futures::future::join_all((0..4).map(|_| answer(refresh(&server, &client, &token))));
        let ((status, _), refreshes) = futures::future::join(end, refreshes).await;
        assert_eq!(status, 200);
        for (_, body) in refreshes.iter().filter(|(status, _)| *status == 200) {
            assert!(!server.is_active(&client, text(body, "access_token")).await);
            let successor = text(body, "refresh_token");
            assert_oauth_error(refresh(&server, &client, successor), 400, "invalid_grant").await;
        }
    }
}

#[tokio::test]
async fn a_disabled_client_or_subject_gets_nothing() {
    let server = Server::start().await;
    let client = client(&server).await;
    let opened = open(&server, &client, "alice").await;
    let token = text(&opened, "refresh_token");
    let disable = json!({ "subject": "alice", "reason": "left" });
    assert_eq!(answer(server.admin("POST", "/admin/v1/subjects/disable").json(&disable)).await.0, 200);
    assert_oauth_error(refresh(&server, &client, token), 400, "invalid_grant").await;
    let body = json!({ "subject": "alice", "client_id": client.id });
    assert_problem(server.admin("POST", "/admin/v1/sessions").json(&body), 409).await;
    let (_, listed) = answer(server.admin("GET", "/admin/v1/subjects/disabled")).await;
    assert_eq!(listed["items"][0]["subject"], "alice");
    let enable = server.admin("POST", "/admin/v1/subjects/enable").json(&json!({ "subject": "alice" }));
    assert_eq!(answer(enable).await.0, 204);
    assert_oauth_error(refresh(&server, &client, token), 400, "invalid_grant").await;

    let opened = open(&server, &client, "alice").await;
    let path = format!("/admin/v1/clients/{}", client.id);
    assert_eq!(answer(server.admin("PATCH", &path).json(&json!({ "status": "disabled" }))).await.0, 200);
    let token = text(&opened, "refresh_token");
    assert_oauth_error(refresh(&server, &client, token), 401, "invalid_client").await;
    assert_problem(server.admin("POST", "/admin/v1/sessions").json(&body), 422).await;
    // Enabled again, it has to ask its subjects again.
    assert_eq!(answer(server.admin("PATCH", &path).json(&json!({ "status": "active" }))).await.0, 200);
    assert_oauth_error(refresh(&server, &client, token), 400, "invalid_grant").await;
}

#[tokio::test]
async fn sessions_of_a_subject_are_listed_and_ended_together() {
    let server = Server::start().await;
    let client = client(&server).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(text(&open(&server, &client, "al ice/é").await, "id").to_owned());
    }
    open(&server, &client, "bob").await;
    ids.sort();
    let list =
        |query: &str| server.admin("GET", &format!("/admin/v1/sessions?subject=al%20ice%2F%C3%A9{query}"));
    let (_, first) = answer(list("&limit=2")).await;
    let (_, rest) = answer(list(&format!("&after={}", text(&first, "next")))).await;
    let items = |page: &Value| {
        page["items"].as_array().unwrap().iter().map(|s| text(s, "id").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!([items(&first), items(&rest)].concat(), ids);
    let body = json!({ "subject": "al ice/é" });
    assert_eq!(answer(server.admin("POST", "/admin/v1/sessions/end").json(&body)).await.0, 200);
    let (_, all) = answer(list("")).await;
    assert!(all["items"].as_array().unwrap().iter().all(|session| session["status"] == "ended"));
}

#[tokio::test]
async fn what_cannot_be_opened_names_its_fields() {
    let server = Server::start().await;
    let client = client(&server).await;
    let other = server.client().await;
    for (body, field) in [
        (json!({ "subject": "", "client_id": client.id }), "subject"),
        (json!({ "subject": "a", "client_id": "none" }), "client_id"),
        (json!({ "subject": "a", "client_id": other.id }), "client_id"),
        (json!({ "subject": "a", "client_id": client.id, "scopes": ["admin"] }), "scopes"),
        (json!({ "subject": "a", "client_id": client.id, "audiences": ["x"] }), "audiences"),
        (json!({ "subject": "a", "client_id": client.id, "claims": { "sub": "b" } }), "claims.sub"),
        (json!({ "subject": "a", "client_id": client.id, "dpop_jkt": "x" }), "dpop_jkt"),
        (json!({ "subject": "a", "client_id": client.id, "idle_seconds": 0 }), "idle_seconds"),
    ] {
        let problem = assert_problem(server.admin("POST", "/admin/v1/sessions").json(&body), 422).await;
        assert_eq!(problem["errors"][0]["field"], field, "{body}");
    }
    assert_problem(server.admin("GET", "/admin/v1/sessions/none"), 404).await;
    assert_problem(server.admin("DELETE", "/admin/v1/sessions/none"), 404).await;
}

/// RFC 9700 §2.2.2: a public client's refresh tokens rotate, and it must name itself.
#[tokio::test]
async fn a_public_client_refreshes_without_a_secret() {
    let server = Server::start().await;
    let fields = json!({
        "client_id": "app", "token_endpoint_auth_method": "none", "grant_types": ["refresh_token"],
        "audiences": ["api"],
    });
    let (status, made) = answer(server.admin("POST", "/admin/v1/clients").json(&fields)).await;
    assert_eq!(status, 201, "{made}");
    assert!(made.get("client_secret").is_none());
    let body = json!({ "subject": "alice", "client_id": "app", "claims": { "roles": ["a"] } });
    let (_, opened) = answer(server.admin("POST", "/admin/v1/sessions").json(&body)).await;
    assert_eq!(part(text(&opened, "access_token"), 1)["roles"], json!(["a"]));
    let form = format!("grant_type=refresh_token&refresh_token={}", text(&opened, "refresh_token"));
    assert_oauth_error(server.form("/oauth2/token", &form), 401, "invalid_client").await;
    let (status, body) = answer(server.form("/oauth2/token", &format!("{form}&client_id=app"))).await;
    assert_eq!(status, 200, "{body}");
    let grant = server.form("/oauth2/token", "grant_type=client_credentials&client_id=app");
    assert_oauth_error(grant, 400, "unauthorized_client").await;
}
