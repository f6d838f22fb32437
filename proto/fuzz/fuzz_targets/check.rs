//! Any bytes as Envoy's check: whatever they are, the request is refused with a reason. As a whole `CheckRequest`, and as the
//! HTTP attributes of an otherwise good one, so that most inputs reach the decision.
#![no_main]

use std::sync::{Arc, LazyLock};

use atm_core::decision::{Decision, NoMemory, Now, decide};
use atm_core::freshness::Freshness;
use atm_core::policy;
use atm_core::reason::Reason;
use atm_core::time::UnixMillis;
use atm_core::view::View;
use atm_proto::check::Received;
use libfuzzer_sys::fuzz_target;

/// Every place and kind of credential, and paths that a normalisation could lead into; nobody is let in without a token.
const POLICY: &str = r#"
apiVersion: atm.dev/v1
kind: TokenPolicy
metadata: { name: everything }
spec:
  audiences: ["api"]
  credential:
    - { header: authorization, scheme: Bearer }
    - { header: x-token }
    - { cookie: session }
    - { query: access_token }
  rules:
    - { name: read, methods: [GET], paths: ["/orders/{id}"], scopes: { all: ["read"] } }
    - { name: rest, methods: [GET, POST], paths: ["/{rest...}"] }
"#;

static VIEW: LazyLock<View> = LazyLock::new(|| {
    let policies = policy::compile(&[POLICY.to_owned()]).expect("the policy above compiles");
    View { policies: Arc::new(policies), ..View::default() }
});

fuzz_target!(|bytes: &[u8]| {
    judge(bytes);
    // CheckRequest.attributes (1) → request (4) → http (2).
    judge(&field(1, &field(4, &field(2, bytes))));
});

fn judge(message: &[u8]) {
    let Ok(received) = Received::read(message) else { return };
    for trust_forwarded_certificate in [false, true] {
        let request = received.request(trust_forwarded_certificate);
        let now = Now {
            wall: UnixMillis::from_seconds(1_763_942_400),
            freshness: Freshness::Fresh,
            feed_age_ms: 0,
        };
        let decision = decide(&VIEW, &NoMemory, &request, now).or(Reason::IntrospectionUnavailable);
        assert!(matches!(decision, Decision::Denial(_)), "no issuer is trusted, and yet: {decision:?}");
    }
}

/// A length-delimited field of a message.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).expect("seven bits"));
    bytes.extend_from_slice(content);
    bytes
}
