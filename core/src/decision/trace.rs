//! The steps of a decision, for who asks why.

use crate::reason::Reason;

/// The steps, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Which rule applies.
    Route,
    /// Which credential the request carries.
    Credential,
    /// Token, key and signature; or introspection.
    Authenticity,
    /// Issuer, audience and times.
    Claims,
    /// Token, session, ancestors, subject, client, realm, issuer, key.
    Revocation,
    /// DPoP, client certificate, networks.
    Binding,
    /// Scopes and condition.
    Policy,
    /// How old the knowledge is.
    Freshness,
}

impl Step {
    /// The name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Credential => "credential",
            Self::Authenticity => "authenticity",
            Self::Claims => "claims",
            Self::Revocation => "revocation",
            Self::Binding => "binding",
            Self::Policy => "policy",
            Self::Freshness => "freshness",
        }
    }
}

/// Hears what each step came to.
pub trait Trace {
    /// A step was passed; `what` says by what, and is called only by who listens.
    fn passed(&mut self, step: Step, what: impl FnOnce() -> String);

    /// A step refused.
    fn failed(&mut self, step: Step, reason: Reason);
}

/// Hears nothing, and costs nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTrace;

impl Trace for NoTrace {
    fn passed(&mut self, _step: Step, _what: impl FnOnce() -> String) {}

    fn failed(&mut self, _step: Step, _reason: Reason) {}
}

/// Keeps every step, with what it came to and whether it was passed.
impl Trace for Vec<(Step, bool, String)> {
    fn passed(&mut self, step: Step, what: impl FnOnce() -> String) {
        self.push((step, true, what()));
    }

    fn failed(&mut self, step: Step, reason: Reason) {
        self.push((step, false, format!("{reason}: {}", reason.description())));
    }
}
