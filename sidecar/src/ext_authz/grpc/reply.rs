//! The body of a gRPC answer.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use hyper::body::{Body, Frame, SizeHint};

/// One framed message and the trailers that end the call well, or whatever another service answers.
#[derive(Debug, Default)]
pub(super) enum Reply {
    /// The message is still to be sent.
    Message(Bytes),
    /// The trailers are still to be sent.
    Trailers,
    /// All is sent.
    #[default]
    Done,
    /// From another service.
    Other(tonic::body::Body),
}

impl Reply {
    /// A response with one message.
    pub(super) fn message(framed: Bytes) -> Response<Self> {
        let mut response = Response::new(Self::Message(framed));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let (frame, next) = match &mut *self {
            Self::Other(body) => return Pin::new(body).poll_frame(context),
            Self::Message(framed) => (Some(Frame::data(std::mem::take(framed))), Self::Trailers),
            Self::Trailers => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                (Some(Frame::trailers(trailers)), Self::Done)
            }
            Self::Done => (None, Self::Done),
        };
        *self = next;
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message(_) | Self::Trailers => false,
            Self::Done => true,
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Message(framed) => SizeHint::with_exact(framed.len() as u64),
            Self::Trailers | Self::Done => SizeHint::with_exact(0),
            Self::Other(body) => body.size_hint(),
        }
    }
}
