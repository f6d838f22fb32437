//! Calls of the control plane's admin API.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use reqwest::{Client, Method, Url};
use serde::Serialize;
use serde_json::Value;

use crate::http_client;

/// A page of JSON Lines.
pub(crate) struct Lines {
    /// The lines.
    pub(crate) text: String,
    /// Where the next page begins.
    pub(crate) next: u64,
    /// Whether there is one.
    pub(crate) more: bool,
}

/// The admin API of one control plane.
#[derive(Clone)]
pub(crate) struct AdminApi {
    http: Client,
    base: Url,
    token: String,
    realm: Option<String>,
}

/// What each realm has of its own.
const OF_A_REALM: [&str; 7] =
    ["clients", "sessions", "subjects", "assertion-rules", "keys", "receipts", "revocations"];

impl AdminApi {
    /// The API at `url`, called with the bearer `token`.
    pub(crate) fn new(url: &str, token: String, ca_file: Option<&Path>) -> Result<Self> {
        let base = http_client::url(url)?;
        Ok(Self { http: http_client::client(&base, ca_file)?, base, token, realm: None })
    }

    /// The same, of one realm.
    pub(crate) fn in_realm(self, realm: Option<String>) -> Self {
        Self { realm, ..self }
    }

    /// `GET /admin/v1/{path}`; each segment is escaped.
    pub(crate) async fn get(&self, path: &[&str]) -> Result<Value> {
        self.call(Method::GET, path, None).await
    }

    /// `GET /admin/v1/{path}?{query}`.
    pub(crate) async fn get_with(&self, path: &[&str], query: &[(&str, impl Serialize)]) -> Result<Value> {
        let (_, bytes) = self.fetch(path, query).await?;
        serde_json::from_slice(&bytes).context("the control plane answered no JSON")
    }

    /// `GET /admin/v1/{path}?{query}` of JSON Lines.
    pub(crate) async fn lines(&self, path: &[&str], query: &[(&str, String)]) -> Result<Lines> {
        let (headers, bytes) = self.fetch(path, query).await?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok(Lines {
            next: header("atm-audit-next").parse().context("the answer does not say where it goes on")?,
            more: header("atm-audit-more") == "true",
            text: String::from_utf8(bytes).context("the answer is not text")?,
        })
    }

    async fn fetch(
        &self,
        path: &[&str],
        query: &[(&str, impl Serialize)],
    ) -> Result<(reqwest::header::HeaderMap, Vec<u8>)> {
        let url = url_of(&self.base, self.realm.as_deref(), path)?;
        let request = self.http.get(url.clone()).query(query).bearer_auth(&self.token);
        let response = request
            .send()
            .await
            .map_err(|error| http_client::unreachable(&error, "the control plane", &url))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = http_client::body(response).await?;
        if status.is_success() { Ok((headers, bytes)) } else { Err(refusal(status, &bytes)) }
    }

    /// `POST /admin/v1/{path}`.
    pub(crate) async fn post(&self, path: &[&str], body: &Value) -> Result<Value> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// `PUT /admin/v1/{path}`.
    pub(crate) async fn put(&self, path: &[&str], body: &Value) -> Result<Value> {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// `PATCH /admin/v1/{path}`.
    pub(crate) async fn patch(&self, path: &[&str], body: &Value) -> Result<Value> {
        self.call(Method::PATCH, path, Some(body)).await
    }

    /// `DELETE /admin/v1/{path}`.
    pub(crate) async fn delete(&self, path: &[&str]) -> Result<Value> {
        self.call(Method::DELETE, path, None).await
    }

    /// `null` for an answer without a body; a refusal becomes an error with the server's explanation.
    async fn call(&self, method: Method, path: &[&str], body: Option<&Value>) -> Result<Value> {
        self.call_url(method, url_of(&self.base, self.realm.as_deref(), path)?, body).await
    }

    async fn call_url(&self, method: Method, url: Url, body: Option<&Value>) -> Result<Value> {
        let mut request = self.http.request(method, url.clone()).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .map_err(|error| http_client::unreachable(&error, "the control plane", &url))?;
        let status = response.status();
        let bytes = http_client::body(response).await?;
        if !status.is_success() {
            return Err(refusal(status, &bytes));
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{url} answered no JSON; is it the admin listener?"))
    }
}

/// `base` with `/admin/v1`, the realm and the segments, each escaped so that it stays one.
fn url_of(base: &Url, realm: Option<&str>, path: &[&str]) -> Result<Url> {
    let place = match (realm, path.first()) {
        (Some(realm), Some(first)) if OF_A_REALM.contains(first) => vec!["realms", realm],
        (Some(_), Some(first)) if *first != "realms" => {
            bail!("{first} are of no realm; leave --realm (ATM_REALM) out")
        }
        _ => Vec::new(),
    };
    let mut url = base.clone();
    url.path_segments_mut()
        .map_err(|()| anyhow!("{base} cannot be an address"))?
        .pop_if_empty()
        .extend(["admin", "v1"])
        .extend(place)
        .extend(path);
    Ok(url)
}

/// An RFC 9457 problem, told to people: title, detail, and a line for each field that is wrong.
fn refusal(status: reqwest::StatusCode, body: &[u8]) -> anyhow::Error {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let mut message = text(&problem, "detail");
    if message.is_empty() {
        message = text(&problem, "title");
    }
    if message.is_empty() {
        message = format!("the control plane answered {status}");
    }
    if status == reqwest::StatusCode::UNAUTHORIZED {
        message.push_str("; check the admin token (--admin-token-file or ATM_ADMIN_TOKEN)");
    }
    for mistake in problem["errors"].as_array().into_iter().flatten() {
        // Writing to a String cannot fail.
        let _ = write!(message, "\n  {}: {}", text(mistake, "field"), text(mistake, "message"));
    }
    anyhow!(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_cannot_leave_its_place() {
        let base = Url::parse("http://127.0.0.1:1/base/").unwrap();
        let url = url_of(&base, None, &["clients", "a/../b?c"]).unwrap();
        assert_eq!(url.path(), "/base/admin/v1/clients/a%2F..%2Fb%3Fc");
    }

    #[test]
    fn a_realm_has_its_own_of_some_things_alone() {
        let base = Url::parse("http://127.0.0.1:1").unwrap();
        let path = |path: &[&str]| url_of(&base, Some("a"), path).map(|url| url.path().to_owned());
        assert_eq!(path(&["clients", "c"]).unwrap(), "/admin/v1/realms/a/clients/c");
        assert_eq!(path(&["realms", "b"]).unwrap(), "/admin/v1/realms/b");
        assert!(path(&["policies"]).unwrap_err().to_string().contains("--realm"));
    }

    #[test]
    fn a_problem_names_every_field() {
        let body = br#"{"title":"Unprocessable","detail":"2 mistakes","errors":[{"field":"a","message":"is wrong"},{"field":"b","message":"too"}]}"#;
        let error = refusal(reqwest::StatusCode::UNPROCESSABLE_ENTITY, body).to_string();
        assert_eq!(error, "2 mistakes\n  a: is wrong\n  b: too");
        let error = refusal(reqwest::StatusCode::BAD_GATEWAY, b"<html>").to_string();
        assert!(error.contains("502"), "{error}");
    }
}
