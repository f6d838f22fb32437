//! Any text as a client certificate, from the connection and from a proxy's header: read or refused, never a panic.
#![no_main]

use atm_core::binding::ClientCertificate;
use atm_core::request::{CertificateSource, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (pem, der) = input;
    let wrapped = format!(
        "-----BEGIN CERTIFICATE-----%0A{}%0A-----END CERTIFICATE-----%0A",
        atm_core::base64url::encode(der).replace('-', "%2B").replace('_', "%2F")
    );
    for text in [pem, &wrapped] {
        if let Ok(certificate) = ClientCertificate::from_url_encoded_pem(text) {
            assert_eq!(certificate.thumbprint().len(), 43);
            let _ = certificate.details();
        }
    }
    let headers = [("x-forwarded-client-cert", pem.as_bytes())];
    let request =
        Request { certificate: CertificateSource::ForwardedHeader, headers: &headers, ..Request::default() };
    let _ = ClientCertificate::of(&request);
});
