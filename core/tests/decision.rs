//! The decision from outside: real signatures, real policies, every step's refusal.

#[path = "support/fixtures.rs"] // in a folder, so that it is no test program of its own
mod support;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use atm_core::decision::{AuthenticToken, Decision, Memory, NoMemory, Now, Permit, Verdict, decide};
use atm_core::freshness::Freshness;
use atm_core::id::{Id, IdKind};
use atm_core::key::{Algorithm, Issuer, KeyState};
use atm_core::reason::Reason;
use atm_core::request::Request;
use atm_core::revocation::Bucket;
use atm_core::time::UnixMillis;
use atm_core::view::View;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{AUDIENCE, ISSUER, NOW, Signer, claims, policies};

const POLICY: &str = "
    - { name: read, methods: [GET], paths: ['/orders/{id}'], scopes: { all: [orders.read] } }
    - { name: write, methods: [PUT], paths: ['/orders/{id}'], scopes: { all: [orders.read, orders.write] } }
    - { name: any, methods: [PATCH], paths: ['/orders/{id}'], scopes: { any: [orders.write, orders.admin] } }
    - { name: lenient, paths: ['/lenient'], onStale: allow }
    - { name: strict-health, paths: ['/strict-health'], allowAnonymous: true, onStale: deny }
    - { name: health, paths: ['/healthz'], allowAnonymous: true }
    - { name: foreign, paths: ['/foreign'], issuers: ['https://elsewhere'] }
";

fn view(signer: &Signer) -> View {
    let mut view = View { policies: Arc::new(policies(POLICY)), ..View::default() };
    view.issuers.set(Issuer::new(ISSUER, Some("default".to_owned()), vec![signer.key(KeyState::Active)]));
    view
}

fn now() -> Now {
    Now { wall: UnixMillis::from_seconds(NOW), freshness: Freshness::Fresh, feed_age_ms: 0 }
}

fn decide_with(
    view: &View,
    memory: &impl Memory,
    method: &str,
    target: &str,
    values: &[&str],
    now: Now,
) -> Decision {
    verdict_with(view, memory, method, target, values, now).or(Reason::Internal)
}

fn verdict_with(
    view: &View,
    memory: &impl Memory,
    method: &str,
    target: &str,
    values: &[&str],
    now: Now,
) -> Verdict {
    let headers: Vec<(&str, &[u8])> =
        values.iter().map(|value| ("authorization", value.as_bytes())).collect();
    let request = Request { method, host: "api", target, headers: &headers, ..Request::default() };
    decide(view, memory, &request, now)
}

fn outcome(view: &View, method: &str, target: &str, values: &[&str]) -> Result<Permit, Reason> {
    match decide_with(view, &NoMemory, method, target, values, now()) {
        Decision::Permit(permit) => Ok(permit),
        Decision::Denial(denial) => Err(denial.reason),
    }
}

fn with_claims(signer: &Signer, changes: Value) -> Result<Permit, Reason> {
    let token = format!("Bearer {}", signer.sign(&claims(changes)));
    outcome(&view(signer), "GET", "/orders/1", &[&token])
}

#[test]
fn a_good_token_passes_and_the_permit_says_whose_it_is() {
    let signer = Signer::new("k1");
    let permit = with_claims(&signer, json!({})).unwrap();
    assert_eq!((&*permit.rule.policy, permit.rule.index, &*permit.rule.name), ("orders", 0, "read"));
    assert!(permit.stripped().is_empty());
    assert_eq!(permit.freshness, Freshness::Fresh);
    let token = permit.token.unwrap();
    assert_eq!((token.claims.subject.as_str(), &*token.kid), ("alice", "k1"));
}

#[test]
fn step_1_no_rule_no_permit() {
    let view = view(&Signer::new("k1"));
    for (target, reason) in [
        ("/", Reason::NoPolicy),
        ("/orders/1/2", Reason::NoPolicy),
        ("/healthz/../orders/1", Reason::AmbiguousPath),
        ("/healthz%2f..%2forders", Reason::AmbiguousPath),
        ("healthz", Reason::MalformedRequest),
    ] {
        assert_eq!(outcome(&view, "GET", target, &[]).unwrap_err(), reason, "{target}");
    }
    let nothing = View::default();
    assert_eq!(outcome(&nothing, "GET", "/healthz", &[]).unwrap_err(), Reason::NoPolicy);
}

#[test]
fn step_2_exactly_one_credential() {
    let signer = Signer::new("k1");
    let view = view(&signer);
    let token = signer.sign(&claims(json!({})));
    let bearer = format!("Bearer {token}");
    for accepted in [&bearer, &format!("bEARER   {token}"), &format!(" {bearer}\t")] {
        assert!(outcome(&view, "GET", "/orders/1", &[accepted]).is_ok(), "{accepted:?}");
    }
    let large = format!("Bearer {}", "a".repeat(16 * 1024 + 1));
    let cases: [(&[&str], Reason); 14] = [
        (&[], Reason::CredentialMissing),
        (&["Basic dXNlcjpwdw=="], Reason::CredentialMissing),
        (&["Digest a=\"b\", c=\"d\""], Reason::CredentialMissing),
        (&[""], Reason::CredentialMissing),
        (&[&token], Reason::CredentialMissing),
        (&["Bearer"], Reason::CredentialMalformed),
        (&["Bearer "], Reason::CredentialMalformed),
        (&["Bearer a b"], Reason::CredentialMalformed),
        (&["Bearer a\u{e9}"], Reason::CredentialMalformed),
        (&[&bearer, &bearer], Reason::CredentialMultiple),
        (&[&bearer, "Basic x"], Reason::CredentialMultiple),
        (&["Bearer a, Bearer b"], Reason::CredentialMultiple),
        (&["Basic x,Bearer b"], Reason::CredentialMultiple),
        (&[&large], Reason::TokenTooLarge),
    ];
    for (values, reason) in cases {
        assert_eq!(outcome(&view, "GET", "/orders/1", values).unwrap_err(), reason, "{values:?}");
    }
}

#[test]
fn steps_3_to_5_only_a_pinned_key_of_the_issuer_signs() {
    let (signer, other) = (Signer::new("k1"), Signer::new("k1"));
    let trusted = view(&signer);
    let of = |token: &str| outcome(&trusted, "GET", "/orders/1", &[&format!("Bearer {token}")]).unwrap_err();
    let good = claims(json!({}));
    assert_eq!(of(&other.sign(&good)), Reason::SignatureInvalid);
    assert_eq!(of(&Signer::new("k2").sign(&good)), Reason::KeyUnknown);
    assert_eq!(of(&signer.sign(&claims(json!({"iss": "https://elsewhere"})))), Reason::IssuerUnknown);
    assert_eq!(of("a.b"), Reason::TokenMalformed);
    let header = json!({"alg": "ES384", "typ": "at+jwt", "kid": "k1"});
    assert_eq!(of(&signer.sign_with(&header, &good)), Reason::AlgorithmRefused);
    assert_eq!(
        of(&signer.sign_with(&json!({"alg": "none", "typ": "at+jwt"}), &good)),
        Reason::AlgorithmRefused
    );
    assert_eq!(
        of(&signer.sign_with(&json!({"alg": "ES256", "typ": "JWT", "kid": "k1"}), &good)),
        Reason::TokenTypeRefused
    );
    // Without a kid the issuer's only key is taken; with two, none.
    let no_kid = signer.sign_with(&json!({"alg": "ES256", "typ": "at+jwt"}), &good);
    assert!(outcome(&trusted, "GET", "/orders/1", &[&format!("Bearer {no_kid}")]).is_ok());
    let mut two = view(&signer);
    let keys = vec![signer.key(KeyState::Retiring), Signer::new("k2").key(KeyState::Pending)];
    two.issuers.set(Issuer::new(ISSUER, None, keys));
    assert_eq!(
        outcome(&two, "GET", "/orders/1", &[&format!("Bearer {no_kid}")]).unwrap_err(),
        Reason::KeyAmbiguous
    );
    assert!(outcome(&two, "GET", "/orders/1", &[&format!("Bearer {}", signer.sign(&good))]).is_ok());
}

#[test]
fn a_kid_means_something_only_within_its_issuer() {
    let (ours, theirs) = (Signer::new("same"), Signer::new("same"));
    let mut view = view(&ours);
    view.issuers.set(Issuer::new("https://elsewhere", None, vec![theirs.key(KeyState::Active)]));
    let forged = theirs.sign(&claims(json!({})));
    assert_eq!(
        outcome(&view, "GET", "/orders/1", &[&format!("Bearer {forged}")]).unwrap_err(),
        Reason::SignatureInvalid
    );
    let honest = theirs.sign(&claims(json!({"iss": "https://elsewhere"})));
    assert!(outcome(&view, "GET", "/foreign", &[&format!("Bearer {honest}")]).is_ok());
    let refused = format!("Bearer {}", ours.sign(&claims(json!({}))));
    assert_eq!(outcome(&view, "GET", "/foreign", &[&refused]).unwrap_err(), Reason::IssuerRefused);
}

#[test]
fn step_6_claims_are_judged() {
    let signer = Signer::new("k1");
    for (changes, reason) in [
        (json!({"aud": "stock-api"}), Reason::AudienceRefused),
        (json!({"aud": null}), Reason::ClaimMissing),
        (json!({"exp": NOW - 31}), Reason::Expired),
        (json!({"exp": "9999999999"}), Reason::ClaimMalformed),
        (json!({"nbf": NOW + 31}), Reason::NotYetValid),
        (json!({"iat": NOW + 31}), Reason::IssuedInFuture),
        (json!({"jti": null}), Reason::ClaimMissing),
    ] {
        assert_eq!(with_claims(&signer, changes.clone()).unwrap_err(), reason, "{changes}");
    }
    assert!(with_claims(&signer, json!({"exp": NOW - 29, "nbf": NOW + 30, "iat": NOW + 30})).is_ok());
    assert!(with_claims(&signer, json!({"aud": ["stock-api", AUDIENCE]})).is_ok());
}

#[test]
fn step_8_a_bound_token_is_no_bearer_token() {
    let thumbprint = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I";
    for (confirmation, reason) in [
        (json!({"jkt": thumbprint}), Reason::SchemeMismatch),
        (json!({"x5t#S256": thumbprint}), Reason::CertificateMissing),
        (json!({"jwk": {}}), Reason::BindingUnsupported),
        (json!({}), Reason::BindingUnsupported),
        (json!({"jkt": "short"}), Reason::ClaimMalformed),
    ] {
        let changes = json!({ "cnf": confirmation });
        assert_eq!(with_claims(&Signer::new("k1"), changes.clone()).unwrap_err(), reason, "{changes}");
    }
}

#[test]
fn step_9_scopes_are_asked_for_and_named() {
    let signer = Signer::new("k1");
    let view = view(&signer);
    let bearer = format!("Bearer {}", signer.sign(&claims(json!({"scope": "orders.read profile"}))));
    assert!(outcome(&view, "GET", "/orders/1", &[&bearer]).is_ok());
    for (method, scope, detail) in [
        ("PUT", &["orders.read", "orders.write"], "The token lacks these scopes: orders.write."),
        (
            "PATCH",
            &["orders.write", "orders.admin"],
            "The token needs one of the scopes: orders.write orders.admin.",
        ),
    ] {
        let Decision::Denial(denial) = decide_with(&view, &NoMemory, method, "/orders/1", &[&bearer], now())
        else {
            panic!("{method} was permitted");
        };
        assert_eq!(denial.reason, Reason::ScopeInsufficient);
        assert_eq!(denial.scope().collect::<Vec<_>>(), scope);
        assert_eq!(denial.detail.as_deref(), Some(detail));
        assert_eq!(
            (
                denial.rule.map(|rule| rule.policy.to_string()).as_deref(),
                denial.token.unwrap().claims.jti.as_deref()
            ),
            (Some("orders"), Some("jti-1"))
        );
    }
    let either = format!("Bearer {}", signer.sign(&claims(json!({"scope": "orders.admin"}))));
    assert!(outcome(&view, "PATCH", "/orders/1", &[&either]).is_ok());
}

#[test]
fn step_10_each_rule_says_what_stale_means() {
    let signer = Signer::new("k1");
    let view = view(&signer);
    let bearer = format!("Bearer {}", signer.sign(&claims(json!({}))));
    for (freshness, target, values, expected) in [
        (Freshness::Degraded, "/orders/1", &[&*bearer][..], Ok(Freshness::Degraded)),
        (Freshness::Stale, "/orders/1", &[&*bearer], Err(Reason::Stale)),
        (Freshness::Stale, "/lenient", &[&*bearer], Ok(Freshness::Stale)),
        (Freshness::Stale, "/lenient", &[], Err(Reason::CredentialMissing)),
        (Freshness::Stale, "/healthz", &[], Ok(Freshness::Stale)),
        (Freshness::Stale, "/strict-health", &[], Err(Reason::Stale)),
    ] {
        let found = match decide_with(&view, &NoMemory, "GET", target, values, Now { freshness, ..now() }) {
            Decision::Permit(permit) => Ok(permit.freshness),
            Decision::Denial(denial) => Err(denial.reason),
        };
        assert_eq!(found, expected, "{freshness} {target}");
    }
}

#[test]
fn a_rule_that_asks_for_no_token_looks_at_none() {
    let view = view(&Signer::new("k1"));
    for values in [&[][..], &["Bearer garbage"], &["a", "b"]] {
        assert!(outcome(&view, "GET", "/healthz", values).unwrap().token.is_none());
    }
}

/// A cache that keeps everything, and counts what it was asked for.
#[derive(Default)]
struct KeepAll {
    tokens: RefCell<HashMap<(String, u64), Arc<AuthenticToken>>>,
    hits: Cell<usize>,
    /// Whether it lets no signature be verified.
    verifies_nothing: bool,
}

impl Memory for KeepAll {
    fn verified(&self, token: &str, key_generation: u64) -> Option<Arc<AuthenticToken>> {
        let found = self.tokens.borrow().get(&(token.to_owned(), key_generation)).cloned();
        self.hits.set(self.hits.get() + usize::from(found.is_some()));
        found
    }

    fn keep_verified(&self, token: &str, key_generation: u64, signed: Arc<AuthenticToken>) {
        self.tokens.borrow_mut().insert((token.to_owned(), key_generation), signed);
    }

    fn may_verify(&self) -> bool {
        !self.verifies_nothing
    }
}

#[test]
fn a_memory_may_put_off_signatures_and_nothing_else() {
    let signer = Signer::new("k1");
    let view = view(&signer);
    let bearer = |claims| format!("Bearer {}", signer.sign(&claims));
    let (seen, new) = (bearer(claims(json!({"jti": "seen"}))), bearer(claims(json!({"jti": "new"}))));
    let mut cache = KeepAll::default();
    decide_with(&view, &cache, "GET", "/orders/1", &[&seen], now());
    cache.verifies_nothing = true;
    let verdict = |bearer: &str| verdict_with(&view, &cache, "GET", "/orders/1", &[bearer], now());
    assert!(matches!(verdict(&seen), Verdict::Decided(Decision::Permit(_))));
    assert!(matches!(verdict(&new), Verdict::Verify));
    // What is no credential at all is refused at once.
    assert!(matches!(verdict("Basic garbage"), Verdict::Decided(Decision::Denial(_))));
    cache.verifies_nothing = false;
    let verdict = verdict_with(&view, &cache, "GET", "/orders/1", &[&new], now());
    assert!(matches!(verdict, Verdict::Decided(Decision::Permit(_))));
}

#[test]
fn everything_but_the_signature_is_judged_at_every_hit() {
    let signer = Signer::new("k1");
    let view = view(&signer);
    let cache = KeepAll::default();
    let bearer = format!("Bearer {}", signer.sign(&claims(json!({"scope": "orders.read"}))));
    let reason =
        |view: &View, method, now| match decide_with(view, &cache, method, "/orders/1", &[&bearer], now) {
            Decision::Permit(_) => None,
            Decision::Denial(denial) => Some(denial.reason),
        };
    assert_eq!(reason(&view, "GET", now()), None);
    assert_eq!((reason(&view, "GET", now()), cache.hits.get()), (None, 1));
    // Expiry, scopes of another rule, staleness.
    let later = Now { wall: UnixMillis::from_seconds(NOW + 3_600), ..now() };
    assert_eq!(reason(&view, "GET", later), Some(Reason::Expired));
    assert_eq!(reason(&view, "PUT", now()), Some(Reason::ScopeInsufficient));
    assert_eq!(reason(&view, "GET", Now { freshness: Freshness::Stale, ..now() }), Some(Reason::Stale));
    // A revocation.
    let mut revoked = view.clone();
    revoked.revocations.revoke_tokens(Bucket::UNKNOWN, &[Id::of(IdKind::Token, ISSUER, "jti-1")]);
    assert_eq!(reason(&revoked, "GET", now()), Some(Reason::RevokedToken));
    assert_eq!(cache.hits.get(), 5);
    // A removed key: the generation makes the kept verdict unreachable.
    let mut removed = view.clone();
    removed.issuers.set(Issuer::new(ISSUER, None, vec![Signer::new("k2").key(KeyState::Active)]));
    removed.key_generation += 1;
    assert_eq!((reason(&removed, "GET", now()), cache.hits.get()), (Some(Reason::KeyUnknown), 5));
}

#[test]
fn a_refused_signature_is_not_kept() {
    let signer = Signer::new("k1");
    let cache = KeepAll::default();
    let forged = format!("Bearer {}", Signer::new("k1").sign(&claims(json!({}))));
    for _ in 0..2 {
        decide_with(&view(&signer), &cache, "GET", "/orders/1", &[&forged], now());
    }
    assert!(cache.tokens.borrow().is_empty());
}

#[test]
fn the_test_key_is_pinned_to_es256() {
    assert_eq!(Signer::new("k1").key(KeyState::Active).algorithm(), Algorithm::ES256);
}

proptest! {
    #[test]
    fn hostile_requests_end_in_a_decision_and_never_in_a_permit(
        method in ".{0,8}",
        host in ".{0,20}",
        target in "/?[a-z/.%0-9;?#\\\\]{0,30}",
        headers in prop::collection::vec((prop::sample::select(vec!["authorization", "x"]), prop::collection::vec(any::<u8>(), 0..60)), 0..3),
    ) {
        let view = View { policies: Arc::new(policies("    - { paths: ['/{rest...}', '/'] }")), ..View::default() };
        let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_slice())).collect();
        let request = Request { method: &method, host: &host, target: &target, headers: &headers, ..Request::default() };
        prop_assert!(matches!(decide(&view, &NoMemory, &request, now()).or(Reason::Internal), Decision::Denial(_)));
    }
}
