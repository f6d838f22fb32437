//! The parameters of a request: a form in the body, each name once (RFC 6749 §3.2).

use axum::Form;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;

use super::error::OAuthError;
use crate::http::Shared;

/// Names that may be repeated (RFC 8707 §2, RFC 8693 §2.1).
const REPEATABLE: [&str; 2] = ["audience", "resource"];
/// Parameters of one request.
const MAX_PARAMETERS: usize = 64;

/// Name and value, decoded. Values without content count as left out (RFC 6749 §3.1). No `Debug`: secrets are among them.
#[derive(Default)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn checked(pairs: Vec<(String, String)>) -> Result<Self, OAuthError> {
        if pairs.len() > MAX_PARAMETERS {
            return Err(OAuthError::request("the request has too many parameters"));
        }
        for (index, (name, _)) in pairs.iter().enumerate() {
            let repeated = pairs[..index].iter().any(|(before, _)| before == name);
            if repeated && !REPEATABLE.contains(&name.as_str()) {
                return Err(OAuthError::request(format!("parameter {name} is there more than once")));
            }
        }
        Ok(Self(pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect()))
    }

    /// The value of `name`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// The value of `name`, which must be there.
    pub(super) fn required(&self, name: &str) -> Result<&str, OAuthError> {
        self.get(name).ok_or_else(|| OAuthError::request(format!("parameter {name} is missing")))
    }

    /// All values of a repeatable name.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

impl FromRequest<Shared> for Parameters {
    type Rejection = OAuthError;

    async fn from_request(request: Request, services: &Shared) -> Result<Self, OAuthError> {
        // RFC 6749 §2.3.1: credentials must not be in the URI, where they get into logs. Nothing else belongs there.
        if request.uri().query().is_some() {
            return Err(OAuthError::request("parameters belong in the body, not in the URI"));
        }
        match Form::<Vec<(String, String)>>::from_request(request, services).await {
            Ok(Form(pairs)) => Self::checked(pairs),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(OAuthError::too_large())
            }
            Err(_) => Err(OAuthError::request("the body must be application/x-www-form-urlencoded")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(pairs: &[(&str, &str)]) -> Result<Parameters, OAuthError> {
        Parameters::checked(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    #[test]
    fn each_name_once_but_for_targets() {
        assert!(checked(&[("scope", "a"), ("scope", "a")]).is_err());
        assert!(checked(&[("scope", ""), ("scope", "a")]).is_err());
        assert!(checked(&[("unknown", "a"), ("unknown", "b")]).is_err());
        let targets = checked(&[("resource", "a"), ("resource", "b")]).ok().unwrap();
        assert_eq!(targets.all("resource").collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_value_without_content_is_left_out() {
        let parameters = checked(&[("scope", ""), ("token", "t")]).ok().unwrap();
        assert_eq!((parameters.get("scope"), parameters.get("token")), (None, Some("t")));
        assert!(parameters.required("scope").is_err());
    }
}
