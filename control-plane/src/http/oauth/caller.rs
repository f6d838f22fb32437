//! Where a request comes from, and which certificate its client holds.

use std::net::IpAddr;

use atm_core::binding::certificate::decode_percent;
use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::error::OAuthError;
use crate::authentication::certificate::PresentedCertificate;
use crate::config::TrustedProxy;
use crate::http::Shared;
use crate::http::serve::Connection;

/// Bytes of a forwarded certificate.
const MAX_FORWARDED: usize = 32 * 1024;

/// The caller of an endpoint.
pub(super) struct Caller {
    pub(super) headers: HeaderMap,
    pub(super) certificate: Option<PresentedCertificate>,
    pub(super) remote: Option<IpAddr>,
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = OAuthError;

    async fn from_request_parts(parts: &mut Parts, services: &Shared) -> Result<Self, OAuthError> {
        let connection = parts.extensions.get::<Connection>();
        let remote = connection.map(|connection| connection.peer.ip().to_canonical());
        let proxy = services.trusted_proxy.as_ref();
        let proxy = proxy.filter(|proxy| remote.is_some_and(|remote| proxy.is_trusted(remote)));
        let certificate = match proxy {
            // A proxy ends the client's TLS, so the connection's own certificate is the proxy's.
            Some(proxy) => forwarded(&parts.headers, proxy)?,
            None => {
                connection.and_then(|connection| PresentedCertificate::of_chain(&connection.certificates))
            }
        };
        Ok(Self { headers: parts.headers.clone(), certificate, remote })
    }
}

/// The client's certificate as a trusted proxy passes it on: PEM with URL encoding, as nginx (`$ssl_client_escaped_cert`), Envoy
/// and others have it.
fn forwarded(headers: &HeaderMap, proxy: &TrustedProxy) -> Result<Option<PresentedCertificate>, OAuthError> {
    let malformed = || OAuthError::request("the client certificate that the proxy passed on cannot be read");
    let mut values = headers.get_all(&proxy.certificate_header).iter();
    let Some(value) = values.next().filter(|value| !value.is_empty()) else { return Ok(None) };
    if values.next().is_some() || value.len() > MAX_FORWARDED {
        return Err(malformed());
    }
    let text = decode_percent(value.as_bytes()).ok_or_else(malformed)?;
    let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificate = chain.ok().and_then(|chain| PresentedCertificate::of_chain(&chain));
    certificate.map(Some).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy() -> TrustedProxy {
        TrustedProxy {
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            certificate_header: "x-client-cert".parse().unwrap(),
        }
    }

    #[test]
    fn a_forwarded_certificate_is_the_one_that_was_encoded() {
        let made = rcgen::generate_simple_self_signed(vec!["client.example".to_owned()]).unwrap();
        let encoded = made.cert.pem().replace('\n', "%0A").replace(' ', "%20");
        let mut headers = HeaderMap::new();
        assert!(forwarded(&headers, &proxy()).unwrap().is_none());
        headers.insert("x-client-cert", encoded.parse().unwrap());
        let read = forwarded(&headers, &proxy()).unwrap().unwrap();
        let direct = PresentedCertificate::of_chain(&[made.cert.der().clone()]).unwrap();
        assert_eq!(read.thumbprint(), direct.thumbprint());
        headers.append("x-client-cert", "another".parse().unwrap());
        assert!(forwarded(&headers, &proxy()).is_err(), "which one is the client's cannot be told");
        for broken in ["%", "%zz", "nothing"] {
            headers.insert("x-client-cert", broken.parse().unwrap());
            assert!(forwarded(&headers, &proxy()).is_err(), "{broken}");
        }
    }

    #[test]
    fn only_a_configured_proxy_is_believed() {
        assert!(proxy().is_trusted("10.1.2.3".parse().unwrap()));
        assert!(!proxy().is_trusted("192.0.2.1".parse().unwrap()));
    }
}
