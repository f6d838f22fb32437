//! Admin credentials and their roles, over every route.

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::harness::{Server, answer, assert_problem};

const ROLES: [&str; 4] = ["viewer", "operator", "security_officer", "administrator"];

fn credentials() -> String {
    let lines = ROLES.map(|role| {
        let hash = hex::encode(digest(&SHA256, format!("token-of-{role}").as_bytes()));
        format!("- {{ name: {role}-ann, role: {role}, tokenSha256: {hash} }}\n")
    });
    format!("credentials:\n{}", lines.concat())
}

/// A control plane with one credential of each role.
async fn server() -> Server {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), credentials()).unwrap();
    // Kept: the control plane looks at it again and again.
    let (_, path) = file.keep().unwrap();
    Server::with_admin(&format!(", credentialsFile: {}", path.display())).await
}

async fn status(server: &Server, role: &str, method: &str, path: &str) -> u16 {
    let url = format!("http://{}{path}", server.app.bound().admin);
    let request = server.http.request(method.parse().unwrap(), url).bearer_auth(format!("token-of-{role}"));
    request.json(&json!({})).send().await.unwrap().status().as_u16()
}

/// (method, path with its parameters filled in, least role).
const ROUTES: [(&str, &str, &str); 22] = [
    ("GET", "/admin/v1/clients", "viewer"),
    ("POST", "/admin/v1/clients", "operator"),
    ("GET", "/admin/v1/clients/x", "viewer"),
    ("PATCH", "/admin/v1/clients/x", "operator"),
    ("DELETE", "/admin/v1/clients/x", "operator"),
    ("GET", "/admin/v1/api-keys", "viewer"),
    ("POST", "/admin/v1/api-keys", "operator"),
    ("GET", "/admin/v1/issuers", "viewer"),
    ("POST", "/admin/v1/issuers", "security_officer"),
    ("GET", "/admin/v1/keys", "viewer"),
    ("POST", "/admin/v1/keys/x/compromise", "security_officer"),
    ("POST", "/admin/v1/keys/rewrap", "administrator"),
    ("GET", "/admin/v1/revocations", "viewer"),
    ("POST", "/admin/v1/revocations", "operator"),
    ("POST", "/admin/v1/revocations/preview", "viewer"),
    ("DELETE", "/admin/v1/revocations/scheduled/x", "operator"),
    ("PUT", "/admin/v1/policies", "security_officer"),
    ("GET", "/admin/v1/policies", "viewer"),
    ("GET", "/admin/v1/fleet", "viewer"),
    ("GET", "/admin/v1/audit", "security_officer"),
    ("GET", "/admin/v1/audit/chains", "security_officer"),
    ("GET", "/admin/v1/whoami", "viewer"),
];

#[tokio::test]
async fn every_route_takes_its_least_role_and_those_above() {
    let server = server().await;
    for (method, path, least) in ROUTES {
        let least = ROLES.iter().position(|role| *role == least).unwrap();
        for (rank, role) in ROLES.iter().enumerate() {
            let found = status(&server, role, method, path).await;
            assert_eq!(found == 403, rank < least, "{method} {path} as {role}: {found}");
            assert_ne!(found, 401, "{method} {path} as {role}");
        }
    }
}

#[tokio::test]
async fn a_refusal_names_both_roles_and_is_recorded() {
    let server = server().await;
    let url = format!("http://{}/admin/v1/policies", server.app.bound().admin);
    let request = server.http.put(url).bearer_auth("token-of-viewer").json(&json!({ "documents": [] }));
    let problem = assert_problem(request, 403).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("viewer-ann") && detail.contains("security_officer"), "{detail}");
    let recorded = async {
        loop {
            let (_, page) = answer(server.admin("GET", "/admin/v1/audit?action=admin.refused")).await;
            if let Some(event) = page["items"].as_array().unwrap().first().cloned() {
                return event;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let event: Value = tokio::time::timeout(std::time::Duration::from_secs(20), recorded).await.unwrap();
    assert_eq!(event["actor"]["id"], "viewer-ann");
    assert_eq!(event["detail"]["request"], "PUT /admin/v1/policies");
}

#[tokio::test]
async fn a_credential_says_who_it_is() {
    let server = server().await;
    let url = format!("http://{}/admin/v1/whoami", server.app.bound().admin);
    let (status, holder) = answer(server.http.get(url).bearer_auth("token-of-operator")).await;
    assert_eq!((status, &holder["name"], &holder["role"]), (200, &json!("operator-ann"), &json!("operator")));
}

#[tokio::test]
async fn below_a_realm_the_roles_are_the_same_and_what_is_changed_is_recorded_of_it() {
    let server = server().await;
    let (made, body) =
        answer(server.admin("POST", "/admin/v1/realms").json(&json!({ "name": "shop" }))).await;
    assert_eq!(made, 201, "{body}");
    for (method, path, least) in [
        ("GET", "clients", "viewer"),
        ("POST", "clients", "operator"),
        ("POST", "revocations", "operator"),
        ("POST", "keys/x/compromise", "security_officer"),
    ] {
        let path = format!("/admin/v1/realms/shop/{path}");
        let least = ROLES.iter().position(|role| *role == least).unwrap();
        for (rank, role) in ROLES.iter().enumerate() {
            let found = status(&server, role, method, &path).await;
            assert_eq!(found == 403, rank < least, "{method} {path} as {role}: {found}");
        }
        let url = format!("http://{}{path}", server.app.bound().admin);
        let unknown = server.http.request(method.parse().unwrap(), url).send().await.unwrap();
        assert_eq!(unknown.status(), 401, "{method} {path} without a credential");
    }
    let client = json!({ "client_id": "c1", "scopes": [], "audiences": ["api"] });
    let made = answer(server.admin("POST", "/admin/v1/realms/shop/clients").json(&client)).await;
    assert_eq!(made.0, 201, "{}", made.1);
    let query = "/admin/v1/audit?action=client.created&realm=shop&outcome=success";
    let (_, page) = answer(server.admin("GET", query)).await;
    assert_eq!(page["items"][0]["client"], "c1", "the newest: {page}");
    let later = json!({ "selector": { "client": "c1" }, "at_ms": 4_000_000_000_000_i64 });
    let refused = server.admin("POST", "/admin/v1/realms/shop/revocations").json(&later);
    assert_eq!(assert_problem(refused, 422).await["errors"][0]["field"], "at_ms");
}
