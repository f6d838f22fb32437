//! One row of the table, and the judge of all rows.

use atm_tests::http::{self, Answer};

/// What must come of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Want {
    /// It reaches the upstream.
    Permit,
    /// The sidecar refuses it with this status and reason.
    Denied(u16, &'static str),
    /// Envoy itself answers, with one of these statuses; neither sidecar nor upstream may let it through.
    Envoy(&'static [u16]),
}

/// A row: a name, the bytes to send, and what must come of them.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// What the row is about.
    pub(crate) name: String,
    /// The whole request.
    pub(crate) request: Vec<u8>,
    /// What must come of it.
    pub(crate) want: Want,
}

/// A row from any request.
pub(crate) fn case(name: &str, request: Vec<u8>, want: Want) -> Case {
    Case { name: name.to_owned(), request, want }
}

/// `GET /orders` with this token as the bearer credential.
pub(crate) fn bearer(name: &str, token: &str, want: Want) -> Case {
    let authorization = format!("Bearer {token}");
    let headers = [("authorization", authorization.as_str())];
    case(name, http::request("GET", "/orders", "orders.test", &headers, ""), want)
}

/// Sends every row and panics with the table of those that came out otherwise.
pub(crate) async fn judge(envoy: &str, cases: &[Case]) {
    let mut wrong = Vec::new();
    for case in cases {
        let outcome = match http::exchange(envoy, &case.request).await {
            Ok(answer) => judge_one(case.want, &answer),
            Err(error) => Err(format!("no answer: {error}")),
        };
        if let Err(seen) = outcome {
            wrong.push(format!("{:<46} wanted {:?}, got {seen}", case.name, case.want));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows are wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn judge_one(want: Want, answer: &Answer) -> Result<(), String> {
    let reason = answer.header("x-atm-reason");
    let right = match want {
        Want::Permit => answer.status == 200 && answer.reached_upstream(),
        Want::Denied(status, expected) => {
            answer.status == status && reason == Some(expected) && !answer.reached_upstream()
        }
        Want::Envoy(statuses) => {
            statuses.contains(&answer.status) && reason.is_none() && !answer.reached_upstream()
        }
    };
    if right {
        return Ok(());
    }
    let upstream = if answer.reached_upstream() { ", reached the upstream" } else { "" };
    Err(format!("{} {}{upstream}", answer.status, reason.unwrap_or("(no reason)")))
}
