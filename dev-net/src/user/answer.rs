//! What the link itself answers: who has an address, and whether it is there.

use std::net::Ipv4Addr;

use ipc::flow::{GATEWAY, GUEST, RESOLVER};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
};

use super::frame::Icmp;
use super::outbox::{OURS, Outbox};

/// Hops that what we send may take: the first is the last.
pub const HOPS: u8 = 64;

fn is_ours(address: Ipv4Addr) -> bool {
    address == GATEWAY || address == RESOLVER
}

/// Says that our addresses are here.
pub fn arp(request: &ArpRepr, outbox: &mut Outbox) {
    let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } =
        *request
    else {
        return;
    };
    if operation != ArpOperation::Request || !is_ours(target_protocol_addr) {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: OURS,
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    outbox.add(EthernetProtocol::Arp, reply.buffer_len(), |bytes| reply.emit(&mut ArpPacket::new_unchecked(bytes)));
}

/// Sends an echo of what was sent to us. That others are there is not for us to say.
pub fn echo(request: &Icmp<'_>, outbox: &mut Outbox) {
    let checksums = ChecksumCapabilities::default();
    let Ok(packet) = Icmpv4Packet::new_checked(request.message) else { return };
    let Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data }) = Icmpv4Repr::parse(&packet, &checksums) else { return };
    if !is_ours(request.to) {
        return;
    }
    let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
    ip(request.to, GUEST, IpProtocol::Icmp, reply.buffer_len(), outbox, |bytes| {
        reply.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checksums);
    });
}

/// Adds an IP packet whose payload, `length` zeroes, `fill` writes.
pub fn ip(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: IpProtocol,
    length: usize,
    outbox: &mut Outbox,
    fill: impl FnOnce(&mut [u8]),
) {
    let header = Ipv4Repr { src_addr: from, dst_addr: to, next_header: protocol, payload_len: length, hop_limit: HOPS };
    outbox.add(EthernetProtocol::Ipv4, header.buffer_len() + length, |bytes| {
        let mut packet = Ipv4Packet::new_unchecked(bytes);
        header.emit(&mut packet, &ChecksumCapabilities::default());
        fill(packet.payload_mut());
    });
}
