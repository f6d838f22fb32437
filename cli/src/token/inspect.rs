//! `atmctl token inspect`: what a token says, without any proof of it.

use anyhow::Result;
use atm_core::jws::UnverifiedToken;
use serde_json::{Value, json};

use crate::output::{self, Format, cell, text};

/// Shows header and claims, and whether a sidecar would take the token's form at all.
pub(crate) fn run(token: &str, format: Format) -> Result<()> {
    let (header, claims) = super::decode(token)?;
    let form = UnverifiedToken::parse(token).err();
    if format == Format::Json {
        let refused =
            form.map(|reason| json!({ "reason": reason.as_str(), "description": reason.description() }));
        return output::print_json(
            &json!({ "header": header, "claims": claims, "verified": false, "form_refused": refused }),
        );
    }
    let rows = |part: &'static str, members: serde_json::Map<String, Value>| {
        members.into_iter().map(move |(name, value)| {
            let shown = match name.as_str() {
                "exp" | "iat" | "nbf" | "auth_time" => with_time(&value, 1000),
                "atm_iat_ms" => with_time(&value, 1),
                _ => text(&value),
            };
            [cell(part), cell(&name), cell(shown)]
        })
    };
    output::print(&output::table(
        ["part", "name", "value"],
        rows("header", header).chain(rows("claims", claims)),
    ))?;
    let refused = form.map(|reason| format!(", and its form alone is refused: {}", reason.description()));
    eprintln!(
        "atmctl: nothing of this is verified{}",
        refused.unwrap_or("; atmctl token verify does that".into())
    );
    Ok(())
}

fn with_time(value: &Value, millis_each: i64) -> String {
    let millis = value.as_i64().and_then(|number| number.checked_mul(millis_each));
    let time = output::instant(&millis.into());
    if time.is_empty() { text(value) } else { format!("{} ({time})", text(value)) }
}
