//! ext_authz over HTTP: the answer's status decides: 200 lets the request through with the identity headers, anything else
//! goes to the client. Envoy asks with the original request's own method, path and headers; other gateways ask with a
//! request of their own that tells them in headers.
//!
//! Envoy takes a 5xx answer here for a failure of ours, which `failure_mode_allow` lets through, and nginx answers 500 to its
//! client. So what gRPC refuses with 503 is 403 here, unless the configuration says that the gateway hands a 503 on.

use std::borrow::Cow;
use std::sync::Arc;

use atm_core::decision::{Decision, Permit};
use atm_core::policy::CredentialSource;
use atm_core::request::{CertificateSource, Request};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::uri::{Authority, PathAndQuery};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, request::Parts};

use super::{Judge, identity, response};
use crate::config::{HttpSettings, OriginalRequest};

#[cfg(test)]
mod tests;

/// Tells Envoy which of the client's headers must not reach the upstream.
const REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// The service: every path and method is a check.
pub fn router(judge: Arc<Judge>, settings: HttpSettings) -> Router {
    Router::new().fallback(check).with_state((judge, Arc::new(settings)))
}

async fn check(
    State((judge, settings)): State<(Arc<Judge>, Arc<HttpSettings>)>,
    parts: Parts,
) -> Response<Body> {
    let original = &settings.original;
    let headers: Vec<(&str, &[u8])> =
        parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let Some(Line { method, host, target }) = Line::of(&parts, original) else {
        return answer(&Request::default(), &judge.unreadable(), &settings);
    };
    let forwarded = original.trust_forwarded;
    let request = Request {
        method,
        scheme: if forwarded { only(&parts.headers, &["x-forwarded-proto"]).unwrap_or_default() } else { "" },
        host,
        target,
        headers: &headers,
        extensions: &[],
        // The nearest hop is the last one; those before it are what clients say.
        source_address: forwarded.then(|| nearest_hop(&parts.headers)).flatten(),
        certificate: if judge.trusts_forwarded_certificate() {
            CertificateSource::ForwardedHeader
        } else {
            CertificateSource::None
        },
    };
    let decision = judge.judge(&request).await;
    answer(&request, &decision, &settings)
}

fn nearest_hop(headers: &HeaderMap) -> Option<&str> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
    last.rsplit(',').next().map(str::trim).filter(|address| !address.is_empty())
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

fn answer(request: &Request<'_>, decision: &Decision, settings: &HttpSettings) -> Response<Body> {
    match decision {
        Decision::Permit(permit) => permitted(request, permit),
        Decision::Denial(denial) => {
            let status = StatusCode::from_u16(denial.reason.status()).unwrap_or(StatusCode::FORBIDDEN);
            let status = if status.is_server_error() { settings.unavailable } else { status };
            let mut answer = Response::new(Body::from(response::body(request, denial, status.as_u16())));
            *answer.status_mut() = status;
            for (name, value) in response::headers(denial) {
                insert(&mut answer, name, &value);
            }
            answer
        }
    }
}

fn permitted(request: &Request<'_>, permit: &Permit) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    let mut remove = Vec::new();
    let fixed = identity::HEADERS.into_iter().zip(identity::values(permit));
    let from_claims = identity::from_claims(permit).map(|(name, value)| (name, value.map(Cow::Owned)));
    for (name, value) in fixed.chain(from_claims) {
        if value.is_none() {
            remove.push(name);
        }
        // Gateways other than Envoy can only be told to copy: an empty value replaces the client's.
        insert(&mut answer, name, value.as_deref().unwrap_or_default());
    }
    for source in permit.stripped() {
        match source {
            CredentialSource::Scheme { header, .. } | CredentialSource::Header { header, .. } => {
                remove.push(header);
            }
            CredentialSource::Cookie(name) => match identity::without_cookie(request, name) {
                Some(rest) => insert(&mut answer, "cookie", &rest),
                None => remove.push("cookie"),
            },
            // There is no way to say it over HTTP; the documentation says so.
            CredentialSource::Query(_) => {}
        }
    }
    remove.dedup();
    if let Ok(remove) = HeaderValue::from_str(&remove.join(", ")) {
        answer.headers_mut().insert(REMOVE, remove);
    }
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn insert(answer: &mut Response<Body>, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
        answer.headers_mut().insert(name, value);
    }
}
