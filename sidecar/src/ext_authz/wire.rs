//! Writes the answer that lets a request through straight into protobuf: the structs of the full encoder would cost some thirty
//! allocations a check, and it is the answer that is given most.

use std::borrow::Cow;

use atm_core::decision::Permit;
use atm_core::freshness::Freshness;
use atm_core::policy::{CredentialSource, lookup};
use atm_core::request::Request;
use prost::Message;

use super::{identity, response};

/// `OVERWRITE_IF_EXISTS_OR_ADD` of `HeaderValueOption.HeaderAppendAction`.
const OVERWRITE: u8 = 2;

/// An encoded `CheckResponse` behind what `buffer` holds.
pub(super) fn permit(request: &Request<'_>, permit: &Permit, buffer: &mut Vec<u8>) {
    // status: present, and its code 0, which means OK.
    nested(buffer, 1, |_| ());
    nested(buffer, 3, |ok| ok_response(request, permit, ok));
    nested(buffer, 4, |fields| metadata(permit, fields));
}

/// `OkHttpResponse`: what upstream learns, and what of the client's must not get there.
fn ok_response(request: &Request<'_>, permit: &Permit, buffer: &mut Vec<u8>) {
    let fixed = identity::HEADERS.into_iter().zip(identity::values(permit));
    let from_claims = identity::from_claims(permit).map(|(name, value)| (name, value.map(Cow::Owned)));
    for (name, value) in fixed.chain(from_claims) {
        match value {
            Some(value) => set_header(buffer, name, &value),
            None => text(buffer, 5, name),
        }
    }
    for source in permit.stripped() {
        match source {
            CredentialSource::Scheme { header, .. } | CredentialSource::Header { header, .. } => {
                text(buffer, 5, header);
            }
            CredentialSource::Cookie(name) => match identity::without_cookie(request, name) {
                Some(rest) => set_header(buffer, "cookie", &rest),
                None => text(buffer, 5, "cookie"),
            },
            CredentialSource::Query(name) => text(buffer, 8, name),
        }
    }
    // For the client: the nonce of its next proof.
    if let Some(nonce) = &permit.nonce {
        header(buffer, 6, "dpop-nonce", nonce);
    }
}

fn set_header(buffer: &mut Vec<u8>, name: &str, value: &str) {
    header(buffer, 2, name, value);
}

/// A `HeaderValueOption` that replaces what is there.
fn header(buffer: &mut Vec<u8>, number: u8, name: &str, value: &str) {
    nested(buffer, number, |option| {
        nested(option, 1, |header| {
            text(header, 1, name);
            text(header, 2, value);
        });
        option.extend_from_slice(&[3 << 3, OVERWRITE]);
    });
}

/// The dynamic metadata, a `google.protobuf.Struct`. Envoy copies each field several times, some 2 µs of its time: what every access
/// log wants is always there, the token's claims for those rules that ask for them.
fn metadata(permit: &Permit, buffer: &mut Vec<u8>) {
    text_field(buffer, "reason", "permit");
    text_field(buffer, "policy", &permit.rule.policy);
    text_field(buffer, "rule", &permit.rule.name);
    if permit.freshness != Freshness::Fresh {
        text_field(buffer, "freshness", permit.freshness.as_str());
    }
    let Some(token) = &permit.token else { return };
    let chosen = permit.rule.upstream.metadata.iter();
    let mut chosen =
        chosen.filter_map(|path| Some((path.last()?, lookup(&token.claims.raw, path)?))).peekable();
    if chosen.peek().is_some() {
        field(buffer, "claims", |value| {
            nested(value, 5, |fields| {
                for (name, claim) in chosen {
                    field(fields, name, |value| value.extend(response::protobuf(claim).encode_to_vec()));
                }
            });
        });
    }
}

fn text_field(buffer: &mut Vec<u8>, name: &str, value: &str) {
    field(buffer, name, |buffer| text(buffer, 3, value));
}

/// An entry of a `Struct`'s map.
fn field(buffer: &mut Vec<u8>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    nested(buffer, 1, |entry| {
        text(entry, 1, name);
        nested(entry, 2, value);
    });
}

fn text(buffer: &mut Vec<u8>, number: u8, value: &str) {
    buffer.push(number << 3 | 2);
    prost::encoding::encode_varint(value.len() as u64, buffer);
    buffer.extend_from_slice(value.as_bytes());
}

/// A message within a message: written, and its length put before it.
fn nested(buffer: &mut Vec<u8>, number: u8, write: impl FnOnce(&mut Vec<u8>)) {
    buffer.push(number << 3 | 2);
    let start = buffer.len();
    write(buffer);
    let length = (buffer.len() - start) as u64;
    let width = prost::encoding::encoded_len_varint(length);
    let end = buffer.len();
    buffer.resize(end + width, 0);
    buffer.copy_within(start..end, start + width);
    let mut before = &mut buffer[start..start + width];
    prost::encoding::encode_varint(length, &mut before);
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::{Struct, value::Kind};

    use super::*;

    #[test]
    fn messages_of_every_length_are_read_as_they_were_written() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 70_000] {
            let value = "x".repeat(length);
            let mut buffer = Vec::new();
            text_field(&mut buffer, "name", &value);
            text_field(&mut buffer, "other", "y");
            let read = Struct::decode(&buffer[..]).unwrap();
            assert_eq!(read.fields["name"].kind, Some(Kind::StringValue(value)), "{length}");
            assert_eq!(read.fields["other"].kind, Some(Kind::StringValue("y".into())), "{length}");
        }
    }
}
