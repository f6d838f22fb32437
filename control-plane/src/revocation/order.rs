//! What a revocation call may ask for.

use atm_core::time::UnixMillis;

use super::{MAX_SELECTORS, RevocationError, Revocations, Selector};
use crate::realms::DEFAULT_REALM;
use crate::registry::FieldError;

/// Bytes of a selector's value.
const MAX_VALUE: usize = 1_024;
/// The end of the year 9999, in seconds.
const LATEST_EXPIRY: i64 = 253_402_300_799;

/// What somebody wants revoked.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// All of them or none.
    pub selectors: &'a [Selector],
    /// What was issued at or before then; none: until now. Single tokens and keys are dead whenever they were made.
    pub before: Option<UnixMillis>,
    /// Who, for the record.
    pub actor: &'a str,
    /// Why, for the record.
    pub reason: Option<&'a str>,
}

impl Revocations {
    /// Refuses an order that cannot be meant, before anything is done.
    pub(super) fn check(&self, order: &Order<'_>) -> Result<(), RevocationError> {
        let Order { selectors, before, reason, .. } = *order;
        let mut errors = Vec::new();
        let mut refuse = |field: String, message: &str| {
            // A caller with a systematic mistake in 100,000 selectors needs a few of them.
            if errors.len() < 100 {
                errors.push(FieldError { field, message: message.to_owned() });
            }
        };
        if selectors.is_empty() || selectors.len() > MAX_SELECTORS {
            refuse("selectors".to_owned(), "must be 1 to 100000");
        }
        if reason.is_some_and(|reason| reason.len() > MAX_VALUE) {
            refuse("reason".to_owned(), "must be at most 1024 bytes");
        }
        if before.is_some_and(|before| before.0 <= 0 || before > crate::clock::wall_now()) {
            refuse(
                "before_ms".to_owned(),
                "must be a past instant, in milliseconds since 1970; schedule what is to come",
            );
        }
        let is_whole = |selector: &Selector| matches!(selector, Selector::Token { .. } | Selector::Key(_));
        if before.is_some() && selectors.iter().any(is_whole) {
            refuse(
                "before_ms".to_owned(),
                "does not go with single tokens and keys: they are dead whenever they were made",
            );
        }
        for (index, selector) in selectors.iter().enumerate() {
            let value = selector.value();
            if value.is_empty() || value.len() > MAX_VALUE {
                refuse(format!("selectors[{index}].{}", selector.kind_name()), "must be 1 to 1024 bytes");
            }
            if let Some(expected) = self.held_to(selector) {
                let field = match selector {
                    Selector::Token { .. } => "token.issuer",
                    other => other.kind_name(),
                };
                refuse(
                    format!("selectors[{index}].{field}"),
                    &format!(
                        "must be {expected}: another realm's are revoked at its own path, or at the default realm"
                    ),
                );
            }
            if let Selector::Token { expires_at: Some(expires_at), .. } = selector
                && !(1..=LATEST_EXPIRY).contains(expires_at)
            {
                refuse(
                    format!("selectors[{index}].token.expires_at"),
                    "must be the token's exp, in seconds since 1970",
                );
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(RevocationError::Invalid(errors)) }
    }

    /// What the selector would have to name instead. Sessions, subjects, clients, keys and tokens without an issuer are this
    /// realm's by their ids; realms, and issuers that are written out, are anybody's, and only the default realm's operator is
    /// everybody's.
    fn held_to(&self, selector: &Selector) -> Option<&str> {
        let (realm, issuer) = (self.keys.realm(), self.issuer());
        if realm == DEFAULT_REALM {
            return None;
        }
        match selector {
            Selector::Realm(named) => (named != realm).then_some(realm),
            Selector::Issuer(named) | Selector::Token { issuer: Some(named), .. } => {
                (named != issuer).then_some(issuer)
            }
            _ => None,
        }
    }
}
