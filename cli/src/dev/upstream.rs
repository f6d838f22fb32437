//! The echo service behind Envoy.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serves until it is asked to end (SIGTERM, SIGINT).
pub(crate) async fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    eprintln!("listening on {}", listener.local_addr()?);
    let (mut end, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // Out of descriptors, or the peer has gone: the next one may do better.
                Err(_) => continue,
            },
            _ = end.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        // Small answers must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(echo));
            // A peer that breaks off is nobody's fault here.
            let _ = connection.await;
        });
    }
}

/// `{"method", "path", "headers": {name: [values]}}`. The credential is not repeated: answers end in terminals and logs.
async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    while let Some(Ok(_)) = body.frame().await {}
    let mut headers = Map::new();
    for (name, value) in &head.headers {
        let shown = if name == header::AUTHORIZATION {
            "(present)".into()
        } else {
            String::from_utf8_lossy(value.as_bytes())
        };
        if let Value::Array(values) = headers.entry(name.as_str()).or_insert_with(|| json!([])) {
            values.push(shown.into());
        }
    }
    let seen = json!({ "method": head.method.as_str(), "path": head.uri.to_string(), "headers": headers });
    let mut response = Response::new(Full::from(format!("{seen:#}\n")));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(response)
}
