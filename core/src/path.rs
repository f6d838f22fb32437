//! The one reading of a request's path that rules are matched against (RFC 3986 §6.2.2), or a refusal.
//!
//! The sidecar does not rewrite what goes upstream. So a path that an upstream may read in another way than we do is
//! refused instead of repaired: otherwise the rule of one resource would open another.

use std::borrow::Cow;
use std::fmt;

use crate::reason::Reason;

#[cfg(test)]
mod tests;

/// Length of a path at most, in bytes, without the query.
pub const MAX_PATH_BYTES: usize = 8 * 1024;

/// A path with one meaning: absolute, without query, empty or dot segments and path parameters, each character in its only
/// form. A slash at the end is not part of it, because upstreams differ in whether it matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NormalisedPath<'a>(Cow<'a, str>);

impl NormalisedPath<'_> {
    /// The path, beginning with a slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments between the slashes; none for `/`.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        // An iterator over one empty segment is what splitting the root would give.
        self.0[1..].split('/').filter(|segment| !segment.is_empty())
    }
}

impl fmt::Display for NormalisedPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Normalises the path of a request target in origin form (RFC 9112 §3.2.1): path and query, undecoded.
///
/// Percent-encoded characters that may stand in a segment as they are lose their encoding, not only the unreserved ones of
/// RFC 3986 §6.2.2.2: upstreams decode them all, and `%40me` must not slip past a rule for `@me`. The hexadecimal digits
/// of the others become upper case. The path is borrowed where nothing changes.
///
/// # Errors
///
/// [`Reason::MalformedRequest`] for what RFC 3986 does not allow in a path, and for paths over [`MAX_PATH_BYTES`].
/// [`Reason::AmbiguousPath`] for what servers read in different ways: dot segments (encoded or not), empty segments, path
/// parameters (`;`), backslashes, encoded slashes, encoded control characters, double encoding, bytes that are no UTF-8
/// (overlong forms), and segments that end with a dot or a space.
pub fn normalise(target: &str) -> Result<NormalisedPath<'_>, Reason> {
    if target.contains('#') {
        return Err(Reason::MalformedRequest); // a fragment never travels (RFC 9110 §7.1)
    }
    let path = target.split_once('?').map_or(target, |(path, _query)| path);
    if !path.starts_with('/') || path.len() > MAX_PATH_BYTES {
        return Err(Reason::MalformedRequest);
    }
    if path.ends_with("//") {
        return Err(Reason::AmbiguousPath); // before the last slash goes, the root's among them
    }
    let path = if path.len() > 1 { path.strip_suffix('/').unwrap_or(path) } else { path };
    let path = recode(path)?;
    if path.len() > 1 && path[1..].split('/').any(is_ambiguous_segment) {
        return Err(Reason::AmbiguousPath);
    }
    Ok(NormalisedPath(path))
}

/// Empty, or ending with a dot or a space; dot segments are among these.
fn is_ambiguous_segment(segment: &str) -> bool {
    segment.is_empty() || segment.ends_with('.') || segment.ends_with("%20")
}

/// Gives every character its only form.
fn recode(path: &str) -> Result<Cow<'_, str>, Reason> {
    if !path.contains('%') {
        path.bytes().try_for_each(check_literal)?;
        return Ok(Cow::Borrowed(path));
    }
    let mut recoded = String::with_capacity(path.len());
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let [high, low, tail @ ..] = tail else { return Err(Reason::MalformedRequest) };
            let byte = decode_byte(*high, *low).ok_or(Reason::MalformedRequest)?;
            check_encoded(byte)?;
            push_byte(&mut recoded, byte);
            decoded.push(byte);
            rest = tail;
        } else {
            check_literal(*first)?;
            recoded.push(char::from(*first));
            decoded.push(*first);
            rest = tail;
        }
    }
    // What a second decoding would decode again, however it was spelt: `%252e`, `%25%32%65`.
    if decoded.windows(3).any(|window| window[0] == b'%' && decode_byte(window[1], window[2]).is_some()) {
        return Err(Reason::AmbiguousPath);
    }
    // `%C0%AF` is a slash to a lax decoder.
    std::str::from_utf8(&decoded).map_err(|_| Reason::AmbiguousPath)?;
    Ok(Cow::Owned(recoded))
}

fn check_literal(byte: u8) -> Result<(), Reason> {
    match byte {
        b'/' => Ok(()),
        b'\\' | b';' => Err(Reason::AmbiguousPath),
        byte if is_segment_character(byte) => Ok(()),
        _ => Err(Reason::MalformedRequest),
    }
}

fn check_encoded(byte: u8) -> Result<(), Reason> {
    if matches!(byte, b'/' | b'\\' | b';') || byte.is_ascii_control() {
        return Err(Reason::AmbiguousPath);
    }
    Ok(())
}

fn push_byte(recoded: &mut String, byte: u8) {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    if is_segment_character(byte) {
        recoded.push(char::from(byte));
    } else {
        recoded.extend(['%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0xf)]]);
    }
}

fn decode_byte(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// `pchar` without the encoded ones (RFC 3986 §3.3), and without `;`.
fn is_segment_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte)
}
