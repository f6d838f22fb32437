//! The little DER that providers ask for: public keys out of their parts, signatures out of their wrapping.

use atm_core::key::Algorithm;

/// Bytes of one coordinate of the curve, and its SubjectPublicKeyInfo up to the point.
fn curve(algorithm: Algorithm) -> Option<(usize, &'static [u8])> {
    match algorithm {
        Algorithm::ES256 => Some((
            32,
            &[
                0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
                0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
            ],
        )),
        Algorithm::ES384 => Some((
            48,
            &[
                0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05,
                0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
            ],
        )),
        Algorithm::ES512 => Some((
            66,
            &[
                0x30, 0x81, 0x9b, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
                0x05, 0x2b, 0x81, 0x04, 0x00, 0x23, 0x03, 0x81, 0x86, 0x00,
            ],
        )),
        _ => None,
    }
}

/// The parameters by which PKCS #11 names the curve: its object identifier in DER.
pub fn ec_parameters(algorithm: Algorithm) -> Option<&'static [u8]> {
    match algorithm {
        Algorithm::ES256 => Some(&[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]),
        Algorithm::ES384 => Some(&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22]),
        Algorithm::ES512 => Some(&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23]),
        _ => None,
    }
}

/// The SubjectPublicKeyInfo of an uncompressed point, which PKCS #11 wraps in an OCTET STRING (some tokens do not).
pub fn ec_spki(algorithm: Algorithm, point: &[u8]) -> Option<Vec<u8>> {
    let (size, prefix) = curve(algorithm)?;
    let length = 2 * size + 1;
    let bare = if point.len() == length { point } else { octet_string(point)? };
    (bare.len() == length && bare[0] == 4).then(|| [prefix, bare].concat())
}

fn octet_string(der: &[u8]) -> Option<&[u8]> {
    let (contents, rest) = element(0x04, der)?;
    rest.is_empty().then_some(contents)
}

/// The SubjectPublicKeyInfo of an RSA key.
pub fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    const RSA_ENCRYPTION: [u8; 15] =
        [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let key = tagged(0x30, &[integer(modulus), integer(exponent)].concat());
    let bits = tagged(0x03, &[&[0][..], &key].concat());
    tagged(0x30, &[&RSA_ENCRYPTION[..], &bits].concat())
}

/// `r || s` (RFC 7518 §3.4) of a DER signature (RFC 3279 §2.2.3).
pub fn fixed_signature(algorithm: Algorithm, der: &[u8]) -> Option<Vec<u8>> {
    let (size, _) = curve(algorithm)?;
    let (sequence, rest) = element(0x30, der)?;
    let (r, after) = element(0x02, sequence)?;
    let (s, end) = element(0x02, after)?;
    if !rest.is_empty() || !end.is_empty() {
        return None;
    }
    let mut fixed = vec![0; 2 * size];
    for (number, place) in [r, s].into_iter().zip(fixed.chunks_mut(size)) {
        let number = match number {
            [0, rest @ ..] if !rest.is_empty() => rest,
            number => number,
        };
        place.get_mut(size.checked_sub(number.len())?..)?.copy_from_slice(number);
    }
    Some(fixed)
}

/// The DER of a PEM block (RFC 7468).
pub fn from_pem(pem: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    let body: String =
        pem.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(body).ok()
}

fn integer(bytes: &[u8]) -> Vec<u8> {
    let significant = bytes.iter().position(|byte| *byte != 0).map_or(&[0][..], |at| &bytes[at..]);
    let sign: &[u8] = if significant[0] >= 0x80 { &[0] } else { &[] };
    tagged(0x02, &[sign, significant].concat())
}

fn tagged(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    if let Ok(short @ 0..0x80) = u8::try_from(contents.len()) {
        der.push(short);
    } else {
        let length = contents.len().to_be_bytes();
        let significant = &length[length.iter().position(|byte| *byte != 0).unwrap_or(length.len())..];
        // At most 8 bytes of length.
        der.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
        der.extend_from_slice(significant);
    }
    der.extend_from_slice(contents);
    der
}

/// The contents of the element with `tag` at the beginning, and what is behind it. Definite lengths only.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    if *found != tag {
        return None;
    }
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.is_empty() || bytes.len() > 4 {
            return None;
        }
        (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use atm_core::key::{KeyState, VerificationKey};
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
        EcdsaKeyPair, KeyPair,
    };

    use super::*;

    #[test]
    fn points_and_signatures_of_every_curve_are_those_of_the_library() {
        for (algorithm, curve) in [
            (Algorithm::ES256, &ECDSA_P256_SHA256_ASN1_SIGNING),
            (Algorithm::ES384, &ECDSA_P384_SHA384_ASN1_SIGNING),
            (Algorithm::ES512, &ECDSA_P521_SHA512_ASN1_SIGNING),
        ] {
            let pair = EcdsaKeyPair::generate(curve).unwrap();
            let point = pair.public_key().as_ref();
            let spki = pair.public_key().as_der().unwrap();
            assert_eq!(ec_spki(algorithm, point).unwrap(), spki.as_ref(), "{algorithm}");
            assert_eq!(ec_spki(algorithm, &tagged(4, point)).unwrap(), spki.as_ref());
            assert!(ec_spki(algorithm, &point[1..]).is_none());
            let key = VerificationKey::from_spki("k", algorithm, spki.as_ref(), KeyState::Active).unwrap();
            // Numbers with leading zeros come up by chance.
            for _ in 0..64 {
                let der = pair.sign(&SystemRandom::new(), b"m").unwrap();
                let fixed = fixed_signature(algorithm, der.as_ref()).unwrap();
                assert!(key.verify(b"m", &fixed).is_ok());
                for end in 0..der.as_ref().len() {
                    assert!(fixed_signature(algorithm, &der.as_ref()[..end]).is_none());
                }
            }
        }
    }

    #[test]
    fn an_rsa_key_out_of_its_parts_is_that_of_the_library() {
        use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = pair.public_key();
        let spki = public.as_der().unwrap();
        let modulus = public.modulus().big_endian_without_leading_zero().to_vec();
        let exponent = public.exponent().big_endian_without_leading_zero().to_vec();
        assert_eq!(rsa_spki(&modulus, &exponent), spki.as_ref());
        assert_eq!(rsa_spki(&[&[0], &modulus[..]].concat(), &exponent), spki.as_ref());
    }
}
