//! How the bytes of one request reach the device process and come back: by copies through the bounce region, or, for a
//! device whose operator gave up the firewall, by telling the process where in guest RAM they are.
//!
//! In both modes the rings are in the region, so that a completion is seen, checked and noted here before the guest can
//! see it, and a process that dies leaves nothing that its successor would have to know.

use super::chain::{Chain, GuestError, Pieces, Segment};
use super::device_ring::{DeviceRing, Part, TABLE};
use super::dma::Dma;
use super::kind::Chains;
use super::memory::{self, Shared};
use super::pool::{Extent, Pool};
use super::region::{Control, PAGE, Region, SLOT_HALF};
use crate::mmu::GuestRam;

/// What a status byte holds before the device writes it: no device type has it as a success.
const UNWRITTEN: u8 = 0xff;

/// The bounce region and what is free in it.
pub struct Bounce<'a> {
    /// The memory.
    pub region: &'a Region,
    /// Its data pages.
    pub pool: &'a mut Pool,
}

/// What a chain is called and where its parts are.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Number of the queue.
    pub queue: usize,
    /// Number of the chain in its shadow queue.
    pub number: u16,
    /// Its data pages.
    pub extent: Extent,
}

/// How the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Through the region: the process sees nothing else.
    Copied,
    /// The process maps guest RAM, and a chain's data page holds the table of its descriptors.
    Direct,
}

impl Transfer {
    /// Takes what a chain needs of the region; None while there is too little.
    pub fn place(self, chain: &Chain, pool: &mut Pool, chains: Chains) -> Option<Extent> {
        let pages = match self {
            Self::Copied => pages(chain, chains),
            Self::Direct => 1,
        };
        pool.take_leaving(pages, chains.leaves(pool.capacity()))
    }

    /// Puts a chain into the device's ring, with its readable bytes. None only if our own book-keeping of places were
    /// wrong.
    pub fn send(
        self,
        chain: &Chain,
        place: Place,
        ring: &mut DeviceRing,
        region: &Region,
        ram: &GuestRam,
        chains: Chains,
    ) -> Option<()> {
        match self {
            Self::Copied => ring.put(region, place.number, &copy_out(chain, place, region, ram, chains)?),
            Self::Direct => {
                let part = |writable| move |s: &Segment| Part { at: s.gpa, length: s.length, writable };
                let parts = chain.readable.iter().map(part(false)).chain(chain.writable.iter().map(part(true)));
                ring.put_table(region, place.number, place.extent.first * PAGE, parts);
            }
        }
        Some(())
    }

    /// A chain came back, of which the device says that it wrote the first `length` bytes: has them where the record
    /// says.
    pub fn receive(self, chain: &Chain, place: Place, length: u32, region: &Region, dma: &mut Dma<'_>, chains: Chains) {
        match self {
            Self::Copied => copy_in(chain, place, length, region, dma, chains),
            // What it says is nothing that it is held to.
            Self::Direct => chain.writable.iter().for_each(|segment| dma.wrote(segment.gpa, segment.length as usize)),
        }
    }
}

/// Refuses a chain that no device of this type could answer. One that is too short to be understood or answered is never
/// given back: a device process stops its queue, or forgets the request, and is then blamed for it. It is the driver that
/// is to be reset.
pub fn check(chain: &Chain, pool: &Pool, chains: Chains) -> Result<(), GuestError> {
    let (out, inner) = (chain.out_bytes(), chain.in_bytes());
    let ((least_out, least_in), (has_out, has_in)) = (chains.least(), chains.sides());
    if out < least_out || inner < least_in {
        return Err(GuestError::Short(out, inner));
    }
    if out > 0 && !has_out || inner > 0 && !has_in {
        return Err(GuestError::Direction(out, inner));
    }
    if chain.readable.len() + chain.writable.len() > usize::from(TABLE) {
        return Err(GuestError::TooLong);
    }
    if pages(chain, chains) > pool.capacity() - chains.leaves(pool.capacity()) {
        return Err(GuestError::TooLarge(out + inner));
    }
    Ok(())
}

/// How the bytes of a chain's two sides are split: head and rest, rest and tail.
struct Split {
    head: u32,
    out: u64,
    inner: u64,
    tail: u32,
}

fn split(chain: &Chain, chains: Chains) -> Split {
    let (out, inner) = (chain.out_bytes(), chain.in_bytes());
    let (head, tail) = chains.ends();
    let head = out.min(u64::from(head.min(SLOT_HALF)));
    let tail = inner.min(u64::from(tail.min(SLOT_HALF)));
    Split { head: head as u32, out: out - head, inner: inner - tail, tail: tail as u32 }
}

fn pages(chain: &Chain, chains: Chains) -> u64 {
    let split = split(chain, chains);
    split.out.div_ceil(PAGE) + split.inner.div_ceil(PAGE)
}

/// Copies a chain's readable bytes into the region, and says what the device is given.
fn copy_out(chain: &Chain, place: Place, region: &Region, ram: &GuestRam, chains: Chains) -> Option<[Part; 4]> {
    let (control, split) = (Control::of(place.queue), split(chain, chains));
    let (head, tail) = (control.head(place.number), control.tail(place.number));
    let out = place.extent.first * PAGE;
    let inner = out + split.out.next_multiple_of(PAGE);
    let mut pieces = Pieces::new(&chain.readable);
    for (mut at, mut left) in [(head, u64::from(split.head)), (out, split.out)] {
        while let Some((gpa, length)) = pieces.next(left.min(u64::from(u32::MAX)) as u32) {
            memory::copy((ram, gpa), (region, at), length as usize)?;
            at += u64::from(length);
            left -= u64::from(length);
        }
    }
    region.write(tail, &[UNWRITTEN; SLOT_HALF as usize])?;
    let part = |at, length: u64, writable| Part { at, length: length as u32, writable };
    Some([
        part(head, u64::from(split.head), false),
        part(out, split.out, false),
        part(inner, split.inner, true),
        part(tail, u64::from(split.tail), true),
    ])
}

/// Copies what the device wrote to where the record says: the first `length` bytes, and the tail in any case, since
/// devices disagree on whether a status after unwritten data counts.
fn copy_in(chain: &Chain, place: Place, length: u32, region: &Region, dma: &mut Dma<'_>, chains: Chains) {
    let (control, split) = (Control::of(place.queue), split(chain, chains));
    let inner = place.extent.first * PAGE + split.out.next_multiple_of(PAGE);
    let written = u64::from(length).min(split.inner);
    let tail = Pieces::after(&chain.writable, split.inner);
    let data = Pieces::new(&chain.writable);
    for (mut pieces, mut at, mut left) in
        [(data, inner, written), (tail, control.tail(place.number), u64::from(split.tail))]
    {
        while let Some((gpa, piece)) = pieces.next(left.min(u64::from(u32::MAX)) as u32) {
            // Inside both memories, as when the record was made.
            let _ = dma.copy_from(region, at, gpa, piece as usize);
            at += u64::from(piece);
            left -= u64::from(piece);
        }
    }
}
