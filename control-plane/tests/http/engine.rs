//! The revocation engine through the admin API: files, schedules, previews, «everything before».

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Server, answer, assert_problem};

fn now_ms() -> i64 {
    i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

#[tokio::test]
async fn a_part_of_a_file_that_comes_again_changes_nothing() {
    let server = Server::start().await;
    let tokens: Vec<Value> = (0..500)
        .map(|number| json!({ "jti": format!("j{number}"), "expires_at": 4_000_000_000_i64 }))
        .collect();
    let body = json!({ "tokens": tokens, "reason": "leak" });
    let part = || server.admin("PUT", "/admin/v1/revocations/batches/file-1/0").json(&body);
    let (status, first) = answer(part()).await;
    assert_eq!((status, &first["revoked"]), (200, &json!(500)), "{first}");
    let (_, again) = answer(part()).await;
    assert_eq!(again["revision"], first["revision"]);
    let (_, progress) = answer(server.admin("GET", "/admin/v1/revocations/batches/file-1")).await;
    assert_eq!(
        (&progress["parts"], &progress["revoked"], &progress["next"]),
        (&json!(1), &json!(500), &json!(1))
    );
    let (_, list) = answer(server.admin("GET", "/admin/v1/revocations?reason=leak")).await;
    let records = list["items"].as_array().unwrap();
    assert_eq!((records.len(), &records[0]["number"]), (1, &json!(500)), "one record a file: {list}");
    assert_problem(server.admin("PUT", "/admin/v1/revocations/batches/a%20b/0").json(&body), 422).await;
    let (_, unknown) = answer(server.admin("GET", "/admin/v1/revocations/batches/other")).await;
    assert_eq!(unknown["next"], 0);
}

#[tokio::test]
async fn everything_before_an_instant_ends_and_later_tokens_live() {
    let server = Server::start().await;
    let client = server.client().await;
    let old = server.token(&client).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let between = now_ms();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let new = server.token(&client).await;
    server.revoke(json!({ "selector": { "client": client.id }, "before_ms": between })).await;
    assert!(!server.is_active(&client, &old).await);
    assert!(server.is_active(&client, &new).await);
    for bad in [
        json!({ "selector": { "client": "c" }, "before_ms": now_ms() + 60_000 }),
        json!({ "selector": { "token": { "jti": "j" } }, "before_ms": between }),
    ] {
        let problem = assert_problem(server.admin("POST", "/admin/v1/revocations").json(&bad), 422).await;
        assert_eq!(problem["errors"][0]["field"], "before_ms", "{problem}");
    }
}

#[tokio::test]
async fn a_scheduled_revocation_is_carried_out_once_and_through_a_restart() {
    let server = Server::start().await;
    let client = server.client().await;
    let token = server.token(&client).await;
    let body =
        json!({ "selector": { "client": client.id }, "at_ms": now_ms() + 1_500, "reason": "contract ends" });
    let (status, scheduled) = answer(server.admin("POST", "/admin/v1/revocations").json(&body)).await;
    assert_eq!((status, &scheduled["status"]), (202, &json!("pending")), "{scheduled}");
    assert!(server.is_active(&client, &token).await);
    let server = server.restarted().await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.is_active(&client, &token).await {
        assert!(Instant::now() < deadline, "it is not carried out");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, done) = answer(server.admin("GET", "/admin/v1/revocations/scheduled?status=done")).await;
    assert_eq!(done["items"][0]["id"], scheduled["id"]);
    let (_, list) = answer(server.admin("GET", "/admin/v1/revocations?kind=client")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_withdrawn_revocation_does_not_happen() {
    let server = Server::start().await;
    let body = json!({ "selector": { "client": "c" }, "at_ms": now_ms() + 3_600_000 });
    let (_, scheduled) = answer(server.admin("POST", "/admin/v1/revocations").json(&body)).await;
    let path = format!("/admin/v1/revocations/scheduled/{}", scheduled["id"].as_str().unwrap());
    let (status, cancelled) = answer(server.admin("DELETE", &path)).await;
    assert_eq!((status, &cancelled["status"]), (200, &json!("cancelled")));
    assert_problem(server.admin("DELETE", &path), 404).await;
    let past = json!({ "selector": { "client": "c" }, "at_ms": 1 });
    assert_problem(server.admin("POST", "/admin/v1/revocations").json(&past), 422).await;
}

#[tokio::test]
async fn a_preview_counts_and_changes_nothing() {
    let server = Server::start().await;
    let client = server.client().await;
    let key = json!({ "subject": "robot", "scopes": [], "audiences": ["api"] });
    let (status, made) = answer(server.admin("POST", "/admin/v1/api-keys").json(&key)).await;
    assert_eq!(status, 201, "{made}");
    let preview = async |selector: Value| {
        let body = json!({ "selector": selector });
        let (status, preview) =
            answer(server.admin("POST", "/admin/v1/revocations/preview").json(&body)).await;
        assert_eq!(status, 200, "{preview}");
        preview
    };
    let subject = preview(json!({ "subject": "robot" })).await;
    assert_eq!((&subject["api_keys"], &subject["clients"]), (&json!(1), &json!(0)));
    assert_eq!(preview(json!({ "client": client.id })).await["clients"], 1);
    assert!(!subject["not_counted"].as_array().unwrap().is_empty(), "it says what it cannot know");
    let (_, list) = answer(server.admin("GET", "/admin/v1/revocations")).await;
    assert!(list["items"].as_array().unwrap().is_empty());
}
