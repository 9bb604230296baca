//! The device side of a guest's split virtqueue (virtio 1.2, §2.7): its rings in guest RAM, read by value, and our
//! private copy of every index.

use std::sync::atomic::{Ordering, fence};

use super::chain::{Chain, GuestError, Table};
use super::dma::Dma;
use super::memory::Shared;
use crate::mmu::GuestRam;

/// VIRTIO_F_RING_INDIRECT_DESC.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_RING_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// The available ring's flag by which a driver without event index declines interrupts.
const NO_INTERRUPT: u16 = 1;

/// Where a driver put a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Entries.
    pub size: u16,
    /// Descriptor table (queue_desc).
    pub descriptors: u64,
    /// Available ring (queue_driver).
    pub avail: u64,
    /// Used ring (queue_device).
    pub used: u64,
}

/// A queue that its driver enabled.
#[derive(Debug)]
pub struct GuestRing {
    places: Places,
    indirect: bool,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
    /// `next_used` when the driver was last asked whether it wants an interrupt.
    asked: u16,
}

/// True if moving an index from `old` to `new` passed `event` (virtio 1.2, §2.7.10).
pub fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl GuestRing {
    /// Checks that everything the driver named is aligned and in RAM. `features` are the negotiated ones.
    pub fn new(ram: &GuestRam, places: Places, features: u64) -> Result<Self, GuestError> {
        let size = u64::from(places.size);
        if !places.size.is_power_of_two() {
            return Err(GuestError::Size(places.size));
        }
        let parts =
            [(places.descriptors, 16 * size, 16), (places.avail, 6 + 2 * size, 2), (places.used, 6 + 8 * size, 4)];
        for (place, length, align) in parts {
            if !place.is_multiple_of(align) || ram.at(place, length as usize).is_none() {
                return Err(GuestError::Place(place));
            }
        }
        let (indirect, event_idx) = (features & F_INDIRECT_DESC != 0, features & F_EVENT_IDX != 0);
        Ok(Self { places, indirect, event_idx, next_avail: 0, next_used: 0, asked: 0 })
    }

    /// How many chains the driver has made available that were not taken yet.
    pub fn pending(&self, ram: &GuestRam) -> Result<u16, GuestError> {
        let place = self.places.avail + 2;
        let new = ram.load_u16(place).ok_or(GuestError::Place(place))?.wrapping_sub(self.next_avail);
        if new > self.places.size { Err(GuestError::Avail(new, self.places.size)) } else { Ok(new) }
    }

    /// Reads the next chain, which stays available until [`Self::take`]. Call it only if one is pending.
    pub fn peek(&self, ram: &GuestRam) -> Result<Chain, GuestError> {
        let slot = u64::from(self.next_avail % self.places.size);
        let place = self.places.avail + 4 + 2 * slot;
        let head = ram.load_u16(place).ok_or(GuestError::Place(place))?;
        let table = Table { address: self.places.descriptors, count: self.places.size };
        Chain::read(ram, table, head, self.indirect)
    }

    /// The chain that [`Self::peek`] read is the device's now.
    pub fn take(&mut self) {
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Asks for a notification of the next chain. The driver may have added one before it could see that: look again.
    pub fn ask_notification(&mut self, dma: &mut Dma<'_>) {
        if self.event_idx {
            // Inside RAM: `new` checked the whole ring.
            let _ = dma.store_u16(self.places.used + 4 + 8 * u64::from(self.places.size), self.next_avail);
            fence(Ordering::SeqCst);
        }
    }

    /// Gives a chain back, `length` bytes of it written. The driver sees it after [`Self::publish`].
    pub fn put(&mut self, dma: &mut Dma<'_>, head: u16, length: u32) {
        let slot = u64::from(self.next_used % self.places.size);
        let element = u64::from(head) | u64::from(length) << 32;
        let _ = dma.write(self.places.used + 4 + 8 * slot, &element.to_le_bytes());
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Lets the driver see what was given back. True if it wants an interrupt for that.
    pub fn publish(&mut self, dma: &mut Dma<'_>) -> bool {
        let (old, new) = (self.asked, self.next_used);
        if old == new {
            return false;
        }
        let _ = dma.store_u16(self.places.used + 2, new);
        self.asked = new;
        // The driver sets its wish, then looks at the index; we do the reverse.
        fence(Ordering::SeqCst);
        let wish = |place| dma.ram().load_u16(place).unwrap_or(0);
        if self.event_idx {
            passed(wish(self.places.avail + 4 + 2 * u64::from(self.places.size)), new, old)
        } else {
            wish(self.places.avail) & NO_INTERRUPT == 0
        }
    }
}
