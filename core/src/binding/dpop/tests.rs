use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: i64 = 1_763_942_400;
const TOKEN: &str = "the.access.token";

struct Prover {
    pair: EcdsaKeyPair,
    jwk: Value,
}

impl Prover {
    fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let spki = pair.public_key().as_der().unwrap().as_ref().to_vec();
        let full = jwk::jwk_from_spki("k", Algorithm::ES256, &spki).unwrap();
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": full["x"], "y": full["y"]});
        Self { pair, jwk }
    }

    fn thumbprint(&self) -> String {
        jwk::thumbprint(&self.jwk).unwrap()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let encode = |value: &Value| base64url::encode(value.to_string().as_bytes());
        let input = format!("{}.{}", encode(header), encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        format!("{input}.{}", base64url::encode(signature.as_ref()))
    }

    /// A good proof, with changes to header and claims; null removes a member.
    fn proof(&self, header: &Value, claims: &Value) -> String {
        let mut full_header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk});
        let mut full_claims = json!({
            "jti": "proof-1", "htm": "GET", "htu": "https://api.example.com/orders/1", "iat": NOW,
            "ath": base64url::encode(digest(&SHA256, TOKEN.as_bytes()).as_ref()),
        });
        change(&mut full_header, header);
        change(&mut full_claims, claims);
        self.sign(&full_header, &full_claims)
    }
}

fn change(object: &mut Value, changes: &Value) {
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(name);
        } else {
            object[name] = value.clone();
        }
    }
}

fn check(prover: &Prover, proof: &str, nonce: NonceCheck<'_>) -> Result<VerifiedProof, DpopError> {
    let origins = [("https".to_owned(), "API.example.com:443".to_owned())];
    let expected = Expected {
        method: "GET",
        origins: &origins,
        target: "/orders/1?full=1",
        access_token: Some(TOKEN),
        thumbprint: Some(&prover.thumbprint()),
        now: UnixMillis::from_seconds(NOW),
        max_age_seconds: 60,
        clock_skew_seconds: 5,
        nonce,
    };
    verify(proof, &expected)
}

#[test]
fn a_good_proof_fits_and_is_remembered_until_it_is_too_old() {
    let prover = Prover::new();
    let verified = check(&prover, &prover.proof(&json!({}), &json!({})), NonceCheck::NotAsked).unwrap();
    assert_eq!(verified.expires_at(), UnixMillis::from_seconds(NOW + 66));
    let other =
        check(&prover, &prover.proof(&json!({}), &json!({"jti": "proof-2"})), NonceCheck::NotAsked).unwrap();
    assert_ne!(verified.replay_id(), other.replay_id());
    // The same `jti` of another key is another proof.
    let stranger = Prover::new();
    let third = check(&stranger, &stranger.proof(&json!({}), &json!({})), NonceCheck::NotAsked).unwrap();
    assert_ne!(verified.replay_id(), third.replay_id());
}

#[test]
fn every_part_of_a_proof_counts() {
    let prover = Prover::new();
    let private =
        json!({"jwk": {"kty": "EC", "crv": "P-256", "x": prover.jwk["x"], "y": prover.jwk["y"], "d": "AQ"}});
    for (header, claims, error) in [
        (json!({"typ": "JWT"}), json!({}), DpopError::TypeRefused),
        (json!({"typ": null}), json!({}), DpopError::TypeRefused),
        (json!({"alg": "none"}), json!({}), DpopError::AlgorithmRefused),
        (json!({"alg": "HS256"}), json!({}), DpopError::AlgorithmRefused),
        (json!({"alg": "ES384"}), json!({}), DpopError::AlgorithmRefused),
        (json!({"jwk": null}), json!({}), DpopError::KeyRefused),
        (private, json!({}), DpopError::KeyRefused),
        (json!({"crit": ["x"], "x": 1}), json!({}), DpopError::Malformed),
        (json!({"b64": false}), json!({}), DpopError::Malformed),
        (json!({"jku": "https://evil"}), json!({}), DpopError::Malformed),
        (json!({"jwk": Prover::new().jwk}), json!({}), DpopError::KeyMismatch),
        (json!({}), json!({"jti": null}), DpopError::Malformed),
        (json!({}), json!({"jti": ""}), DpopError::Malformed),
        (json!({}), json!({"jti": "x".repeat(257)}), DpopError::Malformed),
        (json!({}), json!({"jti": 1}), DpopError::Malformed),
        (json!({}), json!({"htm": null}), DpopError::Malformed),
        (json!({}), json!({"htm": "POST"}), DpopError::MethodMismatch),
        (json!({}), json!({"htm": "get"}), DpopError::MethodMismatch),
        (json!({}), json!({"htu": null}), DpopError::Malformed),
        (json!({}), json!({"htu": "/orders/1"}), DpopError::Malformed),
        (json!({}), json!({"htu": "https://api.example.com/orders/2"}), DpopError::UriMismatch),
        (json!({}), json!({"htu": "http://api.example.com/orders/1"}), DpopError::UriMismatch),
        (json!({}), json!({"htu": "https://api.example.com:8443/orders/1"}), DpopError::UriMismatch),
        (json!({}), json!({"htu": "https://evil.example.com/orders/1"}), DpopError::UriMismatch),
        (json!({}), json!({"htu": "https://evil@api.example.com/orders/1"}), DpopError::Malformed),
        (json!({}), json!({"iat": null}), DpopError::Malformed),
        (json!({}), json!({"iat": NOW.to_string()}), DpopError::Malformed),
        (json!({}), json!({"iat": NOW - 66}), DpopError::TooOld),
        (json!({}), json!({"iat": NOW + 6}), DpopError::IssuedInFuture),
        (json!({}), json!({"ath": null}), DpopError::Malformed),
        (json!({}), json!({"ath": base64url::encode(&[0; 32])}), DpopError::TokenMismatch),
        (json!({}), json!({"nonce": 1}), DpopError::Malformed),
    ] {
        let proof = prover.proof(&header, &claims);
        assert_eq!(check(&prover, &proof, NonceCheck::NotAsked), Err(error), "{header} {claims}");
    }
    let good = prover.proof(&json!({}), &json!({}));
    let (input, _) = good.rsplit_once('.').unwrap();
    let forged = format!("{input}.{}", base64url::encode(&[7; 64]));
    assert_eq!(check(&prover, &forged, NonceCheck::NotAsked), Err(DpopError::SignatureInvalid));
    for text in ["", ".", "..", "a.b", "a.b.c", &format!("{good}="), &"x".repeat(MAX_PROOF_BYTES + 1)] {
        assert_eq!(check(&prover, text, NonceCheck::NotAsked), Err(DpopError::Malformed), "{text:.40}");
    }
}

#[test]
fn uris_are_compared_in_one_form() {
    let prover = Prover::new();
    for uri in [
        "https://api.example.com/orders/1",
        "HTTPS://API.EXAMPLE.COM/orders/1",
        "https://api.example.com:443/orders/1",
        "https://api.example.com/orders/1?other=2#x",
        "https://api.example.com/%6frders/1",
    ] {
        let proof = prover.proof(&json!({}), &json!({ "htu": uri }));
        assert!(check(&prover, &proof, NonceCheck::NotAsked).is_ok(), "{uri}");
    }
    let form = |text| Uri::parse(text).unwrap();
    assert_eq!(form("https://h"), form("https://h/"));
    assert_eq!(form("https://h/%2f"), form("https://h/%2F"));
    assert_ne!(form("https://h/%2F"), form("https://h//"));
    assert_eq!(form("http://[::1]:80/"), form("http://[0:0:0:0:0:0:0:1]/"));
    for text in ["ftp://h/", "https://", "https:///x", "https://h:99999/", "https://h/%zz", "h"] {
        assert_eq!(Uri::parse(text), None, "{text}");
    }
}

#[test]
fn a_nonce_is_asked_for_where_a_rule_says_so() {
    let (prover, key) = (Prover::new(), NonceKey::new(&[3; 32]));
    let now = UnixMillis::from_seconds(NOW);
    let required = NonceCheck::Required(&key);
    let with = |nonce: Value| prover.proof(&json!({}), &json!({ "nonce": nonce }));
    assert!(check(&prover, &with(key.issue(now).into()), required).is_ok());
    assert_eq!(check(&prover, &with(Value::Null), required), Err(DpopError::NonceMissing));
    assert_eq!(check(&prover, &with("guess".into()), required), Err(DpopError::NonceInvalid));
    let old = key.issue(UnixMillis::from_seconds(NOW - 3_600));
    assert_eq!(check(&prover, &with(old.into()), required), Err(DpopError::NonceInvalid));
}

/// The example of RFC 9449 §7.1, whose token and key are those of §5 and §6.
#[test]
fn the_rfcs_own_proof_is_read() {
    let proof = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6Ik\
        VDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCR\
        nMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JE\
        QSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIj\
        oiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0Z\
        WRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNF\
        c05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71E\
        OptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA";
    let origins = [("https".to_owned(), "resource.example.org".to_owned())];
    let expected = Expected {
        method: "GET",
        origins: &origins,
        target: "/protectedresource",
        access_token: Some("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"),
        thumbprint: Some("0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"),
        now: UnixMillis::from_seconds(1_562_262_618),
        max_age_seconds: 60,
        clock_skew_seconds: 5,
        nonce: NonceCheck::NotAsked,
    };
    assert!(verify(proof, &expected).is_ok(), "{:?}", verify(proof, &expected));
}

proptest! {
    #[test]
    fn no_text_panics_and_none_passes(text in "[A-Za-z0-9_.=-]{0,200}") {
        prop_assert!(check(&Prover::new(), &text, NonceCheck::NotAsked).is_err());
    }

    #[test]
    fn no_header_or_payload_panics(header in ".{0,80}", payload in ".{0,80}") {
        let text = format!("{}.{}.AA", base64url::encode(header.as_bytes()), base64url::encode(payload.as_bytes()));
        prop_assert!(check(&Prover::new(), &text, NonceCheck::NotAsked).is_err());
    }
}

/// RFC 9449 §5: where a token is asked for there is none to name, and any key will do.
#[test]
fn a_proof_for_a_token_request_binds_to_its_own_key() {
    let prover = Prover::new();
    let origins = [("https".to_owned(), "id.example.com".to_owned())];
    let expected = Expected {
        method: "POST",
        origins: &origins,
        target: "/oauth2/token",
        access_token: None,
        thumbprint: None,
        now: UnixMillis::from_seconds(NOW),
        max_age_seconds: 60,
        clock_skew_seconds: 5,
        nonce: NonceCheck::NotAsked,
    };
    let claims = json!({"htm": "POST", "htu": "https://id.example.com/oauth2/token", "ath": null});
    let verified = verify(&prover.proof(&json!({}), &claims), &expected).unwrap();
    assert_eq!(verified.thumbprint(), prover.thumbprint());
    let proof = prover.proof(&json!({}), &claims);
    let another = Expected { thumbprint: Some("0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"), ..expected };
    assert_eq!(verify(&proof, &another), Err(DpopError::KeyMismatch));
    let with_token = Expected { access_token: Some(TOKEN), ..expected };
    assert_eq!(verify(&proof, &with_token), Err(DpopError::Malformed), "a token needs its hash");
}
