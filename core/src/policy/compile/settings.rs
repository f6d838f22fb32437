//! What a policy says beside its rules: rollout, staleness, and what the upstream service learns.

use std::sync::Arc;

use super::super::document::{ClaimPath, Rollout as RolloutDocument, RuleDocument, Spec};
use super::super::{
    ClaimHeader, CredentialKind, Mode, OnStale, Rollout, Share, StaleAction, Upstream, is_token,
};
use super::{Compiler, Source};

/// Headers from claims, and claims in the metadata, that a policy may name.
const MAX_CLAIMS: usize = 32;
/// Names that lead to one claim; as deep as a token's JSON may be.
const MAX_DEPTH: usize = crate::json::MAX_DEPTH;
/// Headers that belong to the connection or to others: setting one would break the request or lie about it.
const RESERVED: [&str; 13] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "dpop",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
    "x-forwarded-for",
];

impl<'t> Compiler<'t> {
    /// The share of the requests that a policy is for.
    pub(super) fn rollout(
        &mut self,
        source: Source<'t>,
        document: Option<&RolloutDocument>,
        mode: Mode,
    ) -> Option<Rollout> {
        let RolloutDocument { percent, by } = document?;
        if mode == Mode::Shadow {
            let message = "has no effect in shadow mode, which decides nothing; remove one of them";
            self.report(source, "spec.rollout", None, message);
        }
        if !(*percent >= 0.01 && *percent <= 100.0) {
            let message = "must be 0.01 to 100; a policy that is to decide nothing is `mode: shadow`";
            self.report(source, "spec.rollout.percent", None, message);
            return None;
        }
        let by = match by.as_deref() {
            None | Some("credential") => Share::Credential,
            Some("address") => Share::Address,
            Some(name) if is_token(name) => Share::Header(name.to_ascii_lowercase().into()),
            Some(name) => {
                let message = "must be `credential`, `address` or a header's name";
                self.report(source, "spec.rollout.by", Some(name), message);
                return None;
            }
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10,000")]
        Some(Rollout { per_ten_thousand: (percent * 100.0).round() as u32, by })
    }

    /// What the rule does while the state is stale.
    pub(super) fn on_stale(
        &mut self,
        source: Source<'t>,
        path: &str,
        rule: &RuleDocument,
        spec: &Spec,
    ) -> StaleAction {
        // A rule that asks for no token decides nothing by what can grow stale, unless it says so itself.
        let inherited = if rule.allow_anonymous { Some(OnStale::Allow) } else { spec.on_stale };
        let bound = rule.allow_stale_seconds.or(spec.allow_stale_seconds);
        let action = rule.on_stale.or(inherited).unwrap_or(OnStale::Deny);
        if rule.allow_stale_seconds.is_some() && action != OnStale::Allow {
            let message = "has no effect without `onStale: allow`";
            self.report(source, &format!("{path}.allowStaleSeconds"), None, message);
        }
        let kinds = rule.accepts.as_ref().or(spec.accepts.as_ref());
        if rule.on_stale == Some(OnStale::Introspect)
            && kinds.is_some_and(|kinds| kinds.iter().all(|kind| *kind == CredentialKind::Jwt))
        {
            let message = "is the same as `deny` here: the control plane cannot be asked about a JWT";
            self.report(source, &format!("{path}.onStale"), None, message);
        }
        match action {
            OnStale::Deny => StaleAction::Deny,
            OnStale::Introspect => StaleAction::Introspect,
            OnStale::Allow => StaleAction::Allow(bound.filter(|_| !rule.allow_anonymous)),
        }
    }

    /// What the upstream service and Envoy learn.
    pub(super) fn upstream(&mut self, source: Source<'t>, spec: &Spec) -> Upstream {
        if spec.allow_stale_seconds.is_some() && !uses_allow(spec) {
            let message = "has no effect without `onStale: allow`";
            self.report(source, "spec.allowStaleSeconds", None, message);
        }
        if spec.upstream_headers.len() > MAX_CLAIMS || spec.metadata_claims.len() > MAX_CLAIMS {
            let key =
                if spec.upstream_headers.len() > MAX_CLAIMS { "upstreamHeaders" } else { "metadataClaims" };
            self.report(
                source,
                &format!("spec.{key}"),
                None,
                format_args!("has at most {MAX_CLAIMS} entries"),
            );
        }
        let mut headers: Vec<ClaimHeader> = Vec::new();
        for (at, header) in spec.upstream_headers.iter().enumerate() {
            let place = format!("spec.upstreamHeaders[{at}]");
            let name: Arc<str> = header.name.to_ascii_lowercase().into();
            if let Err(message) = check_header(&name) {
                self.report(source, &format!("{place}.name"), Some(&header.name), message);
            } else if headers.iter().any(|known| known.name == name) {
                self.report(source, &format!("{place}.name"), Some(&header.name), "is set twice");
            }
            let claim = self.claim(source, &format!("{place}.claim"), &header.claim);
            headers.push(ClaimHeader { name, claim, encode: header.encode });
        }
        let metadata = spec.metadata_claims.iter().enumerate();
        let metadata =
            metadata.map(|(at, claim)| self.claim(source, &format!("spec.metadataClaims[{at}]"), claim));
        Upstream { metadata: metadata.collect(), headers }
    }

    fn claim(&mut self, source: Source<'t>, place: &str, claim: &ClaimPath) -> Vec<String> {
        let names = claim.as_slice();
        let is_path = (1..=MAX_DEPTH).contains(&names.len()) && names.iter().all(|name| !name.is_empty());
        if !is_path {
            let message = format_args!("is a claim's name, or 1 to {MAX_DEPTH} names that lead to one");
            self.report(source, place, None, message);
        }
        names.to_vec()
    }
}

fn uses_allow(spec: &Spec) -> bool {
    spec.on_stale == Some(OnStale::Allow)
        || spec.rules.iter().any(|rule| rule.on_stale == Some(OnStale::Allow))
}

fn check_header(name: &str) -> Result<(), &'static str> {
    if !is_token(name) {
        return Err("is no header's name");
    }
    if name.starts_with("x-atm-") || name.starts_with("x-envoy-") || RESERVED.contains(&name) {
        return Err("is a header that only the gateway and the sidecar set; choose another");
    }
    Ok(())
}
