use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use serde_json::json;

use super::*;
use crate::keys::Signer;

type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);
type Answers = Arc<Mutex<Vec<(&'static str, Answer)>>>;

/// An issuer on a free port that answers each path as it is told. `/slow` never does.
struct Mock {
    url: String,
    answers: Answers,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(State(answers): State<Answers>, request: Request) -> axum::response::Response {
    let path = request.uri().path().to_owned();
    if path == "/slow" {
        std::future::pending::<()>().await;
    }
    let answer =
        answers.lock().unwrap().iter().rev().find(|(at, _)| *at == path).map(|(_, answer)| answer.clone());
    let Some((status, headers, body)) = answer else { return StatusCode::NOT_FOUND.into_response() };
    let etag = headers.iter().find(|(name, _)| *name == "etag").map(|(_, value)| value.as_str());
    if etag.is_some() && request.headers().get(IF_NONE_MATCH).and_then(|tag| tag.to_str().ok()) == etag {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

impl Mock {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = Answers::default();
        let router = Router::new().fallback(serve).with_state(Arc::clone(&answers));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, answers, task }
    }

    fn answer(&self, path: &'static str, status: u16, headers: &[(&'static str, &str)], body: &Value) {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let body = body.to_string().into_bytes();
        self.answers.lock().unwrap().push((path, (status, headers, body)));
    }

    /// Metadata at OpenID's place and a key set with one key.
    fn well(&self) {
        let metadata = json!({ "issuer": self.url, "jwks_uri": format!("{}/jwks", self.url) });
        self.answer("/.well-known/openid-configuration", 200, &[], &metadata);
        self.answer("/jwks", 200, &[("etag", "\"one\"")], &keys());
    }

    fn source(&self) -> Source {
        Source {
            issuer: self.url.clone(),
            jwks_uri: None,
            algorithms: vec![],
            allow_private_addresses: true,
            ca_certificate: None,
        }
    }

    async fn fetch(&self) -> Result<Fetched, FetchError> {
        fetch(&self.source(), None, FetchBounds::default()).await
    }
}

fn keys() -> Value {
    let signer = Signer::generate(Algorithm::ES256).unwrap();
    json!({ "keys": [atm_core::jwk::jwk_from_spki("k1", Algorithm::ES256, signer.spki()).unwrap()] })
}

#[tokio::test]
async fn a_set_is_found_by_metadata_and_transferred_once() {
    let mock = Mock::start().await;
    mock.well();
    let Fetched::Set { set, known, .. } = mock.fetch().await.unwrap() else { panic!("the first is whole") };
    assert_eq!(set.keys[0].kid(), "k1");
    let known = known.unwrap();
    let again = fetch(&mock.source(), Some(&known), FetchBounds::default()).await.unwrap();
    assert!(matches!(again, Fetched::NotModified { .. }));
    mock.answer("/jwks", 200, &[("etag", "\"two\"")], &keys());
    let rotated = fetch(&mock.source(), Some(&known), FetchBounds::default()).await.unwrap();
    assert!(matches!(rotated, Fetched::Set { known: Some(known), .. } if known.etag == "\"two\""));
}

#[tokio::test]
async fn rfc_8414_metadata_is_the_second_try_and_stands_before_the_path() {
    let mock = Mock::start().await;
    let source = Source { issuer: format!("{}/tenant", mock.url), ..mock.source() };
    mock.well();
    let metadata = json!({ "issuer": source.issuer, "jwks_uri": format!("{}/jwks", mock.url) });
    mock.answer("/.well-known/oauth-authorization-server/tenant", 200, &[], &metadata);
    assert!(fetch(&source, None, FetchBounds::default()).await.is_ok());
}

#[tokio::test]
async fn metadata_of_another_issuer_or_none_is_refused() {
    let mock = Mock::start().await;
    let jwks_uri = format!("{}/jwks", mock.url);
    mock.well();
    for document in [
        json!({ "issuer": format!("{}/", mock.url), "jwks_uri": jwks_uri }),
        json!({ "issuer": "https://elsewhere.example", "jwks_uri": jwks_uri }),
        json!({ "jwks_uri": jwks_uri }),
        json!({ "issuer": mock.url }),
        json!([]),
    ] {
        mock.answer("/.well-known/openid-configuration", 200, &[], &document);
        assert!(matches!(mock.fetch().await, Err(FetchError::Metadata { .. })), "{document}");
    }
    mock.answer(
        "/.well-known/openid-configuration",
        200,
        &[],
        &json!({ "issuer": mock.url, "jwks_uri": "file:///etc/passwd" }),
    );
    assert!(matches!(mock.fetch().await, Err(FetchError::Url(_))));
}

#[tokio::test]
async fn redirects_large_bodies_and_bad_sets_are_refused() {
    let mock = Mock::start().await;
    mock.well();
    let elsewhere = format!("{}/other", mock.url);
    mock.answer("/other", 200, &[], &keys());
    mock.answer("/jwks", 302, &[("location", &elsewhere)], &Value::Null);
    assert!(matches!(mock.fetch().await, Err(FetchError::Status { status: StatusCode::FOUND, .. })));
    mock.answer("/jwks", 304, &[], &Value::Null);
    let error = mock.fetch().await;
    assert!(
        matches!(error, Err(FetchError::Status { status: StatusCode::NOT_MODIFIED, .. })),
        "nothing is known"
    );
    mock.answer("/jwks", 200, &[], &json!({ "keys": [], "pad": "x".repeat(MAX_KEY_SET) }));
    assert!(matches!(mock.fetch().await, Err(FetchError::TooLarge { limit: MAX_KEY_SET, .. })));
    mock.answer("/jwks", 200, &[], &json!({ "keys": [] }));
    assert!(matches!(mock.fetch().await, Err(FetchError::KeySet { .. })));
    let pad = json!({ "issuer": mock.url, "pad": "x".repeat(MAX_METADATA) });
    mock.answer("/.well-known/openid-configuration", 200, &[], &pad);
    assert!(matches!(mock.fetch().await, Err(FetchError::TooLarge { limit: MAX_METADATA, .. })));
}

#[tokio::test]
async fn private_addresses_and_plain_http_need_permission() {
    let mock = Mock::start().await;
    mock.well();
    let port = mock.url.rsplit(':').next().unwrap();
    let fetch_at = async |uri: String, allow_private_addresses| {
        let source = Source { jwks_uri: Some(uri), allow_private_addresses, ..mock.source() };
        fetch(&source, None, FetchBounds::default()).await
    };
    let refused = fetch_at(format!("https://127.0.0.1:{port}/jwks"), false).await;
    assert!(matches!(refused, Err(FetchError::Address(AddressRefused::Private(_)))), "{refused:?}");
    let refused = fetch_at(format!("https://[::ffff:127.0.0.1]:{port}/jwks"), false).await;
    assert!(matches!(refused, Err(FetchError::Address(AddressRefused::Private(_)))), "{refused:?}");
    let refused = fetch_at(format!("https://0x7f.1:{port}/jwks"), false).await;
    assert!(matches!(refused, Err(FetchError::Address(AddressRefused::Private(_)))), "{refused:?}");
    let refused = fetch_at(format!("https://localhost:{port}/jwks"), false).await;
    assert!(matches!(refused, Err(FetchError::Address(AddressRefused::Private(_)))), "{refused:?}");
    let refused = fetch_at("http://169.254.169.254/latest".to_owned(), true).await;
    assert!(matches!(refused, Err(FetchError::Address(AddressRefused::Never(_)))), "{refused:?}");
    assert!(matches!(fetch_at(format!("{}/jwks", mock.url), false).await, Err(FetchError::Url(_))));
    assert!(matches!(
        fetch_at("https://user:secret@idp.example/".to_owned(), true).await,
        Err(FetchError::Url(_))
    ));
    assert!(fetch_at(format!("http://localhost:{port}/jwks"), true).await.is_ok());
}

#[tokio::test]
async fn an_issuer_that_never_answers_ends_within_the_bound() {
    let mock = Mock::start().await;
    let source = Source { jwks_uri: Some(format!("{}/slow", mock.url)), ..mock.source() };
    let bounds = FetchBounds { total: Duration::from_millis(50), ..FetchBounds::default() };
    let error = fetch(&source, None, bounds).await;
    assert!(matches!(error, Err(FetchError::TimedOut(_) | FetchError::Unreachable { .. })), "{error:?}");
}

/// A server that sends each caller the same bytes, and then one more byte for ever and ever, or hangs up.
async fn raw(head: &'static str, endless: bool) -> (String, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = socket.read(&mut request).await;
                let _ = socket.write_all(head.as_bytes()).await;
                while endless && socket.write_all(b" ").await.is_ok() {
                    tokio::task::yield_now().await;
                }
            });
        }
    });
    (url, task)
}

#[tokio::test]
async fn a_server_that_does_not_keep_to_http_ends_within_the_bounds() {
    let bounds = FetchBounds { total: Duration::from_secs(2), ..FetchBounds::default() };
    for (head, endless) in [
        ("", false),
        ("", true),
        ("nonsense\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\n", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"keys\":", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffff\r\n", true),
        ("HTTP/1.1 200 OK\r\n\r\n<html>sign in</html>", false),
        ("HTTP/1.1 204 No Content\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}", false),
    ] {
        let (url, task) = raw(head, endless).await;
        let source = Source {
            issuer: url.clone(),
            jwks_uri: Some(format!("{url}/jwks")),
            algorithms: vec![],
            allow_private_addresses: true,
            ca_certificate: None,
        };
        let error = fetch(&source, None, bounds).await;
        assert!(error.is_err(), "{head:?}");
        let text = error.unwrap_err().to_string();
        assert!(text.len() < 1_000 && !text.contains("sign in"), "{text}");
        task.abort();
    }
}
