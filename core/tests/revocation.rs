//! Revocation as a request meets it: every selector, alone and combined.

#[path = "support/fixtures.rs"] // in a folder, so that it is no test program of its own
mod support;

use std::sync::Arc;

use atm_core::decision::{Decision, NoMemory, Now, decide};
use atm_core::freshness::Freshness;
use atm_core::id::{Id, IdKind};
use atm_core::key::{Issuer, KeyState};
use atm_core::reason::Reason;
use atm_core::request::Request;
use atm_core::revocation::{Bucket, RevocationIndex};
use atm_core::time::UnixMillis;
use atm_core::view::View;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{ISSUER, NOW, Signer, claims, policies};

struct Bench {
    signer: Signer,
    view: View,
}

impl Bench {
    fn new() -> Self {
        let signer = Signer::new("k1");
        let mut view = View { policies: Arc::new(policies("    - { paths: ['/'] }")), ..View::default() };
        view.issuers.set(Issuer::new(ISSUER, Some("default".to_owned()), vec![signer.key(KeyState::Active)]));
        Self { signer, view }
    }

    fn token(&self, changes: Value) -> String {
        self.signer.sign(&claims(changes))
    }

    fn refusal(&self, token: &str, revocations: RevocationIndex) -> Option<Reason> {
        let view = View { revocations, ..self.view.clone() };
        let value = format!("Bearer {token}");
        let headers = [("authorization", value.as_bytes())];
        let request =
            Request { method: "GET", host: "h", target: "/", headers: &headers, ..Request::default() };
        match decide(
            &view,
            &NoMemory,
            &request,
            Now { wall: UnixMillis::from_seconds(NOW), freshness: Freshness::Fresh, feed_age_ms: 0 },
        )
        .or(Reason::Internal)
        {
            Decision::Permit(_) => None,
            Decision::Denial(denial) => Some(denial.reason),
        }
    }
}

fn watermark(kind: IdKind, id: Id, instant: i64) -> RevocationIndex {
    let mut index = RevocationIndex::default();
    index.raise_watermark(kind, id, UnixMillis(instant));
    index
}

/// What each scope's watermark is set on, for the tokens of these tests.
fn scopes() -> [(IdKind, Id, Reason); 5] {
    [
        (IdKind::Session, Id::of(IdKind::Session, ISSUER, "session-1"), Reason::RevokedSession),
        (IdKind::Subject, Id::of(IdKind::Subject, ISSUER, "alice"), Reason::RevokedSubject),
        (IdKind::Client, Id::of(IdKind::Client, ISSUER, "shop"), Reason::RevokedClient),
        (IdKind::Realm, Id::of(IdKind::Realm, "", "default"), Reason::RevokedRealm),
        (IdKind::Issuer, Id::of(IdKind::Issuer, "", ISSUER), Reason::RevokedIssuer),
    ]
}

#[test]
fn a_watermark_covers_its_own_millisecond_and_no_later_one() {
    let bench = Bench::new();
    let issued = (NOW - 10) * 1_000 + 500;
    let token = bench.token(json!({"atm_iat_ms": issued}));
    for (kind, id, reason) in scopes() {
        assert_eq!(bench.refusal(&token, watermark(kind, id, issued - 1)), None, "{kind:?}");
        assert_eq!(bench.refusal(&token, watermark(kind, id, issued)), Some(reason), "{kind:?}");
    }
    // Without milliseconds the whole second counts from its start: rather refused than wrongly alive.
    let coarse = bench.token(json!({}));
    let (kind, id, reason) = scopes()[0];
    assert_eq!(bench.refusal(&coarse, watermark(kind, id, (NOW - 10) * 1_000)), Some(reason));
}

#[test]
fn a_token_is_revoked_in_its_own_bucket_or_in_the_unknown_one() {
    let bench = Bench::new();
    let token = bench.token(json!({}));
    let id = Id::of(IdKind::Token, ISSUER, "jti-1");
    let own = Bucket::of_expiry(NOW + 300);
    for (bucket, expected) in [
        (own, Some(Reason::RevokedToken)),
        (Bucket::UNKNOWN, Some(Reason::RevokedToken)),
        (Bucket(own.0 + 1), None),
    ] {
        let mut index = RevocationIndex::default();
        index.revoke_tokens(bucket, &[id]);
        assert_eq!(bench.refusal(&token, index), expected, "{bucket:?}");
    }
    let mut another = RevocationIndex::default();
    another.revoke_tokens(own, &[Id::of(IdKind::Token, "https://elsewhere", "jti-1")]);
    assert_eq!(bench.refusal(&token, another), None);
}

#[test]
fn a_revoked_key_refuses_whatever_it_signed_and_whenever() {
    let bench = Bench::new();
    let key = watermark(IdKind::Key, Id::of(IdKind::Key, ISSUER, "k1"), 0);
    assert_eq!(bench.refusal(&bench.token(json!({})), key), Some(Reason::RevokedKey));
}

#[test]
fn a_delegated_token_falls_with_each_actor() {
    let bench = Bench::new();
    let token = bench.token(json!({"act": {"sub": "service", "act": {"sub": "gateway"}}}));
    for subject in ["alice", "service", "gateway"] {
        let index = watermark(IdKind::Subject, Id::of(IdKind::Subject, ISSUER, subject), NOW * 1_000);
        assert_eq!(bench.refusal(&token, index), Some(Reason::RevokedSubject), "{subject}");
    }
    let stranger = watermark(IdKind::Subject, Id::of(IdKind::Subject, ISSUER, "bob"), NOW * 1_000);
    assert_eq!(bench.refusal(&token, stranger), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn scopes_combine_as_their_maximum_in_any_order(
        marks in prop::collection::vec((0..5_usize, -3..3_i64), 0..8),
        offset in 0..1_000_i64,
    ) {
        let bench = Bench::new();
        let issued = (NOW - 10) * 1_000 + offset;
        let token = bench.token(json!({"atm_iat_ms": issued}));
        let build = |marks: &mut dyn Iterator<Item = &(usize, i64)>| {
            let mut index = RevocationIndex::default();
            for (scope, delta) in marks {
                let (kind, id, _) = scopes()[*scope];
                index.raise_watermark(kind, id, UnixMillis(issued + delta));
            }
            index
        };
        let forward = build(&mut marks.iter());
        let backward = build(&mut marks.iter().rev());
        let expected = marks.iter().any(|(_, delta)| *delta >= 0);
        prop_assert_eq!(bench.refusal(&token, forward.clone()).is_some(), expected);
        prop_assert_eq!(bench.refusal(&token, backward), bench.refusal(&token, forward));
    }
}
