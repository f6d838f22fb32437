//! Tokens end to end, from text to signed claims: what is accepted, and each attack with the reason that refuses it.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy knows only the test functions themselves

#[path = "tokens/mint.rs"]
mod mint;

use atm_core::base64url;
use atm_core::binding::Confirmation;
use atm_core::claims::{MAX_ACTORS, MAX_ANCESTORS};
use atm_core::id::{Id, IdKind};
use atm_core::jws::{MAX_HEADER_BYTES, MAX_TOKEN_BYTES, UnverifiedToken};
use atm_core::key::{Algorithm, Issuer, Issuers};
use atm_core::reason::Reason;
use atm_core::revocation::Bucket;
use atm_core::token::{AuthenticToken, KeyedToken};
use mint::{ISSUER, Minter, NOW, good_claims};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Of some key.
const THUMBPRINT: &str = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I";

fn verify(token: &str, issuers: &Issuers) -> Result<AuthenticToken, Reason> {
    KeyedToken::select(UnverifiedToken::parse(token)?, issuers)?.verify()
}

fn refusal(token: &str, issuers: &Issuers) -> Option<Reason> {
    verify(token, issuers).err()
}

/// What jsonwebtoken says of a token of ours.
fn second_opinion(token: &str, minter: &Minter) -> jsonwebtoken::errors::Result<Value> {
    let algorithm: jsonwebtoken::Algorithm = minter.algorithm.as_str().parse()?;
    let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(minter.jwk()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(algorithm);
    validation.validate_exp = false; // by the wall clock; ours takes the time as a parameter
    validation.set_audience(&["orders-api"]);
    validation.set_issuer(&[ISSUER]);
    let key = jsonwebtoken::DecodingKey::from_jwk(&jwk)?;
    Ok(jsonwebtoken::decode::<Value>(token, &key, &validation)?.claims)
}

/// A good token that jsonwebtoken made with our key.
fn minted_elsewhere(minter: &Minter) -> String {
    let pem = minter.pem();
    let key = match minter.algorithm {
        Algorithm::EdDSA => jsonwebtoken::EncodingKey::from_ed_pem(pem.as_bytes()),
        Algorithm::ES256 | Algorithm::ES384 => jsonwebtoken::EncodingKey::from_ec_pem(pem.as_bytes()),
        _ => jsonwebtoken::EncodingKey::from_rsa_pem(pem.as_bytes()),
    };
    let mut header = jsonwebtoken::Header::new(minter.algorithm.as_str().parse().unwrap());
    header.typ = Some("application/AT+JWT".into());
    header.kid = Some("k1".into());
    jsonwebtoken::encode(&header, &good_claims(), &key.unwrap()).unwrap()
}

#[test]
fn every_algorithm_verifies_and_jsonwebtoken_agrees() {
    for algorithm in Algorithm::ALL {
        let minter = Minter::new(algorithm);
        let token = minter.good();
        let signed = verify(&token, &minter.issuers()).unwrap();
        assert_eq!(Value::Object(signed.claims.raw), good_claims(), "{algorithm}");
        if algorithm != Algorithm::ES512 {
            // jsonwebtoken has no ES512.
            assert_eq!(second_opinion(&token, &minter).unwrap(), good_claims(), "{algorithm}");
            verify(&minted_elsewhere(&minter), &minter.issuers()).unwrap();
        }
        assert_eq!(
            refusal(&Minter::new(algorithm).good(), &minter.issuers()),
            Some(Reason::SignatureInvalid)
        );
    }
}

#[test]
fn claims_and_ids_are_kept() {
    let minter = Minter::new(Algorithm::EdDSA);
    let act = json!({"sub": "agent", "act": {"sub": "robot", "iss": "https://other.example"}});
    let claims = json!({"act": act, "cnf": {"jkt": THUMBPRINT}, "atm_iat_ms": (NOW - 10) * 1000 + 7});
    let signed = verify(&minter.token(&json!({}), &claims), &minter.issuers()).unwrap();
    assert_eq!(signed.claims.scope, ["orders.read", "orders.write"]);
    assert_eq!(
        signed.claims.confirmation,
        Some(Confirmation { jkt: Some(THUMBPRINT.into()), ..Confirmation::default() })
    );
    assert_eq!(signed.claims.issued_at.0, (NOW - 10) * 1000 + 7);
    assert_eq!(&*signed.kid, "k1");
    let id = |kind, value: &str| Id::of(kind, ISSUER, value);
    assert_eq!(signed.ids.token, Some(id(IdKind::Token, "t-1")));
    assert_eq!(signed.ids.session, [id(IdKind::Session, "s-1")]);
    assert_eq!(signed.ids.client, [id(IdKind::Client, "shop")]);
    assert_eq!(signed.ids.key, Some(id(IdKind::Key, "k1")));
    assert_eq!(signed.ids.realm, Some(Id::of(IdKind::Realm, "", "default")));
    let robot = Id::of(IdKind::Subject, "https://other.example", "robot");
    assert_eq!(signed.ids.subjects, [id(IdKind::Subject, "alice"), id(IdKind::Subject, "agent"), robot]);
}

#[test]
fn a_derived_token_can_be_revoked_by_all_that_it_came_from() {
    let minter = Minter::new(Algorithm::EdDSA);
    let ancestors = json!([
        {"jti": "a-1", "exp": NOW + 7_200, "sid": "s-0", "client_id": "portal"},
        {"jti": "a-2", "exp": NOW + 60, "iss": "https://idp.example", "sid": "idp-session"},
    ]);
    let signed = verify(&minter.token(&json!({}), &json!({ "atm_ancestors": ancestors })), &minter.issuers());
    let ids = signed.unwrap().ids;
    let id = |kind, value: &str| Id::of(kind, ISSUER, value);
    let of_idp = |kind, value: &str| Id::of(kind, "https://idp.example", value);
    assert_eq!(
        ids.ancestors,
        [
            (Bucket::of_expiry(NOW + 7_200), id(IdKind::Token, "a-1")),
            (Bucket::of_expiry(NOW + 60), of_idp(IdKind::Token, "a-2")),
        ]
    );
    let sessions =
        [id(IdKind::Session, "s-1"), id(IdKind::Session, "s-0"), of_idp(IdKind::Session, "idp-session")];
    assert_eq!(ids.session, sessions);
    assert_eq!(ids.client, [id(IdKind::Client, "shop"), id(IdKind::Client, "portal")]);
}

#[test]
fn chains_are_bounded_and_well_formed() {
    let minter = Minter::new(Algorithm::EdDSA);
    let issuers = minter.issuers();
    let chain = |depth: usize| {
        (0..depth).fold(json!(null), |inner, level| {
            let mut actor = json!({ "sub": format!("actor-{level}") });
            if !inner.is_null() {
                actor["act"] = inner;
            }
            actor
        })
    };
    let ancestors = |count: usize| {
        (0..count).map(|number| json!({"jti": number.to_string(), "exp": NOW})).collect::<Vec<_>>()
    };
    assert!(verify(&minter.token(&json!({}), &json!({"act": chain(MAX_ACTORS)})), &issuers).is_ok());
    let full = json!({ "atm_ancestors": ancestors(MAX_ANCESTORS) });
    assert!(verify(&minter.token(&json!({}), &full), &issuers).is_ok());
    for claims in [
        json!({"act": chain(MAX_ACTORS + 1)}),
        json!({"act": "agent"}),
        json!({"act": {}}),
        json!({"act": {"sub": 1}}),
        json!({"act": {"sub": "a", "act": []}}),
        json!({ "atm_ancestors": ancestors(MAX_ANCESTORS + 1) }),
        json!({"atm_ancestors": {"jti": "a", "exp": NOW}}),
        json!({"atm_ancestors": ["a"]}),
        json!({"atm_ancestors": [{"jti": "a"}]}),
        json!({"atm_ancestors": [{"exp": NOW}]}),
        json!({"atm_ancestors": [{"jti": "a", "exp": "1"}]}),
        json!({"atm_ancestors": [{"jti": "a", "exp": NOW, "sid": 1}]}),
        json!({"atm_ancestors": [{"jti": "a", "exp": NOW, "iss": ["x"]}]}),
    ] {
        let token = minter.token(&json!({}), &claims);
        assert_eq!(refusal(&token, &issuers), Some(Reason::ClaimMalformed), "{claims}");
    }
}

#[test]
fn a_kid_may_be_base64_and_never_leads_out_of_a_directory() {
    let minter = Minter::new(Algorithm::EdDSA);
    for kid in ["QE0pkx/ZPAPr9w6Pcb+o=", "/leading", "a//b", "a.b..c", "2026-01-31T08:00:00Z"] {
        let mut issuers = Issuers::default();
        issuers.set(Issuer::new(ISSUER, Some("default".into()), vec![minter.key(kid)]));
        let token = minter.token(&json!({ "kid": kid }), &json!({}));
        assert!(verify(&token, &issuers).is_ok(), "{kid}");
    }
    for kid in [
        "..",
        ".",
        "../k1",
        "a/../k1",
        "a/.",
        "/..",
        "k1\0",
        "k1\n",
        "k 1",
        "k1;",
        "k1\\",
        "\u{212a}1",
        "k1%2e",
    ] {
        let token = minter.token(&json!({ "kid": kid }), &json!({}));
        assert_eq!(refusal(&token, &minter.issuers()), Some(Reason::TokenMalformed), "{kid:?}");
    }
}

/// RFC 9864 gives the key's algorithm its own name; both mean the same here, in tokens and in key sets. Of the curve that
/// `EdDSA` may mean too (Ed448) there is no verifier, and of names for one use only (RFC 8812's ES256K) neither.
#[test]
fn names_of_algorithms_are_exact() {
    let minter = Minter::new(Algorithm::EdDSA);
    for (name, taken) in [
        ("EdDSA", true),
        ("Ed25519", true),
        ("ed25519", false),
        ("EDDSA", false),
        ("Ed448", false),
        ("ES256K", false),
        ("ES256", false),
    ] {
        let token = minter.token(&json!({ "alg": name }), &json!({}));
        assert_eq!(verify(&token, &minter.issuers()).is_ok(), taken, "{name}");
        let mut jwk = minter.jwk();
        jwk["alg"] = name.into();
        assert_eq!(atm_core::jwk::spki_from_jwk(&jwk).is_ok(), taken, "{name}");
    }
}

/// Hundreds of issuers that share their kids: each token finds the key of its own, by its name alone.
#[test]
fn a_token_finds_its_issuer_among_hundreds() {
    let minters: Vec<Minter> = (0..4).map(|_| Minter::new(Algorithm::EdDSA)).collect();
    let mut issuers = Issuers::default();
    for number in 0..800 {
        let key = minters[number % minters.len()].key("k1");
        issuers.set(Issuer::new(format!("https://issuer-{number}.example"), None, vec![key]));
    }
    assert_eq!(issuers.len(), 800);
    for number in [0, 1, 399, 798, 799] {
        let name = format!("https://issuer-{number}.example");
        for (at, minter) in minters.iter().enumerate() {
            let token = minter.token(&json!({}), &json!({ "iss": name }));
            let expected = (at != number % minters.len()).then_some(Reason::SignatureInvalid);
            assert_eq!(refusal(&token, &issuers), expected, "{name} by {at}");
        }
    }
    let unknown = minters[0].token(&json!({}), &json!({"iss": "https://issuer-800.example"}));
    assert_eq!(refusal(&unknown, &issuers), Some(Reason::IssuerUnknown));
}

#[test]
fn headers_are_refused_with_their_reason() {
    let minter = Minter::new(Algorithm::ES256);
    let issuers = minter.issuers();
    for (header, reason) in [
        (json!({"alg": "none"}), Reason::AlgorithmRefused),
        (json!({"alg": "noNE"}), Reason::AlgorithmRefused),
        (json!({"alg": "es256"}), Reason::AlgorithmRefused),
        (json!({"alg": "HS256"}), Reason::AlgorithmRefused),
        (json!({"alg": "ES384"}), Reason::AlgorithmRefused),
        (json!({"alg": "RS256"}), Reason::AlgorithmRefused),
        (json!({"alg": ["ES256"]}), Reason::AlgorithmRefused),
        (json!({"alg": null}), Reason::AlgorithmRefused),
        (json!({"jwk": minter.jwk()}), Reason::EmbeddedKeyRefused),
        (json!({"jku": "https://evil.example/jwks"}), Reason::EmbeddedKeyRefused),
        (json!({"x5u": "https://evil.example/x5u"}), Reason::EmbeddedKeyRefused),
        (json!({"x5c": []}), Reason::EmbeddedKeyRefused),
        (json!({"crit": ["exp"]}), Reason::CriticalHeaderRefused),
        (json!({"crit": []}), Reason::CriticalHeaderRefused),
        (json!({"b64": false}), Reason::CriticalHeaderRefused),
        (json!({"b64": true}), Reason::CriticalHeaderRefused),
        (json!({"b64": false, "crit": ["b64"]}), Reason::CriticalHeaderRefused),
        (json!({"zip": "DEF"}), Reason::CriticalHeaderRefused),
        (json!({"enc": "A256GCM"}), Reason::CriticalHeaderRefused),
        (json!({"typ": null}), Reason::TokenTypeRefused),
        (json!({"typ": "JWT"}), Reason::TokenTypeRefused),
        (json!({"typ": "at+jwt "}), Reason::TokenTypeRefused),
        (json!({"typ": "text/at+jwt"}), Reason::TokenTypeRefused),
        (json!({"typ": "dpop+jwt"}), Reason::TokenTypeRefused),
        (json!({"typ": ["at+jwt"]}), Reason::TokenTypeRefused),
        (json!({"kid": "k2"}), Reason::KeyUnknown),
        (json!({"kid": "K1"}), Reason::KeyUnknown),
        (json!({"kid": 1}), Reason::TokenMalformed),
        (json!({"kid": ""}), Reason::TokenMalformed),
        (json!({"kid": "../../k1"}), Reason::TokenMalformed),
        (json!({"kid": "k1' OR '1'='1"}), Reason::TokenMalformed),
        (json!({"kid": "k".repeat(257)}), Reason::TokenMalformed),
        (json!({"pad": "x".repeat(MAX_HEADER_BYTES)}), Reason::TokenTooLarge),
    ] {
        assert_eq!(refusal(&minter.token(&header, &json!({})), &issuers), Some(reason), "{header}");
    }
    for typ in ["AT+JWT", "application/at+jwt", "Application/At+JWT"] {
        assert!(verify(&minter.token(&json!({"typ": typ}), &json!({})), &issuers).is_ok(), "{typ}");
    }
}

#[test]
fn an_external_issuer_says_which_types_its_access_tokens_have() {
    let minter = Minter::new(Algorithm::EdDSA);
    let trusting = |realm: Option<&str>, types: &[&str]| {
        let mut issuers = Issuers::default();
        let types = types.iter().map(ToString::to_string).collect();
        issuers.set(
            Issuer::new(ISSUER, realm.map(str::to_owned), vec![minter.key("k1")]).with_token_types(types),
        );
        issuers
    };
    for (realm, types, typ, taken) in [
        (None, &["JWT"][..], json!("jwt"), true),
        (None, &["JWT"], json!("application/JWT"), true),
        (None, &["application/jwt"], json!("JWT"), true),
        (None, &["JWT"], json!("at+jwt"), false),
        (None, &["JWT"], json!(null), false),
        (None, &["at+jwt", "none"], json!(null), true),
        (None, &["at+jwt", "none"], json!("at+jwt"), true),
        (None, &["none"], json!("none"), false),
        (None, &["none"], json!("application/none"), false),
        (None, &[], json!("JWT"), false),
        (None, &[], json!("at+jwt"), true),
        (Some("default"), &["JWT", "none"], json!("JWT"), false),
        (Some("default"), &["JWT", "none"], json!(null), false),
        (Some("default"), &["JWT"], json!("at+jwt"), true),
    ] {
        let token = minter.token(&json!({"typ": typ}), &json!({}));
        let refused = (!taken).then_some(Reason::TokenTypeRefused);
        assert_eq!(refusal(&token, &trusting(realm, types)), refused, "{realm:?} {types:?} {typ}");
    }
}

#[test]
fn json_that_can_be_read_in_two_ways_is_refused() {
    let minter = Minter::new(Algorithm::EdDSA);
    let issuers = minter.issuers();
    let header = r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1"}"#;
    let payload = good_claims().to_string();
    let open = payload.strip_suffix('}').unwrap();
    let deep = format!(r#"{open},"x":{}1{}}}"#, "[".repeat(9), "]".repeat(9));
    let duplicate = format!(r#"{open},"exp":{}}}"#, NOW + 9_999);
    let huge = format!(r#"{open},"x":1e999}}"#);
    let nan = format!(r#"{open},"x":NaN}}"#);
    for payload in [
        &deep,
        &duplicate,
        &huge,
        &nan,
        "[]",
        "",
        "null",
        &format!("{payload}{payload}"),
        &format!("\u{feff}{payload}"),
    ] {
        let token = minter.sign(header.as_bytes(), payload.as_bytes());
        assert_eq!(refusal(&token, &issuers), Some(Reason::TokenMalformed), "{payload}");
    }
    for header in [
        r#"{"alg":"none","alg":"EdDSA","typ":"at+jwt"}"#,
        r#"{"typ":"at+jwt","\u0061lg":"EdDSA","alg":"EdDSA"}"#,
    ] {
        assert_eq!(
            refusal(&minter.sign(header.as_bytes(), payload.as_bytes()), &issuers),
            Some(Reason::TokenMalformed)
        );
    }
}

#[test]
fn other_serialisations_and_spellings_are_refused() {
    let minter = Minter::new(Algorithm::EdDSA);
    let issuers = minter.issuers();
    let good = minter.good();
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("three parts") };
    let flattened = json!({"protected": header, "payload": payload, "signature": signature}).to_string();
    let general = json!({"payload": payload, "signatures": [{"protected": header, "signature": signature}]});
    for token in [
        String::new(),
        ".".into(),
        "..".into(),
        "....".into(),
        flattened,
        general.to_string(),
        format!("{header}.{payload}"),
        format!("{header}..{signature}"),
        format!("{header}.{payload}.{signature}.{signature}"),
        format!("{header}.{payload}.{signature}.x.y"),
        format!("{good}="),
        format!("{good}\n"),
        format!(" {good}"),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}.{payload} .{signature}"),
        format!("{header}.{payload}.{}", signature.replacen(char::is_alphanumeric, "+", 1)),
        format!("{header}.{payload}.{}\u{e9}", &signature[..10]),
    ] {
        assert_eq!(refusal(&token, &issuers), Some(Reason::TokenMalformed), "{token}");
    }
    assert_eq!(refusal(&format!("{header}.{payload}."), &issuers), Some(Reason::SignatureInvalid));
    assert_eq!(refusal(&"a".repeat(MAX_TOKEN_BYTES + 1), &issuers), Some(Reason::TokenTooLarge));
}

#[test]
fn a_token_up_to_the_bound_passes() {
    let minter = Minter::new(Algorithm::EdDSA);
    let padded = |size: usize| minter.token(&json!({}), &json!({"pad": "x".repeat(size)}));
    let room = (MAX_TOKEN_BYTES - padded(0).len()) / 4 * 3;
    assert!(verify(&padded(room - 3), &minter.issuers()).is_ok());
    assert_eq!(refusal(&padded(room + 6), &minter.issuers()), Some(Reason::TokenTooLarge));
}

#[test]
fn an_algorithm_is_pinned_to_its_key() {
    let minter = Minter::new(Algorithm::RS256);
    let issuers = minter.issuers();
    // A signature that is right, by another algorithm of the same family.
    let minter = minter.with_algorithm(Algorithm::PS256);
    assert_eq!(refusal(&minter.good(), &issuers), Some(Reason::AlgorithmRefused));
    // The public key as an HMAC secret (RS/HS confusion).
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    (header.typ, header.kid) = (Some("at+jwt".into()), Some("k1".into()));
    let secret = jsonwebtoken::EncodingKey::from_secret(&minter.spki());
    let forged = jsonwebtoken::encode(&header, &good_claims(), &secret).unwrap();
    assert_eq!(refusal(&forged, &issuers), Some(Reason::AlgorithmRefused));
}

#[test]
fn elliptic_signatures_have_the_fixed_form() {
    let minter = Minter::new(Algorithm::ES256);
    let good = minter.good();
    let (input, signature) = good.rsplit_once('.').unwrap();
    let raw = base64url::decode(signature).unwrap();
    assert_eq!(raw.len(), 64);
    let integer = |bytes: &[u8]| [&[2, 33, 0][..], bytes].concat();
    let (r, s) = (integer(&raw[..32]), integer(&raw[32..]));
    let der = [&[0x30, 72][..], &r, &s].concat();
    for signature in [der, vec![0; 64], raw[..63].to_vec(), [&raw[..], &[0]].concat(), raw.repeat(2)] {
        let token = format!("{input}.{}", base64url::encode(&signature));
        assert_eq!(refusal(&token, &minter.issuers()), Some(Reason::SignatureInvalid));
    }
}

#[test]
fn a_kid_does_not_cross_issuers() {
    let (ours, theirs) = (Minter::new(Algorithm::EdDSA), Minter::new(Algorithm::EdDSA));
    let mut issuers = ours.issuers();
    issuers.set(Issuer::new("https://theirs.example", None, vec![theirs.key("k1")]));
    assert_eq!(refusal(&theirs.good(), &issuers), Some(Reason::SignatureInvalid));
    let token = theirs.token(&json!({}), &json!({"iss": "https://theirs.example"}));
    let signed = verify(&token, &issuers).unwrap();
    assert_ne!(signed.ids.key, verify(&ours.good(), &issuers).unwrap().ids.key);
    assert_ne!(signed.ids.token, verify(&ours.good(), &issuers).unwrap().ids.token);
    for (issuer, reason) in [
        (json!("https://issuer.example/"), Reason::IssuerUnknown),
        (json!("HTTPS://issuer.example"), Reason::IssuerUnknown),
        (json!([ISSUER]), Reason::ClaimMalformed),
        (json!(null), Reason::ClaimMissing),
    ] {
        assert_eq!(
            refusal(&ours.token(&json!({}), &json!({"iss": issuer})), &issuers),
            Some(reason),
            "{issuer}"
        );
    }
}

#[test]
fn a_missing_kid_is_taken_only_where_there_is_one_key() {
    let minter = Minter::new(Algorithm::EdDSA);
    let mut issuers = minter.issuers();
    let token = minter.token(&json!({"kid": null}), &json!({}));
    assert!(verify(&token, &issuers).is_ok());
    issuers.set(Issuer::new(ISSUER, None, vec![minter.key("k1"), Minter::new(Algorithm::EdDSA).key("k2")]));
    assert_eq!(refusal(&token, &issuers), Some(Reason::KeyAmbiguous));
    issuers.set(Issuer::new(ISSUER, None, vec![]));
    assert_eq!(refusal(&token, &issuers), Some(Reason::KeyUnknown));
}

#[test]
fn our_realms_tokens_follow_rfc_9068_in_full() {
    let minter = Minter::new(Algorithm::EdDSA);
    let mut issuers = minter.issuers();
    for name in ["client_id", "jti"] {
        let token = minter.token(&json!({}), &json!({name: null}));
        assert_eq!(refusal(&token, &issuers), Some(Reason::ClaimMissing), "{name}");
        issuers.set(Issuer::new(ISSUER, None, vec![minter.key("k1")]));
        assert!(verify(&token, &issuers).is_ok(), "{name} is optional at an external issuer");
        issuers = minter.issuers();
    }
}

#[test]
fn every_change_of_one_byte_is_refused() {
    for algorithm in [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256, Algorithm::PS256] {
        let minter = Minter::new(algorithm);
        let (issuers, good) = (minter.issuers(), minter.good());
        for at in 0..good.len() {
            for replacement in
                [b'A', b'Q', b'_', b'.', b'=', good.as_bytes()[at] ^ 1, good.as_bytes()[at] ^ 0x20]
            {
                let mut changed = good.clone().into_bytes();
                changed[at] = replacement;
                let changed = String::from_utf8(changed).unwrap();
                assert!(
                    changed == good || verify(&changed, &issuers).is_err(),
                    "{algorithm} at {at}: {changed}"
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn no_text_panics(token in "\\PC{0,200}") {
        let _ = UnverifiedToken::parse(&token);
    }

    #[test]
    fn no_three_parts_panic(header in any::<Vec<u8>>(), payload in any::<Vec<u8>>(), signature in any::<Vec<u8>>()) {
        let parts = [header, payload, signature].map(|part| base64url::encode(&part));
        let _ = UnverifiedToken::parse(&parts.join("."));
    }

    #[test]
    fn cuts_and_insertions_are_refused(at in any::<prop::sample::Index>(), byte in "[A-Za-z0-9_.=-]") {
        let minter = Minter::new(Algorithm::EdDSA);
        let (issuers, good) = (minter.issuers(), minter.good());
        let at = at.index(good.len());
        let mut inserted = good.clone();
        inserted.insert_str(at, &byte);
        let mut removed = good.clone();
        removed.remove(at);
        for changed in [&inserted, &removed, &good[..at], &good[at + 1..]] {
            prop_assert!(verify(changed, &issuers).is_err(), "{}", changed);
        }
    }

    /// Ours is never laxer: whatever it accepts, jsonwebtoken accepts too.
    #[test]
    fn what_is_accepted_has_a_second_opinion(
        name in prop::sample::select(vec!["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "cnf"]),
        value in prop::sample::select(vec![
            json!(null), json!("orders-api"), json!(["orders-api"]), json!([ISSUER]), json!(ISSUER), json!(""), json!(1),
            json!(-1), json!(1.5), json!(NOW), json!(true), json!({}), json!([]), json!("1"), json!(1_u64 << 62),
        ]),
    ) {
        let minter = Minter::new(Algorithm::EdDSA);
        let token = minter.token(&json!({}), &json!({name: value}));
        if let Ok(signed) = verify(&token, &minter.issuers())
            && signed.claims.audience == ["orders-api"]
            && signed.claims.not_before.is_none()
        {
            prop_assert!(second_opinion(&token, &minter).is_ok(), "{}", token);
        }
    }
}
