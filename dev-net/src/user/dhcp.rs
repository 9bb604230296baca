//! The DHCP server of the link (RFC 2131): it has one address to give, to one guest.

use std::net::Ipv4Addr;

use ipc::flow::{GATEWAY, GUEST, PREFIX, RESOLVER};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, IpProtocol, Ipv4Cidr, UdpPacket, UdpRepr};

use super::answer::ip;
use super::frame::DHCP_SERVER;
use super::outbox::Outbox;

const CLIENT: u16 = 68;
/// Seconds for which the address is given. It is never given to another.
const LEASE: u32 = 86_400;

/// Answers what a client says.
pub fn answer(request: &[u8], outbox: &mut Outbox) {
    let Ok(packet) = DhcpPacket::new_checked(request) else { return };
    let Ok(request) = DhcpRepr::parse(&packet) else { return };
    let Some(kind) = reply_to(&request) else { return };
    let given = kind != DhcpMessageType::Nak;
    let reply = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: if given { GUEST } else { Ipv4Addr::UNSPECIFIED },
        server_ip: GATEWAY,
        router: given.then_some(GATEWAY),
        subnet_mask: given.then_some(Ipv4Cidr::new(GUEST, PREFIX).netmask()),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY),
        parameter_request_list: None,
        dns_servers: given.then(|| [RESOLVER].into_iter().collect()),
        max_size: None,
        lease_duration: given.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    // Unicast only to one that has the address already; a client without one listens to broadcasts at most.
    let to = if request.client_ip == GUEST { GUEST } else { Ipv4Addr::BROADCAST };
    let ports = UdpRepr { src_port: DHCP_SERVER, dst_port: CLIENT };
    let length = reply.buffer_len();
    ip(GATEWAY, to, IpProtocol::Udp, ports.header_len() + length, outbox, |bytes| {
        let mut udp = UdpPacket::new_unchecked(bytes);
        ports.emit(
            &mut udp,
            &GATEWAY.into(),
            &to.into(),
            length,
            // It fits: the length is its own.
            |bytes| _ = reply.emit(&mut DhcpPacket::new_unchecked(bytes)),
            &ChecksumCapabilities::default(),
        );
    });
}

/// What a message is answered with: nothing, if it is for another server.
fn reply_to(request: &DhcpRepr<'_>) -> Option<DhcpMessageType> {
    if request.server_identifier.is_some_and(|server| server != GATEWAY) {
        return None;
    }
    match request.message_type {
        DhcpMessageType::Discover => Some(DhcpMessageType::Offer),
        DhcpMessageType::Request => {
            let wanted = request.requested_ip.unwrap_or(request.client_ip);
            Some(if wanted == GUEST { DhcpMessageType::Ack } else { DhcpMessageType::Nak })
        }
        _ => None,
    }
}
