//! Any request against every kind of rule: one decision, and never a permit without a credential.
#![no_main]

use std::sync::{Arc, LazyLock};

use atm_core::decision::{Decision, NoMemory, Now, decide, decide_shadow};
use atm_core::freshness::Freshness;
use atm_core::jwk::spki_from_jwk;
use atm_core::key::{Issuer, KeyState, VerificationKey};
use atm_core::policy;
use atm_core::reason::Reason;
use atm_core::request::{CertificateSource, Request};
use atm_core::time::UnixMillis;
use atm_core::view::View;
use libfuzzer_sys::fuzz_target;

const POLICY: &str = "
apiVersion: atm.dev/v1
kind: TokenPolicy
metadata: { name: p }
spec:
  audiences: [a]
  accepts: [jwt, opaque, apiKey]
  rules:
    - { paths: ['/', '/{rest...}'] }
    - { paths: ['/a/{id}'], hosts: ['*.h', 'h'], credential: [{ cookie: c }, { query: q }, { header: x, prefix: p }] }
    - { paths: ['/b'], binding: { require: any, dpop: { nonce: true } }, condition: \"request.host == 'h' || token.x\" }
---
apiVersion: atm.dev/v1
kind: TokenPolicy
metadata: { name: s }
spec:
  mode: shadow
  audiences: [a]
  rules: [{ paths: ['/{rest...}'] }]
";

static VIEW: LazyLock<View> = LazyLock::new(|| {
    let set = policy::compile(&[POLICY.to_owned()]).expect("the policies compile");
    let mut view = View { policies: Arc::new(set), ..View::default() };
    // RFC 8037 §A.2.
    let jwk = serde_json::json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let key = spki_from_jwk(&jwk).expect("the key of the RFC");
    let key = VerificationKey::from_spki("k", key.algorithm, &key.spki, KeyState::Active).expect("a key");
    view.issuers.set(Issuer::new("i", Some("r".to_owned()), vec![key]));
    view
});

const NAMES: [&str; 6] = ["authorization", "cookie", "x", "dpop", "x-forwarded-client-cert", "other"];

fuzz_target!(|input: (&str, &str, &str, Vec<(u8, &[u8])>, Option<&str>)| {
    let (method, host, target, headers, certificate) = input;
    let headers: Vec<(&str, &[u8])> =
        headers.iter().map(|(name, value)| (NAMES[usize::from(*name) % NAMES.len()], *value)).collect();
    for certificate in [CertificateSource::ForwardedHeader, CertificateSource::Connection(certificate.unwrap_or_default())] {
        let request = Request { method, scheme: "https", host, target, headers: &headers, certificate, ..Request::default() };
        let now = Now { wall: UnixMillis::from_seconds(1_763_942_400), freshness: Freshness::Fresh, feed_age_ms: 0 };
        let decision = decide(&VIEW, &NoMemory, &request, now).or(Reason::IntrospectionUnavailable);
        assert!(matches!(decision, Decision::Denial(_)), "a permit without a token");
        assert!(!matches!(decide_shadow(&VIEW, &NoMemory, &request, now), Some(Decision::Permit(_))));
    }
});
