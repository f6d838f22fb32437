//! The client's certificate (RFC 8705): its thumbprint, and what conditions may ask of it.

use std::borrow::Cow;

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::forwarded;
use crate::base64url;
use crate::request::{CertificateSource, Request};

/// Length of a certificate's text at most, in bytes.
const MAX_TEXT_BYTES: usize = 64 * 1024;
/// Alternative names that are read at most.
const MAX_NAMES: usize = 256;
/// Length of one name at most, in bytes.
const MAX_NAME_BYTES: usize = 2 * 1024;

/// A certificate that cannot be read. Holds nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not URL-encoded PEM of one certificate, or over a bound.
    #[error("the client certificate is no URL-encoded PEM")]
    Encoding,
    /// No X.509 certificate, or one with a control character in a name.
    #[error("the client certificate is no X.509 certificate that is accepted")]
    Malformed,
    /// More than one: which one is the client's cannot be told.
    #[error("more than one client certificate is named")]
    Ambiguous,
}

/// A client certificate. Making one hashes it; its names are read only when they are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    thumbprint: String,
    contents: Contents,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Contents {
    Der(Vec<u8>),
    /// What a proxy said of it.
    Told(CertificateDetails),
}

/// The names in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CertificateDetails {
    pub(super) subject: String,
    pub(super) dns_names: Vec<String>,
    pub(super) uris: Vec<String>,
}

impl CertificateDetails {
    /// The subject's distinguished name as text; empty where it has none.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The DNS names among its alternative names.
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// The URIs among its alternative names, a SPIFFE id among them.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }
}

impl ClientCertificate {
    /// The certificate that came with a request; none where none was presented.
    pub fn of(request: &Request<'_>) -> Result<Option<Self>, CertificateError> {
        match request.certificate {
            CertificateSource::None | CertificateSource::Connection("") => Ok(None),
            CertificateSource::Connection(text) => Self::from_url_encoded_pem(text).map(Some),
            CertificateSource::ForwardedHeader => {
                forwarded::read(request.header_values("x-forwarded-client-cert"))
            }
        }
    }

    /// From PEM with URL encoding, as Envoy has it. Of several certificates the first is the client's own.
    pub fn from_url_encoded_pem(text: &str) -> Result<Self, CertificateError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(CertificateError::Encoding);
        }
        let text = decode_percent(text.as_bytes()).ok_or(CertificateError::Encoding)?;
        let pem = Pem::iter_from_buffer(&text).next().and_then(Result::ok);
        let pem = pem.filter(|pem| pem.label == "CERTIFICATE").ok_or(CertificateError::Encoding)?;
        Ok(Self::from_der(pem.contents))
    }

    /// From DER, as a TLS connection has it. Nothing of it is read yet.
    pub fn from_der(der: Vec<u8>) -> Self {
        let thumbprint = base64url::encode(digest(&SHA256, &der).as_ref());
        Self { thumbprint, contents: Contents::Der(der) }
    }

    /// From what a proxy said of a certificate that it verified.
    pub(super) fn told(digest: &[u8; 32], details: CertificateDetails) -> Self {
        Self { thumbprint: base64url::encode(digest), contents: Contents::Told(details) }
    }

    /// `x5t#S256`: the base64url of SHA-256 over the DER (RFC 8705 §3.1).
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// The names in it.
    pub fn details(&self) -> Result<CertificateDetails, CertificateError> {
        match &self.contents {
            Contents::Told(details) => Ok(details.clone()),
            Contents::Der(der) => read_details(der),
        }
    }
}

fn read_details(der: &[u8]) -> Result<CertificateDetails, CertificateError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
    if !rest.is_empty() {
        return Err(CertificateError::Malformed);
    }
    let mut details = CertificateDetails {
        subject: name(&certificate.subject().to_string())?,
        ..CertificateDetails::default()
    };
    let names = certificate.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
    let names = names.map(|extension| &extension.value.general_names[..]).unwrap_or_default();
    if names.len() > MAX_NAMES {
        return Err(CertificateError::Malformed);
    }
    for entry in names {
        match entry {
            GeneralName::DNSName(text) => details.dns_names.push(name(text)?),
            GeneralName::URI(text) => details.uris.push(name(text)?),
            _ => {}
        }
    }
    Ok(details)
}

/// A NUL or another control character in a name has made peers read half of it.
pub(super) fn name(text: &str) -> Result<String, CertificateError> {
    if text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(CertificateError::Malformed)
    }
}

/// The bytes behind percent-encoding; `+` stands for itself, as PEM has it.
pub fn decode_percent(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !text.contains(&b'%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let (digits, tail) = tail.split_at_checked(2)?;
            decoded.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            decoded.push(*first);
        }
    }
    Some(Cow::Owned(decoded))
}

#[cfg(test)]
mod tests;
