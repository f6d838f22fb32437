//! HTTP/1.1 over plain TCP, byte for byte: the suites send what a client library would normalise.

use std::io;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const BOUND: Duration = Duration::from_secs(30);

/// An answer, read to its end.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Header fields, names in lower case, in the order received.
    pub headers: Vec<(String, String)>,
    /// The body, decoded if it was chunked.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first value of the header `name` (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Whether the request reached the echo upstream.
    pub fn reached_upstream(&self) -> bool {
        self.header("x-echo") == Some("1")
    }
}

/// Sends `request` as it is and reads the answer to its end; the request should say `connection: close`.
pub async fn exchange(address: &str, request: &[u8]) -> io::Result<Answer> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    exchange_over(stream, request).await
}

/// As [`exchange`], over a connection that is there, such as one with TLS.
pub async fn exchange_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &[u8],
) -> io::Result<Answer> {
    tokio::time::timeout(BOUND, async {
        // A server that answers early (431, 400) may close while we still write.
        let _ = stream.write_all(request).await;
        read_answer(&mut stream, request.starts_with(b"HEAD ")).await
    })
    .await
    .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no whole answer within 30 s"))?
}

/// A request with the usual fields; `headers` are written as they are.
pub fn request(method: &str, target: &str, host: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.extend([name, ": ", value, "\r\n"]);
    }
    if !body.is_empty() || method == "POST" || method == "PUT" {
        text.extend(["content-length: ", &body.len().to_string(), "\r\n"]);
    }
    text.push_str("\r\n");
    text.push_str(body);
    text.into_bytes()
}

/// GET of `http://address/path`.
pub async fn get(address: &str, path: &str) -> io::Result<Answer> {
    exchange(address, &request("GET", path, address, &[], "")).await
}

/// A request with a JSON body and a bearer credential.
pub async fn json(method: &str, address: &str, path: &str, bearer: &str, body: &Value) -> io::Result<Answer> {
    let authorization = format!("Bearer {bearer}");
    let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    exchange(address, &request(method, path, address, &headers, &body)).await
}

/// `host:port` of an `http://host:port/...` URL.
pub fn authority(url: &str) -> &str {
    url.trim_start_matches("http://").split('/').next().unwrap_or_default()
}

async fn read_answer(stream: &mut (impl AsyncRead + Unpin), no_body: bool) -> io::Result<Answer> {
    let mut buffer = Vec::new();
    let head_end = loop {
        if let Some(at) = find(&buffer, b"\r\n\r\n") {
            // Interim answers (100 Continue) precede the one that counts.
            if buffer.starts_with(b"HTTP/1.1 100") {
                buffer.drain(..at + 4);
                continue;
            }
            break at;
        }
        if fill(stream, &mut buffer).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed before an answer"));
        }
    };
    let mut answer = parse_head(&buffer[..head_end])?;
    let mut rest = buffer.split_off(head_end + 4);
    if no_body || answer.status == 204 || answer.status == 304 {
        return Ok(answer);
    }
    if answer.header("transfer-encoding") == Some("chunked") {
        while !rest.ends_with(b"0\r\n\r\n") && fill(stream, &mut rest).await? > 0 {}
        answer.body = dechunk(&rest);
    } else if let Some(length) = answer.header("content-length").and_then(|value| value.parse().ok()) {
        while rest.len() < length && fill(stream, &mut rest).await? > 0 {}
        rest.truncate(length);
        answer.body = rest;
    } else {
        while fill(stream, &mut rest).await? > 0 {}
        answer.body = rest;
    }
    Ok(answer)
}

async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<usize> {
    let mut chunk = [0; 16 * 1024];
    let read = stream.read(&mut chunk).await?;
    buffer.extend_from_slice(&chunk[..read]);
    Ok(read)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn parse_head(head: &[u8]) -> io::Result<Answer> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no status line"))?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Answer { status, headers, body: Vec::new() })
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = find(rest, b"\r\n") {
        let size = std::str::from_utf8(&rest[..at])
            .ok()
            .and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
        let Some(size) = size.filter(|size| *size > 0 && rest.len() >= at + 2 + size) else { break };
        body.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = rest.get(at + 4 + size..).unwrap_or_default();
    }
    body
}
