use rcgen::{CertificateParams, DnType, KeyPair, SanType};

use super::*;

fn encoded(pem: &str) -> String {
    pem.bytes().fold(String::new(), |text, byte| match byte {
        b'\n' | b' ' | b'+' | b'/' | b'=' => text + &format!("%{byte:02X}"),
        byte => text + &char::from(byte).to_string(),
    })
}

fn certificate() -> rcgen::Certificate {
    let mut params = CertificateParams::new(vec!["orders.example.com".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("spiffe://mesh/orders".try_into().unwrap()));
    params.distinguished_name.push(DnType::CommonName, "orders");
    params.self_signed(&KeyPair::generate().unwrap()).unwrap()
}

#[test]
fn the_thumbprint_is_of_the_der_and_the_names_are_read_on_demand() {
    let certificate = certificate();
    let text = encoded(&certificate.pem());
    let read = ClientCertificate::from_url_encoded_pem(&text).unwrap();
    let expected = base64url::encode(digest(&SHA256, certificate.der()).as_ref());
    assert_eq!(read.thumbprint(), expected);
    let details = read.details().unwrap();
    assert!(details.subject().contains("CN=orders"), "{}", details.subject());
    assert_eq!(details.dns_names(), ["orders.example.com"]);
    assert_eq!(details.uris(), ["spiffe://mesh/orders"]);
    // Of a chain the first is the client's own.
    let chain = format!("{text}{}", encoded(&self::certificate().pem()));
    assert_eq!(ClientCertificate::from_url_encoded_pem(&chain).unwrap().thumbprint(), expected);
}

#[test]
fn what_is_no_certificate_is_refused() {
    let pem = certificate().pem();
    for text in ["%", "%zz", "hello", "-----BEGIN CERTIFICATE-----", &"a".repeat(MAX_TEXT_BYTES + 1)] {
        assert!(ClientCertificate::from_url_encoded_pem(text).is_err(), "{text:.40}");
    }
    let key = KeyPair::generate().unwrap().serialize_pem();
    assert_eq!(ClientCertificate::from_url_encoded_pem(&encoded(&key)), Err(CertificateError::Encoding));
    // Bytes that are no X.509 can be hashed, and have no names.
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let read = ClientCertificate::from_url_encoded_pem(&encoded(garbage)).unwrap();
    assert_eq!(read.details(), Err(CertificateError::Malformed));
    assert!(
        ClientCertificate::from_url_encoded_pem(&pem).is_ok(),
        "text without encoding is its own encoding"
    );
}

#[test]
fn the_request_says_where_the_certificate_is() {
    let text = encoded(&certificate().pem());
    let header = format!("Hash={};Cert=\"{text}\"", "00".repeat(32));
    let headers = [("x-forwarded-client-cert", header.as_bytes())];
    let read = |certificate| {
        ClientCertificate::of(&Request { certificate, headers: &headers, ..Request::default() })
    };
    assert!(read(CertificateSource::Connection(&text)).unwrap().is_some());
    assert_eq!(read(CertificateSource::Connection("")).unwrap(), None);
    // A header that nobody said is to be believed is not looked at.
    assert_eq!(read(CertificateSource::None).unwrap(), None);
    // One whose hash is not that of its certificate names two.
    assert_eq!(read(CertificateSource::ForwardedHeader), Err(CertificateError::Ambiguous));
}
