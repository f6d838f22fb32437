//! What a decision costs: routing over few and many rules, with and without the verified token at hand.

#[path = "../tests/support/fixtures.rs"]
mod support;

use std::hint::black_box;
use std::sync::Arc;

use atm_core::decision::{AuthenticToken, Decision, Memory, NoMemory, Now, Verdict, decide};
use atm_core::freshness::Freshness;
use atm_core::id::Id;
use atm_core::jws::UnverifiedToken;
use atm_core::key::{Issuer, Issuers, KeyState};
use atm_core::request::Request;
use atm_core::revocation::{Bucket, RevocationIndex};
use atm_core::time::UnixMillis;
use atm_core::token::KeyedToken;
use atm_core::view::View;
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use support::{ISSUER, NOW, Signer, claims, policies};

/// Holds the one token of the benchmark.
#[derive(Default)]
struct OneToken(std::cell::OnceCell<Arc<AuthenticToken>>);

impl Memory for OneToken {
    fn verified(&self, _token: &str, _key_generation: u64) -> Option<Arc<AuthenticToken>> {
        self.0.get().cloned()
    }

    fn keep_verified(&self, _token: &str, _key_generation: u64, signed: Arc<AuthenticToken>) {
        self.0.get_or_init(|| signed);
    }
}

fn spread(number: u64) -> Id {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes[8..].copy_from_slice(&number.rotate_left(29).to_be_bytes());
    Id::from_bytes(bytes)
}

fn million() -> RevocationIndex {
    let mut index = RevocationIndex::default();
    let bucket = Bucket::of_expiry(NOW + 300);
    for chunk in 0..1_000 {
        index.revoke_tokens(bucket, &(chunk * 1_000..(chunk + 1) * 1_000).map(spread).collect::<Vec<_>>());
    }
    index
}

fn view(signer: &Signer, rules: usize, revocations: RevocationIndex) -> View {
    let rule = |n| {
        format!(
            "    - {{ paths: ['/v1/t{n}/{{id}}', '/v1/t{n}'], methods: [GET], scopes: {{ all: [orders.read] }} }}\n"
        )
    };
    let rules: Vec<String> = (0..rules).map(rule).collect();
    let mut view = View { policies: Arc::new(policies(&rules.concat())), revocations, ..View::default() };
    view.issuers.set(Issuer::new(ISSUER, Some("default".to_owned()), vec![signer.key(KeyState::Active)]));
    view
}

fn decisions(criterion: &mut Criterion) {
    let signer = Signer::new("k1");
    let value = format!("Bearer {}", signer.sign(&claims(json!({}))));
    let headers = [("user-agent", &b"bench"[..]), ("authorization", value.as_bytes())];
    let request = Request {
        method: "GET",
        host: "api.example.com:443",
        target: "/v1/t7/42?x=1",
        headers: &headers,
        ..Request::default()
    };
    let now = Now { wall: UnixMillis::from_seconds(NOW), freshness: Freshness::Fresh, feed_age_ms: 0 };
    let mut group = criterion.benchmark_group("decide");
    for rules in [10, 1_000] {
        let view = view(&signer, rules, RevocationIndex::default());
        let cache = OneToken::default();
        group.bench_function(format!("cached/{rules}_rules"), |b| {
            b.iter(|| decide(black_box(&view), &cache, &request, now));
        });
    }
    let crowded = view(&signer, 10, million());
    let cache = OneToken::default();
    group.bench_function("cached/1000000_revoked", |b| {
        b.iter(|| decide(black_box(&crowded), &cache, &request, now));
    });
    group.bench_function("uncached/es256", |b| {
        b.iter(|| decide(black_box(&crowded), &NoMemory, &request, now));
    });
}

/// Finding the key of a token among the keys of few and of many issuers; the token is parsed each time.
fn issuers(criterion: &mut Criterion) {
    let signer = Signer::new("k1");
    let token = signer.sign(&claims(json!({"iss": "https://issuer-0.example"})));
    let mut group = criterion.benchmark_group("select_key");
    for number in [1, 800] {
        let mut issuers = Issuers::default();
        for at in 0..number {
            let name = format!("https://issuer-{at}.example");
            issuers.set(Issuer::new(name, None, vec![signer.key(KeyState::Active)]));
        }
        group.bench_function(format!("{number}_issuers"), |b| {
            b.iter(|| {
                let parsed = UnverifiedToken::parse(black_box(&token));
                assert!(parsed.and_then(|parsed| KeyedToken::select(parsed, black_box(&issuers))).is_ok());
            });
        });
    }
}

/// A condition of each kind, in a whole decision.
fn conditions(criterion: &mut Criterion) {
    let signer = Signer::new("k1");
    let token =
        signer.sign(&claims(json!({"roles": ["clerk", "auditor", "treasurer"], "org": {"id": "acme"}})));
    let value = format!("Bearer {token}");
    let headers =
        [("authorization", value.as_bytes()), ("x-request-id", &b"0b6f8c1e-4c58-4a37-9f4e-0a3c2f6b7d11"[..])];
    let request =
        Request { method: "GET", host: "api", target: "/t/acme", headers: &headers, ..Request::default() };
    let now = Now { wall: UnixMillis::from_seconds(NOW), freshness: Freshness::Fresh, feed_age_ms: 0 };
    let mut group = criterion.benchmark_group("condition");
    for (name, condition) in [
        ("none", None),
        ("claim", Some("request.params.tenant == token.org.id")),
        ("list", Some("token.roles.exists(role, role == 'treasurer') && now.getHours() < 25")),
        ("regex", Some("request.headers['x-request-id'].matches('^[0-9a-f]{8}-[0-9a-f-]{27}$')")),
    ] {
        let condition = condition.map(|text| format!(", condition: \"{text}\"")).unwrap_or_default();
        let rules = format!("    - {{ paths: ['/t/{{tenant}}']{condition} }}");
        let mut view = View { policies: Arc::new(policies(&rules)), ..View::default() };
        view.issuers.set(Issuer::new(ISSUER, Some("default".to_owned()), vec![signer.key(KeyState::Active)]));
        let cache = OneToken::default();
        assert!(
            matches!(decide(&view, &cache, &request, now), Verdict::Decided(Decision::Permit(_))),
            "{name}"
        );
        group.bench_function(name, |b| b.iter(|| decide(black_box(&view), &cache, &request, now)));
    }
}

criterion_group!(benches, decisions, issuers, conditions);
criterion_main!(benches);
