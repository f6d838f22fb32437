//! The service behind Envoy: answers every request with what it received.

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// An echo server in this process. Its answers carry `x-echo: 1` and a JSON body of `method`, `target` and `headers`
/// (name to list of values).
#[derive(Debug)]
pub struct Upstream {
    address: String,
    task: JoinHandle<()>,
}

impl Upstream {
    /// Listens on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let task = tokio::spawn(async move {
            axum::serve(listener, Router::new().fallback(echo)).await.expect("echo serves");
        });
        Self { address, task }
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn echo(method: Method, uri: Uri, headers: HeaderMap, _body: Bytes) -> Response {
    let mut fields = Map::new();
    for (name, value) in &headers {
        let value = Value::from(String::from_utf8_lossy(value.as_bytes()).into_owned());
        let values = fields.entry(name.as_str()).or_insert_with(|| json!([]));
        values.as_array_mut().expect("made as an array").push(value);
    }
    let body = json!({ "method": method.as_str(), "target": uri.to_string(), "headers": fields });
    ([("x-echo", "1")], Json(body)).into_response()
}
