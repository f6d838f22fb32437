//! Client certificates, as Envoy tells of them.

use std::sync::Arc;

use atm_tests::envoy;
use atm_tests::http::{self, Answer};
use atm_tests::token::base64url;
use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::fixture::{Asked, Fixture};

/// A certificate authority, and who it knows.
struct Authority(CertifiedIssuer<'static, KeyPair>);

struct Identity {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Another name than the certificates that it signs, which would else pass for signed by themselves.
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        Identity { certificate: params.signed_by(&key, &self.0).unwrap(), key }
    }
}

impl Identity {
    /// RFC 8705 §3.1.
    fn thumbprint(&self) -> String {
        base64url(digest(&SHA256, self.certificate.der()))
    }

    async fn get(&self, authority: &Authority, address: &str, headers: &[(&str, &str)]) -> Answer {
        let mut roots = RootCertStore::empty();
        roots.add(authority.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![self.certificate.der().clone()], key)
            .unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("orders.test").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        http::exchange_over(stream, &http::request("GET", "/bound", "orders.test", headers, ""))
            .await
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_9_the_connections_certificate_counts_and_no_forwarded_one() {
    let fixture = Fixture::start().await;
    let authority = Authority::new();
    let (server, ours, other) =
        (authority.identity("orders.test"), authority.identity("a.test"), authority.identity("b.test"));
    let envoy = fixture
        .envoy(Asked::Grpc, |config| {
            envoy::ext_authz(config)["include_peer_certificate"] = json!(true);
            let context = json!({
                "tls_certificates": [{
                    "certificate_chain": { "inline_string": server.certificate.pem() },
                    "private_key": { "inline_string": server.key.serialize_pem() },
                }],
                "validation_context": { "trusted_ca": { "inline_string": authority.0.pem() } },
            });
            envoy::listener_of(config)["filter_chains"][0]["transport_socket"] = json!({
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "common_tls_context": context,
                    "require_client_certificate": true,
                },
            });
            // A client's own claim to a certificate comes through to the sidecar, which must not believe it.
            envoy::connection_manager_of(config)["forward_client_cert_details"] = json!("ALWAYS_FORWARD_ONLY");
        })
        .await;
    let token = fixture.mint.token().claim("cnf", json!({ "x5t#S256": ours.thumbprint() })).sign();
    let bearer = format!("Bearer {token}");
    let answer = ours.get(&authority, envoy.address(), &[("authorization", &bearer)]).await;
    assert!(answer.reached_upstream(), "{} {}", answer.status, answer.text());

    let forwarded = format!("Cert=\"{}\"", percent_encoded(&ours.certificate.pem()));
    let spoofed = [("authorization", bearer.as_str()), ("x-forwarded-client-cert", forwarded.as_str())];
    let answer = other.get(&authority, envoy.address(), &spoofed).await;
    assert_eq!(answer.header("x-atm-reason"), Some("certificate_mismatch"), "{}", answer.text());
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(encode).collect()
}
