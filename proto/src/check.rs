//! Envoy's `CheckRequest` (ext_authz v3) as a core request, read in place.

use atm_core::request::{CertificateSource, Request};

pub use protobuf::Malformed;
use protobuf::{Fields, Value, entry, text};

mod protobuf;

#[cfg(test)]
mod tests;

/// What a decision needs of a `CheckRequest`, borrowed from the message as received.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received<'a> {
    method: &'a str,
    host: &'a str,
    target: &'a str,
    scheme: &'a str,
    source_address: &'a str,
    certificate: &'a str,
    headers: Vec<(&'a str, &'a [u8])>,
    extensions: Vec<(&'a str, &'a str)>,
}

impl<'a> Received<'a> {
    /// Reads an encoded `envoy.service.auth.v3.CheckRequest`. Refused: what is no such message, has no HTTP attributes, or
    /// names a header in upper case, under which no rule would find it.
    pub fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut received = Self::default();
        let mut http = false;
        for field in Fields::new(message) {
            if let (1, value) = field? {
                http |= received.attributes(bytes(value)?)?;
            }
        }
        if http { Ok(received) } else { Err(Malformed) }
    }

    /// `AttributeContext`. Whether it describes an HTTP request.
    fn attributes(&mut self, message: &'a [u8]) -> Result<bool, Malformed> {
        let mut http = false;
        for field in Fields::new(message) {
            match field? {
                (1, value) => self.source(bytes(value)?)?,
                (4, value) => {
                    for field in Fields::new(bytes(value)?) {
                        if let (2, value) = field? {
                            self.http_request(bytes(value)?)?;
                            http = true;
                        }
                    }
                }
                (10, value) => {
                    let (name, value) = entry(bytes(value)?)?;
                    self.extensions.push((text(name)?, text(value)?));
                }
                _ => {}
            }
        }
        Ok(http)
    }

    /// `AttributeContext.Peer`: its address, and its certificate where Envoy was told to send it.
    fn source(&mut self, message: &'a [u8]) -> Result<(), Malformed> {
        for field in Fields::new(message) {
            match field? {
                (1, value) => {
                    for field in Fields::new(bytes(value)?) {
                        if let (1, value) = field? {
                            self.socket_address(bytes(value)?)?;
                        }
                    }
                }
                (5, value) => self.certificate = text(bytes(value)?)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// `SocketAddress`.
    fn socket_address(&mut self, message: &'a [u8]) -> Result<(), Malformed> {
        for field in Fields::new(message) {
            if let (2, value) = field? {
                self.source_address = text(bytes(value)?)?;
            }
        }
        Ok(())
    }

    /// `AttributeContext.HttpRequest`. `query` and `fragment` are always empty: the path carries both, undecoded.
    fn http_request(&mut self, message: &'a [u8]) -> Result<(), Malformed> {
        self.headers.reserve(32);
        for field in Fields::new(message) {
            match field? {
                (2, value) => self.method = text(bytes(value)?)?,
                (3, value) => {
                    let (name, value) = entry(bytes(value)?)?;
                    self.header(name, value)?;
                }
                (4, value) => self.target = text(bytes(value)?)?,
                (5, value) => self.host = text(bytes(value)?)?,
                (6, value) => self.scheme = text(bytes(value)?)?,
                // With `encode_raw_headers`, `headers` is empty and this holds each header by itself.
                (13, value) => {
                    for field in Fields::new(bytes(value)?) {
                        if let (1, value) = field? {
                            self.raw_header(bytes(value)?)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `HeaderValue`: the value stands in `value` or in `raw_value`.
    fn raw_header(&mut self, message: &'a [u8]) -> Result<(), Malformed> {
        let (name, mut value) = entry(message)?;
        for field in Fields::new(message) {
            if let (3, raw) = field? {
                let raw = bytes(raw)?;
                if !raw.is_empty() {
                    value = raw;
                }
            }
        }
        self.header(name, value)
    }

    fn header(&mut self, name: &'a [u8], value: &'a [u8]) -> Result<(), Malformed> {
        let name = text(name)?;
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Malformed);
        }
        // Pseudo-headers say again what the attributes say.
        if !name.starts_with(':') {
            self.headers.push((name, value));
        }
        Ok(())
    }

    /// The request, lent to a decision. Whether the header that tells of certificates is believed is the operator's to say.
    pub fn request(&self, trust_forwarded_certificate: bool) -> Request<'_> {
        Request {
            method: self.method,
            scheme: self.scheme,
            host: self.host,
            target: self.target,
            headers: &self.headers,
            extensions: &self.extensions,
            source_address: (!self.source_address.is_empty()).then_some(self.source_address),
            certificate: match (trust_forwarded_certificate, self.certificate) {
                (true, _) => CertificateSource::ForwardedHeader,
                (false, "") => CertificateSource::None,
                (false, certificate) => CertificateSource::Connection(certificate),
            },
        }
    }
}

fn bytes(value: Value<'_>) -> Result<&[u8], Malformed> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        Value::Number => Err(Malformed),
    }
}
