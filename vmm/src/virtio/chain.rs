//! Descriptor chains of the guest, read once and by value (virtio 1.2, §2.7.5).
//!
//! What comes out is a private record: segments that lie in RAM, their total bounded. The guest may change its tables
//! the next moment; nobody looks at them again.

use super::memory::Shared;
use crate::mmu::GuestRam;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const DESCRIPTOR: u64 = 16;

/// What a guest did that its device cannot go on from: the device asks for a reset (virtio 1.2, §2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum GuestError {
    #[error("a queue of {0} entries, which is not a power of two that was offered")]
    Size(u16),
    #[error("a queue part at {0:#x}: not aligned, or not in RAM")]
    Place(u64),
    #[error("{0} new entries in an available ring of {1}")]
    Avail(u16, u16),
    #[error("descriptor {0} of a table of {1}")]
    Index(u16, u16),
    #[error("a descriptor chain that is longer than its queue, or loops")]
    TooLong,
    #[error("a buffer of {1} bytes at {0:#x}, which is not all in RAM")]
    Buffer(u64, u32),
    #[error("a readable buffer after a writable one")]
    Order,
    #[error("an indirect descriptor that was not negotiated, or inside another, or before another")]
    Indirect,
    #[error("an indirect table of {0} bytes")]
    Table(u32),
    #[error("a request of {0} bytes, more than the device's limits allow")]
    TooLarge(u64),
    #[error("a request without a byte")]
    Empty,
    #[error("a request with {0} bytes to be read and {1} to be written, fewer than every request has")]
    Short(u64, u64),
    #[error("a buffer with {0} bytes to be read and {1} to be written, in a queue that goes one way")]
    Direction(u64, u64),
}

/// A buffer in guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address; all of the buffer is in RAM.
    pub gpa: u64,
    /// Bytes, at least one.
    pub length: u32,
}

/// A chain: the private record of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Number of its first descriptor: what the used ring calls it.
    pub head: u16,
    /// Buffers that the device reads, in order.
    pub readable: Vec<Segment>,
    /// Buffers that the device writes, in order; they follow the readable ones.
    pub writable: Vec<Segment>,
}

/// A descriptor table: the queue's own or an indirect one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Guest-physical address.
    pub address: u64,
    /// Descriptors.
    pub count: u16,
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Table {
    fn get(self, ram: &GuestRam, index: u16) -> Result<Descriptor, GuestError> {
        if index >= self.count {
            return Err(GuestError::Index(index, self.count));
        }
        let place = self.address.wrapping_add(u64::from(index) * DESCRIPTOR);
        let word = Shared::read(ram, place).map(u128::from_le_bytes).ok_or(GuestError::Place(place))?;
        Ok(Descriptor {
            address: word as u64,
            length: (word >> 64) as u32,
            flags: (word >> 96) as u16,
            next: (word >> 112) as u16,
        })
    }
}

impl Chain {
    /// Reads the chain that starts at descriptor `head` of `queue`'s table. No chain may be longer than the queue.
    pub fn read(ram: &GuestRam, queue: Table, head: u16, indirect: bool) -> Result<Self, GuestError> {
        let mut chain = Self { head, ..Self::default() };
        let (mut table, mut index, mut nested) = (queue, head, false);
        for _ in 0..=queue.count {
            let d = table.get(ram, index)?;
            if d.flags & INDIRECT != 0 {
                if nested || !indirect || d.flags & NEXT != 0 {
                    return Err(GuestError::Indirect);
                }
                (table, index, nested) = (indirect_table(&d, queue.count)?, 0, true);
                continue;
            }
            chain.push(ram, &d)?;
            if d.flags & NEXT == 0 {
                return if chain.bytes() == 0 { Err(GuestError::Empty) } else { Ok(chain) };
            }
            index = d.next;
        }
        Err(GuestError::TooLong)
    }

    fn push(&mut self, ram: &GuestRam, d: &Descriptor) -> Result<(), GuestError> {
        let writable = d.flags & WRITE != 0;
        if !writable && !self.writable.is_empty() {
            return Err(GuestError::Order);
        }
        if d.length == 0 {
            return Ok(());
        }
        if ram.at(d.address, d.length as usize).is_none() {
            return Err(GuestError::Buffer(d.address, d.length));
        }
        let list = if writable { &mut self.writable } else { &mut self.readable };
        list.push(Segment { gpa: d.address, length: d.length });
        Ok(())
    }

    /// Bytes that the device may read.
    pub fn out_bytes(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may write.
    pub fn in_bytes(&self) -> u64 {
        total(&self.writable)
    }

    fn bytes(&self) -> u64 {
        self.out_bytes() + self.in_bytes()
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.length)).sum()
}

fn indirect_table(d: &Descriptor, limit: u16) -> Result<Table, GuestError> {
    let count = d.length / DESCRIPTOR as u32;
    if count == 0 || count > u32::from(limit) || !u64::from(d.length).is_multiple_of(DESCRIPTOR) {
        return Err(GuestError::Table(d.length));
    }
    Ok(Table { address: d.address, count: count as u16 })
}

/// Walks the buffers of a chain's one side, giving the contiguous piece of RAM that comes next.
pub struct Pieces<'a> {
    segments: &'a [Segment],
    done: u32,
}

impl<'a> Pieces<'a> {
    /// From the first byte of `segments` on.
    pub fn new(segments: &'a [Segment]) -> Self {
        Self { segments, done: 0 }
    }

    /// From byte `skip` of `segments` on.
    pub fn after(segments: &'a [Segment], skip: u64) -> Self {
        let mut pieces = Self::new(segments);
        let mut left = skip;
        while let Some((_, length)) = pieces.next(left.min(u64::from(u32::MAX)) as u32) {
            left -= u64::from(length);
        }
        pieces
    }

    /// Address and length of the next piece, of at most `limit` bytes. None at the end, or for a limit of zero.
    pub fn next(&mut self, limit: u32) -> Option<(u64, u32)> {
        let segment = self.segments.first().filter(|_| limit > 0)?;
        let length = limit.min(segment.length - self.done);
        let place = segment.gpa + u64::from(self.done);
        self.done += length;
        if self.done == segment.length {
            (self.segments, self.done) = (&self.segments[1..], 0);
        }
        Some((place, length))
    }
}

#[cfg(test)]
mod tests;
