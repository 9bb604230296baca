//! The driver side of a shadow queue: a split virtqueue in the bounce region, which the device process can overwrite
//! at any time. Descriptors are only ever written, never read back; of the used ring each element is read once.

use std::sync::atomic::{Ordering, fence};

use super::guest_ring::passed;
use super::memory::Shared;
use super::region::{CHAINS, Control, PAGE, PER_CHAIN, RING, RINGS, Region};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// The used ring's flag by which a device without event index declines kicks.
const NO_NOTIFY: u16 = 1;

/// What a device did that ends our dealings with that process: the peer is dropped, its requests go to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PeerError {
    #[error("the device says that it completed {0} requests, while {1} are outstanding")]
    Count(u16, u16),
    #[error("the device completed request {0}, which is not outstanding")]
    Id(u32),
    #[error("the device says that it wrote {0} bytes to a request that takes {1}")]
    Length(u32, u64),
}

/// A part of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Address as the device has it.
    pub at: u64,
    /// Bytes; a part of none is left out.
    pub length: u32,
    /// The device writes it.
    pub writable: bool,
}

/// Descriptors that an indirect table holds: a page.
pub const TABLE: u16 = (PAGE / 16) as u16;

fn descriptor(part: Part, flags: u16, next: u16) -> u128 {
    let flags = flags | if part.writable { WRITE } else { 0 };
    u128::from(part.at) | u128::from(part.length) << 64 | u128::from(flags) << 96 | u128::from(next) << 112
}

/// Writes a chain of `parts` into the table at `table`, from its descriptor `first` on. How many descriptors that took.
fn write_chain(region: &Region, table: u64, first: u16, parts: impl Iterator<Item = Part>) -> u16 {
    let mut index = first;
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        let (flags, next) = if parts.peek().is_some() { (NEXT, index + 1) } else { (0, 0) };
        let _ = region.write(table + 16 * u64::from(index), &descriptor(part, flags, next).to_le_bytes());
        index += 1;
    }
    index - first
}

/// A shadow queue's rings.
#[derive(Debug)]
pub struct DeviceRing {
    control: Control,
    event_idx: bool,
    next_avail: u16,
    /// `next_avail` when the device was last told.
    told: u16,
    next_used: u16,
}

impl DeviceRing {
    /// Empty rings at `control`.
    pub fn new(region: &Region, control: Control, event_idx: bool) -> Self {
        let zeros = [0; 6 + 8 * RING as usize];
        // The control pages are inside every region that is large enough to be made.
        let _ = region.write(control.avail, &zeros[..6 + 2 * usize::from(RING)]);
        let _ = region.write(control.used, &zeros);
        Self { control, event_idx, next_avail: 0, told: 0, next_used: 0 }
    }

    /// Writes chain `chain` of `parts` into table and ring. The device sees it after [`Self::publish`].
    pub fn put(&mut self, region: &Region, chain: u16, parts: &[Part; PER_CHAIN as usize]) {
        let used = parts.iter().filter(|part| part.length > 0).copied();
        write_chain(region, self.control.descriptors, chain * PER_CHAIN, used);
        self.make_available(region, chain);
    }

    /// As [`Self::put`], with the descriptors in an indirect table (virtio 1.2, §2.7.5.3) at `table` of a region that the
    /// device has at [`RINGS`]. Only the first [`TABLE`] parts count.
    pub fn put_table(&mut self, region: &Region, chain: u16, table: u64, parts: impl Iterator<Item = Part>) {
        let count = write_chain(region, table, 0, parts.take(TABLE.into()));
        let pointer = Part { at: RINGS + table, length: 16 * u32::from(count), writable: false };
        let place = self.control.descriptors + 16 * u64::from(chain * PER_CHAIN);
        let _ = region.write(place, &descriptor(pointer, INDIRECT, 0).to_le_bytes());
        self.make_available(region, chain);
    }

    fn make_available(&mut self, region: &Region, chain: u16) {
        let slot = u64::from(self.next_avail % RING);
        let _ = region.write(self.control.avail + 4 + 2 * slot, &(chain * PER_CHAIN).to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Lets the device see what was put. True if it wants a kick for that.
    pub fn publish(&mut self, region: &Region) -> bool {
        let (old, new) = (self.told, self.next_avail);
        if old == new {
            return false;
        }
        let _ = region.store_u16(self.control.avail + 2, new);
        self.told = new;
        fence(Ordering::SeqCst);
        let wish = |place| region.load_u16(place).unwrap_or(0);
        if self.event_idx {
            passed(wish(self.control.used + 4 + 8 * u64::from(RING)), new, old)
        } else {
            wish(self.control.used) & NO_NOTIFY == 0
        }
    }

    /// How many completions are new; an error if that is more than `outstanding`.
    pub fn completed(&self, region: &Region, outstanding: u16) -> Result<u16, PeerError> {
        let index = region.load_u16(self.control.used + 2).unwrap_or(self.next_used);
        let new = index.wrapping_sub(self.next_used);
        if new > outstanding { Err(PeerError::Count(new, outstanding)) } else { Ok(new) }
    }

    /// The next completion: chain and bytes written, as the device says. The chain is only checked to be one.
    pub fn take(&mut self, region: &Region) -> Result<(u16, u32), PeerError> {
        let slot = u64::from(self.next_used % RING);
        let element = region.read(self.control.used + 4 + 8 * slot).map_or(u64::MAX, u64::from_le_bytes);
        self.next_used = self.next_used.wrapping_add(1);
        let (id, length) = (element as u32, (element >> 32) as u32);
        let chain = id / u32::from(PER_CHAIN);
        if !id.is_multiple_of(u32::from(PER_CHAIN)) || chain >= u32::from(CHAINS) {
            return Err(PeerError::Id(id));
        }
        Ok((chain as u16, length))
    }

    /// True if a completion is there that was not taken.
    pub fn has_completed(&self, region: &Region) -> bool {
        region.load_u16(self.control.used + 2).is_some_and(|index| index != self.next_used)
    }

    /// Wants no call until [`Self::ask_call`]: completions are looked for. Without the event index calls are never declined.
    pub fn decline_calls(&mut self, region: &Region) {
        if self.event_idx {
            // As far away as an index can be.
            let _ = region.store_u16(self.control.avail + 4 + 2 * u64::from(RING), self.next_used.wrapping_sub(1));
        }
    }

    /// Asks for a call at the next completion. One may have come before the device could see that: look again.
    pub fn ask_call(&mut self, region: &Region) {
        if self.event_idx {
            let _ = region.store_u16(self.control.avail + 4 + 2 * u64::from(RING), self.next_used);
            fence(Ordering::SeqCst);
        }
    }
}
