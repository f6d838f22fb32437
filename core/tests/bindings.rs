//! Proof of possession through the whole decision: every check of RFC 9449 §4.3, certificates by RFC 8705, and where each may
//! come from.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy knows only the test functions themselves

#[path = "support/fixtures.rs"] // in a folder, so that it is no test program of its own
mod support;

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use atm_core::base64url;
use atm_core::binding::{ClientCertificate, NonceKey, VerifiedProof};
use atm_core::decision::{Decision, Memory, Now, ProofUse, decide};
use atm_core::freshness::Freshness;
use atm_core::jwk;
use atm_core::key::{Algorithm, Issuer, KeyState};
use atm_core::reason::Reason;
use atm_core::request::{CertificateSource, Request};
use atm_core::time::UnixMillis;
use atm_core::view::View;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use support::{ISSUER, NOW, Signer, claims, policies};

const POLICY: &str = "
    - { name: any, paths: ['/any'] }
    - { name: key, paths: ['/key'], binding: { require: dpop } }
    - { name: fresh, paths: ['/fresh'], binding: { require: dpop, dpop: { nonce: true } } }
    - { name: front, paths: ['/front'], binding: { dpop: { origins: ['https://front.example'] } } }
    - { name: tls, paths: ['/tls'], binding: { require: certificate } }
    - { name: names, paths: ['/names'], condition: \"client_certificate.dns_names.exists(name, name == 'a.example')\" }
";
const NONCES: [u8; 32] = [9; 32];

/// A client with a key.
struct Prover(EcdsaKeyPair);

impl Prover {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn jwk(&self) -> Value {
        let spki = self.0.public_key().as_der().unwrap();
        let full = jwk::jwk_from_spki("k", Algorithm::ES256, spki.as_ref()).unwrap();
        json!({"kty": "EC", "crv": "P-256", "x": full["x"], "y": full["y"]})
    }

    fn binding(&self) -> Value {
        json!({"cnf": {"jkt": jwk::thumbprint(&self.jwk()).unwrap()}})
    }

    /// A good proof for `GET https://api/key` but for these members; null removes one.
    fn proof(&self, token: &str, header: &Value, claims: &Value) -> String {
        let mut full_header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk()});
        let mut full_claims = json!({
            "jti": "proof-1", "htm": "GET", "htu": "https://api/key", "iat": NOW,
            "ath": base64url::encode(digest(&SHA256, token.as_bytes()).as_ref()),
        });
        for (object, changes) in [(&mut full_header, header), (&mut full_claims, claims)] {
            for (name, value) in changes.as_object().unwrap() {
                if value.is_null() {
                    object.as_object_mut().unwrap().remove(name);
                } else {
                    object[name] = value.clone();
                }
            }
        }
        let encode = |value: &Value| base64url::encode(value.to_string().as_bytes());
        let input = format!("{}.{}", encode(&full_header), encode(&full_claims));
        let signature = self.0.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        format!("{input}.{}", base64url::encode(signature.as_ref()))
    }
}

/// Remembers every proof, and no more than `room`.
struct Remembering {
    used: RefCell<HashSet<[u8; 16]>>,
    room: usize,
    nonces: NonceKey,
}

impl Remembering {
    fn new() -> Self {
        Self { used: RefCell::default(), room: 100, nonces: NonceKey::new(&NONCES) }
    }
}

impl Memory for Remembering {
    fn first_use(&self, proof: &VerifiedProof, _now: UnixMillis) -> ProofUse {
        let mut used = self.used.borrow_mut();
        if used.contains(&proof.replay_id()) {
            return ProofUse::Again;
        }
        if used.len() == self.room {
            return ProofUse::Full;
        }
        used.insert(proof.replay_id());
        ProofUse::First
    }

    fn nonce_key(&self) -> Option<&NonceKey> {
        Some(&self.nonces)
    }
}

struct Bench {
    view: View,
    signer: Signer,
    memory: Remembering,
}

impl Bench {
    fn new() -> Self {
        let signer = Signer::new("k1");
        let mut view = View { policies: Arc::new(policies(POLICY)), ..View::default() };
        view.issuers.set(Issuer::new(ISSUER, Some("default".to_owned()), vec![signer.key(KeyState::Active)]));
        Self { view, signer, memory: Remembering::new() }
    }

    fn token(&self, changes: &Value) -> String {
        self.signer.sign(&claims(changes.clone()))
    }

    fn decide(
        &self,
        target: &str,
        headers: &[(&str, &str)],
        certificate: CertificateSource<'_>,
        at: i64,
    ) -> Decision {
        let headers: Vec<(&str, &[u8])> =
            headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let request = Request {
            method: "GET",
            scheme: "https",
            host: "api",
            target,
            headers: &headers,
            certificate,
            ..Request::default()
        };
        let now = Now { wall: UnixMillis::from_seconds(at), freshness: Freshness::Fresh, feed_age_ms: 0 };
        decide(&self.view, &self.memory, &request, now).or(Reason::Internal)
    }

    fn reason(
        &self,
        target: &str,
        headers: &[(&str, &str)],
        certificate: CertificateSource<'_>,
    ) -> &'static str {
        self.decide(target, headers, certificate, NOW).as_str()
    }

    fn proved(&self, target: &str, token: &str, proof: &str) -> &'static str {
        let authorization = format!("DPoP {token}");
        self.reason(target, &[("authorization", &authorization), ("dpop", proof)], CertificateSource::None)
    }
}

/// RFC 9449 §4.3, by its numbers.
#[test]
fn every_check_of_a_proof_refuses_by_itself() {
    let (bench, prover) = (Bench::new(), Prover::new());
    let token = bench.token(&prover.binding());
    let mut private = prover.jwk();
    private["d"] = "AQ".into();
    let symmetric = json!({"kty": "oct", "k": "AQ"});
    for (number, header, claims, reason) in [
        (3, json!({}), json!({"jti": null}), "dpop_proof_malformed"),
        (3, json!({}), json!({"htm": null}), "dpop_proof_malformed"),
        (3, json!({}), json!({"htu": null}), "dpop_proof_malformed"),
        (3, json!({}), json!({"iat": null}), "dpop_proof_malformed"),
        (3, json!({"jwk": null}), json!({}), "dpop_proof_malformed"),
        (4, json!({"typ": "JWT"}), json!({}), "dpop_proof_malformed"),
        (4, json!({"typ": null}), json!({}), "dpop_proof_malformed"),
        (5, json!({"alg": "none"}), json!({}), "dpop_proof_malformed"),
        (5, json!({"alg": "HS256", "jwk": symmetric}), json!({}), "dpop_proof_malformed"),
        (5, json!({"alg": "ES384"}), json!({}), "dpop_proof_malformed"),
        (7, json!({"jwk": private}), json!({}), "dpop_proof_malformed"),
        (8, json!({}), json!({"htm": "POST"}), "dpop_request_mismatch"),
        (9, json!({}), json!({"htu": "https://api/other"}), "dpop_request_mismatch"),
        (9, json!({}), json!({"htu": "http://api/key"}), "dpop_request_mismatch"),
        (9, json!({}), json!({"htu": "https://evil/key"}), "dpop_request_mismatch"),
        (9, json!({}), json!({"htu": "https://api:8443/key"}), "dpop_request_mismatch"),
        (9, json!({}), json!({"htu": "https://api/key/"}), "dpop_request_mismatch"),
        (11, json!({}), json!({"iat": NOW - 91}), "dpop_proof_expired"),
        (11, json!({}), json!({"iat": NOW + 31}), "dpop_proof_expired"),
        (12, json!({}), json!({"ath": null}), "dpop_proof_malformed"),
        (12, json!({}), json!({"ath": base64url::encode(&[0; 32])}), "dpop_token_mismatch"),
        (12, json!({"jwk": Prover::new().jwk()}), json!({}), "dpop_token_mismatch"),
    ] {
        let proof = prover.proof(&token, &header, &claims);
        assert_eq!(bench.proved("/key", &token, &proof), reason, "{number}: {header} {claims}");
    }
    // 6: a signature over other bytes, and none.
    let good = prover.proof(&token, &json!({}), &json!({}));
    let (input, _) = good.rsplit_once('.').unwrap();
    let other = Prover::new().0.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
    for signature in [other.as_ref(), &[0; 64], &[]] {
        let forged = format!("{input}.{}", base64url::encode(signature));
        assert_eq!(bench.proved("/key", &token, &forged), "dpop_signature_invalid");
    }
    // 1 and 2: exactly one field with exactly one JWT.
    let authorization = format!("DPoP {token}");
    let none = [("authorization", &*authorization)];
    assert_eq!(bench.reason("/key", &none, CertificateSource::None), "dpop_proof_missing");
    let two = [("authorization", &*authorization), ("dpop", &*good), ("dpop", &*good)];
    assert_eq!(bench.reason("/key", &two, CertificateSource::None), "dpop_proof_multiple");
    for joined in [format!("{good},{good}"), format!("{good}, "), format!(",{good}")] {
        assert_eq!(bench.proved("/key", &token, &joined), "dpop_proof_multiple", "{joined}");
    }
    for text in
        ["", "a.b.c", "a.b", &format!("{good}."), &format!("{{\"payload\":\"{good}\"}}"), &"x".repeat(9_000)]
    {
        assert_eq!(bench.proved("/key", &token, text), "dpop_proof_malformed", "{text:.40}");
    }
    // None of these was taken as used.
    assert_eq!(bench.proved("/key?page=2", &token, &good), "permit");
    assert_eq!(bench.proved("/key", &token, &good), "dpop_proof_replayed");
}

/// RFC 9449 §4.3 asks for the normalisation of RFC 3986 §6.2.2 and §6.2.3, without query and fragment.
#[test]
fn the_uri_is_compared_in_its_normal_form() {
    let (bench, prover) = (Bench::new(), Prover::new());
    let token = bench.token(&prover.binding());
    for (number, uri) in [
        "HTTPS://API/key",
        "https://api:443/key",
        "https://api./key",
        "https://api/%6Bey",
        "https://api/key?q=1#f",
    ]
    .into_iter()
    .enumerate()
    {
        let proof = prover.proof(&token, &json!({}), &json!({"htu": uri, "jti": number.to_string()}));
        assert_eq!(bench.proved("/key", &token, &proof), "permit", "{uri}");
    }
    // Where a gateway sees another origin than clients address, the rule names theirs, and only that one counts.
    for (uri, reason) in
        [("https://front.example/front", "permit"), ("https://api/front", "dpop_request_mismatch")]
    {
        let proof = prover.proof(&token, &json!({}), &json!({"htu": uri, "jti": uri}));
        assert_eq!(bench.proved("/front", &token, &proof), reason, "{uri}");
    }
}

#[test]
fn a_bound_token_is_no_bearer_token_wherever_it_comes() {
    let (bench, prover) = (Bench::new(), Prover::new());
    let (bound, free) = (bench.token(&prover.binding()), bench.token(&json!({})));
    let proof = prover.proof(&free, &json!({}), &json!({"htu": "https://api/any"}));
    for (target, authorization, proof, reason) in [
        ("/any", format!("Bearer {bound}"), None, "scheme_mismatch"),
        ("/any", format!("Bearer {bound}"), Some(&proof), "scheme_mismatch"),
        ("/any", format!("DPoP {free}"), None, "scheme_mismatch"),
        ("/any", format!("DPoP {free}"), Some(&proof), "scheme_mismatch"),
        ("/any", format!("Bearer {free}"), None, "permit"),
        ("/key", format!("Bearer {free}"), None, "binding_required"),
        ("/tls", format!("DPoP {bound}"), None, "binding_required"),
    ] {
        let mut headers = vec![("authorization", authorization.as_str())];
        headers.extend(proof.map(|proof| ("dpop", proof.as_str())));
        assert_eq!(
            bench.reason(target, &headers, CertificateSource::None),
            reason,
            "{target} {authorization:.10}"
        );
    }
}

#[test]
fn a_full_memory_of_proofs_refuses_and_says_so() {
    let mut bench = Bench::new();
    bench.memory.room = 1;
    let prover = Prover::new();
    let token = bench.token(&prover.binding());
    let proof = |jti: &str| prover.proof(&token, &json!({}), &json!({ "jti": jti }));
    assert_eq!(bench.proved("/key", &token, &proof("a")), "permit");
    assert_eq!(bench.proved("/key", &token, &proof("b")), "dpop_replay_cache_full");
    assert_eq!(bench.proved("/key", &token, &proof("a")), "dpop_proof_replayed");
}

#[test]
fn a_proof_that_another_check_refuses_can_still_be_used() {
    let (bench, prover) = (Bench::new(), Prover::new());
    let mut narrow = prover.binding();
    narrow["scope"] = "profile".into();
    let scoped = policies("    - { paths: ['/key'], scopes: { all: [orders.read] } }");
    let token = bench.token(&narrow);
    let strict = Bench { view: View { policies: Arc::new(scoped), ..bench.view.clone() }, ..bench };
    let proof = prover.proof(&token, &json!({}), &json!({}));
    assert_eq!(strict.proved("/key", &token, &proof), "scope_insufficient");
    assert!(strict.memory.used.borrow().is_empty());
    // Nor is one used up while the sidecar knows too little.
    let (authorization, host) = (format!("DPoP {token}"), "api");
    let headers = [("authorization", authorization.as_bytes()), ("dpop", proof.as_bytes())];
    let request = Request {
        method: "GET",
        scheme: "https",
        host,
        target: "/key",
        headers: &headers,
        ..Request::default()
    };
    let stale = Now { wall: UnixMillis::from_seconds(NOW), freshness: Freshness::Stale, feed_age_ms: 60_000 };
    let lenient = View { policies: Arc::new(policies(POLICY)), ..strict.view.clone() };
    assert_eq!(decide(&lenient, &strict.memory, &request, stale).or(Reason::Internal).as_str(), "stale");
    assert!(strict.memory.used.borrow().is_empty());
}

/// RFC 9449 §9: a nonce is asked for with 401, the next one comes with the answer before the old one ends, and one that has
/// ended is asked for anew.
#[test]
fn nonces_rotate_without_a_refused_request() {
    let (bench, prover) = (Bench::new(), Prover::new());
    let token = bench.token(&prover.binding());
    let authorization = format!("DPoP {token}");
    let send = |nonce: Value, at: i64| {
        let claims = json!({"htu": "https://api/fresh", "nonce": nonce, "iat": at, "jti": at.to_string()});
        let proof = prover.proof(&token, &json!({}), &claims);
        let headers = [("authorization", authorization.as_str()), ("dpop", &proof)];
        match bench.decide("/fresh", &headers, CertificateSource::None, at) {
            Decision::Permit(permit) => Ok(permit.nonce),
            Decision::Denial(denial) => Err((denial.reason, denial.nonce)),
        }
    };
    let Err((Reason::NonceRequired, Some(first))) = send(Value::Null, NOW) else {
        panic!("a nonce is asked for")
    };
    assert_eq!(send(first.clone().into(), NOW), Ok(None));
    // In the step after its own the nonce is taken still, and the next one comes along.
    let Ok(Some(second)) = send(first.clone().into(), NOW + 150) else {
        panic!("the next nonce comes along")
    };
    assert_ne!(first, second);
    assert_eq!(send(second.into(), NOW + 151), Ok(None));
    assert!(matches!(send(first.into(), NOW + 300), Err((Reason::NonceRequired, Some(_)))));
    assert!(matches!(send("guessed".into(), NOW), Err((Reason::NonceRequired, Some(_)))));
    // Where none is asked for, none is handed out.
    let proof = prover.proof(&token, &json!({}), &json!({"htm": "POST"}));
    let headers = [("authorization", authorization.as_str()), ("dpop", &proof)];
    let Decision::Denial(denial) = bench.decide("/key", &headers, CertificateSource::None, NOW) else {
        panic!("the method differs")
    };
    assert_eq!(denial.nonce, None);
}

fn certificate(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem();
    pem.replace('\n', "%0A").replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

#[test]
fn a_certificate_counts_from_where_it_is_trusted_alone() {
    let bench = Bench::new();
    let (own, other) = (certificate(&["a.example"]), certificate(&["b.example"]));
    let thumbprint = ClientCertificate::from_url_encoded_pem(&own).unwrap().thumbprint().to_owned();
    let hash = hex::encode(base64url::decode(&thumbprint).unwrap());
    let token = bench.token(&json!({"cnf": {"x5t#S256": thumbprint}}));
    let authorization = format!("Bearer {token}");
    let forwarded = format!("Hash={hash};DNS=a.example");
    let twice = format!("{forwarded},{forwarded}");
    let connection = CertificateSource::Connection;
    for (header, source, reason) in [
        (None, connection(&own), "permit"),
        (None, connection(&other), "certificate_mismatch"),
        (None, connection(""), "certificate_missing"),
        (None, connection("garbage"), "certificate_malformed"),
        (None, CertificateSource::None, "certificate_missing"),
        // The header is anybody's unless it is the configured source, and then the connection is not looked at.
        (Some(&forwarded), CertificateSource::None, "certificate_missing"),
        (Some(&forwarded), connection(&other), "certificate_mismatch"),
        (Some(&forwarded), CertificateSource::ForwardedHeader, "permit"),
        (None, CertificateSource::ForwardedHeader, "certificate_missing"),
        (Some(&twice), CertificateSource::ForwardedHeader, "certificate_malformed"),
    ] {
        let mut headers = vec![("authorization", authorization.as_str())];
        headers.extend(header.map(|header| ("x-forwarded-client-cert", header.as_str())));
        assert_eq!(bench.reason("/tls", &headers, source), reason, "{header:?} {source:?}");
    }
}

/// Envoy CVE-2025-66220: a NUL in a name made `good.example\0.evil.example` read as `good.example`.
#[test]
fn a_nul_in_a_name_never_ends_it() {
    let bench = Bench::new();
    let authorization = format!("Bearer {}", bench.token(&json!({})));
    let headers = [("authorization", authorization.as_str())];
    let der_of = |pem: &str| {
        let text = pem.replace("%0A", "\n").replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
        let body: String = text.lines().filter(|line| !line.starts_with("---")).collect();
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap()
    };
    let good = certificate(&["a.example"]);
    assert_eq!(bench.reason("/names", &headers, CertificateSource::Connection(&good)), "permit");
    // `a.exampleX.evil.org`, and the X becomes a NUL; nobody here checks the signature, which is TLS's part.
    let mut der = der_of(&certificate(&["a.exampleX.evil.org"]));
    let at = der.windows(10).position(|window| window == b"a.exampleX").unwrap();
    der[at + 9] = 0;
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der).replace('+', "%2B");
    let pem = format!("-----BEGIN CERTIFICATE-----%0A{body}%0A-----END CERTIFICATE-----%0A");
    assert_eq!(bench.reason("/names", &headers, CertificateSource::Connection(&pem)), "condition_fault");
}
