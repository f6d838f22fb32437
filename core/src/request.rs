//! What a decision is made about: one request, borrowed from whoever received it.

/// One request as the decision sees it.
///
/// Nothing is copied: the wire layer lends what it received. Nothing is trusted either; host and target are raw.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method, case-sensitive (RFC 9110 §9.1), for example `GET`.
    pub method: &'a str,
    /// The authority as received (`Host` or `:authority`): perhaps with a port, in any case, IPv6 in brackets.
    pub host: &'a str,
    /// The request target as received: path, and the query after `?`, both undecoded.
    pub target: &'a str,
    /// Header fields with names in lower case. Values are raw bytes; a name may occur more than once, and a value may be
    /// several values that a proxy joined by commas.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Context extensions of the route (Envoy's `check_settings.context_extensions`); set by the operator, not the caller.
    pub extensions: &'a [(&'a str, &'a str)],
}

impl<'a> Request<'a> {
    /// Every value of the header `name` (lower case), in the order received.
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(field, _)| *field == name).map(|(_, value)| *value)
    }

    /// The context extension `name`.
    pub fn extension(&self, name: &str) -> Option<&'a str> {
        self.extensions.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}
