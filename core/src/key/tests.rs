use aws_lc_rs::encoding::{AsBigEndian, AsDer, EcPublicKeyCompressedBin};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};

use super::*;

fn load(algorithm: Algorithm, spki: &[u8]) -> Result<VerificationKey, KeyError> {
    VerificationKey::from_spki("k", algorithm, spki, KeyState::Active)
}

#[test]
fn algorithm_names_are_exact() {
    for algorithm in Algorithm::ALL {
        assert_eq!(algorithm.as_str().parse(), Ok(algorithm));
        assert_eq!(algorithm.as_str().to_lowercase().parse::<Algorithm>(), Err(UnknownAlgorithm));
    }
    assert_eq!("Ed25519".parse(), Ok(Algorithm::EdDSA));
    for name in ["", "none", "None", "noNE", "HS256", "HS512", "ES256K", "Ed448", "ES256 ", "es256", "EDDSA"]
    {
        assert_eq!(name.parse::<Algorithm>(), Err(UnknownAlgorithm), "{name:?}");
    }
}

#[test]
fn a_kid_is_bounded_and_plain() {
    let spki = Ed25519KeyPair::generate().unwrap().public_key().as_der().unwrap();
    for kid in ["1", "2026-11_k.1", "urn:kid:a+b=", "~key@host", "a/b+c=", "/x"] {
        assert!(is_kid(kid), "{kid}");
    }
    let long = "k".repeat(MAX_KID_BYTES + 1);
    for kid in [
        "",
        "../../dev/null",
        "a/./b",
        "a\\b",
        "' OR 1=1 --",
        "a;b",
        "a b",
        "a\0",
        "k\u{e9}",
        "$(x)",
        "a%2f",
        &long,
    ] {
        assert!(!is_kid(kid), "{kid}");
        let error =
            VerificationKey::from_spki(kid, Algorithm::EdDSA, spki.as_ref(), KeyState::Active).unwrap_err();
        assert_eq!(error, KeyError::Kid);
    }
    assert!(is_kid(&long[1..]));
}

#[test]
fn a_key_has_one_form() {
    let edwards = Ed25519KeyPair::generate().unwrap();
    let spki = edwards.public_key().as_der().unwrap();
    assert!(load(Algorithm::EdDSA, spki.as_ref()).is_ok());
    assert!(load(Algorithm::EdDSA, edwards.public_key().as_ref()).is_err(), "bare key");
    assert!(load(Algorithm::EdDSA, &[spki.as_ref(), &[0]].concat()).is_err(), "trailing byte");
    // Bytes that start like an SPKI and have the size of a bare key.
    let bare: [u8; 32] = std::array::from_fn(|at| if at == 0 { 0x30 } else { 1 });
    assert!(load(Algorithm::EdDSA, &bare).is_err());

    let elliptic = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let spki = elliptic.public_key().as_der().unwrap();
    assert!(load(Algorithm::ES256, spki.as_ref()).is_ok());
    assert!(load(Algorithm::ES256, elliptic.public_key().as_ref()).is_err(), "bare point");
    let key = aws_lc_rs::agreement::PrivateKey::generate(&aws_lc_rs::agreement::ECDH_P256).unwrap();
    let point: EcPublicKeyCompressedBin = key.compute_public_key().unwrap().as_be_bytes().unwrap();
    assert!(load(Algorithm::ES256, point.as_ref()).is_err(), "compressed point");
    // The same point inside an SPKI: the algorithm identifier is the one of `spki`, the bit string is shorter.
    let compressed = [&[0x30, 0x39], &spki.as_ref()[2..23], &[0x03, 0x22, 0], point.as_ref()].concat();
    assert!(load(Algorithm::ES256, &compressed).is_err(), "compressed point in an SPKI");

    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    assert!(load(Algorithm::RS256, rsa.public_key().as_der().unwrap().as_ref()).is_ok());
    assert!(load(Algorithm::RS256, rsa.public_key().as_ref()).is_err(), "PKCS#1");
}

#[test]
fn rsa_keys_are_sized_when_they_are_loaded() {
    let spki = |bits: usize| {
        let n = vec![0xff; bits / 8];
        PublicKeyComponents { n, e: vec![1, 0, 1] }.as_der().ok().map(|der| der.as_ref().to_vec())
    };
    for (bits, accepted) in
        [(1024, false), (2040, false), (2048, true), (8192, true), (8200, false), (16384, false)]
    {
        let loaded = spki(bits).is_some_and(|spki| load(Algorithm::PS256, &spki).is_ok());
        assert_eq!(loaded, accepted, "{bits} bits");
    }
}

#[test]
fn issuers_are_found_by_their_exact_name_and_clones_do_not_follow() {
    let mut issuers = Issuers::default();
    issuers.set(Issuer::new("https://a", None, vec![]));
    let before = issuers.clone();
    issuers.set(Issuer::new("https://b", Some("default".into()), vec![]));
    issuers.remove("https://a");
    assert!(before.get("https://a").is_some() && before.len() == 1);
    assert!(issuers.get("https://a").is_none() && issuers.get("https://b").is_some());
    for name in ["https://b/", "HTTPS://b", "https://B", ""] {
        assert!(issuers.get(name).is_none(), "{name}");
    }
}
