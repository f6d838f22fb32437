//! ext_authz v3 over gRPC, on a unix socket and on TCP, with `grpc.health.v1` beside it.
//!
//! Each worker is a thread with a runtime of its own and accepts from the shared socket: checks never change threads, which
//! costs less than a work-stealing runtime. A check is one message in and one out, so its frame is read here and the
//! message in place; and whatever bytes come, the answer is a well-formed refusal and never a gRPC error, which Envoy may be
//! told to let through.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use atm_core::decision::Decision;
use atm_core::request::Request;
use atm_proto::check::Received;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::Service;

use super::{Judge, response, wire};
use reply::Reply;

mod reply;

/// The method that Envoy calls.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Where health checks begin.
const HEALTH: &str = "/grpc.health.v1.Health/";
/// Bytes that one check may have: Envoy's largest header block, and a body that it was told to send along.
const MAX_CHECK_BYTES: usize = 64 << 20;
/// Checks under way on one connection at most; Envoy opens one connection a worker thread.
const MAX_STREAMS: u32 = 4_096;
/// A gRPC message is preceded by one byte of flags and four of length.
const PREFIX: usize = 5;
/// Bytes that an answer usually has.
const ANSWER_BYTES: usize = 1_024;
/// How long checks under way may take to end when the sidecar stops; shorter than the whole program's drain, which has
/// to save behind it.
const DRAIN: Duration = Duration::from_secs(3);
/// Pause after a failed accept: descriptors are used up, and some will be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound listener that workers share.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket.
    Unix(std::os::unix::net::UnixListener),
    /// TCP.
    Tcp(std::net::TcpListener),
}

impl Listener {
    /// The same socket, for one more worker.
    fn share(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Self::Unix(listener.try_clone()?)
            }
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Self::Tcp(listener.try_clone()?)
            }
        })
    }
}

/// Answers checks from `listener` on `workers` threads until `stop`; they end when their connections have drained.
pub fn serve<H: Health>(
    listener: &Listener,
    judge: &Arc<Judge>,
    health: &HealthServer<H>,
    workers: usize,
    stop: &CancellationToken,
) -> io::Result<Vec<std::thread::JoinHandle<()>>> {
    (0..workers)
        .map(|worker| {
            let (listener, stop) = (listener.share()?, stop.clone());
            let handler = Handler { judge: Arc::clone(judge), health: health.clone() };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name(format!("atm-check-{worker}")).spawn(move || {
                if let Err(error) = runtime.block_on(accept(listener, handler, stop)) {
                    tracing::error!(%error, "an ext_authz listener ended");
                }
            })
        })
        .collect()
}

async fn accept<H: Health>(
    listener: Listener,
    handler: Handler<H>,
    stop: CancellationToken,
) -> io::Result<()> {
    let connections = TaskTracker::new();
    match listener {
        Listener::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                match accepted {
                    Ok((stream, _)) => {
                        drop(connections.spawn(handler.clone().connection(stream, stop.clone())));
                    }
                    Err(error) => pause(&error).await,
                }
            }
        }
        Listener::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            while let Some(accepted) = stop.run_until_cancelled(accept_undelayed(&listener)).await {
                match accepted {
                    Ok(stream) => drop(connections.spawn(handler.clone().connection(stream, stop.clone()))),
                    Err(error) => pause(&error).await,
                }
            }
        }
    }
    connections.close();
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await; // what has not ended by now is cut off
    Ok(())
}

/// Without `TCP_NODELAY` an answer waits for the peer's delayed acknowledgement, some 40 ms.
async fn accept_undelayed(listener: &tokio::net::TcpListener) -> io::Result<tokio::net::TcpStream> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a connection was not accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Answers one connection's requests.
struct Handler<H> {
    judge: Arc<Judge>,
    health: HealthServer<H>,
}

impl<H> Clone for Handler<H> {
    fn clone(&self) -> Self {
        Self { judge: Arc::clone(&self.judge), health: self.health.clone() }
    }
}

impl<H: Health> Handler<H> {
    async fn connection(self, stream: impl AsyncRead + AsyncWrite + Unpin, stop: CancellationToken) {
        let service = service_fn(move |request| {
            let handler = self.clone();
            async move { handler.answer(request).await }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let outcome = tokio::select! {
            outcome = &mut connection => outcome,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "an ext_authz connection ended");
        }
    }

    async fn answer(mut self, request: hyper::Request<Incoming>) -> Result<Response<Reply>, Infallible> {
        match request.uri().path() {
            CHECK => {
                let message = read_message(request.into_body()).await;
                Ok(Reply::message(check(&self.judge, message.as_deref()).await))
            }
            path if path.starts_with(HEALTH) => {
                let Ok(response) = self.health.call(request).await;
                Ok(response.map(Reply::Other))
            }
            _ => {
                Ok(tonic::Status::unimplemented("this server checks requests and tells its health")
                    .into_http())
            }
        }
    }
}

/// The answer to an encoded `CheckRequest`, framed.
async fn check(judge: &Judge, message: Option<&[u8]>) -> Bytes {
    match message.map(Received::read) {
        Some(Ok(received)) => {
            let request = received.request(judge.trusts_forwarded_certificate());
            let decision = judge.judge(&request).await;
            frame(&request, &decision)
        }
        Some(Err(_)) | None => frame(&Request::default(), &judge.unreadable()),
    }
}

/// The one message of a unary call; `None` where the body is anything else. Usually it is one frame, which is not copied.
async fn read_message(mut body: impl Body<Data = Bytes> + Unpin) -> Option<Bytes> {
    let mut read = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue }; // trailers
        if joined.len() + read.len() + data.len() > MAX_CHECK_BYTES {
            return None;
        }
        if read.is_empty() && joined.is_empty() {
            read = data;
        } else {
            joined.extend_from_slice(&std::mem::take(&mut read));
            joined.extend_from_slice(&data);
        }
    }
    let mut framed = if joined.is_empty() { read } else { joined.freeze() };
    let prefix = framed.split_to_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    // Compression was not offered; bytes behind the message would be a second one.
    (prefix[0] == 0 && framed.len() == usize::try_from(length).ok()?).then_some(framed)
}

trait SplitChecked: Sized {
    fn split_to_checked(&mut self, at: usize) -> Option<Self>;
}

impl SplitChecked for Bytes {
    fn split_to_checked(&mut self, at: usize) -> Option<Self> {
        (self.len() >= at).then(|| self.split_to(at))
    }
}

/// The decision as one framed `CheckResponse`.
fn frame(request: &Request<'_>, decision: &Decision) -> Bytes {
    let mut framed = Vec::with_capacity(ANSWER_BYTES);
    framed.extend_from_slice(&[0; PREFIX]);
    match decision {
        Decision::Permit(permit) => wire::permit(request, permit, &mut framed),
        Decision::Denial(denial) => response::denied(request, denial).encode_raw(&mut framed),
    }
    let length = u32::try_from(framed.len() - PREFIX).unwrap_or(u32::MAX);
    framed[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    framed.into()
}

#[cfg(test)]
mod tests;
