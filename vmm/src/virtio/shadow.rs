//! A shadow virtqueue: the guest's queue on one side, a queue of our own in the bounce region on the other, and between
//! them the private record of every outstanding chain. This file is the DMA firewall.
//!
//! Out: a chain is read from the guest once, its readable bytes are copied into the bounce region, and a chain of our
//! own is published. Back: a completion is checked against the record (outstanding? no longer than it may be?), data is
//! copied to the buffers that the record names, and the guest's used ring is filled. Nothing that the device can write
//! is an address, and what it says of lengths only ever makes a copy shorter than the record allows.
//!
//! A full region is back-pressure: chains stay in the guest's ring. When the device process is replaced, what is
//! outstanding is published again in its old order; the guest sees one completion of each chain. A reset by the guest
//! raises the *generation*: records of older ones are only waited for, and nothing of theirs is copied any more.
//!
//! Pure state over two memories: no descriptor, no thread, no time.

use super::chain::{Chain, GuestError, Pieces};
use super::device_ring::{DeviceRing, Part, PeerError};
use super::dma::Dma;
use super::guest_ring::GuestRing;
use super::kind::Kind;
use super::memory::{self, Shared};
use super::pool::{Extent, Pool};
use super::region::{CHAINS, Control, PAGE, PER_CHAIN, Region, SLOT_HALF};
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

/// An outstanding chain.
#[derive(Debug)]
struct Record {
    chain: Chain,
    extent: Extent,
    generation: u64,
    /// Position in the order of publication.
    sequence: u64,
}

/// A shadow virtqueue.
#[derive(Debug)]
pub struct Shadow {
    index: usize,
    guest: Option<GuestRing>,
    device: Option<DeviceRing>,
    /// By chain number.
    records: Vec<Option<Record>>,
    free: Vec<u16>,
    generation: u64,
    sequence: u64,
}

/// What came of looking at completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Harvest {
    /// Chains that the device completed.
    pub completed: u16,
    /// The guest wants an interrupt.
    pub interrupt: bool,
}

impl Shadow {
    /// Queue `index` of a device, neither side there yet.
    pub fn new(index: usize) -> Self {
        let records = (0..CHAINS).map(|_| None).collect();
        let free = (0..CHAINS).rev().collect();
        Self { index, guest: None, device: None, records, free, generation: 0, sequence: 0 }
    }

    /// Chains that the device has not given back.
    pub fn outstanding(&self) -> u16 {
        CHAINS - self.free.len() as u16
    }

    /// The guest's driver enabled the queue.
    pub fn attach_guest(&mut self, ring: GuestRing) {
        self.guest = Some(ring);
    }

    /// The guest reset the device: from now on nothing is written to its memory. The device may still hold chains.
    pub fn reset_guest(&mut self) {
        self.guest = None;
        self.generation += 1;
        if self.device.is_none() {
            self.forget(|_| true);
        }
    }

    /// A device process is there, with an empty region: publishes what is outstanding again, in its old order. True if
    /// it wants a kick.
    pub fn attach_device(
        &mut self,
        event_idx: bool,
        bounce: &mut Bounce<'_>,
        dma: &mut Dma<'_>,
        kind: &dyn Kind,
    ) -> bool {
        let generation = self.generation;
        self.forget(|record| record.generation != generation);
        let mut ring = DeviceRing::new(bounce.region, Control::of(self.index), event_idx);
        let mut order: Vec<u16> = (0..CHAINS).filter(|n| self.records[usize::from(*n)].is_some()).collect();
        order.sort_by_key(|n| self.records[usize::from(*n)].as_ref().map(|record| record.sequence));
        let mut lost = Vec::new();
        for number in order {
            let Some(record) = &mut self.records[usize::from(number)] else { continue };
            let parts = place(&record.chain, bounce, kind).and_then(|extent| {
                record.extent = extent;
                send(&record.chain, extent, number, self.index, bounce.region, dma.ram(), kind)
            });
            match parts {
                Some(parts) => ring.put(bounce.region, number, &parts),
                None => lost.push(number),
            }
        }
        // In an empty region of the old size all fits that did before; one of another size is our own mistake, and the
        // guest must not wait for what nobody has.
        lost.into_iter().for_each(|number| self.fail(number, dma, kind));
        ring.ask_call(bounce.region);
        let kick = ring.publish(bounce.region);
        self.device = Some(ring);
        kick
    }

    /// The device process is gone, and its region with it.
    pub fn detach_device(&mut self) {
        self.device = None;
        let generation = self.generation;
        self.forget(|record| record.generation != generation);
    }

    /// Moves chains from the guest to the device, until there is no more of either chains or room. True if the device
    /// wants a kick: also beside an error, before which chains may have been published, and a device asks only once.
    pub fn publish(
        &mut self,
        bounce: &mut Bounce<'_>,
        dma: &mut Dma<'_>,
        kind: &dyn Kind,
    ) -> (bool, Result<(), GuestError>) {
        let moved = self.fill(bounce, dma, kind);
        (self.device.as_mut().is_some_and(|ring| ring.publish(bounce.region)), moved)
    }

    fn fill(&mut self, bounce: &mut Bounce<'_>, dma: &mut Dma<'_>, kind: &dyn Kind) -> Result<(), GuestError> {
        let (Some(guest), Some(device)) = (&mut self.guest, &mut self.device) else { return Ok(()) };
        loop {
            if guest.pending(dma.ram())? == 0 {
                guest.ask_notification(dma);
                if guest.pending(dma.ram())? == 0 {
                    return Ok(());
                }
            }
            let Some(&number) = self.free.last() else { return Ok(()) };
            let chain = guest.peek(dma.ram())?;
            check(&chain, kind)?;
            let pages = pages(&chain, kind);
            if pages > bounce.pool.capacity() {
                return Err(GuestError::TooLarge(chain.out_bytes() + chain.in_bytes()));
            }
            let Some(extent) = bounce.pool.take(pages) else { return Ok(()) };
            guest.take();
            self.free.pop();
            if let Some(parts) = send(&chain, extent, number, self.index, bounce.region, dma.ram(), kind) {
                device.put(bounce.region, number, &parts);
            }
            self.sequence += 1;
            let (generation, sequence) = (self.generation, self.sequence);
            self.records[usize::from(number)] = Some(Record { chain, extent, generation, sequence });
        }
    }

    /// Takes what the device completed. After an error the completions before it count, with the interrupt that the guest
    /// wants for them and asks for only once, and the device must go.
    pub fn harvest(
        &mut self,
        bounce: &mut Bounce<'_>,
        dma: &mut Dma<'_>,
        kind: &dyn Kind,
    ) -> (Harvest, Result<(), PeerError>) {
        let mut completed = 0;
        let result = self.drain(bounce, dma, kind, &mut completed);
        let interrupt = self.guest.as_mut().is_some_and(|guest| guest.publish(dma));
        (Harvest { completed, interrupt }, result)
    }

    fn drain(
        &mut self,
        bounce: &mut Bounce<'_>,
        dma: &mut Dma<'_>,
        kind: &dyn Kind,
        completed: &mut u16,
    ) -> Result<(), PeerError> {
        // Each round takes an outstanding chain away, and none is added: a device cannot keep us here.
        loop {
            let outstanding = self.outstanding();
            let Some(device) = &mut self.device else { return Ok(()) };
            let mut new = device.completed(bounce.region, outstanding)?;
            if new == 0 {
                device.ask_call(bounce.region);
                new = device.completed(bounce.region, outstanding)?;
            }
            if new == 0 {
                return Ok(());
            }
            for _ in 0..new {
                let Some(device) = &mut self.device else { return Ok(()) };
                let (number, length) = device.take(bounce.region)?;
                self.complete(number, length, bounce, dma, kind)?;
                *completed += 1;
            }
        }
    }

    /// One completion, as the device tells it.
    fn complete(
        &mut self,
        number: u16,
        length: u32,
        bounce: &mut Bounce<'_>,
        dma: &mut Dma<'_>,
        kind: &dyn Kind,
    ) -> Result<(), PeerError> {
        let slot = self.records.get_mut(usize::from(number));
        let id = u32::from(number) * u32::from(PER_CHAIN);
        let Some(record) = slot.and_then(|slot| slot.take_if(|_| true)) else { return Err(PeerError::Id(id)) };
        let room = record.chain.in_bytes();
        if u64::from(length) > room {
            // Still outstanding: the next process gets it.
            self.records[usize::from(number)] = Some(record);
            return Err(PeerError::Length(length, room));
        }
        self.free.push(number);
        bounce.pool.give(record.extent);
        if record.generation == self.generation
            && let Some(guest) = &mut self.guest
        {
            receive(&record, length, number, self.index, bounce.region, dma, kind);
            guest.put(dma, record.chain.head, length);
        }
        Ok(())
    }

    /// Fails every outstanding chain of this generation: there is no device, and there will be none. True if the guest
    /// wants an interrupt.
    pub fn fail_all(&mut self, dma: &mut Dma<'_>, kind: &dyn Kind) -> bool {
        (0..CHAINS).for_each(|number| self.fail(number, dma, kind));
        self.guest.as_mut().is_some_and(|guest| guest.publish(dma))
    }

    /// Takes what the guest has made available, and fails it: there is no device. The guest sees it after
    /// [`Self::fail_all`].
    pub fn refuse(&mut self, dma: &mut Dma<'_>, kind: &dyn Kind) -> Result<(), GuestError> {
        let Some(guest) = &mut self.guest else { return Ok(()) };
        loop {
            if guest.pending(dma.ram())? == 0 {
                guest.ask_notification(dma);
                if guest.pending(dma.ram())? == 0 {
                    return Ok(());
                }
            }
            let chain = guest.peek(dma.ram())?;
            guest.take();
            let length = kind.fail(&chain, dma);
            guest.put(dma, chain.head, length);
        }
    }

    fn fail(&mut self, number: u16, dma: &mut Dma<'_>, kind: &dyn Kind) {
        let Some(record) = self.records[usize::from(number)].take() else { return };
        self.free.push(number);
        if record.generation == self.generation
            && let Some(guest) = &mut self.guest
        {
            let length = kind.fail(&record.chain, dma);
            guest.put(dma, record.chain.head, length);
        }
    }

    fn forget(&mut self, which: impl Fn(&Record) -> bool) {
        for (number, slot) in (0..CHAINS).zip(&mut self.records) {
            if slot.take_if(|record| which(record)).is_some() {
                self.free.push(number);
            }
        }
    }
}

/// A request that is too short to be understood or answered is never given back: a device process stops its queue, or
/// forgets the request, and is then blamed for it. It is the driver that is to be reset.
fn check(chain: &Chain, kind: &dyn Kind) -> Result<(), GuestError> {
    let (out, inner) = (chain.out_bytes(), chain.in_bytes());
    let whole = out >= kind.head().into() && inner >= kind.tail().into();
    if whole { Ok(()) } else { Err(GuestError::Short(out, inner)) }
}

/// How the bytes of a chain's two sides are split: head and rest, rest and tail.
struct Split {
    head: u32,
    out: u64,
    inner: u64,
    tail: u32,
}

fn split(chain: &Chain, kind: &dyn Kind) -> Split {
    let (out, inner) = (chain.out_bytes(), chain.in_bytes());
    let head = out.min(u64::from(kind.head().min(SLOT_HALF)));
    let tail = inner.min(u64::from(kind.tail().min(SLOT_HALF)));
    Split { head: head as u32, out: out - head, inner: inner - tail, tail: tail as u32 }
}

fn pages(chain: &Chain, kind: &dyn Kind) -> u64 {
    let split = split(chain, kind);
    split.out.div_ceil(PAGE) + split.inner.div_ceil(PAGE)
}

fn place(chain: &Chain, bounce: &mut Bounce<'_>, kind: &dyn Kind) -> Option<Extent> {
    bounce.pool.take(pages(chain, kind))
}

/// Copies a chain's readable bytes into the region, and says what the device is given. None only if our own book-keeping
/// of places were wrong.
fn send(
    chain: &Chain,
    extent: Extent,
    number: u16,
    index: usize,
    region: &Region,
    ram: &GuestRam,
    kind: &dyn Kind,
) -> Option<[Part; PER_CHAIN as usize]> {
    let (control, split) = (Control::of(index), split(chain, kind));
    let (head, tail) = (control.head(number), control.tail(number));
    let out = extent.first * PAGE;
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
fn receive(
    record: &Record,
    length: u32,
    number: u16,
    index: usize,
    region: &Region,
    dma: &mut Dma<'_>,
    kind: &dyn Kind,
) {
    let (control, split) = (Control::of(index), split(&record.chain, kind));
    let inner = record.extent.first * PAGE + split.out.next_multiple_of(PAGE);
    let written = u64::from(length).min(split.inner);
    let tail = Pieces::after(&record.chain.writable, split.inner);
    let data = Pieces::new(&record.chain.writable);
    for (mut pieces, mut at, mut left) in [(data, inner, written), (tail, control.tail(number), u64::from(split.tail))]
    {
        while let Some((gpa, piece)) = pieces.next(left.min(u64::from(u32::MAX)) as u32) {
            // Inside both memories, as when the record was made.
            let _ = dma.copy_from(region, at, gpa, piece as usize);
            at += u64::from(piece);
            left -= u64::from(piece);
        }
    }
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod tests;
