//! Hosts, in the one form that they are compared in, and patterns of them.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;

/// Length of a host name at most, in bytes (RFC 1035 §2.3.4).
const MAX_HOST_BYTES: usize = 253;
/// Length of a label at most, in bytes.
const MAX_LABEL_BYTES: usize = 63;

/// The host of an authority in its one form: lower case, without port and trailing dot, IPv6 in brackets and in the text of
/// RFC 5952. `None` where it is no host: empty, with user information, with characters that names and addresses lack.
pub(crate) fn normalise(authority: &str) -> Option<Cow<'_, str>> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        if !(rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)) {
            return None;
        }
        let address: Ipv6Addr = address.parse().ok()?;
        return Some(Cow::Owned(format!("[{address}]")));
    }
    let name = match authority.split_once(':') {
        Some((name, port)) if is_port(port) => name,
        Some(_) => return None,
        None => authority,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > MAX_HOST_BYTES || !name.split('.').all(is_label) {
        return None;
    }
    Some(if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    })
}

/// A port may be empty (RFC 3986 §3.2.3).
fn is_port(port: &str) -> bool {
    port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// Underscores occur in the names of containers and services.
fn is_label(label: &str) -> bool {
    let is_character = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !label.is_empty() && label.len() <= MAX_LABEL_BYTES && label.bytes().all(is_character)
}

/// Which hosts a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum HostPattern {
    /// This host alone.
    Exact(String),
    /// Every host below this one, at any depth, but not itself.
    Below(String),
    /// Every host.
    Any,
}

impl HostPattern {
    /// Reads `*`, `*.example.com` or a host without a port. An error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let name = text.strip_prefix("*.").unwrap_or(text);
        if name.contains('*') {
            return Err("`*` stands alone or as the first label, as in `*.example.com`".into());
        }
        let host = normalise(name).ok_or_else(|| format!("`{text}` is no host name or address"))?;
        // What precedes a port, wherever it is: IPv6 ends with a bracket.
        if !name.ends_with(']') && name.contains(':') {
            return Err("a host pattern has no port: it matches every port".into());
        }
        match text.starts_with("*.") {
            true if host.starts_with('[') => Err("an address has no subdomains".into()),
            true => Ok(Self::Below(host.into_owned())),
            false => Ok(Self::Exact(host.into_owned())),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Below(host) => write!(f, "*.{host}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// The parents of a host name, the nearest first: `b.c` and `c` of `a.b.c`. An address has none.
pub(super) fn parents(host: &str) -> impl Iterator<Item = &str> {
    let first = if host.starts_with('[') { None } else { Some(host) };
    std::iter::successors(first, |name| name.split_once('.').map(|(_, parent)| parent)).skip(1)
}
