//! Clients that authenticate by the certificate of their connection (RFC 8705 §2).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use atm_core::binding::ClientCertificate;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::distinguished_name::DistinguishedName;
use crate::registry::ClientConfiguration;

/// Alternative names that are looked at.
const MAX_NAMES: usize = 256;

/// A client's certificate, whose private key the client has shown to hold: by the handshake, or so says a trusted proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentedCertificate {
    leaf: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    thumbprint: String,
}

impl PresentedCertificate {
    /// From a chain, leaf first; none where it is empty.
    pub fn of_chain(chain: &[CertificateDer<'static>]) -> Option<Self> {
        let (leaf, intermediates) = chain.split_first()?;
        let thumbprint = ClientCertificate::from_der(leaf.to_vec()).thumbprint().to_owned();
        Some(Self { leaf: leaf.clone(), intermediates: intermediates.to_vec(), thumbprint })
    }

    /// `x5t#S256` (RFC 8705 §3.1).
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// Whether it is one that the client registered itself: in `x5c` or by `x5t#S256` of its keys (RFC 8705 §2.2).
    pub fn is_registered(&self, configuration: &ClientConfiguration) -> bool {
        let keys = configuration.jwks.as_ref().and_then(|jwks| jwks.get("keys")).and_then(Value::as_array);
        keys.into_iter().flatten().any(|jwk| match (jwk.get("x5c"), jwk.get("x5t#S256")) {
            (Some(chain), _) => {
                let first = chain.get(0).and_then(Value::as_str);
                first.and_then(|text| STANDARD.decode(text).ok()).is_some_and(|der| der == self.leaf.as_ref())
            }
            (None, Some(thumbprint)) => thumbprint.as_str() == Some(&self.thumbprint),
            (None, None) => false,
        })
    }

    /// Whether it has the name that the client is registered with (RFC 8705 §2.1.2).
    pub fn is_named(&self, configuration: &ClientConfiguration) -> bool {
        let Ok((rest, certificate)) = X509Certificate::from_der(&self.leaf) else { return false };
        if !rest.is_empty() {
            return false;
        }
        if let Some(expected) = &configuration.tls_client_auth_subject_dn {
            let expected = DistinguishedName::parse(expected);
            return expected.is_some() && expected == DistinguishedName::of(certificate.subject());
        }
        let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
        let names = &names.value.general_names;
        if names.len() > MAX_NAMES {
            return false;
        }
        names.iter().any(|name| match name {
            GeneralName::DNSName(name) => {
                let expected = &configuration.tls_client_auth_san_dns;
                expected.as_ref().is_some_and(|expected| name.eq_ignore_ascii_case(expected))
            }
            GeneralName::URI(name) => configuration.tls_client_auth_san_uri.as_deref() == Some(*name),
            GeneralName::IPAddress(name) => {
                let expected = configuration.tls_client_auth_san_ip.as_ref().and_then(|ip| ip.parse().ok());
                expected.is_some_and(|expected| is_address(name, expected))
            }
            GeneralName::RFC822Name(name) => {
                let expected = &configuration.tls_client_auth_san_email;
                expected.as_ref().is_some_and(|expected| is_mailbox(name, expected))
            }
            _ => false,
        })
    }
}

/// Whether a name's octets are those of `expected` (RFC 5280 §4.2.1.6).
fn is_address(octets: &[u8], expected: IpAddr) -> bool {
    match expected {
        IpAddr::V4(expected) => octets == expected.octets(),
        IpAddr::V6(expected) => octets == expected.octets(),
    }
}

/// Whether two addresses are one mailbox: the host in any case, the rest exactly (RFC 5280 §7.5).
fn is_mailbox(name: &str, expected: &str) -> bool {
    let (Some(name), Some(expected)) = (name.rsplit_once('@'), expected.rsplit_once('@')) else {
        return false;
    };
    name.0 == expected.0 && name.1.eq_ignore_ascii_case(expected.1)
}

/// The authorities whose certificates `tls_client_auth` takes.
#[derive(Clone)]
pub struct Authorities(Arc<dyn ClientCertVerifier>);

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorities(..)")
    }
}

/// Why authorities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    /// No certificate, or one that is no authority's.
    #[error("holds no certificate in PEM that can be an authority's")]
    Pem,
    /// The library refused them.
    #[error("cannot be used: {0}")]
    Refused(String),
}

impl Authorities {
    /// From PEM, one or more certificates.
    pub fn from_pem(pem: &[u8]) -> Result<Self, AuthoritiesError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| AuthoritiesError::Pem)?;
            roots.add(certificate).map_err(|error| AuthoritiesError::Refused(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(AuthoritiesError::Pem);
        }
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
        verifier.map(Self).map_err(|error| AuthoritiesError::Refused(error.to_string()))
    }

    /// Whether one of them vouches for the certificate now.
    pub fn vouch_for(&self, certificate: &PresentedCertificate) -> bool {
        let verified =
            self.0.verify_client_cert(&certificate.leaf, &certificate.intermediates, UnixTime::now());
        verified.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
    use serde_json::json;

    use super::*;

    fn authority() -> (Issuer<'static, KeyPair>, String) {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        (Issuer::new(parameters, key), pem)
    }

    fn leaf(authority: &Issuer<'static, KeyPair>) -> PresentedCertificate {
        let mut parameters = CertificateParams::new(vec!["client.example".to_owned()]).unwrap();
        parameters.subject_alt_names.extend([
            SanType::URI("spiffe://prod/client".try_into().unwrap()),
            SanType::IpAddress("192.0.2.7".parse().unwrap()),
            SanType::IpAddress("2001:db8::7".parse().unwrap()),
            SanType::Rfc822Name("Client@example.com".try_into().unwrap()),
        ]);
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::OrganizationName, "Example");
        parameters.distinguished_name.push(DnType::CommonName, "client");
        parameters.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, authority).unwrap();
        PresentedCertificate::of_chain(&[certificate.der().clone()]).unwrap()
    }

    #[test]
    fn only_a_configured_authority_vouches() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ((authority, pem), (another, _)) = (authority(), authority());
        let authorities = Authorities::from_pem(pem.as_bytes()).unwrap();
        assert!(authorities.vouch_for(&leaf(&authority)));
        assert!(!authorities.vouch_for(&leaf(&another)));
        assert!(matches!(Authorities::from_pem(b"nothing"), Err(AuthoritiesError::Pem)));
    }

    #[test]
    fn the_registered_name_is_the_one_that_counts() {
        let certificate = leaf(&authority().0);
        let named = |configuration: ClientConfiguration| certificate.is_named(&configuration);
        let dn = |text: &str| ClientConfiguration {
            tls_client_auth_subject_dn: Some(text.into()),
            ..ClientConfiguration::default()
        };
        assert!(named(dn("CN=client, O=Example")));
        assert!(!named(dn("O=Example, CN=client")) && !named(dn("CN=client")) && !named(dn("nonsense")));
        let dns = |text: &str| ClientConfiguration {
            tls_client_auth_san_dns: Some(text.into()),
            ..ClientConfiguration::default()
        };
        assert!(named(dns("CLIENT.example")) && !named(dns("other.example")));
        let uri = |text: &str| ClientConfiguration {
            tls_client_auth_san_uri: Some(text.into()),
            ..ClientConfiguration::default()
        };
        assert!(named(uri("spiffe://prod/client")) && !named(uri("spiffe://prod/CLIENT")));
        assert!(!named(uri("client.example")), "a name of one kind is not one of another");
        let ip = |text: &str| ClientConfiguration {
            tls_client_auth_san_ip: Some(text.into()),
            ..ClientConfiguration::default()
        };
        assert!(named(ip("192.0.2.7")) && named(ip("2001:DB8:0::7")));
        assert!(!named(ip("192.0.2.8")) && !named(ip("::ffff:192.0.2.7")) && !named(ip("client.example")));
        let email = |text: &str| ClientConfiguration {
            tls_client_auth_san_email: Some(text.into()),
            ..ClientConfiguration::default()
        };
        assert!(named(email("Client@EXAMPLE.com")));
        assert!(!named(email("client@example.com")) && !named(email("example.com")));
        assert!(!named(ClientConfiguration::default()), "no name is every name's refusal");
    }

    #[test]
    fn a_self_signed_certificate_is_the_registered_one_itself() {
        let certificate = leaf(&authority().0);
        let with = |key: Value| ClientConfiguration {
            jwks: Some(json!({ "keys": [key] })),
            ..ClientConfiguration::default()
        };
        assert!(certificate.is_registered(&with(json!({"x5c": [STANDARD.encode(&certificate.leaf)]}))));
        assert!(certificate.is_registered(&with(json!({"x5t#S256": certificate.thumbprint()}))));
        let other = leaf(&authority().0);
        assert!(!other.is_registered(&with(json!({"x5c": [STANDARD.encode(&certificate.leaf)]}))));
        assert!(!certificate.is_registered(&with(json!({"kty": "EC"}))));
        assert!(!certificate.is_registered(&ClientConfiguration::default()));
    }
}
