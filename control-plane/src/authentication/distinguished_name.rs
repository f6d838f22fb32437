//! Distinguished names in the one form that they are compared in: RFC 4514, the most specific part first.

use x509_parser::x509::X509Name;

/// Short names of attribute types (RFC 4514 §3, and the two that certificates have most besides).
const SHORT: [(&str, &str); 11] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("1.2.840.113549.1.9.1", "EMAILADDRESS"),
    ("2.5.4.5", "SERIALNUMBER"),
];

/// One relative name: its attributes, sorted, because they are a set.
type Relative = Vec<(String, String)>;

/// The parsed name; equal names are equal values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DistinguishedName(Vec<Relative>);

impl DistinguishedName {
    /// Reads RFC 4514's text. None: not in its grammar, or with a value in `#` notation.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut names: Vec<Relative> = vec![Vec::new()];
        let mut rest = text;
        loop {
            let (kind, after) = rest.split_once('=')?;
            let kind = canonical_type(kind.trim())?;
            let (value, separator, after) = value(after)?;
            names.last_mut()?.push((kind, value));
            match separator {
                None => break,
                Some('+') => {}
                Some(_) => names.push(Vec::new()),
            }
            rest = after;
        }
        for name in &mut names {
            name.sort();
        }
        Some(Self(names))
    }

    /// From a certificate, where the most general part comes first. None: empty, or a value that is no text.
    pub(crate) fn of(name: &X509Name<'_>) -> Option<Self> {
        let mut names = Vec::new();
        for relative in name.iter_rdn() {
            let mut attributes = Vec::new();
            for attribute in relative.iter() {
                let value = attribute.as_str().ok()?;
                if value.chars().any(char::is_control) {
                    return None;
                }
                attributes.push((canonical_type(&attribute.attr_type().to_id_string())?, value.to_owned()));
            }
            attributes.sort();
            names.push(attributes);
        }
        names.reverse();
        (!names.is_empty()).then_some(Self(names))
    }
}

fn canonical_type(text: &str) -> Option<String> {
    let known = SHORT.iter().find(|(oid, short)| *oid == text || short.eq_ignore_ascii_case(text));
    if let Some((_, short)) = known {
        return Some((*short).to_owned());
    }
    let is_oid = text.contains('.') && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    is_oid.then(|| text.to_owned())
}

/// A value up to its separator, unescaped; the separator; what follows it.
fn value(text: &str) -> Option<(String, Option<char>, &str)> {
    let text = text.trim_start_matches(' ');
    if text.starts_with('#') {
        return None;
    }
    let mut bytes = Vec::new();
    // Spaces at the end belong to the value only where they were escaped.
    let mut kept = 0;
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => {
                let (_, first) = characters.next()?;
                if first.is_ascii_hexdigit() {
                    let (_, second) = characters.next()?;
                    let high = first.to_digit(16)?;
                    bytes.push(u8::try_from(high << 4 | second.to_digit(16)?).ok()?);
                } else if " \"#+,;<=>\\".contains(first) {
                    bytes.push(u8::try_from(first).ok()?);
                } else {
                    return None;
                }
                kept = bytes.len();
            }
            ',' | '+' | ';' => {
                return finished(bytes, kept).map(|value| (value, Some(character), &text[at + 1..]));
            }
            '"' | '<' | '>' => return None,
            other => {
                bytes.extend(other.encode_utf8(&mut [0; 4]).as_bytes());
                if other != ' ' {
                    kept = bytes.len();
                }
            }
        }
    }
    finished(bytes, kept).map(|value| (value, None, ""))
}

fn finished(mut bytes: Vec<u8>, kept: usize) -> Option<String> {
    bytes.truncate(kept);
    let value = String::from_utf8(bytes).ok()?;
    (!value.is_empty() && !value.chars().any(char::is_control)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_has_many_texts() {
        let name = DistinguishedName::parse("CN=client,OU=Payments,O=Example\\, Inc.,C=DE").unwrap();
        for same in [
            "cn=client, ou=Payments, o=Example\\2c Inc., c=DE",
            "2.5.4.3=client,OU=Payments ,O=Example\\, Inc.,C=DE",
        ] {
            assert_eq!(DistinguishedName::parse(same).unwrap(), name, "{same}");
        }
        for other in [
            "C=DE,O=Example\\, Inc.,OU=Payments,CN=client",
            "CN=Client,OU=Payments,O=Example\\, Inc.,C=DE",
            "CN=client,O=Example\\, Inc.,C=DE",
        ] {
            assert_ne!(DistinguishedName::parse(other).unwrap(), name, "{other}");
        }
        assert_eq!(
            DistinguishedName::parse("CN=a+UID=b").unwrap(),
            DistinguishedName::parse("UID=b+CN=a").unwrap()
        );
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "client", "CN=", "CN=a,", "XX=a", "CN=#0401", "CN=a\\", "CN=\"a\"", "CN=a\\00b"] {
            assert_eq!(DistinguishedName::parse(text), None, "{text}");
        }
    }

    /// A comma inside a value must not read as a part of its own.
    #[test]
    fn a_certificate_cannot_smuggle_a_part_into_a_value() {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let mut name = rcgen::DistinguishedName::new();
        name.push(rcgen::DnType::OrganizationName, "Example, CN=admin");
        name.push(rcgen::DnType::CommonName, "client");
        parameters.distinguished_name = name;
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.der()).unwrap();
        let name = DistinguishedName::of(parsed.subject()).unwrap();
        assert_eq!(Some(name), DistinguishedName::parse("CN=client,O=Example\\, CN\\=admin"));
    }
}
