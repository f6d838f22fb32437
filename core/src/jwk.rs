//! Public JSON Web Keys (RFC 7517, RFC 7518 §6, RFC 8037) to and from DER SubjectPublicKeyInfo.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use serde_json::{Value, json};

use crate::base64url;
use crate::key::Algorithm;

/// A public key as a JWK describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicJwk {
    /// `kid`.
    pub kid: Option<String>,
    /// `alg`, or the one that the key's type and curve imply; RS256 for an RSA key that does not say.
    pub algorithm: Algorithm,
    /// DER SubjectPublicKeyInfo (RFC 5280 §4.1).
    pub spki: Vec<u8>,
}

/// Why a JWK was refused; names the member and holds none of the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{member}: {problem}")]
pub struct JwkError {
    member: &'static str,
    problem: &'static str,
}

fn refuse(member: &'static str, problem: &'static str) -> JwkError {
    JwkError { member, problem }
}

/// Reads a public key. One with private parts is refused: whoever published it must replace it.
pub fn spki_from_jwk(jwk: &Value) -> Result<PublicJwk, JwkError> {
    let text = |member: &'static str| -> Result<Option<&str>, JwkError> {
        match jwk.get(member) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(refuse(member, "must be a string")),
        }
    };
    let bytes = |member: &'static str| {
        let text = text(member)?.ok_or(refuse(member, "is missing"))?;
        base64url::decode(text).map_err(|_| refuse(member, "is not canonical base64url"))
    };
    if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"].iter().any(|member| jwk.get(member).is_some()) {
        return Err(refuse("jwk", "holds a private or symmetric key; publish the public part alone"));
    }
    if text("use")?.is_some_and(|usage| usage != "sig") {
        return Err(refuse("use", "is not \"sig\""));
    }
    if jwk
        .get("key_ops")
        .is_some_and(|uses| !uses.as_array().is_some_and(|uses| uses.contains(&json!("verify"))))
    {
        return Err(refuse("key_ops", "does not hold \"verify\""));
    }
    let named: Option<Algorithm> = match text("alg")? {
        None => None,
        Some(name) => {
            Some(name.parse().map_err(|_| refuse("alg", "is not an accepted signature algorithm"))?)
        }
    };
    let (implied, spki) = match (text("kty")?, text("crv")?) {
        (Some("EC"), Some(curve)) => {
            let (algorithm, verification, size) = elliptic_curve(curve)?;
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != size || y.len() != size {
                return Err(refuse("x", "and y must have the curve's size"));
            }
            (algorithm, to_spki(verification, &[&[4], &x[..], &y[..]].concat())?)
        }
        (Some("OKP"), Some("Ed25519")) => (Algorithm::EdDSA, to_spki(&signature::ED25519, &bytes("x")?)?),
        (Some("RSA"), _) => {
            let components = PublicKeyComponents { n: bytes("n")?, e: bytes("e")? };
            let der = components.as_der().map_err(|_| refuse("n", "and e are not an RSA public key"))?;
            let implied = named.filter(|algorithm| algorithm.is_rsa()).unwrap_or(Algorithm::RS256);
            (implied, der.as_ref().to_vec())
        }
        _ => return Err(refuse("kty", "must be EC (P-256, P-384, P-521), OKP (Ed25519) or RSA")),
    };
    if named.is_some_and(|named| named != implied) {
        return Err(refuse("alg", "does not fit the key's type and curve"));
    }
    Ok(PublicJwk { kid: text("kid")?.map(str::to_owned), algorithm: implied, spki })
}

/// The thumbprint of a public key (RFC 7638): the base64url of SHA-256 over its required members in their one order. `None` for
/// what [`spki_from_jwk`] would refuse too.
pub fn thumbprint(jwk: &Value) -> Option<String> {
    let required: &[&str] = match jwk.get("kty")?.as_str()? {
        "EC" => &["crv", "kty", "x", "y"],
        "OKP" => &["crv", "kty", "x"],
        "RSA" => &["e", "kty", "n"],
        _ => return None,
    };
    let mut text = String::from("{");
    for (at, member) in required.iter().enumerate() {
        let value = jwk.get(member)?.as_str()?;
        // Base64url and curve names need no escaping; anything else would not have been read as a key.
        if !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            return None;
        }
        text.push_str(if at == 0 { "" } else { "," });
        text.push_str(&format!("\"{member}\":\"{value}\""));
    }
    text.push('}');
    Some(base64url::encode(digest(&SHA256, text.as_bytes()).as_ref()))
}

/// The JWK of a key that [`crate::key::VerificationKey::from_spki`] accepted, with `use` and `alg`; `None` for other bytes.
pub fn jwk_from_spki(kid: &str, algorithm: Algorithm, spki: &[u8]) -> Option<Value> {
    let mut jwk = match algorithm {
        Algorithm::ES256 => elliptic_jwk("P-256", spki, 32)?,
        Algorithm::ES384 => elliptic_jwk("P-384", spki, 48)?,
        Algorithm::ES512 => elliptic_jwk("P-521", spki, 66)?,
        Algorithm::EdDSA => {
            json!({"kty": "OKP", "crv": "Ed25519", "x": base64url::encode(spki.last_chunk::<32>()?)})
        }
        _ => {
            let (n, e) = rsa_components(spki)?;
            json!({"kty": "RSA", "n": base64url::encode(n), "e": base64url::encode(e)})
        }
    };
    jwk["kid"] = kid.into();
    jwk["alg"] = algorithm.as_str().into();
    jwk["use"] = "sig".into();
    Some(jwk)
}

/// The size of the modulus of an RSA key in DER SubjectPublicKeyInfo, in bits; `None` for other bytes.
pub(crate) fn rsa_modulus_bits(spki: &[u8]) -> Option<usize> {
    let (modulus, _) = rsa_components(spki)?;
    Some(modulus.len() * 8 - modulus.first()?.leading_zeros() as usize)
}

fn elliptic_curve(curve: &str) -> Result<(Algorithm, &'static dyn VerificationAlgorithm, usize), JwkError> {
    match curve {
        "P-256" => Ok((Algorithm::ES256, &signature::ECDSA_P256_SHA256_FIXED, 32)),
        "P-384" => Ok((Algorithm::ES384, &signature::ECDSA_P384_SHA384_FIXED, 48)),
        "P-521" => Ok((Algorithm::ES512, &signature::ECDSA_P521_SHA512_FIXED, 66)),
        _ => Err(refuse("crv", "must be P-256, P-384 or P-521")),
    }
}

fn to_spki(verification: &'static dyn VerificationAlgorithm, raw: &[u8]) -> Result<Vec<u8>, JwkError> {
    let key =
        ParsedPublicKey::new(verification, raw).map_err(|_| refuse("x", "is not a point of the curve"))?;
    let der = key.as_der().map_err(|_| refuse("x", "is not a point of the curve"))?;
    Ok(der.as_ref().to_vec())
}

/// The uncompressed point is the end of the bit string that ends an SPKI.
fn elliptic_jwk(curve: &str, spki: &[u8], size: usize) -> Option<Value> {
    let point = spki.get(spki.len().checked_sub(2 * size + 1)?..)?;
    let (x, y) = point.strip_prefix(&[4])?.split_at(size);
    Some(json!({"kty": "EC", "crv": curve, "x": base64url::encode(x), "y": base64url::encode(y)}))
}

/// Modulus and exponent of `SEQUENCE { algorithm, BIT STRING { SEQUENCE { n, e } } }` (RFC 8017 §A.1.1), without sign bytes.
fn rsa_components(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let (outer, _) = der_element(spki, 0x30)?;
    let (_, rest) = der_element(outer, 0x30)?;
    let (bits, _) = der_element(rest, 0x03)?;
    let (key, _) = der_element(bits.strip_prefix(&[0])?, 0x30)?;
    let (n, rest) = der_element(key, 0x02)?;
    let (e, _) = der_element(rest, 0x02)?;
    Some((n.strip_prefix(&[0]).unwrap_or(n), e.strip_prefix(&[0]).unwrap_or(e)))
}

/// The content of the DER element at the start of `bytes` (ITU-T X.690 §8.1), and what follows it.
fn der_element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(&[tag])?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
    use aws_lc_rs::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair};

    use super::*;
    use crate::key::{KeyState, VerificationKey};

    fn spkis() -> Vec<(Algorithm, Vec<u8>)> {
        let curves = [
            (Algorithm::ES256, &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            (Algorithm::ES384, &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            (Algorithm::ES512, &signature::ECDSA_P521_SHA512_FIXED_SIGNING),
        ];
        let mut keys: Vec<_> = curves
            .into_iter()
            .map(|(algorithm, signing)| {
                let pair = EcdsaKeyPair::generate(signing).unwrap();
                (algorithm, pair.public_key().as_der().unwrap().as_ref().to_vec())
            })
            .collect();
        let edwards = Ed25519KeyPair::generate().unwrap();
        keys.push((Algorithm::EdDSA, edwards.public_key().as_der().unwrap().as_ref().to_vec()));
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let rsa = rsa.public_key().as_der().unwrap().as_ref().to_vec();
        keys.extend([Algorithm::RS256, Algorithm::PS384].map(|algorithm| (algorithm, rsa.clone())));
        keys
    }

    #[test]
    fn keys_survive_their_jwk_and_verify() {
        for (algorithm, spki) in spkis() {
            let jwk = jwk_from_spki("k1", algorithm, &spki).unwrap();
            let read = spki_from_jwk(&jwk).unwrap();
            assert_eq!(read, PublicJwk { kid: Some("k1".into()), algorithm, spki: spki.clone() });
            VerificationKey::from_spki("k1", algorithm, &spki, KeyState::Active).unwrap();
        }
    }

    #[test]
    fn the_thumbprint_is_that_of_rfc_7638() {
        let jwk = json!({
            "kty": "RSA", "alg": "RS256", "kid": "2011-04-29", "e": "AQAB",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        });
        assert_eq!(thumbprint(&jwk).unwrap(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
        for changed in [
            json!({"kty": "oct", "k": "AQ"}),
            json!({"kty": "RSA", "e": "AQAB"}),
            json!({"kty": "EC", "crv": "\"", "x": "", "y": ""}),
        ] {
            assert_eq!(thumbprint(&changed), None);
        }
    }

    #[test]
    fn a_key_is_not_pinned_to_an_algorithm_of_another_kind() {
        let keys = spkis();
        for (algorithm, spki) in &keys {
            for other in Algorithm::ALL {
                let fits = other == *algorithm || (other.is_rsa() && algorithm.is_rsa());
                assert_eq!(
                    VerificationKey::from_spki("k", other, spki, KeyState::Active).is_ok(),
                    fits,
                    "{algorithm} as {other}"
                );
            }
        }
    }

    #[test]
    fn private_parts_and_misfits_are_refused() {
        let (_, spki) = spkis().swap_remove(0);
        let good = jwk_from_spki("k", Algorithm::ES256, &spki).unwrap();
        for (member, value) in [
            ("d", json!("AQ")),
            ("oth", json!([])),
            ("use", json!("enc")),
            ("key_ops", json!(["encrypt"])),
            ("key_ops", json!("verify")),
            ("alg", json!("HS256")),
            ("alg", json!("ES384")),
            ("crv", json!("P-384")),
            ("kty", json!("oct")),
            ("x", json!("AQ")),
            ("y", json!("AQ==")),
            ("kid", json!(1)),
        ] {
            let mut jwk = good.clone();
            jwk[member] = value;
            assert!(spki_from_jwk(&jwk).is_err(), "{member}");
        }
    }
}
