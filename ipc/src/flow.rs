//! How the process of a network card asks the broker for a way out: it can make no socket itself.
//!
//! A request is 16 bytes, an answer 8, each a packet of a SEQPACKET socket of their own. With a yes comes a descriptor. Of TCP
//! it is a socket that the broker has begun to connect: it is writable when that is done or failed. Of UDP it is a SEQPACKET
//! socket to the broker, which passes on what comes, a packet for each datagram: the address that sendmsg(2) takes lies behind
//! a pointer, where no system call filter looks, so whoever held the UDP socket itself could send to anybody.
//!
//! Addresses are as the guest sees them. On its link [`GATEWAY`] stands for the host, and [`RESOLVER`] for whom it asks for
//! names.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::scm;

/// The guest's own address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Who forwards what the guest sends to others: to the guest, also the host itself.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Who answers for names, at port 53.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Bits of the link's prefix.
pub const PREFIX: u8 = 24;
/// Most flows of a card at a time.
pub const MAX_FLOWS: usize = 256;
/// Longest datagram in bytes.
pub const MAX_DATAGRAM: usize = 65_507;

/// Bytes of a request.
pub const REQUEST: usize = 16;
/// Bytes of an answer.
const ANSWER: usize = 8;
const VERSION: u8 = 1;

/// What flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// Datagrams from one port to one other.
    Udp,
}

impl Protocol {
    /// Its number in an IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// In messages and rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Where a flow is to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which answer is for it.
    pub id: u32,
    /// What flows.
    pub protocol: Protocol,
    /// From which of the guest's ports.
    pub port: u16,
    /// To whom.
    pub to: SocketAddrV4,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A descriptor comes along.
    Dialled,
    /// Policy forbids it.
    Refused,
    /// It cannot be done: there is no route, or too much is going on.
    Failed,
}

impl Request {
    /// As it is sent.
    pub fn encode(self) -> [u8; REQUEST] {
        let mut bytes = [0; REQUEST];
        bytes[..4].copy_from_slice(&self.id.to_le_bytes());
        (bytes[4], bytes[5]) = (VERSION, self.protocol.number());
        bytes[6..8].copy_from_slice(&self.to.port().to_be_bytes());
        bytes[8..12].copy_from_slice(&self.to.ip().octets());
        bytes[12..14].copy_from_slice(&self.port.to_be_bytes());
        bytes
    }

    /// From a packet of any content; None if it is not a request.
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let bytes: [u8; REQUEST] = packet.try_into().ok()?;
        let [i0, i1, i2, i3, VERSION, protocol, p0, p1, a, b, c, d, g0, g1, 0, 0] = bytes else { return None };
        let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.number() == protocol)?;
        let to = SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([p0, p1]));
        let (id, port) = (u32::from_le_bytes([i0, i1, i2, i3]), u16::from_be_bytes([g0, g1]));
        Some(Self { id, protocol, port, to })
    }
}

impl Verdict {
    const ALL: [Self; 3] = [Self::Dialled, Self::Refused, Self::Failed];

    fn decode(packet: &[u8]) -> Option<(u32, Self)> {
        let bytes: [u8; ANSWER] = packet.try_into().ok()?;
        let [i0, i1, i2, i3, verdict, 0, 0, 0] = bytes else { return None };
        let verdict = Self::ALL.into_iter().find(|known| *known as u8 == verdict)?;
        Some((u32::from_le_bytes([i0, i1, i2, i3]), verdict))
    }
}

/// Sends a request, without waiting.
pub fn ask(socket: BorrowedFd<'_>, request: Request) -> nix::Result<()> {
    scm::send(socket, &request.encode(), &[])
}

/// What the next packet was.
#[derive(Debug)]
pub enum Heard<T> {
    /// This.
    Some(T),
    /// There is none yet.
    Nothing,
    /// Not what the other side may send: it is broken.
    Garbage,
    /// The other side is gone.
    Closed,
}

/// The next request, at the broker's end.
pub fn next_request(socket: BorrowedFd<'_>) -> Heard<Request> {
    let mut buffer = [0; REQUEST + 1];
    match scm::receive(socket, &mut buffer, false) {
        Err(Errno::EAGAIN | Errno::EINTR) => Heard::Nothing,
        Err(_) => Heard::Closed,
        Ok(packet) if packet.truncated || !packet.descriptors.is_empty() => Heard::Garbage,
        Ok(packet) if packet.length == 0 => Heard::Closed,
        Ok(packet) => Request::decode(&buffer[..packet.length]).map_or(Heard::Garbage, Heard::Some),
    }
}

/// Answers request `id`, with a descriptor for a yes, and without waiting.
pub fn answer(socket: BorrowedFd<'_>, id: u32, verdict: Verdict, flow: Option<BorrowedFd<'_>>) -> nix::Result<()> {
    let mut bytes = [0; ANSWER];
    bytes[..4].copy_from_slice(&id.to_le_bytes());
    bytes[4] = verdict as u8;
    scm::send(socket, &bytes, flow.as_slice())
}

/// The next answer, at the card's end.
pub fn next_answer(socket: BorrowedFd<'_>) -> Heard<(u32, Verdict, Option<OwnedFd>)> {
    let mut buffer = [0; ANSWER + 1];
    match scm::receive(socket, &mut buffer, false) {
        Err(Errno::EAGAIN | Errno::EINTR) => Heard::Nothing,
        Err(_) => Heard::Closed,
        Ok(packet) if packet.length == 0 && packet.descriptors.is_empty() => Heard::Closed,
        Ok(mut packet) => match Verdict::decode(&buffer[..packet.length]) {
            Some((id, verdict)) if packet.descriptors.len() == usize::from(verdict == Verdict::Dialled) => {
                Heard::Some((id, verdict, packet.descriptors.pop()))
            }
            _ => Heard::Garbage,
        },
    }
}

/// Both ends of a channel of packets that does not block: for requests, or for the datagrams of one flow.
pub fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;

    fn request(id: u32) -> Request {
        Request { id, protocol: Protocol::Udp, port: 9, to: SocketAddrV4::new(RESOLVER, 53) }
    }

    #[test]
    fn a_request_is_answered_with_or_without_a_descriptor() {
        let (ours, theirs) = pair().unwrap();
        assert!(matches!(next_request(ours.as_fd()), Heard::Nothing));
        ask(theirs.as_fd(), request(7)).unwrap();
        assert!(matches!(next_request(ours.as_fd()), Heard::Some(heard) if heard == request(7)));
        answer(ours.as_fd(), 7, Verdict::Refused, None).unwrap();
        answer(ours.as_fd(), 8, Verdict::Dialled, Some(ours.as_fd())).unwrap();
        assert!(matches!(next_answer(theirs.as_fd()), Heard::Some((7, Verdict::Refused, None))));
        assert!(matches!(next_answer(theirs.as_fd()), Heard::Some((8, Verdict::Dialled, Some(_)))));
        answer(ours.as_fd(), 9, Verdict::Dialled, None).unwrap();
        assert!(matches!(next_answer(theirs.as_fd()), Heard::Garbage));
        drop(theirs);
        assert!(matches!(next_request(ours.as_fd()), Heard::Closed));
    }

    #[test]
    fn what_is_not_a_request_is_garbage() {
        let (ours, theirs) = pair().unwrap();
        for packet in [&[1; 15][..], &[0; 16], &[0; 17]] {
            scm::send(theirs.as_fd(), packet, &[]).unwrap();
            assert!(matches!(next_request(ours.as_fd()), Heard::Garbage));
        }
        scm::send(theirs.as_fd(), &request(1).encode(), &[theirs.as_fd()]).unwrap();
        assert!(matches!(next_request(ours.as_fd()), Heard::Garbage), "a descriptor came along");
    }

    proptest! {
        #[test]
        fn whatever_decodes_was_encoded(bytes in proptest::array::uniform16(any::<u8>()), valid: bool) {
            let mut bytes = bytes;
            if valid {
                (bytes[4], bytes[5]) = (VERSION, 6 + 11 * (bytes[5] % 2));
                bytes[14..].fill(0);
            }
            match Request::decode(&bytes) {
                Some(request) => prop_assert_eq!(request.encode(), bytes),
                None => prop_assert!(!valid),
            }
        }
    }
}
