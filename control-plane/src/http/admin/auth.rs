//! Who may use the admin API, and what is recorded of it.

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::header::{AUTHORIZATION, LOCATION};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::{self, Access};
use crate::admin_access::Holder;
use crate::audit::{Action, Actor, Event, scoped_actor};
use crate::http::Shared;
use crate::http::problem::Problem;

/// Lets holders of a sufficient role through, and records what they changed.
pub(super) async fn require(
    State(services): State<Shared>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let path = path.unwrap_or_default();
    let Access { role, action } = access::of(&method, &path);
    let refused = |event: Event, reason: &str| {
        services.audit.record(event.detail("request", format!("{method} {path}")).refused(reason));
    };
    let Some(holder) = holder(&services, request.headers()) else {
        refused(Event::of(Action::AdminRefused), "no valid credential");
        let detail = "give an admin token as Authorization: Bearer";
        return Problem::new(StatusCode::UNAUTHORIZED, detail).into_response();
    };
    scoped_actor(Actor::admin(&holder.name));
    // What is not routed is answered with 404 to everyone who has a credential.
    if holder.role < role && !path.is_empty() {
        refused(Event::of(Action::AdminRefused), "the role does not suffice");
        let (least, role) = (role.as_str(), holder.role.as_str());
        let detail = format!("{} has the role {role}; this takes {least} or more", holder.name);
        return Problem::new(StatusCode::FORBIDDEN, detail).into_response();
    }
    let described = |action| describe(action, &method, &path, params.as_ref().ok());
    let mut event = action.map(|action| in_realm(described(action), &path, services.realm()));
    let mut request = request;
    request.extensions_mut().insert(holder);
    let response = next.run(request).await;
    if let Some(event) = event.take() {
        services.audit.written(concluded(event, action, &response)).await;
    }
    response
}

fn holder(services: &Shared, headers: &HeaderMap) -> Option<Holder> {
    let mut authorizations = headers.get_all(AUTHORIZATION).iter();
    match (authorizations.next(), authorizations.next()) {
        (Some(value), None) => services.admin_access.holder(bearer(value.as_bytes())?),
        _ => None,
    }
}

/// The request, with what its path names.
fn describe(action: Action, method: &Method, path: &str, params: Option<&RawPathParams>) -> Event {
    let mut event = Event::of(action).detail("request", format!("{method} {path}"));
    for (name, value) in params.into_iter().flatten() {
        event = about(event, path, name, value);
    }
    event
}

/// In which realm it was done; one that is itself changed is named already.
fn in_realm(event: Event, path: &str, realm: &str) -> Event {
    if path.starts_with("/admin/v1/realms") { event } else { event.realm(realm) }
}

/// What `value` in the path is.
fn about(event: Event, path: &str, name: &str, value: &str) -> Event {
    let kind = path.trim_start_matches("/admin/v1/").split('/').next().unwrap_or_default();
    match (kind, name) {
        ("clients", "client_id") => event.client(value),
        ("api-keys", "id") => event.api_key(value),
        ("sessions", "id") => event.session(value),
        ("realms", "realm") => event.realm(value),
        ("keys", "kid") => event.key(value),
        ("audit", "jti") => event.token(value),
        _ => event.detail("id", value),
    }
}

/// How it ended, and what came into being.
fn concluded(event: Event, action: Option<Action>, response: &Response) -> Event {
    let status = response.status();
    let event = event.detail("status", status.as_u16());
    if status.is_server_error() {
        return event.failed(status.canonical_reason().unwrap_or("server error"));
    }
    if status.is_client_error() {
        return event.refused(status.canonical_reason().unwrap_or("client error"));
    }
    let made = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    match (made.and_then(|location| location.rsplit('/').next()), action) {
        (Some(id), Some(Action::ClientCreated)) => event.client(id),
        (Some(id), Some(Action::ApiKeyCreated)) => event.api_key(id),
        (Some(name), Some(Action::RealmChanged)) => event.realm(name),
        (Some(id), _) => event.detail("id", id),
        (None, _) => event,
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::bearer;

    #[test]
    fn only_a_bearer_credential_is_looked_at() {
        assert_eq!(bearer(b"bearer  abc"), Some(&b"abc"[..]));
        for other in [&b"Basic abc"[..], b"Bearer", b"abc", b""] {
            assert_eq!(bearer(other), None);
        }
    }
}
