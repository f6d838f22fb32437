use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: i64 = 1_763_942_400;

fn raw(changes: Value) -> Map<String, Value> {
    let mut claims = json!({
        "iss": "https://issuer", "sub": "alice", "aud": "orders", "client_id": "shop", "jti": "1",
        "iat": NOW - 10, "exp": NOW + 60, "scope": "a b",
    });
    let Value::Object(changes) = changes else { unreachable!() };
    for (name, value) in changes {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(&name);
        } else {
            claims[name] = value;
        }
    }
    let Value::Object(claims) = claims else { unreachable!() };
    claims
}

fn judged(changes: Value) -> Result<(), Reason> {
    let claims = Claims::from_object(raw(changes))?;
    let audiences = ["orders".to_owned()];
    let expected = Expectations {
        issuers: &[],
        audiences: &audiences,
        clock_skew: 5,
        now: UnixMillis::from_seconds(NOW),
    };
    claims.validate(expected).map(|_| ())
}

#[test]
fn claims_of_the_wrong_type_never_read_as_absent() {
    for changes in [
        json!({"exp": "9999999999"}),
        json!({"exp": 1.5}),
        json!({"exp": -1}),
        json!({"nbf": "0"}),
        json!({"iat": [1]}),
        json!({"aud": 1}),
        json!({"aud": ["orders", 1]}),
        json!({"iss": ["https://issuer"]}),
        json!({"sub": ""}),
        json!({"sub": "a\r\nx-atm-subject: root"}),
        json!({"scope": ["a"]}),
        json!({"scope": "a\"b"}),
        json!({"scope": "a\tb"}),
        json!({"cnf": "x"}),
        json!({"act": {"sub": 1}}),
        json!({"atm_iat_ms": (NOW - 9) * 1000}),
    ] {
        assert_eq!(judged(changes.clone()), Err(Reason::ClaimMalformed), "{changes}");
    }
}

#[test]
fn scopes_are_read_from_scp_where_there_is_no_scope() {
    let scopes = |changes: Value| Claims::from_object(raw(changes)).map(|claims| claims.scope);
    let both = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(scopes(json!({})), Ok(both.clone()));
    assert_eq!(scopes(json!({"scope": null, "scp": "a b"})), Ok(both.clone()));
    assert_eq!(scopes(json!({"scope": null, "scp": ["a", "b"]})), Ok(both.clone()));
    assert_eq!(scopes(json!({"scp": ["c"]})), Ok(both));
    assert_eq!(scopes(json!({"scope": "", "scp": ["c"]})), Ok(vec![]));
    assert_eq!(scopes(json!({"scope": null})), Ok(vec![]));
    for scp in [json!(1), json!(["a b"]), json!([1]), json!([""]), json!({"a": 1}), json!("a\"")] {
        assert_eq!(scopes(json!({"scope": null, "scp": scp})), Err(Reason::ClaimMalformed), "{scp}");
    }
}

#[test]
fn required_claims_are_required() {
    for name in ["iss", "sub", "aud", "exp", "iat"] {
        assert_eq!(judged(json!({name: null})), Err(Reason::ClaimMissing), "{name}");
    }
    assert_eq!(judged(json!({"aud": []})), Err(Reason::ClaimMissing));
}

#[test]
fn times_are_judged_with_the_skew_and_no_more() {
    assert_eq!(judged(json!({})), Ok(()));
    assert_eq!(judged(json!({"exp": NOW - 4})), Ok(()));
    assert_eq!(judged(json!({"exp": NOW - 5})), Err(Reason::Expired));
    assert_eq!(judged(json!({"nbf": NOW + 5})), Ok(()));
    assert_eq!(judged(json!({"nbf": NOW + 6})), Err(Reason::NotYetValid));
    assert_eq!(judged(json!({"iat": NOW + 5})), Ok(()));
    assert_eq!(judged(json!({"iat": NOW + 6})), Err(Reason::IssuedInFuture));
}

#[test]
fn an_audience_is_one_or_several_and_must_be_ours() {
    assert_eq!(judged(json!({"aud": ["x", "orders"]})), Ok(()));
    assert_eq!(judged(json!({"aud": "ORDERS"})), Err(Reason::AudienceRefused));
}

#[test]
fn the_millisecond_of_issuance_is_kept() {
    let claims = Claims::from_object(raw(json!({"atm_iat_ms": (NOW - 10) * 1000 + 123}))).unwrap();
    assert_eq!(claims.issued_at, UnixMillis((NOW - 10) * 1000 + 123));
    assert_eq!(Claims::from_object(raw(json!({}))).unwrap().issued_at, UnixMillis((NOW - 10) * 1000));
}

#[test]
fn a_delegation_chain_is_read_outermost_first_and_bounded() {
    let act = json!({"sub": "b", "iss": "https://other", "act": {"sub": "c"}});
    let claims = Claims::from_object(raw(json!({"act": act}))).unwrap();
    let actor = |issuer: Option<&str>, subject: &str| Actor {
        issuer: issuer.map(Into::into),
        subject: subject.into(),
    };
    assert_eq!(claims.actors, [actor(Some("https://other"), "b"), actor(None, "c")]);
    assert_eq!(judged(json!({"act": {"client_id": "no subject"}})), Err(Reason::ClaimMalformed));
    let chain = (0..=MAX_ACTORS).fold(json!({"sub": "x"}), |act, _| json!({"sub": "y", "act": act}));
    assert_eq!(judged(json!({"act": chain})), Err(Reason::ClaimMalformed));
}

#[test]
fn no_rule_forgives_more_skew_than_the_bound() {
    let claims = Claims::from_object(raw(json!({"exp": NOW - 301}))).unwrap();
    let audiences = ["orders".to_owned()];
    let now = UnixMillis::from_seconds(NOW);
    let expected = Expectations { issuers: &[], audiences: &audiences, clock_skew: i64::MAX, now };
    assert_eq!(claims.validate(expected).map(|_| ()), Err(Reason::Expired));
}

proptest! {
    #[test]
    fn extreme_times_neither_panic_nor_wrap(
        exp in 0..=(1_i64 << 53),
        nbf in 0..=(1_i64 << 53),
        iat in 0..=(1_i64 << 53),
    ) {
        let outcome = judged(json!({"exp": exp, "nbf": nbf, "iat": iat}));
        prop_assert_eq!(outcome.is_ok(), exp > NOW - 5 && nbf <= NOW + 5 && iat <= NOW + 5);
    }
}
