//! Scopes that rules ask for, against those that the service knows.

use super::super::document::{RuleDocument, Scopes, Spec};
use super::{Compiler, Source};

impl<'t> Compiler<'t> {
    /// Checks the list of the scopes that there are.
    pub(super) fn known_scopes(&mut self, source: Source<'t>, spec: &Spec) {
        let Some(known) = &spec.known_scopes else { return };
        if known.is_empty() {
            self.report(source, "spec.knownScopes", None, "names no scope; leave it out for no check");
        }
        self.each(source, "spec.knownScopes", known, check_scope);
    }

    /// The scopes that a token must have for the rule.
    pub(super) fn scopes(
        &mut self,
        source: Source<'t>,
        path: &str,
        rule: &RuleDocument,
        spec: &Spec,
    ) -> Scopes {
        let Some(Scopes { all, any }) = &rule.scopes else { return Scopes::default() };
        for (key, scopes) in [("all", all), ("any", any)] {
            self.each(source, &format!("{path}.scopes.{key}"), scopes, |scope| {
                check_scope(scope)?;
                match &spec.known_scopes {
                    Some(known) if !known.iter().any(|one| one == scope) => Err(unknown(scope, known)),
                    _ => Ok(()),
                }
            });
        }
        if let Some(scope) = any.iter().find(|scope| all.contains(scope)) {
            let message = "has no effect: a scope of `all` is in it, so one of them is always there";
            self.report(source, &format!("{path}.scopes.any"), Some(scope), message);
        }
        Scopes { all: all.clone(), any: any.clone() }
    }
}

fn unknown(scope: &str, known: &[String]) -> String {
    let distance = |one: &&String| strsim::osa_distance(one, scope);
    // Within a third of its length it may be meant.
    let nearest = known.iter().min_by_key(distance).filter(|one| distance(one) <= scope.len().div_ceil(3));
    let hint = nearest.map_or_else(
        || format!("there are {}", known.join(", ")),
        |nearest| format!("did you mean `{nearest}`?"),
    );
    format!("`{scope}` is none of `spec.knownScopes`; {hint}")
}

/// `scope-token` of RFC 6749 §3.3.
fn check_scope(scope: &str) -> Result<(), String> {
    if !scope.is_empty() && scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)) {
        Ok(())
    } else {
        Err("is no scope: printable ASCII without spaces, quotes and backslashes".into())
    }
}
