//! Who may use the admin API: the holder of its bearer token.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::Shared;
use crate::http::problem::Problem;
use crate::secret::{constant_time_equal, sha256};

pub(super) async fn require(State(services): State<Shared>, request: Request, next: Next) -> Response {
    let mut authorizations = request.headers().get_all(AUTHORIZATION).iter();
    let authorized = match (authorizations.next(), authorizations.next()) {
        // Hashes have one length, so time tells nothing of the token's either.
        (Some(value), None) => bearer(value.as_bytes())
            .is_some_and(|token| constant_time_equal(&sha256(token), &services.admin_token_hash)),
        _ => false,
    };
    if authorized {
        return next.run(request).await;
    }
    Problem::new(StatusCode::UNAUTHORIZED, "give the admin token as Authorization: Bearer").into_response()
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
