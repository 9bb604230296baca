//! The TCP stack's end of the link: IP packets, of which it is brought one, or none.

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetProtocol;

use crate::config::MTU;
use crate::user::outbox::Outbox;

/// See the module.
pub struct Wire<'a> {
    packet: Option<&'a [u8]>,
    outbox: Option<&'a mut Outbox>,
}

impl<'a> Wire<'a> {
    /// Brings a packet of the guest.
    pub fn bringing(packet: &'a [u8], outbox: &'a mut Outbox) -> Self {
        Self { packet: Some(packet), outbox: Some(outbox) }
    }

    /// Only takes packets for the guest.
    pub fn to(outbox: &'a mut Outbox) -> Self {
        Self { packet: None, outbox: Some(outbox) }
    }

    /// Takes nothing either.
    pub fn nowhere() -> Self {
        Self { packet: None, outbox: None }
    }
}

impl Device for Wire<'_> {
    type RxToken<'b>
        = Brought<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Room<'b>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Brought<'_>, Room<'_>)> {
        Some((Brought(self.packet.take()?), Room(self.outbox.as_deref_mut()?)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Room<'_>> {
        let outbox = self.outbox.as_deref_mut()?;
        outbox.has_room().then_some(Room(outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        (capabilities.medium, capabilities.max_transmission_unit) = (Medium::Ip, MTU);
        // The link is memory: what the guest sends wrong arrives wrong, and is its own affair. Its header was looked at.
        (capabilities.checksum.tcp, capabilities.checksum.ipv4) = (Checksum::Tx, Checksum::Tx);
        capabilities
    }
}

/// A packet of the guest.
pub struct Brought<'a>(&'a [u8]);

impl RxToken for Brought<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

/// Room for one packet.
pub struct Room<'a>(&'a mut Outbox);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        self.0.add(EthernetProtocol::Ipv4, length, fill)
    }
}
