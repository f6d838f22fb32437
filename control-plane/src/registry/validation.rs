//! What a client's fields may hold.

use serde::Serialize;

use super::{Client, NewClient};

/// One field of a request and what is wrong with it; all of them are reported at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Path of the field, as in `scopes[2]`.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

const MAX_SCOPES: usize = 256;
const MAX_AUDIENCES: usize = 64;
const MAX_TEXT: usize = 256;
const MAX_LIFETIME_SECONDS: u32 = 86_400;

pub(super) fn check(new: &NewClient) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    if let Some(id) = &new.client_id {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if id.is_empty() || id.len() > 128 || !id.bytes().all(allowed) {
            errors.push(error("client_id", "must be 1 to 128 letters, digits or any of -._~"));
        }
    }
    fields(&mut errors, new.name.as_deref(), &new.scopes, &new.audiences, new.access_token_lifetime_seconds);
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

pub(super) fn check_client(client: &Client) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    fields(
        &mut errors,
        client.name.as_deref(),
        &client.scopes,
        &client.audiences,
        client.access_token_lifetime_seconds,
    );
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Mistakes in what clients and API keys have in common.
pub(crate) fn check_common(name: Option<&str>, scopes: &[String], audiences: &[String]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    fields(&mut errors, name, scopes, audiences, None);
    errors
}

fn fields(
    errors: &mut Vec<FieldError>,
    name: Option<&str>,
    scopes: &[String],
    audiences: &[String],
    lifetime: Option<u32>,
) {
    if name.is_some_and(|name| name.len() > MAX_TEXT || name.chars().any(char::is_control)) {
        errors.push(error("name", "must be at most 256 bytes without control characters"));
    }
    if scopes.len() > MAX_SCOPES {
        errors.push(error("scopes", "must be at most 256"));
    }
    if audiences.len() > MAX_AUDIENCES {
        errors.push(error("audiences", "must be at most 64"));
    }
    for (index, scope) in scopes.iter().enumerate() {
        if !is_scope_token(scope) {
            let message =
                "must be 1 to 256 printable ASCII characters without space, '\"' or '\\' (RFC 6749 §3.3)";
            errors.push(error(&format!("scopes[{index}]"), message));
        } else if scopes[..index].contains(scope) {
            errors.push(error(&format!("scopes[{index}]"), "is there twice"));
        }
    }
    for (index, audience) in audiences.iter().enumerate() {
        if audience.is_empty() || audience.len() > MAX_TEXT || audience.chars().any(char::is_control) {
            let message = "must be 1 to 256 bytes without control characters";
            errors.push(error(&format!("audiences[{index}]"), message));
        } else if audiences[..index].contains(audience) {
            errors.push(error(&format!("audiences[{index}]"), "is there twice"));
        }
    }
    if lifetime.is_some_and(|seconds| seconds == 0 || seconds > MAX_LIFETIME_SECONDS) {
        errors.push(error("access_token_lifetime_seconds", "must be 1 to 86400"));
    }
}

fn is_scope_token(scope: &str) -> bool {
    !scope.is_empty()
        && scope.len() <= MAX_TEXT
        && scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

fn error(field: &str, message: &str) -> FieldError {
    FieldError { field: field.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let new = NewClient {
            client_id: Some("a b".into()),
            name: Some("\n".into()),
            scopes: vec!["ok".into(), "with space".into(), "ok".into(), "\"".into()],
            audiences: vec![String::new()],
            access_token_lifetime_seconds: Some(0),
        };
        let fields: Vec<_> = check(&new).unwrap_err().into_iter().map(|error| error.field).collect();
        let expected = [
            "client_id",
            "name",
            "scopes[1]",
            "scopes[2]",
            "scopes[3]",
            "audiences[0]",
            "access_token_lifetime_seconds",
        ];
        assert_eq!(fields, expected);
    }
}
