//! Network cards: what the operator says of one, and what its process and the vmm are told.
//!
//! The process behind a card holds no right to make a socket. It asks for each flow ([`flows`]), policy decides ([`rules`]),
//! and the broker dials ([`dial`]).

mod dial;
pub mod flows;
mod rules;

use std::net::{Ipv4Addr, SocketAddrV4};

use ipc::control::{Attach, DeviceConfig, DeviceKind, DmaMode, Orphan};

use crate::disks::bounce_size;
use rules::{Policy, Rule};

/// What is said of a card on the command line.
const FORM: &str = "give `user` and, if you like, mac=ADDRESS, dns=ADDRESS[:PORT], allow=RULE, deny=RULE, bounce=SIZE; a \
                    RULE is ADDRESS[/BITS][:PORT[-PORT]][/tcp|/udp]";
/// Bounce region unless given: as many packets as its queues hold, several times.
const BOUNCE: u64 = 2 << 20;
/// Queues: one to receive, one to send.
const QUEUES: u16 = 2;
/// Where the host's own resolvers are listed.
const RESOLVERS: &str = "/etc/resolv.conf";

/// A network card, behind which is the host's network, by NAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The guest's address, if it was given.
    pub mac: Option<[u8; 6]>,
    /// Who is asked for names, if it was given.
    pub dns: Option<SocketAddrV4>,
    /// Whom the guest may reach.
    pub policy: Policy,
    /// Bytes of bounce region.
    pub bounce: u64,
}

impl Nic {
    /// Parses [`FORM`].
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut items = text.split(',');
        match items.next().map(|first| first.strip_prefix("mode=").unwrap_or(first)) {
            Some("user") => {}
            Some(other) => {
                return Err(format!(
                    "`{other}`: `user` is the one mode that there is yet (no tap, bridge, host-only, switch)"
                ));
            }
            None => return Err(FORM.into()),
        }
        let mut nic = Self { mac: None, dns: None, policy: Policy::default(), bounce: BOUNCE };
        for item in items {
            match item.split_once('=') {
                Some(("mac", address)) => nic.mac = Some(mac(address)?),
                Some(("dns", address)) => nic.dns = Some(resolver(address)?),
                Some(("allow", rule)) => nic.policy.allow.push(Rule::parse(rule)?),
                Some(("deny", rule)) => nic.policy.deny.push(Rule::parse(rule)?),
                Some(("bounce", size)) => nic.bounce = bounce_size(size)?,
                Some(("forward", _)) => return Err("forward: no connections to a guest are taken yet".into()),
                _ => return Err(format!("`{item}`: {FORM}")),
            }
        }
        Ok(nic)
    }

    /// What the vmm is told of it.
    pub fn config(&self, name: &str) -> DeviceConfig {
        let (kind, name, dma) = (DeviceKind::Nic, name.into(), DmaMode::Bounce);
        DeviceConfig { name, kind, bounce: self.bounce, queues: QUEUES, dma }
    }

    /// What its process is told of it, as device `number`, when these connections have lost theirs.
    pub fn attach(&self, number: u16, orphans: &[Orphan]) -> Attach {
        let [high, low] = number.to_be_bytes();
        // Locally administered.
        let mac = self.mac.unwrap_or([0x02, 0x62, 0x75, 0x6c, high, low]);
        Attach { mac, orphans: orphans.to_vec() }
    }

    /// Finds out whom to ask for names, unless that was said. None if this host asks nobody by IPv4.
    pub fn with_resolver(mut self) -> Self {
        let list = || std::fs::read_to_string(RESOLVERS).unwrap_or_default();
        self.dns = self.dns.or_else(|| first_resolver(&list()));
        self
    }
}

/// What is to be seen of a card.
pub fn describe(nic: &Nic) -> String {
    let Policy { allow, deny } = &nic.policy;
    let dns = nic.dns.map_or("nobody".to_owned(), |dns| dns.to_string());
    format!("user network, {} allow and {} deny rules, names from {dns}", allow.len(), deny.len())
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let octet = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2);
    let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
    let mac = octets.and_then(|octets| octets.try_into().ok()).filter(|mac: &[u8; 6]| mac[0] & 1 == 0);
    mac.ok_or_else(|| format!("mac: `{text}` is no address of one card, such as 02:00:00:00:00:01"))
}

fn resolver(text: &str) -> Result<SocketAddrV4, String> {
    let plain = text.parse::<Ipv4Addr>().map(|address| SocketAddrV4::new(address, 53));
    plain.or_else(|_| text.parse()).map_err(|_| format!("dns: `{text}` is no IPv4 ADDRESS or ADDRESS:PORT"))
}

fn first_resolver(list: &str) -> Option<SocketAddrV4> {
    let address = |line: &str| line.strip_prefix("nameserver")?.trim().parse::<Ipv4Addr>().ok();
    list.lines().find_map(address).map(|address| SocketAddrV4::new(address, 53))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_what_is_meant() {
        let nic = Nic::parse("user").unwrap();
        assert_eq!(nic, Nic::parse("mode=user").unwrap());
        assert_eq!((nic.attach(3, &[]).mac, nic.config("nic0").queues), ([2, 0x62, 0x75, 0x6c, 0, 3], 2));
        let nic =
            Nic::parse("user,mac=52:54:00:ab:cd:ef,dns=127.0.0.1:5353,allow=10.0.0.0/8:80/tcp,deny=0.0.0.0/0").unwrap();
        assert_eq!(nic.mac, Some([0x52, 0x54, 0, 0xab, 0xcd, 0xef]));
        assert_eq!(nic.dns, Some("127.0.0.1:5353".parse().unwrap()));
        assert_eq!((nic.policy.allow.len(), nic.policy.deny.len()), (1, 1));
        assert_eq!(Nic::parse("user,dns=1.1.1.1").unwrap().dns, Some("1.1.1.1:53".parse().unwrap()));
        for (wrong, says) in [
            ("tap", "`user` is the one mode"),
            ("", "`user` is the one mode"),
            ("user,mac=01:00:00:00:00:00", "no address of one card"),
            ("user,mac=2:0:0:0:0:0", "no address of one card"),
            ("user,dns=::1", "no IPv4"),
            ("user,allow=x", "RULE"),
            ("user,forward=127.0.0.1:2222", "yet"),
            ("user,bounce=4K", "between"),
            ("user,mtu=9", "give `user`"),
        ] {
            let error = Nic::parse(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_first_resolver_by_ipv4_is_asked() {
        let list = "# x\nnameserver ::1\nsearch a\nnameserver  9.9.9.9\nnameserver 1.1.1.1";
        assert_eq!(first_resolver(list), Some("9.9.9.9:53".parse().unwrap()));
        assert_eq!(first_resolver("nameserver"), None);
    }
}
