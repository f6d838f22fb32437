//! A refusal as Envoy's `CheckResponse`, and what it says over HTTP; a permit is written by [`super::wire`].
//!
//! Only `status` decides, and an unset one means allow: every refusal here sets it, and no refusal is a gRPC error, which
//! Envoy may be told to let through.

use std::collections::HashMap;

use atm_core::decision::Denial;
use atm_core::key::Algorithm;
use atm_core::policy::BindingNeed;
use atm_core::reason::Reason;
use atm_core::request::Request;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};
use envoy_types::pb::google::rpc::Status;

/// The body of a refusal that is answered with `status`: a problem document (RFC 9457) with the reason. For a gRPC caller a sentence,
/// which Envoy makes the message of a gRPC status.
pub(super) fn body(request: &Request<'_>, denial: &Denial, status: u16) -> String {
    let reason = denial.reason;
    if request.header_values("content-type").any(|value| value.starts_with(b"application/grpc")) {
        return reason.description().to_owned();
    }
    let detail = denial.detail.as_deref().unwrap_or(reason.description());
    serde_json::json!({
        "type": "about:blank",
        "title": title(status),
        "status": status,
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
    if reason.status() == 401 || reason.error().is_some() {
        headers.push(("www-authenticate", challenge(denial)));
    }
    if let Some(nonce) = &denial.nonce {
        headers.push(("dpop-nonce", nonce.clone()));
    }
    headers
}

/// The challenge of the scheme that is asked for: `DPoP` (RFC 9449 §7.1) where a proof is or the rule takes nothing else,
/// `Bearer` (RFC 6750 §3) elsewhere.
fn challenge(denial: &Denial) -> String {
    let reason = denial.reason;
    let dpop = reason.is_of_proof()
        || reason == Reason::SchemeMismatch
        || denial.requirements().is_some_and(|rule| rule.binding == BindingNeed::Dpop);
    let mut challenge = if dpop {
        format!("DPoP realm=\"atm\", algs=\"{}\"", algorithms())
    } else {
        "Bearer realm=\"atm\"".to_owned()
    };
    if let Some(error) = reason.error() {
        let description = reason.description();
        challenge = format!("{challenge}, error=\"{error}\", error_description=\"{description}\"");
    }
    let scope: Vec<&str> = denial.scope().collect();
    if scope.is_empty() { challenge } else { format!("{challenge}, scope=\"{}\"", scope.join(" ")) }
}

fn algorithms() -> String {
    Algorithm::ALL.map(Algorithm::as_str).join(" ")
}

fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        _ => "Service Unavailable",
    }
}

/// The answer that refuses a check.
pub(super) fn denied(request: &Request<'_>, denial: &Denial) -> CheckResponse {
    let reason = denial.reason;
    let body = body(request, denial, reason.status());
    let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let mut fields = HashMap::from([("reason".to_owned(), text(reason.as_str()))]);
    if let Some(rule) = &denial.rule {
        fields.insert("policy".to_owned(), text(&rule.policy));
        fields.insert("rule".to_owned(), text(&rule.name));
    }
    CheckResponse {
        status: Some(Status { code: code(reason), message: reason.as_str().to_owned(), ..Status::default() }),
        dynamic_metadata: Some(Struct { fields }),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code: i32::from(reason.status()) }),
            headers: headers(denial).into_iter().map(|(name, value)| header(name, value)).collect(),
            body,
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

/// A claim as Envoy's metadata has it.
pub(super) fn protobuf(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(*value),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text.clone()),
        serde_json::Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.iter().map(protobuf).collect() })
        }
        serde_json::Value::Object(members) => Kind::StructValue(Struct {
            fields: members.iter().map(|(name, value)| (name.clone(), protobuf(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table: status, challenge, body, header, metadata and gRPC's code of every reason say the same.
    #[test]
    fn every_reason_is_one_well_formed_denial() {
        let grpc = [("content-type", &b"application/grpc+proto"[..])];
        for reason in Reason::ALL {
            let denial = Denial::new(*reason);
            for headers in [&[][..], &grpc] {
                let response = denied(&Request { headers, ..Request::default() }, &denial);
                // Unset means allow, and so does 0.
                let code = response.status.unwrap().code;
                assert_eq!(code, if reason.status() == 401 { 16 } else { 7 }, "{reason}");
                let metadata = response.dynamic_metadata.unwrap().fields;
                let Some(Kind::StringValue(told)) = &metadata["reason"].kind else { panic!("{reason}") };
                assert_eq!(told, reason.as_str());
                let Some(HttpResponse::DeniedResponse(denied)) = response.http_response else {
                    panic!("{reason}")
                };
                assert_eq!(denied.status.unwrap().code, i32::from(reason.status()), "{reason}");
                let value = |name: &str| {
                    let found = denied.headers.iter().filter_map(|option| option.header.as_ref());
                    let found: Vec<_> = found.filter(|header| header.key == name).collect();
                    assert!(found.len() <= 1, "{reason}: {name} twice");
                    found.first().map(|header| header.value.clone())
                };
                assert_eq!(value("x-atm-reason").as_deref(), Some(reason.as_str()));
                assert_eq!(value("cache-control").as_deref(), Some("no-store"));
                let challenge = value("www-authenticate");
                // RFC 9110 §15.5.2: a 401 has a challenge. A 503 is no judgement on the credential.
                assert_eq!(
                    challenge.is_some(),
                    reason.status() == 401 || reason.error().is_some(),
                    "{reason}"
                );
                assert!(reason.status() != 503 || challenge.is_none(), "{reason}");
                if let Some(challenge) = challenge {
                    let scheme = if reason.is_of_proof() || *reason == Reason::SchemeMismatch {
                        "DPoP "
                    } else {
                        "Bearer "
                    };
                    assert!(challenge.starts_with(scheme), "{reason}: {challenge}");
                    let error = reason.error().map(|error| format!("error=\"{error}\""));
                    assert_eq!(challenge.contains("error="), error.is_some(), "{reason}: {challenge}");
                    assert!(error.is_none_or(|error| challenge.contains(&error)), "{reason}: {challenge}");
                    assert!(challenge.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{challenge}");
                }
                if headers.is_empty() {
                    let body: serde_json::Value = serde_json::from_str(&denied.body).unwrap();
                    assert_eq!(
                        (&body["reason"], &body["status"]),
                        (&reason.as_str().into(), &reason.status().into())
                    );
                    assert_eq!(body["detail"], reason.description());
                } else {
                    assert_eq!(denied.body, reason.description(), "grpc-message");
                }
            }
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
