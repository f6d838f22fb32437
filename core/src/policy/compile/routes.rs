//! What rules do to each other: ties, and ways that no request takes.

use super::super::reach;
use super::super::route::Routes;
use super::Compiler;

impl Compiler<'_> {
    /// Reports each pair of rules of which neither is the more specific.
    pub(super) fn ties(&mut self, routes: &Routes) {
        for tie in routes.ties(&self.rules) {
            let ((rule, path), (other, other_path)) = (tie.later, tie.earlier);
            let (later, earlier) = (&self.rules[rule], &self.rules[other]);
            let message = format_args!(
                "some requests match this and path `{}` of rule `{}` of policy `{}`, and neither is more specific; \
                 tell them apart by path, host, methods or extensions",
                earlier.paths[other_path].as_str(),
                earlier.name,
                earlier.policy,
            );
            let place = format!("spec.rules[{}].paths[{path}]", later.index);
            self.errors.push(self.sources[rule].error(&place, Some(later.paths[path].as_str()), message));
        }
    }

    /// Reports each path whose requests are all taken by more specific ones.
    pub(super) fn unreachable(&mut self) {
        for found in reach::unreachable(&self.rules) {
            let rule = &self.rules[found.rule];
            let names: Vec<String> = found
                .by
                .iter()
                .map(|(by, path)| {
                    let by = &self.rules[*by];
                    format!("`{}` of rule `{}` of policy `{}`", by.paths[*path].as_str(), by.name, by.policy)
                })
                .collect();
            let message = format_args!(
                "no request comes here: {} are more specific and take them all; remove it, or them",
                names.join(" and ")
            );
            let place = format!("spec.rules[{}].paths[{}]", rule.index, found.path);
            let text = rule.paths[found.path].as_str();
            self.errors.push(self.sources[found.rule].error(&place, Some(text), message));
        }
    }
}
