//! The header `x-forwarded-client-cert`, as Envoy writes it: elements with commas between, each `Key=value` pairs with
//! semicolons between, values in quotes where they need it.

use super::certificate::{self, CertificateDetails, CertificateError, ClientCertificate};

/// Length of the header at most, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// The one certificate that the header names. Several elements are several hops, and which one is the client's cannot be told.
pub(super) fn read<'a>(
    mut values: impl Iterator<Item = &'a [u8]>,
) -> Result<Option<ClientCertificate>, CertificateError> {
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(CertificateError::Ambiguous);
    }
    let value = std::str::from_utf8(value).map_err(|_| CertificateError::Encoding)?;
    if value.trim().is_empty() {
        return Ok(None);
    }
    if value.len() > MAX_BYTES {
        return Err(CertificateError::Encoding);
    }
    element(value).map(Some)
}

fn element(value: &str) -> Result<ClientCertificate, CertificateError> {
    let (mut hash, mut certificate) = (None, None);
    let mut details = CertificateDetails::default();
    let mut rest = value.trim();
    while !rest.is_empty() {
        let (key, tail) = rest.split_once('=').ok_or(CertificateError::Encoding)?;
        let (text, tail) = self::value(tail)?;
        match key.trim().to_ascii_lowercase().as_str() {
            "hash" => set(&mut hash, digest(&text)?)?,
            "cert" => set(&mut certificate, ClientCertificate::from_url_encoded_pem(&text)?)?,
            "subject" => details.subject = certificate::name(&text)?,
            "uri" => details.uris.push(certificate::name(&text)?),
            "dns" => details.dns_names.push(certificate::name(&text)?),
            // `By` is the proxy's own, `Chain` what the certificate hangs on.
            _ => {}
        }
        rest = tail;
    }
    match (hash, certificate) {
        (None, None) => Err(CertificateError::Encoding),
        (Some(hash), None) => Ok(ClientCertificate::told(&hash, details)),
        (None, Some(certificate)) => Ok(certificate),
        (Some(hash), Some(certificate)) => {
            let told = ClientCertificate::told(&hash, details);
            if told.thumbprint() == certificate.thumbprint() {
                Ok(certificate)
            } else {
                Err(CertificateError::Ambiguous)
            }
        }
    }
}

fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), CertificateError> {
    if slot.replace(value).is_some() { Err(CertificateError::Ambiguous) } else { Ok(()) }
}

/// The value at the start of `text`, and what follows its semicolon. A comma begins another element.
fn value(text: &str) -> Result<(String, &str), CertificateError> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',']).unwrap_or(text.len());
        let (value, tail) = text.split_at(end);
        return Ok((value.to_owned(), next(tail)?));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, next(&quoted[at + 1..])?)),
            '\\' => value.push(characters.next().ok_or(CertificateError::Encoding)?.1),
            other => value.push(other),
        }
    }
    Err(CertificateError::Encoding)
}

fn next(tail: &str) -> Result<&str, CertificateError> {
    match tail.trim_start().chars().next() {
        None => Ok(""),
        Some(';') => Ok(tail.trim_start()[1..].trim_start()),
        Some(',') => Err(CertificateError::Ambiguous),
        Some(_) => Err(CertificateError::Encoding),
    }
}

fn digest(text: &str) -> Result<[u8; 32], CertificateError> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return Err(CertificateError::Encoding);
    }
    for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| CertificateError::Encoding)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| CertificateError::Encoding)?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688";

    fn parse(values: &[&str]) -> Result<Option<ClientCertificate>, CertificateError> {
        read(values.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn envoys_samples_are_read() {
        let text = format!(
            "By=http://frontend.lyft.com;Hash={HASH};Subject=\"/C=US/ST=CA/L=San Francisco/OU=Lyft/CN=Test Client\";\
             URI=http://testclient.lyft.com;DNS=lyft.com;DNS=www.lyft.com"
        );
        let certificate = parse(&[&text]).unwrap().unwrap();
        assert_eq!(certificate.thumbprint(), "Ro7TO-dO7mVW2QwBScEwnpumHWQlMDRDwHSKAt2N5og");
        let details = certificate.details().unwrap();
        assert_eq!(details.subject(), "/C=US/ST=CA/L=San Francisco/OU=Lyft/CN=Test Client");
        assert_eq!(details.dns_names(), ["lyft.com", "www.lyft.com"]);
        assert_eq!(details.uris(), ["http://testclient.lyft.com"]);
    }

    #[test]
    fn quotes_hold_separators() {
        let text = format!("Subject=\"CN=a\\\"b;c,d\";Hash={HASH}");
        assert_eq!(parse(&[&text]).unwrap().unwrap().details().unwrap().subject(), "CN=a\"b;c,d");
    }

    #[test]
    fn what_names_no_certificate_or_several_is_refused() {
        let one = format!("Hash={HASH}");
        let two = format!("Hash={HASH},Hash={HASH}");
        let twice = format!("Hash={HASH};Hash={HASH}");
        assert_eq!(parse(&[]).unwrap(), None);
        assert_eq!(parse(&[&one, &one]), Err(CertificateError::Ambiguous));
        assert_eq!(parse(&[&two]), Err(CertificateError::Ambiguous));
        assert_eq!(parse(&[&twice]), Err(CertificateError::Ambiguous));
        for text in ["By=x", "Hash=12", "Hash", "Hash=\"", "Cert=\"x\"", "Subject=\"a\"b"] {
            assert!(parse(&[text]).is_err(), "{text}");
        }
    }
}
