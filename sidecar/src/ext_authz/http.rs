//! ext_authz over HTTP: the answer's status decides: 200 lets the request through with the identity headers, anything else
//! goes to the client. Envoy asks with the original request's own method, path and headers; other gateways ask with a
//! request of their own that tells them in headers.
//!
//! Envoy takes a 5xx answer here for a failure of ours, which `failure_mode_allow` lets through; over gRPC it does not.

use std::sync::Arc;

use atm_core::decision::{Decision, Permit};
use atm_core::request::Request;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::uri::{Authority, PathAndQuery};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, request::Parts};

use super::{Judge, identity, response};
use crate::config::OriginalRequest;

#[cfg(test)]
mod tests;

/// Tells Envoy which of the client's headers must not reach the upstream.
const REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// The service: every path and method is a check.
pub fn router(judge: Arc<Judge>, original: OriginalRequest) -> Router {
    Router::new().fallback(check).with_state((judge, Arc::new(original)))
}

async fn check(
    State((judge, original)): State<(Arc<Judge>, Arc<OriginalRequest>)>,
    parts: Parts,
) -> Response<Body> {
    let headers: Vec<(&str, &[u8])> =
        parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let decision = match Line::of(&parts, &original) {
        Some(Line { method, host, target }) => {
            judge.judge(&Request { method, host, target, headers: &headers, extensions: &[] })
        }
        None => judge.unreadable(),
    };
    answer(&decision)
}

/// Method, host and target of the request to be judged.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    method: &'a str,
    host: &'a str,
    target: &'a str,
}

impl<'a> Line<'a> {
    /// `None` where the gateway does not say, or says two things.
    fn of(parts: &'a Parts, original: &OriginalRequest) -> Option<Self> {
        if original.trust_forwarded {
            return Self::forwarded(&parts.headers);
        }
        let host = match parts.uri.authority() {
            Some(authority) => Authority::as_str(authority),
            None => only(&parts.headers, &["host"])?,
        };
        let target = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
        let target = match original.path_prefix.as_deref() {
            None => target,
            // Whatever does not begin with it did not come from the gateway that puts it there.
            Some(prefix) => {
                target.strip_prefix(prefix.trim_end_matches('/')).filter(|rest| rest.starts_with('/'))?
            }
        };
        Some(Self { method: parts.method.as_str(), host, target })
    }

    fn forwarded(headers: &'a HeaderMap) -> Option<Self> {
        Some(Self {
            method: only(headers, &["x-forwarded-method", "x-original-method"])?,
            host: only(headers, &["x-forwarded-host"])?,
            target: only(headers, &["x-forwarded-uri", "x-original-uri"])?,
        })
    }
}

/// The one value that headers of these names have; `None` where there is none, or two that differ.
fn only<'a>(headers: &'a HeaderMap, names: &[&str]) -> Option<&'a str> {
    let mut values = names.iter().flat_map(|name| headers.get_all(*name));
    let first = values.next()?;
    if values.any(|value| value != first) { None } else { first.to_str().ok() }
}

fn answer(decision: &Decision) -> Response<Body> {
    match decision {
        Decision::Permit(permit) => permitted(permit),
        Decision::Denial(denial) => {
            let mut answer = Response::new(Body::from(response::body(denial)));
            *answer.status_mut() =
                StatusCode::from_u16(denial.reason.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            for (name, value) in response::headers(denial) {
                insert(&mut answer, name, &value);
            }
            answer
        }
    }
}

fn permitted(permit: &Permit) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    let mut remove = Vec::new();
    for (name, value) in identity::HEADERS.into_iter().zip(identity::values(permit)) {
        if value.is_none() {
            remove.push(name);
        }
        // Gateways other than Envoy can only be told to copy: an empty value replaces the client's.
        insert(&mut answer, name, value.as_deref().unwrap_or_default());
    }
    if !permit.forward_token {
        remove.push(&permit.credential_header);
    }
    if let Ok(remove) = HeaderValue::from_str(&remove.join(", ")) {
        answer.headers_mut().insert(REMOVE, remove);
    }
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn insert(answer: &mut Response<Body>, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(HeaderName::from_static(name), value);
    }
}
