//! What a decision is made about: one request, borrowed from whoever received it.

/// One request as the decision sees it.
///
/// Nothing is copied: the wire layer lends what it received. Nothing is trusted either; host and target are raw.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// The method, case-sensitive (RFC 9110 §9.1), for example `GET`.
    pub method: &'a str,
    /// The scheme by which the client came, `http` or `https`; empty where the gateway does not say.
    pub scheme: &'a str,
    /// The authority as received (`Host` or `:authority`): perhaps with a port, in any case, IPv6 in brackets.
    pub host: &'a str,
    /// The request target as received: path, and the query after `?`, both undecoded.
    pub target: &'a str,
    /// Header fields with names in lower case. Values are raw bytes; a name may occur more than once, and a value may be
    /// several values that a proxy joined by commas.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Context extensions of the route (Envoy's `check_settings.context_extensions`); set by the operator, not the caller.
    pub extensions: &'a [(&'a str, &'a str)],
    /// The address of the peer that the gateway saw, without its port.
    pub source_address: Option<&'a str>,
    /// Where the client's certificate is found.
    pub certificate: CertificateSource<'a>,
}

/// Where the client's certificate is found (RFC 8705 §3). It is one or the other: behind a proxy that terminates TLS the
/// connection's certificate is the proxy's own, and in front of one the header is anybody's.
#[derive(Debug, Clone, Copy, Default)]
pub enum CertificateSource<'a> {
    /// None was presented.
    #[default]
    None,
    /// The connection's, as Envoy tells it: PEM, URL-encoded.
    Connection(&'a str),
    /// The header `x-forwarded-client-cert`, which the operator said is to be believed.
    ForwardedHeader,
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

    /// The raw query, after the first `?`.
    pub fn query(&self) -> Option<&'a str> {
        self.target.split_once('?').map(|(_, query)| query)
    }
}
