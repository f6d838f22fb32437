//! Step 8: a token in the hands of whom it was bound to (RFC 9449, RFC 8705).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::authorisation::LiveToken;
use super::credential::Credential;
use super::memory::Memory;
use crate::binding::dpop::{self, Expected, NonceCheck};
use crate::binding::{ClientCertificate, DpopError, VerifiedProof};
use crate::policy::{BindingNeed, TokenRequirements};
use crate::reason::Reason;
use crate::request::Request;
use crate::time::UnixMillis;
use crate::token::AuthenticToken;

/// A live token in the hands of whom it was bound to; a bearer token where none asks for more.
#[derive(Debug)]
pub(super) struct BoundToken<'t> {
    live: LiveToken<'t>,
    proof: Option<VerifiedProof>,
    certificate: bool,
}

impl<'t> BoundToken<'t> {
    /// Checks every binding that the token has, and that it has the one that the rule asks for.
    pub(super) fn check(
        live: LiveToken<'t>,
        credential: &Credential<'_>,
        rule: &TokenRequirements,
        memory: &impl Memory,
        request: &Request<'_>,
        now: UnixMillis,
    ) -> Result<Self, Reason> {
        let token = live.token();
        check_networks(token, request)?;
        let confirmation = token.claims.confirmation.as_ref();
        if confirmation.is_some_and(|confirmation| confirmation.unsupported) {
            return Err(Reason::BindingUnsupported);
        }
        let key = confirmation.and_then(|confirmation| confirmation.jkt.as_deref());
        let thumbprint = confirmation.and_then(|confirmation| confirmation.x5t_s256.as_deref());
        let bound = match rule.binding {
            BindingNeed::None => true,
            BindingNeed::Any => key.is_some() || thumbprint.is_some(),
            BindingNeed::Dpop => key.is_some(),
            BindingNeed::Certificate => thumbprint.is_some(),
        };
        if !bound {
            return Err(Reason::BindingRequired);
        }
        // RFC 9449 §7.2: what is bound to a DPoP key never passes as a bearer token, nor the other way round.
        if let Some(scheme) = credential.scheme()
            && scheme.eq_ignore_ascii_case("DPoP") != key.is_some()
        {
            return Err(Reason::SchemeMismatch);
        }
        if let Some(thumbprint) = thumbprint {
            check_certificate(request, thumbprint)?;
        }
        let proof = match key {
            None => None,
            Some(key) => Some(check_proof(key, credential, rule, memory, request, now)?),
        };
        Ok(Self { live, proof, certificate: thumbprint.is_some() })
    }

    pub(super) fn token(&self) -> &'t Arc<AuthenticToken> {
        self.live.token()
    }

    pub(super) fn proof(&self) -> Option<&VerifiedProof> {
        self.proof.as_ref()
    }
}

impl fmt::Display for BoundToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.proof.is_some(), self.certificate) {
            (true, true) => "bound to a DPoP key and to the client certificate",
            (true, false) => "bound to a DPoP key, whose proof fits",
            (false, true) => "bound to the client certificate",
            (false, false) => "a bearer token",
        })
    }
}

fn check_networks(token: &AuthenticToken, request: &Request<'_>) -> Result<(), Reason> {
    let networks = &token.claims.networks;
    if networks.is_empty() {
        return Ok(());
    }
    let address: Option<IpAddr> = request.source_address.and_then(|address| address.parse().ok());
    let address = address.map(|address| address.to_canonical());
    if address.is_some_and(|address| networks.iter().any(|network| network.contains(&address))) {
        Ok(())
    } else {
        Err(Reason::NetworkRefused)
    }
}

fn check_certificate(request: &Request<'_>, thumbprint: &str) -> Result<(), Reason> {
    let certificate = ClientCertificate::of(request).map_err(|_| Reason::CertificateMalformed)?;
    let certificate = certificate.ok_or(Reason::CertificateMissing)?;
    // Both are public values, so the time of the comparison tells nothing.
    if certificate.thumbprint() == thumbprint { Ok(()) } else { Err(Reason::CertificateMismatch) }
}

fn check_proof(
    key: &str,
    credential: &Credential<'_>,
    rule: &TokenRequirements,
    memory: &impl Memory,
    request: &Request<'_>,
    now: UnixMillis,
) -> Result<VerifiedProof, Reason> {
    let mut proofs = request.header_values("dpop");
    let proof = proofs.next().ok_or(Reason::ProofMissing)?;
    // Gateways join fields of one name by commas, which no JWT has.
    if proofs.next().is_some() || proof.contains(&b',') {
        return Err(Reason::ProofMultiple);
    }
    let proof = std::str::from_utf8(proof).map_err(|_| Reason::ProofMalformed)?.trim_matches([' ', '\t']);
    let nonce = match (rule.dpop.nonce, memory.nonce_key()) {
        (false, _) => NonceCheck::NotAsked,
        (true, Some(key)) => NonceCheck::Required(key),
        (true, None) => return Err(Reason::Internal),
    };
    let own = [(request.scheme.to_owned(), request.host.to_owned())];
    let origins = if rule.dpop.origins.is_empty() { &own[..] } else { &rule.dpop.origins };
    let expected = Expected {
        method: request.method,
        origins,
        target: request.target,
        access_token: Some(credential.text()),
        thumbprint: Some(key),
        now,
        max_age_seconds: rule.dpop.max_age_seconds,
        clock_skew_seconds: rule.clock_skew,
        nonce,
    };
    dpop::verify(proof, &expected).map_err(|error| match error {
        DpopError::Malformed
        | DpopError::TypeRefused
        | DpopError::AlgorithmRefused
        | DpopError::KeyRefused => Reason::ProofMalformed,
        DpopError::SignatureInvalid => Reason::ProofSignatureInvalid,
        DpopError::MethodMismatch | DpopError::UriMismatch => Reason::ProofRequestMismatch,
        DpopError::TokenMismatch | DpopError::KeyMismatch => Reason::ProofTokenMismatch,
        DpopError::TooOld | DpopError::IssuedInFuture => Reason::ProofExpired,
        DpopError::NonceMissing | DpopError::NonceInvalid => Reason::NonceRequired,
    })
}
