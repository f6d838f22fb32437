use http_body_util::{Full, StreamBody};
use hyper::body::Frame;

use super::*;

fn framed(flags: u8, length: u32, message: &[u8]) -> Bytes {
    [&[flags][..], &length.to_be_bytes(), message].concat().into()
}

async fn read(bytes: Bytes) -> Option<Bytes> {
    read_message(Full::new(bytes)).await
}

#[tokio::test]
async fn a_message_is_read_whole_or_in_pieces() {
    let whole = framed(0, 5, b"hello");
    assert_eq!(read(whole.clone()).await.as_deref(), Some(&b"hello"[..]));
    for size in 1..whole.len() {
        let pieces: Vec<_> = whole
            .chunks(size)
            .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        let body = StreamBody::new(futures::stream::iter(pieces));
        assert_eq!(read_message(body).await.as_deref(), Some(&b"hello"[..]), "{size}");
    }
    assert_eq!(read(framed(0, 0, b"")).await.as_deref(), Some(&b""[..]));
}

#[tokio::test]
async fn anything_but_one_plain_message_is_none() {
    for bytes in
        [Bytes::new(), framed(1, 5, b"hello"), framed(0, 6, b"hello"), framed(0, 4, b"hello"), "abc".into()]
    {
        assert_eq!(read(bytes.clone()).await, None, "{bytes:?}");
    }
}

#[tokio::test]
async fn pitfall_10_answers_over_tcp_are_sent_at_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, _client) = tokio::join!(accept_undelayed(&listener), async {
        tokio::net::TcpStream::connect(address).await.unwrap()
    });
    assert!(accepted.unwrap().nodelay().unwrap());
}
