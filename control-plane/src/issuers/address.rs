//! Which addresses an issuer may be fetched from, checked where the connection takes them, so that a name cannot mean one
//! address when it is checked and another when it is called (DNS rebinding).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// What keeps an address from being called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressRefused {
    /// Loopback, private (RFC 1918, RFC 4193) or shared (RFC 6598).
    #[error(
        "{0} is a private address; register the issuer with allow_private_addresses if it is meant to be there"
    )]
    Private(IpAddr),
    /// Link-local, metadata services, multicast, reserved: no issuer is there, whatever is allowed.
    #[error("{0} is never called: it is link-local, multicast, reserved or a metadata service's")]
    Never(IpAddr),
}

/// Where clouds serve credentials to whoever asks, beyond 169.254.0.0/16.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Whether `address` may be called, by the IANA special-purpose registries (RFC 6890).
pub fn check(address: IpAddr, allow_private: bool) -> Result<(), AddressRefused> {
    let effective = embedded(address);
    if METADATA.contains(&effective) {
        return Err(AddressRefused::Never(address));
    }
    let (private, public) = match effective {
        IpAddr::V4(v4) => (is_private_v4(v4), is_public_v4(v4)),
        IpAddr::V6(v6) => (v6.is_loopback() || v6.is_unique_local(), is_public_v6(v6)),
    };
    match (private, public) {
        (true, _) if allow_private => Ok(()),
        (true, _) => Err(AddressRefused::Private(address)),
        (false, true) => Ok(()),
        (false, false) => Err(AddressRefused::Never(address)),
    }
}

/// The IPv4 address that an IPv6 one leads to: mapped (RFC 4291 §2.5.5.2) or by NAT64 (RFC 6052).
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return v4.into();
    }
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => address,
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    address.is_loopback() || address.is_private() || (a == 100 && (64..128).contains(&b))
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !matches!(
        address.octets(),
        [0 | 224.., ..]
            | [169, 254, ..]
            | [192, 0, 0 | 2, _]
            | [192, 88, 99, _]
            | [198, 18 | 19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _]
    )
}

/// Global unicast (2000::/3) without tunnels, which lead elsewhere, and documentation.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    (0x2000..0x4000).contains(&first)
        && !(first == 0x2001 && (second < 0x200 || second == 0xdb8))
        && first != 0x2002
        && !(first == 0x3fff && second < 0x1000)
}

/// Resolves names to those of their addresses that may be called.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuardedResolver {
    pub(super) allow_private: bool,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let (mut allowed, mut refused) = (Vec::new(), None);
            for address in found {
                match check(address.ip(), allow_private) {
                    Ok(()) => allowed.push(address),
                    Err(error) => refused = Some(error),
                }
            }
            match refused {
                Some(error) if allowed.is_empty() => Err(error.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_called_unless_private_ones_are_allowed() {
        for (address, by_default, when_allowed) in [
            ("93.184.216.34", true, true),
            ("2606:2800:220:1::1", true, true),
            ("64:ff9b::5db8:d822", true, true),
            ("127.0.0.1", false, true),
            ("10.1.2.3", false, true),
            ("172.31.255.255", false, true),
            ("192.168.0.1", false, true),
            ("100.64.0.1", false, true),
            ("::1", false, true),
            ("fd12::1", false, true),
            ("::ffff:10.0.0.1", false, true),
            ("64:ff9b::a00:1", false, true),
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("64:ff9b::a9fe:a9fe", false, false),
            ("100.100.100.200", false, false),
            ("168.63.129.16", false, false),
            ("fd00:ec2::254", false, false),
            ("fe80::1", false, false),
            ("0.0.0.0", false, false),
            ("::", false, false),
            ("::127.0.0.1", false, false),
            ("224.0.0.1", false, false),
            ("ff02::1", false, false),
            ("255.255.255.255", false, false),
            ("192.0.2.1", false, false),
            ("198.18.0.1", false, false),
            ("2001:db8::1", false, false),
            ("2002:7f00:1::", false, false),
            ("2001::1", false, false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(check(address, false).is_ok(), by_default, "{address}");
            assert_eq!(
                check(address, true).is_ok(),
                when_allowed,
                "{address} where private ones are allowed"
            );
        }
    }

    #[tokio::test]
    async fn a_name_resolves_to_allowed_addresses_only() {
        let resolve = async |allow_private| {
            let resolver = GuardedResolver { allow_private };
            resolver.resolve("localhost".parse().unwrap()).await.map(Iterator::count)
        };
        let error = resolve(false).await.unwrap_err();
        assert!(error.downcast_ref::<AddressRefused>().is_some(), "{error}");
        assert!(resolve(true).await.unwrap() > 0);
    }
}
