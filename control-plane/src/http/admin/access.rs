//! Who may do what: every route of the admin API with its least role and what it is called in the audit chain.

use axum::http::Method;

use crate::admin_access::Role;
use crate::audit::Action;

/// What a route takes, and what is recorded of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    /// The least role.
    pub(super) role: Role,
    /// What is recorded; none: reading, or what the handler's own module records.
    pub(super) action: Option<Action>,
}

/// A route that is not in the table needs the highest role: forgetting a line opens nothing.
const UNLISTED: Access = Access { role: Role::Administrator, action: Some(Action::AdminRequest) };

use Role::{Administrator, Operator, SecurityOfficer, Viewer};

/// (method, path below `/admin/v1/`, least role, action).
#[rustfmt::skip]
const ROUTES: &[(&str, &str, Role, Option<Action>)] = &[
    ("GET", "clients", Viewer, None),
    ("POST", "clients", Operator, Some(Action::ClientCreated)),
    ("GET", "clients/{client_id}", Viewer, None),
    ("PATCH", "clients/{client_id}", Operator, Some(Action::ClientChanged)),
    ("DELETE", "clients/{client_id}", Operator, Some(Action::ClientDeleted)),
    ("POST", "clients/{client_id}/secret", Operator, Some(Action::ClientChanged)),
    ("DELETE", "clients/{client_id}/secret/previous", Operator, Some(Action::ClientChanged)),
    ("GET", "assertion-rules", Viewer, None),
    ("POST", "assertion-rules", SecurityOfficer, Some(Action::AdminRequest)),
    ("DELETE", "assertion-rules/{id}", SecurityOfficer, Some(Action::AdminRequest)),
    ("GET", "sessions", Viewer, None),
    ("POST", "sessions", Operator, None),
    ("GET", "sessions/{id}", Viewer, None),
    ("DELETE", "sessions/{id}", Operator, None),
    ("POST", "sessions/end", Operator, None),
    ("GET", "subjects/disabled", Viewer, None),
    ("POST", "subjects/disable", Operator, Some(Action::AdminRequest)),
    ("POST", "subjects/enable", Operator, Some(Action::AdminRequest)),
    ("GET", "api-keys", Viewer, None),
    ("POST", "api-keys", Operator, Some(Action::ApiKeyCreated)),
    ("GET", "api-keys/{id}", Viewer, None),
    ("PATCH", "api-keys/{id}", Operator, Some(Action::ApiKeyChanged)),
    ("DELETE", "api-keys/{id}", Operator, Some(Action::ApiKeyRevoked)),
    ("POST", "api-keys/{id}/rotate", Operator, Some(Action::ApiKeyChanged)),
    ("GET", "issuers", Viewer, None),
    ("POST", "issuers", SecurityOfficer, Some(Action::IssuerAdded)),
    ("GET", "issuers/{id}", Viewer, None),
    ("DELETE", "issuers/{id}", SecurityOfficer, Some(Action::IssuerRemoved)),
    ("POST", "issuers/{id}/refresh", Operator, Some(Action::IssuerRefreshed)),
    ("GET", "keys", Viewer, None),
    ("POST", "keys/rotate", SecurityOfficer, Some(Action::AdminRequest)),
    ("POST", "keys/rewrap", Administrator, Some(Action::KeysRewrapped)),
    ("POST", "keys/{kid}/compromise", SecurityOfficer, Some(Action::KeyCompromised)),
    ("GET", "receipts/{revision}", Viewer, None),
    ("GET", "realms", Viewer, None),
    ("POST", "realms", SecurityOfficer, Some(Action::RealmChanged)),
    ("GET", "realms/{realm}", Viewer, None),
    ("PATCH", "realms/{realm}", SecurityOfficer, Some(Action::RealmChanged)),
    ("GET", "revocations", Viewer, None),
    ("POST", "revocations", Operator, None),
    ("POST", "revocations/preview", Viewer, None),
    ("GET", "revocations/scheduled", Viewer, None),
    ("DELETE", "revocations/scheduled/{id}", Operator, None),
    ("GET", "revocations/batches/{batch}", Viewer, None),
    ("PUT", "revocations/batches/{batch}/{part}", Operator, None),
    ("PUT", "policies", SecurityOfficer, Some(Action::PoliciesApplied)),
    ("GET", "policies", Viewer, None),
    ("GET", "policies/{version}", Viewer, None),
    ("POST", "policies/rollback", SecurityOfficer, Some(Action::PoliciesApplied)),
    ("GET", "openapi.json", Viewer, None),
    ("GET", "fleet", Viewer, None),
    ("POST", "fleet/scrub", Operator, Some(Action::AdminRequest)),
    ("GET", "feed", Viewer, None),
    ("POST", "feed/keys", Administrator, Some(Action::AdminRequest)),
    ("GET", "whoami", Viewer, None),
    ("GET", "usage", Viewer, None),
    ("GET", "audit", SecurityOfficer, Some(Action::AuditRead)),
    ("GET", "audit/chains", SecurityOfficer, None),
    ("GET", "audit/export/{chain}", SecurityOfficer, None),
    ("GET", "audit/trace/{jti}", SecurityOfficer, Some(Action::AuditRead)),
];

/// What is below a realm: the realm's own router looks at the rest of the path by this same table.
const BELOW_A_REALM: &str = "/admin/v1/realms/{realm}/{*rest}";

/// What `method` on `path` (as it was routed) takes.
pub(super) fn of(method: &Method, path: &str) -> Access {
    if path == BELOW_A_REALM {
        return Access { role: Viewer, action: None };
    }
    find(method, path).unwrap_or(UNLISTED)
}

fn find(method: &Method, path: &str) -> Option<Access> {
    let path = path.strip_prefix("/admin/v1/")?;
    // A HEAD is a GET without its body.
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let (.., role, action) = ROUTES.iter().find(|(its, route, ..)| *its == method && *route == path)?;
    Some(Access { role: *role, action: *action })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `.route("/admin/v1/..", get(..).post(..))` of the router's source: a new route without a line here is found.
    fn routed() -> Vec<(String, String)> {
        let source = include_str!("../admin.rs");
        let mut routes = Vec::new();
        for part in source.split(".route(").skip(1) {
            let path = part.split('"').nth(1).unwrap().to_owned();
            // Up to the parenthesis that closes `.route(`.
            let mut depth = 1;
            let end = part
                .char_indices()
                .find(|(_, character)| {
                    match character {
                        '(' => depth += 1,
                        ')' => depth -= 1,
                        _ => {}
                    }
                    depth == 0
                })
                .map_or(part.len(), |(at, _)| at);
            for method in ["get", "post", "put", "patch", "delete"] {
                let call = format!("{method}(");
                let called = part[..end].match_indices(&call).any(|(at, _)| {
                    !part[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':')
                });
                if called {
                    routes.push((method.to_uppercase(), path.clone()));
                }
            }
        }
        routes
    }

    #[test]
    fn every_route_has_its_least_role_and_no_line_is_left_over() {
        let routes = routed();
        let api: Vec<_> = routes.iter().filter(|(_, path)| path.starts_with("/admin/v1/")).collect();
        assert!(api.len() >= ROUTES.len(), "{api:?}");
        for (method, path) in &api {
            let method = method.parse().unwrap();
            assert!(find(&method, path).is_some(), "{method} {path} has no line in the table of access.rs");
        }
        for (method, path, ..) in ROUTES {
            let path = format!("/admin/v1/{path}");
            assert!(api.contains(&&((*method).to_owned(), path.clone())), "{method} {path} is no route");
        }
    }

    #[test]
    fn what_changes_something_is_for_no_viewer_and_what_is_unknown_for_nobody_else() {
        for (method, path, role, _) in ROUTES {
            let changes = *method != "GET" && !path.ends_with("/preview");
            assert!(!changes || *role > Viewer, "{method} {path}");
        }
        assert_eq!(of(&Method::POST, "/admin/v1/new").role, Administrator);
        assert_eq!(of(&Method::HEAD, "/admin/v1/clients").role, Viewer);
    }
}
