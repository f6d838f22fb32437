//! Where credentials are looked for, which kinds are taken, and what they must be bound to.

use std::sync::Arc;

use super::super::document::{Binding, Dpop, OneOrMany, RuleDocument, Source as SourceDocument, Spec};
use super::super::{BindingNeed, CredentialKind, CredentialSource, DpopRequirements, host, is_token};
use super::{Compiler, Source};

/// The header of RFC 6750 §2.1 and RFC 9449 §7.1, and its schemes.
const AUTHORIZATION: &str = "authorization";
const SCHEMES: [&str; 2] = ["Bearer", "DPoP"];
/// Places of one rule at most: each is looked at for a second credential.
const MAX_SOURCES: usize = 8;
/// Age of a DPoP proof at most where nothing else is said, in seconds.
const DEFAULT_PROOF_AGE_SECONDS: u32 = 60;
/// What it may be set to.
const MAX_PROOF_AGE_SECONDS: u32 = 300;

impl<'t> Compiler<'t> {
    /// The rule's own places, or the policy's, or `authorization`.
    pub(super) fn credential(
        &mut self,
        source: Source<'t>,
        path: &str,
        rule: &RuleDocument,
        spec: &Spec,
    ) -> Arc<[CredentialSource]> {
        let (place, documents) = match (&rule.credential, &spec.credential) {
            (Some(own), _) => (format!("{path}.credential"), own.as_slice()),
            (None, inherited) => (
                "spec.credential".to_owned(),
                inherited.as_ref().map(OneOrMany::as_slice).unwrap_or_default(),
            ),
        };
        let given = rule.credential.is_some() || spec.credential.is_some();
        if given && (documents.is_empty() || documents.len() > MAX_SOURCES) {
            let message = format_args!("names 1 to {MAX_SOURCES} places; leave it out for `authorization`");
            self.report(source, &place, None, message);
        }
        let mut sources = Vec::new();
        for (at, document) in documents.iter().enumerate() {
            let place = if documents.len() == 1 { place.clone() } else { format!("{place}[{at}]") };
            self.credential_source(source, &place, document, &mut sources);
        }
        for (at, one) in sources.iter().enumerate() {
            if sources[..at].contains(one) {
                self.report(source, &place, None, "names one place twice, so that it would always hold two");
            }
        }
        if sources.is_empty() {
            sources = schemes(AUTHORIZATION).collect();
        }
        sources.into()
    }

    fn credential_source(
        &mut self,
        source: Source<'t>,
        place: &str,
        document: &SourceDocument,
        sources: &mut Vec<CredentialSource>,
    ) {
        let SourceDocument { header, scheme, prefix, cookie, query } = document;
        let named = [header, cookie, query].into_iter().filter(|name| name.is_some()).count();
        // `scheme` alone means `authorization`.
        if named > 1 || (named == 0 && (scheme.is_none() || prefix.is_some())) {
            return self.report(source, place, None, "names one of `header`, `cookie` and `query`");
        }
        if header.is_none() && named == 1 && (scheme.is_some() || prefix.is_some()) {
            return self.report(source, place, None, "`scheme` and `prefix` belong to a `header`");
        }
        if let Some(name) = cookie {
            if !is_token(name) {
                self.report(source, &format!("{place}.cookie"), Some(name), "is no cookie's name");
            }
            return sources.push(CredentialSource::Cookie(name.as_str().into()));
        }
        if let Some(name) = query {
            if !is_token(name) || name.contains(['%', '&', '+']) {
                self.report(source, &format!("{place}.query"), Some(name), "is no parameter's name");
            }
            return sources.push(CredentialSource::Query(name.as_str().into()));
        }
        let name = header.as_deref().unwrap_or(AUTHORIZATION).to_ascii_lowercase();
        if !is_token(&name) || matches!(&*name, "cookie" | "host" | "dpop") {
            let message = "is no header that can hold a credential";
            return self.report(source, &format!("{place}.header"), header.as_deref(), message);
        }
        match (scheme.as_deref(), prefix.as_deref()) {
            (Some(_), Some(_)) => {
                self.report(source, place, None, "has `scheme` and `prefix`; keep one of them");
            }
            (Some(scheme), None) if is_token(scheme) => {
                sources.push(CredentialSource::Scheme { header: name.into(), scheme: scheme.into() });
            }
            (Some(""), None) => {
                sources.push(CredentialSource::Header { header: name.into(), prefix: "".into() });
            }
            (Some(scheme), None) => {
                let message = "is no authentication scheme";
                self.report(source, &format!("{place}.scheme"), Some(scheme), message);
            }
            (None, None) if name == AUTHORIZATION => sources.extend(schemes(&name)),
            (None, prefix) => {
                let prefix = prefix.unwrap_or_default();
                if prefix.contains(',') || !prefix.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                    let message = "has printable ASCII without commas";
                    self.report(source, &format!("{place}.prefix"), Some(prefix), message);
                }
                sources.push(CredentialSource::Header { header: name.into(), prefix: prefix.into() });
            }
        }
    }

    /// The kinds of credentials that the rule takes.
    pub(super) fn accepts(
        &mut self,
        source: Source<'t>,
        path: &str,
        rule: &RuleDocument,
        spec: &Spec,
    ) -> Vec<CredentialKind> {
        let (place, kinds) = match (&rule.accepts, &spec.accepts) {
            (Some(own), _) => (format!("{path}.accepts"), own),
            (None, Some(inherited)) => ("spec.accepts".to_owned(), inherited),
            (None, None) => return vec![CredentialKind::Jwt, CredentialKind::Opaque],
        };
        if kinds.is_empty() {
            self.report(
                source,
                &place,
                None,
                "names no kind, so that nothing could pass; leave it out for `jwt` and `opaque`",
            );
        }
        kinds.clone()
    }

    /// The binding that a token must have, and how proofs are judged.
    pub(super) fn binding(
        &mut self,
        source: Source<'t>,
        path: &str,
        rule: &RuleDocument,
        spec: &Spec,
        credential: &[CredentialSource],
    ) -> (BindingNeed, DpopRequirements) {
        let nothing = Binding::default();
        let (place, binding) = match (&rule.binding, &spec.binding) {
            (Some(own), _) => (format!("{path}.binding"), own),
            (None, inherited) => ("spec.binding".to_owned(), inherited.as_ref().unwrap_or(&nothing)),
        };
        let Dpop { nonce, max_age_seconds, origins } = &binding.dpop;
        let max_age = max_age_seconds.unwrap_or(DEFAULT_PROOF_AGE_SECONDS);
        if !(1..=MAX_PROOF_AGE_SECONDS).contains(&max_age) {
            let message = format_args!("must be 1 to {MAX_PROOF_AGE_SECONDS} seconds");
            self.report(source, &format!("{place}.dpop.maxAgeSeconds"), None, message);
        }
        let origins = self.each(source, &format!("{place}.dpop.origins"), origins, origin);
        if binding.require == BindingNeed::Dpop && credential.iter().all(is_scheme_other_than_dpop) {
            let message = "permits nothing: a token that is bound to a DPoP key comes with the scheme `DPoP`, which \
                           `credential` does not take";
            self.report(source, &format!("{place}.require"), None, message);
        }
        let dpop = DpopRequirements { nonce: *nonce, max_age_seconds: max_age.into(), origins };
        (binding.require, dpop)
    }
}

/// RFC 9449 §7.1; a place without a scheme takes both kinds.
fn is_scheme_other_than_dpop(source: &CredentialSource) -> bool {
    matches!(source, CredentialSource::Scheme { scheme, .. } if !scheme.eq_ignore_ascii_case("DPoP"))
}

fn schemes(header: &str) -> impl Iterator<Item = CredentialSource> {
    SCHEMES
        .map(|scheme| CredentialSource::Scheme { header: header.into(), scheme: scheme.into() })
        .into_iter()
}

/// Scheme and authority of an origin (RFC 6454 §6.2).
fn origin(text: &str) -> Result<(String, String), String> {
    let form =
        || "must be an origin, as in `https://api.example.com` or `https://api.example.com:8443`".to_owned();
    let (scheme, authority) = text.split_once("://").ok_or_else(form)?;
    if !matches!(scheme, "https" | "http") || authority.contains('/') || host::normalise(authority).is_none()
    {
        return Err(form());
    }
    Ok((scheme.to_owned(), authority.to_owned()))
}
