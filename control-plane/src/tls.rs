//! Certificates that are replaced while connections go on.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::config::TlsFiles;

/// How often the files are looked at. Watching them would miss what Kubernetes does: it swaps a link above them.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{file} cannot be read: {source}")]
    Read {
        /// Which.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds no PEM of the right kind.
    #[error("{file} holds no {what} in PEM")]
    Pem {
        /// Which.
        file: String,
        /// What was expected.
        what: &'static str,
    },
    /// The key does not belong to the certificate, or is of a kind that is not supported.
    #[error("the certificate and its key cannot be used: {0}")]
    Refused(#[from] rustls::Error),
    /// No cryptographic provider is installed in this process.
    #[error("no cryptographic provider is installed")]
    NoProvider,
}

/// The certificate of a listener, read from its files and read anew when they change.
pub struct Certificate {
    files: TlsFiles,
    current: Arc<Current>,
    /// What `current` was made from.
    contents: Contents,
}

struct Current(ArcSwap<CertifiedKey>);

#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("files", &self.files).finish_non_exhaustive()
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current(..)")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Certificate {
    /// Reads the files.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = Contents::read(&files)?;
        let current = Arc::new(Current(ArcSwap::new(Arc::new(contents.certified(&files)?))));
        Ok(Self { files, current, contents })
    }

    /// A server's configuration that always presents the newest certificate; HTTP/2 and HTTP/1.1. With `ask_clients`, clients
    /// may present certificates of their own.
    pub fn server_config(&self, ask_clients: bool) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder();
        let algorithms = builder.crypto_provider().signature_verification_algorithms;
        let builder = if ask_clients {
            builder.with_client_cert_verifier(Arc::new(AnyCertificate(algorithms)))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(Arc::<Current>::clone(&self.current));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// Looks at the files until `shutdown`. New ones that cannot be used are reported, and the old ones stay.
    pub async fn follow(mut self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            match self.reload() {
                Ok(true) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "certificate replaced");
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "the new certificate cannot be used; the old one stays");
                }
            }
        }
    }

    /// Takes over the files if they have changed. Returns whether they had.
    fn reload(&mut self) -> Result<bool, TlsError> {
        let contents = Contents::read(&self.files)?;
        if contents == self.contents {
            return Ok(false);
        }
        self.current.0.store(Arc::new(contents.certified(&self.files)?));
        self.contents = contents;
        Ok(true)
    }
}

/// Takes any certificate whose private key the client shows to hold, and asks for none: which one stands for a client is for
/// client authentication to tell (RFC 8705 §2), where self-signed ones count, too.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Read { file: path.display().to_string(), source })
        };
        Ok(Self { certificate: read(&files.certificate)?, key: Zeroizing::new(read(&files.key)?) })
    }

    fn certified(&self, files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
        let pem = |path: &Path, what| TlsError::Pem { file: path.display().to_string(), what };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| pem(&files.certificate, "certificate chain"))?;
        if chain.is_empty() {
            return Err(pem(&files.certificate, "certificate chain"));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| pem(&files.key, "private key"))?;
        let provider = CryptoProvider::get_default().ok_or(TlsError::NoProvider)?;
        // Refuses a key that does not belong to the certificate.
        Ok(CertifiedKey::from_der(chain, key, provider)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(files: &TlsFiles, name: &str) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_changed_certificate_is_taken_over_and_a_broken_one_is_not() {
        // Other tests of this process may have installed it before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { certificate: dir.path().join("tls.crt"), key: dir.path().join("tls.key") };
        assert!(matches!(Certificate::load(files.clone()), Err(TlsError::Read { .. })));
        write(&files, "one.example");
        let mut certificate = Certificate::load(files.clone()).unwrap();
        assert!(!certificate.reload().unwrap());

        let first = certificate.current.0.load_full();
        write(&files, "two.example");
        assert!(certificate.reload().unwrap());
        let second = certificate.current.0.load_full();
        assert_ne!(first.cert, second.cert);

        std::fs::write(&files.key, "no key").unwrap();
        assert!(matches!(certificate.reload(), Err(TlsError::Pem { .. })));
        let other = rcgen::generate_simple_self_signed(vec!["three.example".to_owned()]).unwrap();
        std::fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
        assert!(matches!(certificate.reload(), Err(TlsError::Refused(_))));
        assert_eq!(certificate.current.0.load_full().cert, second.cert);
    }
}
