//! Scopes and targets that are granted: those asked for, never wider than those allowed.

use super::IssuanceError;

/// What separates the tokens of a scope (RFC 6749 §3.3).
pub(crate) fn split_scope(scope: &str) -> Result<Vec<&str>, IssuanceError> {
    let mut scopes: Vec<&str> = Vec::new();
    for token in scope.split(' ') {
        // %x21 / %x23-5B / %x5D-7E
        let in_alphabet = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        if token.is_empty() || !token.bytes().all(in_alphabet) {
            return Err(IssuanceError::MalformedScope);
        }
        if !scopes.contains(&token) {
            scopes.push(token);
        }
    }
    Ok(scopes)
}

/// The granted scopes, in the order asked for and without repetitions; all that `allowed` holds where none are asked for.
pub(crate) fn scopes<'a>(
    allowed: impl Fn(&str) -> bool,
    all: &'a [String],
    requested: Option<&'a str>,
) -> Result<Vec<&'a str>, IssuanceError> {
    let Some(requested) = requested else {
        return Ok(all.iter().map(String::as_str).filter(|scope| allowed(scope)).collect());
    };
    let scopes = split_scope(requested)?;
    match scopes.iter().find(|scope| !all.iter().any(|own| own == *scope) || !allowed(scope)) {
        Some(refused) => Err(IssuanceError::Scope((*refused).to_owned())),
        None => Ok(scopes),
    }
}

/// As it stands in a token and a response; none where it is empty.
pub(crate) fn joined(scopes: &[&str]) -> Option<String> {
    (!scopes.is_empty()).then(|| scopes.join(" "))
}

/// The granted audience: all of `requested` that `allowed` holds, or an error. Where none is asked for, the one that is allowed.
pub(crate) fn audience(allowed: &[String], requested: &[String]) -> Result<Vec<String>, IssuanceError> {
    if let Some(refused) = requested.iter().find(|audience| !allowed.contains(audience)) {
        return Err(IssuanceError::Target(refused.clone()));
    }
    match (requested, allowed) {
        ([], []) => Err(IssuanceError::NoTarget("the client is registered for no audience")),
        ([], [own]) => Ok(vec![own.clone()]),
        ([], _) => Err(IssuanceError::NoTarget(
            "the client is registered for several audiences; name one with audience or resource",
        )),
        (requested, _) => Ok(requested.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(list: &[&str]) -> Vec<String> {
        list.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn scope_is_what_was_asked_for_or_all() {
        let all = owned(&["a", "b"]);
        let granted = |scope| scopes(|_| true, &all, scope);
        assert_eq!(granted(None).unwrap(), ["a", "b"]);
        assert_eq!(granted(Some("b a b")).unwrap(), ["b", "a"]);
        assert!(matches!(granted(Some("a c")), Err(IssuanceError::Scope(scope)) if scope == "c"));
        for malformed in ["a  b", " a", "a\tb", "\"a\"", "é", ""] {
            assert!(matches!(granted(Some(malformed)), Err(IssuanceError::MalformedScope)), "{malformed:?}");
        }
        assert_eq!(joined(&granted(None).unwrap()).as_deref(), Some("a b"));
        assert_eq!(joined(&scopes(|_| true, &[], None).unwrap()), None);
        assert_eq!(scopes(|scope| scope != "a", &all, None).unwrap(), ["b"], "both limits count");
        assert!(scopes(|scope| scope != "a", &all, Some("a")).is_err());
    }

    #[test]
    fn audience_is_never_wider_than_allowed() {
        let named = owned(&["two"]);
        assert_eq!(audience(&owned(&["one", "two"]), &named).unwrap(), named);
        assert_eq!(audience(&owned(&["one"]), &[]).unwrap(), ["one"]);
        assert!(matches!(audience(&owned(&["one"]), &named), Err(IssuanceError::Target(_))));
        assert!(matches!(audience(&owned(&["one", "two"]), &[]), Err(IssuanceError::NoTarget(_))));
        assert!(matches!(audience(&[], &[]), Err(IssuanceError::NoTarget(_))));
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_nothing_is_added(
            allowed in proptest::collection::vec("[a-d]", 0..4), asked in proptest::option::of("[a-e ]{0,8}"),
            targets in proptest::collection::vec("[a-e]", 0..4),
        ) {
            if let Ok(granted) = scopes(|_| true, &allowed, asked.as_deref()) {
                prop_assert!(granted.iter().all(|scope| allowed.iter().any(|own| own == scope)));
            }
            if let Ok(granted) = audience(&allowed, &targets) {
                prop_assert!(!granted.is_empty());
                prop_assert!(granted.iter().all(|target| allowed.contains(target)));
                prop_assert!(targets.is_empty() || granted == targets);
            }
        }
    }
}
