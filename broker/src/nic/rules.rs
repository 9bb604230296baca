//! Whom a guest may reach: what is in `allow` it may, else what is in `deny` it may not, else what is not the host's own or
//! nobody's in particular.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;

use ipc::flow::Protocol;

/// Refused unless a rule allows it: this host (0/8 and 127/8), its links (169.254/16), groups, and what is reserved or a
/// broadcast (RFC 6890).
const SPECIAL: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    network: (Ipv4Addr, u8),
    ports: RangeInclusive<u16>,
    /// None for any.
    protocol: Option<Protocol>,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub allow: Vec<Rule>,
    pub deny: Vec<Rule>,
}

impl Policy {
    /// Whether the guest may reach it.
    pub fn permits(&self, protocol: Protocol, to: SocketAddrV4) -> bool {
        let among = |rules: &[Rule]| rules.iter().any(|rule| rule.covers(protocol, to));
        let special = || SPECIAL.iter().any(|network| contains(*network, *to.ip()));
        among(&self.allow) || !among(&self.deny) && !special()
    }
}

impl Rule {
    /// Parses `ADDRESS[/BITS][:PORT[-PORT]][/tcp|/udp]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no RULE: ADDRESS[/BITS][:PORT[-PORT]][/tcp|/udp], by IPv4");
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
            Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
            _ => (text, None),
        };
        let (network, ports) = match rest.split_once(':') {
            Some((network, ports)) => (network, port_range(ports).ok_or_else(wrong)?),
            None => (rest, 0..=u16::MAX),
        };
        let (address, bits) = network.split_once('/').unwrap_or((network, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let bits = bits.parse().ok().filter(|bits| *bits <= 32).ok_or_else(wrong)?;
        if u32::from(address) & !mask(bits) != 0 {
            return Err(format!("`{text}`: the address has bits beyond the first {bits}"));
        }
        Ok(Self { network: (address, bits), ports, protocol })
    }

    fn covers(&self, protocol: Protocol, to: SocketAddrV4) -> bool {
        let of_protocol = self.protocol.is_none_or(|own| own == protocol);
        of_protocol && self.ports.contains(&to.port()) && contains(self.network, *to.ip())
    }
}

fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.parse().ok()?..=last.parse().ok()?;
    (!range.is_empty()).then_some(range)
}

fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

fn contains((network, bits): (Ipv4Addr, u8), address: Ipv4Addr) -> bool {
    u32::from(address) & mask(bits) == u32::from(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(allow: &[&str], deny: &[&str], protocol: Protocol, to: &str) -> bool {
        let rules = |texts: &[&str]| texts.iter().map(|text| Rule::parse(text).unwrap()).collect();
        Policy { allow: rules(allow), deny: rules(deny) }.permits(protocol, to.parse().unwrap())
    }

    #[test]
    fn without_rules_the_host_itself_and_its_links_are_out_of_reach() {
        for to in
            ["127.0.0.1:22", "127.8.9.1:80", "0.0.0.0:80", "169.254.169.254:80", "224.0.0.1:9", "255.255.255.255:67"]
        {
            assert!(!permits(&[], &[], Protocol::Tcp, to), "{to}");
        }
        for to in ["1.2.3.4:22", "10.0.0.1:80", "126.255.255.255:1", "223.255.255.255:1", "169.253.255.255:1"] {
            assert!(permits(&[], &[], Protocol::Udp, to), "{to}");
        }
    }

    #[test]
    fn allow_comes_before_deny_and_deny_before_the_rest() {
        let (allow, deny) = (["127.0.0.1:8000-8010/tcp", "10.1.0.0/16"], ["10.0.0.0/8", "0.0.0.0/0:25"]);
        let tcp = |to| permits(&allow, &deny, Protocol::Tcp, to);
        assert!(tcp("127.0.0.1:8000") && tcp("127.0.0.1:8010") && tcp("10.1.255.1:25") && tcp("9.9.9.9:53"));
        assert!(!tcp("127.0.0.1:8011") && !tcp("127.0.0.2:8000") && !tcp("10.2.0.1:80") && !tcp("9.9.9.9:25"));
        assert!(!permits(&allow, &deny, Protocol::Udp, "127.0.0.1:8000"), "of the other protocol");
        assert!(!permits(&[], &["0.0.0.0/0"], Protocol::Udp, "9.9.9.9:53"));
    }

    #[test]
    fn what_is_no_rule_is_said() {
        for wrong in
            ["", "x", "1.2.3", "1.2.3.4/33", "1.2.3.4/8", "1.2.3.4:", "1.2.3.4:9-8", "1.2.3.4:1/icmp", "::1", "a.b:1"]
        {
            assert!(Rule::parse(wrong).is_err(), "{wrong}");
        }
    }
}
