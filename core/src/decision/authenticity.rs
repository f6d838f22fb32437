//! Steps 3 to 5: token, key, signature; in the place of them, for an opaque credential, what the control plane said.

use std::sync::Arc;

use super::CredentialDigest;
use super::credential::Credential;
use super::memory::{Known, Memory};
use crate::jws::UnverifiedToken;
use crate::opaque::{self, OpaqueKind};
use crate::policy::{CredentialKind, TokenRequirements};
use crate::reason::Reason;
use crate::time::UnixMillis;
use crate::token::{AuthenticToken, KeyedToken};
use crate::view::View;

/// Why there is no authentic token.
pub(super) enum Halt {
    /// There is none.
    Refuse(Reason),
    /// Its signature may not be verified now.
    Verify,
    /// The control plane is to be asked.
    Introspect(CredentialDigest),
}

impl From<Reason> for Halt {
    fn from(reason: Reason) -> Self {
        Self::Refuse(reason)
    }
}

/// The token that the credential is. What was learnt of an opaque one before `oldest` does not count.
pub(super) fn authentic_token(
    view: &View,
    memory: &impl Memory,
    credential: &Credential<'_>,
    requirements: &TokenRequirements,
    now: UnixMillis,
    oldest: Option<UnixMillis>,
) -> Result<Arc<AuthenticToken>, Halt> {
    let text = credential.text();
    let kind = match opaque::prefix_kind(text) {
        None => CredentialKind::Jwt,
        Some(OpaqueKind::AccessToken) => CredentialKind::Opaque,
        Some(OpaqueKind::ApiKey) => CredentialKind::ApiKey,
    };
    if !requirements.accepts.contains(&kind) {
        return Err(Reason::CredentialKindRefused.into());
    }
    if kind == CredentialKind::Jwt {
        signed_token(view, memory, text)
    } else {
        introspected(view, memory, text, now, oldest)
    }
}

/// A verified token is taken from memory, where it lies under its whole text and the generation of the keys; so a removed key
/// is no longer believed.
fn signed_token(view: &View, memory: &impl Memory, text: &str) -> Result<Arc<AuthenticToken>, Halt> {
    if let Some(token) = memory.verified(text, view.key_generation) {
        return Ok(token);
    }
    if !memory.may_verify() {
        return Err(Halt::Verify);
    }
    let keyed = KeyedToken::select(UnverifiedToken::parse(text)?, &view.issuers)?;
    let token = Arc::new(keyed.verify()?);
    memory.keep_verified(text, view.key_generation, Arc::clone(&token));
    Ok(token)
}

/// A typo is refused here, without asking anybody.
fn introspected(
    view: &View,
    memory: &impl Memory,
    text: &str,
    now: UnixMillis,
    oldest: Option<UnixMillis>,
) -> Result<Arc<AuthenticToken>, Halt> {
    if opaque::is_opaque(text).is_none() {
        return Err(Reason::TokenMalformed.into());
    }
    let digest = opaque::digest(text);
    match memory.introspected(&digest, now) {
        Known::Unknown => Err(Halt::Introspect(digest)),
        Known::Inactive => Err(Reason::TokenInactive.into()),
        Known::Failed(reason) => Err(reason.into()),
        Known::Active(token, received) => {
            let too_old = oldest.is_some_and(|oldest| received < oldest);
            let changed = match (&token.ids.token, token.learnt_at) {
                (Some(id), Some(learnt_at)) => view.revocations.is_out_of_date(id, learnt_at),
                _ => true, // not a control plane's answer
            };
            if too_old || changed { Err(Halt::Introspect(digest)) } else { Ok(token) }
        }
    }
}
