//! What a frame of the guest is. Whatever its bytes: what cannot be one of these is nothing.

use std::net::{Ipv4Addr, SocketAddrV4};

use ipc::flow::GUEST;
use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket, UdpPacket,
};

/// The port of DHCP servers.
pub const DHCP_SERVER: u16 = 67;

/// A packet of the guest.
#[derive(Debug)]
pub enum Packet<'a> {
    Arp(ArpRepr),
    /// What a DHCP client says.
    Dhcp(&'a [u8]),
    /// ICMP to one of our own addresses.
    Echo(Icmp<'a>),
    Tcp(Segment<'a>),
    Udp(Datagram<'a>),
}

/// An ICMP message.
#[derive(Debug)]
pub struct Icmp<'a> {
    pub to: Ipv4Addr,
    pub message: &'a [u8],
}

/// A flow, as the guest has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The guest's port.
    pub port: u16,
    /// Its peer.
    pub to: SocketAddrV4,
}

/// A TCP segment.
#[derive(Debug)]
pub struct Segment<'a> {
    pub key: Key,
    /// It asks for a connection.
    pub opens: bool,
    /// With its IP header.
    pub packet: &'a [u8],
}

/// A UDP datagram.
#[derive(Debug)]
pub struct Datagram<'a> {
    pub key: Key,
    pub payload: &'a [u8],
}

/// Makes sense of a frame.
pub fn parse(frame: &[u8]) -> Option<Packet<'_>> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    match frame.ethertype() {
        EthernetProtocol::Arp => ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).ok()?).ok().map(Packet::Arp),
        EthernetProtocol::Ipv4 => ipv4(frame.payload()),
        _ => None,
    }
}

fn ipv4(bytes: &[u8]) -> Option<Packet<'_>> {
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    let whole = !packet.more_frags() && packet.frag_offset() == 0;
    if packet.version() != 4 || !whole || !packet.verify_checksum() {
        return None;
    }
    let (from, to, payload) = (packet.src_addr(), packet.dst_addr(), packet.payload());
    // What padding follows is not the packet's.
    let bytes = bytes.get(..usize::from(packet.total_len()))?;
    match packet.next_header() {
        IpProtocol::Udp => udp(from, to, payload),
        // Before it has an address a guest can only ask for one; and it has no other.
        _ if from != GUEST => None,
        IpProtocol::Icmp => Some(Packet::Echo(Icmp { to, message: payload })),
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            let key = Key { port: tcp.src_port(), to: SocketAddrV4::new(to, tcp.dst_port()) };
            let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
            (is_peer(key)).then_some(Packet::Tcp(Segment { key, opens, packet: bytes }))
        }
        _ => None,
    }
}

fn udp(from: Ipv4Addr, to: Ipv4Addr, bytes: &[u8]) -> Option<Packet<'_>> {
    let udp = UdpPacket::new_checked(bytes).ok()?;
    if !udp.verify_checksum(&from.into(), &to.into()) {
        return None;
    }
    if udp.dst_port() == DHCP_SERVER && (to.is_broadcast() || to == ipc::flow::GATEWAY) {
        return Some(Packet::Dhcp(udp.payload()));
    }
    let key = Key { port: udp.src_port(), to: SocketAddrV4::new(to, udp.dst_port()) };
    (from == GUEST && is_peer(key)).then_some(Packet::Udp(Datagram { key, payload: udp.payload() }))
}

/// Whether there can be such a flow. Who may be reached is the broker's to say.
fn is_peer(key: Key) -> bool {
    let to = key.to.ip();
    key.port != 0 && key.to.port() != 0 && !to.is_broadcast() && !to.is_multicast() && !to.is_unspecified()
}
