//! A decision as Envoy's `CheckResponse`.
//!
//! Only `status` decides, and an unset one means allow: every refusal here sets it, and no refusal is a gRPC error, which
//! Envoy may be told to let through.

use atm_core::decision::{Decision, Denial, Permit};
use atm_core::reason::Reason;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use envoy_types::pb::google::rpc::Status;

use super::identity;

/// The answer to a check.
pub(super) fn check_response(decision: &Decision) -> CheckResponse {
    match decision {
        Decision::Permit(permit) => permitted(permit),
        Decision::Denial(denial) => denied(denial),
    }
}

/// The body of a refusal: a problem document (RFC 9457) with the reason.
pub(super) fn body(denial: &Denial) -> String {
    let reason = denial.reason;
    let detail = denial.detail.as_deref().unwrap_or(reason.description());
    serde_json::json!({
        "type": "about:blank",
        "title": title(reason.status()),
        "status": reason.status(),
        "reason": reason.as_str(),
        "detail": detail,
    })
    .to_string()
}

/// The headers of a refusal. The challenge follows RFC 6750 §3: no error code where no credential was sent.
pub(super) fn headers(denial: &Denial) -> Vec<(&'static str, String)> {
    let reason = denial.reason;
    let mut headers = vec![
        ("content-type", "application/problem+json".to_owned()),
        ("cache-control", "no-store".to_owned()),
        ("x-atm-reason", reason.as_str().to_owned()),
    ];
    let challenged = reason.status() == 401 || reason.error().is_some();
    if challenged {
        let mut challenge = "Bearer realm=\"atm\"".to_owned();
        if let Some(error) = reason.error() {
            let description = reason.description();
            challenge = format!("{challenge}, error=\"{error}\", error_description=\"{description}\"");
        }
        if !denial.scope.is_empty() {
            challenge = format!("{challenge}, scope=\"{}\"", denial.scope.join(" "));
        }
        headers.push(("www-authenticate", challenge));
    }
    headers
}

fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        _ => "Service Unavailable",
    }
}

fn permitted(permit: &Permit) -> CheckResponse {
    let mut set = Vec::with_capacity(identity::HEADERS.len());
    let mut remove = Vec::new();
    for (name, value) in identity::HEADERS.into_iter().zip(identity::values(permit)) {
        match value {
            Some(value) => set.push(header(name, value)),
            None => remove.push(name.to_owned()),
        }
    }
    if !permit.forward_token {
        remove.push(permit.credential_header.to_string());
    }
    CheckResponse {
        status: Some(Status { code: 0, ..Status::default() }),
        dynamic_metadata: Some(metadata(permit)),
        http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
            headers: set,
            headers_to_remove: remove,
            ..OkHttpResponse::default()
        })),
    }
}

fn denied(denial: &Denial) -> CheckResponse {
    let reason = denial.reason;
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let mut fields = std::collections::HashMap::from([("reason".to_owned(), text(reason.as_str()))]);
    if let Some(policy) = &denial.policy {
        fields.insert("policy".to_owned(), text(policy));
    }
    CheckResponse {
        status: Some(Status { code: code(reason), message: reason.as_str().to_owned(), ..Status::default() }),
        dynamic_metadata: Some(Struct { fields }),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code: i32::from(reason.status()) }),
            headers: headers(denial).into_iter().map(|(name, value)| header(name, value)).collect(),
            body: body(denial),
        })),
    }
}

/// gRPC's code (google.rpc.Code) for a refusal: UNAUTHENTICATED or PERMISSION_DENIED, never 0. The HTTP status beside it
/// says more, and Envoy derives from it what a gRPC caller sees.
fn code(reason: Reason) -> i32 {
    if reason.status() == 401 { 16 } else { 7 }
}

fn header(name: &str, value: String) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value, ..HeaderValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

fn metadata(permit: &Permit) -> Struct {
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let mut fields = std::collections::HashMap::from([
        ("policy".to_owned(), text(&permit.policy)),
        ("rule".to_owned(), text(&permit.rule_name)),
        ("reason".to_owned(), text("permit")),
        ("freshness".to_owned(), text(permit.freshness.as_str())),
    ]);
    if let Some(token) = &permit.token {
        let claims = &token.claims;
        let mut add = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                fields.insert(name.to_owned(), text(value));
            }
        };
        add("subject", Some(&claims.subject));
        add("client_id", claims.client_id.as_deref());
        add("issuer", Some(&claims.issuer));
        add("jti", claims.jti.as_deref());
        add("session", claims.session.as_deref());
        add("scope", Some(&claims.scope.join(" ")));
    }
    Struct { fields }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_refusal_reads_as_an_allow() {
        for reason in Reason::ALL {
            let response = check_response(&Decision::Denial(Denial::new(*reason)));
            assert_ne!(response.status.unwrap().code, 0, "{reason:?}");
            let Some(HttpResponse::DeniedResponse(denied)) = response.http_response else {
                panic!("{reason:?}")
            };
            assert_eq!(denied.status.unwrap().code, i32::from(reason.status()));
            let body: serde_json::Value = serde_json::from_str(&denied.body).unwrap();
            assert_eq!(body["reason"], reason.as_str());
        }
    }

    #[test]
    fn a_challenge_names_an_error_only_where_a_credential_was_sent() {
        let challenge = |reason| {
            let headers = headers(&Denial::new(reason));
            headers.into_iter().find(|(name, _)| *name == "www-authenticate").map(|(_, value)| value)
        };
        assert_eq!(challenge(Reason::CredentialMissing).unwrap(), "Bearer realm=\"atm\"");
        assert!(challenge(Reason::Expired).unwrap().contains("error=\"invalid_token\""));
        assert!(challenge(Reason::Stale).is_none());
    }
}
