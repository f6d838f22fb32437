//! DPoP at the token endpoint (RFC 9449 §5, §8).

use atm_core::binding::dpop::{self, Expected, NonceCheck};
use atm_core::binding::{DpopError, VerifiedProof};

use super::caller::Caller;
use super::error::{Code, OAuthError};
use crate::http::Services;
use crate::secret::sha256;
use crate::store::single_use;

/// Seconds that a proof is taken after it was made.
const MAX_AGE_SECONDS: i64 = 60;
/// Difference between clocks that is forgiven, in seconds.
const CLOCK_SKEW_SECONDS: i64 = 30;

/// The thumbprint of the key that the request proves to hold; none where it has no proof.
pub(super) async fn proven_key(
    services: &Services,
    caller: &Caller,
    path: &str,
) -> Result<Option<String>, OAuthError> {
    let mut proofs = caller.headers.get_all("dpop").iter();
    let Some(proof) = proofs.next() else { return Ok(None) };
    let refuse = |description: &str| OAuthError::new(Code::InvalidDpopProof, description);
    // RFC 9449 §4.3 item 1: not more than one; gateways join fields of one name by commas, which no JWT has.
    if proofs.next().is_some() || proof.as_bytes().contains(&b',') {
        return Err(refuse("there is more than one DPoP header"));
    }
    let proof = proof.to_str().map_err(|_| refuse("the proof is not well formed"))?.trim_matches([' ', '\t']);
    let now = services.clock.wall();
    let origins = [services.origin.clone()];
    let nonce = match &services.dpop_nonces {
        Some(key) => NonceCheck::Required(key),
        None => NonceCheck::NotAsked,
    };
    let expected = Expected {
        method: "POST",
        origins: &origins,
        target: path,
        access_token: None,
        thumbprint: None,
        now,
        max_age_seconds: MAX_AGE_SECONDS,
        clock_skew_seconds: CLOCK_SKEW_SECONDS,
        nonce,
    };
    let verified = dpop::verify(proof, &expected).map_err(|error| match error {
        DpopError::NonceMissing | DpopError::NonceInvalid => {
            OAuthError::new(Code::UseDpopNonce, "the proof needs the nonce of the DPoP-Nonce header")
        }
        other => refuse(&other.to_string()),
    })?;
    first_use(services, &verified).await?;
    Ok(Some(verified.thumbprint().to_owned()))
}

/// RFC 9449 §11.1: one proof, one request; at all replicas.
async fn first_use(services: &Services, proof: &VerifiedProof) -> Result<(), OAuthError> {
    let id = sha256(&[b"dpop\n", &proof.replay_id()[..]].concat());
    if single_use::first_use(&services.store, &id, proof.expires_at()).await? {
        Ok(())
    } else {
        Err(OAuthError::new(Code::InvalidDpopProof, "the proof has been used before; make a new one"))
    }
}
