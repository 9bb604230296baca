//! A shadow virtqueue: the guest's queue on one side, a queue of our own in the bounce region on the other, and between
//! them the private record of every outstanding chain. This file is the DMA firewall.
//!
//! Out: a chain is read from the guest once, its readable bytes are copied into the bounce region (or not: see
//! `transfer`), and a chain of our own is published. Back: a completion is checked against the record (outstanding? no longer
//! than it may be?), data is copied to the buffers that the record names, and the guest's used ring is filled. Nothing that the
//! device can write is an address, and what it says of lengths only ever makes a copy shorter than the record allows.
//!
//! A full region is back-pressure: chains stay in the guest's ring. When the device process is replaced, what is
//! outstanding is *held*, and published again in its old order, all at once or one by one as `hunt` has it; the guest sees
//! one completion of each chain. A reset by the guest raises the *generation*: records of older ones are only waited for,
//! and nothing of theirs is copied any more.
//!
//! Pure state over two memories: no descriptor, no thread, no time.

use super::chain::{Chain, GuestError, Segment};
use super::device_ring::{DeviceRing, PeerError};
use super::dma::Dma;
use super::guest_ring::GuestRing;
use super::kind::{Chains, Kind};
use super::pool::Extent;
use super::region::{CHAINS, Control, PER_CHAIN, Region};
use super::specimen::{self, Specimen};
use super::transfer::{self, Bounce, Place, Transfer};

/// An outstanding chain.
#[derive(Debug)]
struct Record {
    chain: Chain,
    extent: Extent,
    generation: u64,
    /// Position in the order of publication.
    sequence: u64,
    /// The device has it. If not, it has no place in the region.
    out: bool,
}

/// A shadow virtqueue.
#[derive(Debug)]
pub struct Shadow {
    index: usize,
    transfer: Transfer,
    chains: Chains,
    guest: Option<GuestRing>,
    device: Option<DeviceRing>,
    /// By chain number.
    records: Vec<Option<Record>>,
    free: Vec<u16>,
    /// Records that the device does not have.
    held: u16,
    generation: u64,
    sequence: u64,
    /// Buffers of chains that ended without a completion, which a device that maps guest RAM may have written.
    touched: Vec<Segment>,
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
    /// Queue `index` of a device, neither side there yet, for such chains.
    pub fn new(index: usize, transfer: Transfer, chains: Chains) -> Self {
        let records = (0..CHAINS).map(|_| None).collect();
        let free = (0..CHAINS).rev().collect();
        let (held, generation, sequence, touched) = (0, 0, 0, Vec::new());
        Self { index, transfer, chains, guest: None, device: None, records, free, held, generation, sequence, touched }
    }

    /// Chains that the device has not given back.
    pub fn outstanding(&self) -> u16 {
        CHAINS - self.free.len() as u16 - self.held
    }

    /// Of these, as many as a device gives back without waiting for anything else.
    pub fn due(&self) -> u16 {
        if self.chains.are_lent() { 0 } else { self.outstanding() }
    }

    /// Numbers of the requests that the device has not given back, in their order; not of those that a reset made nobody's.
    pub fn out(&self) -> Vec<u16> {
        let requests = matches!(self.chains, Chains::Request { .. });
        self.in_order(|record| requests && record.out && record.generation == self.generation)
    }

    /// Whether chain `number` is waited for, by the device or not.
    pub fn has(&self, number: u16) -> bool {
        self.records.get(usize::from(number)).is_some_and(Option::is_some)
    }

    fn in_order(&self, which: impl Fn(&Record) -> bool) -> Vec<u16> {
        let record = |number: &u16| self.records[usize::from(*number)].as_ref().filter(|record| which(record));
        let mut order: Vec<u16> = (0..CHAINS).filter(|number| record(number).is_some()).collect();
        order.sort_by_key(|number| record(number).map(|record| record.sequence));
        order
    }

    /// Chains from before the last reset by the guest, which the device has not given back.
    pub fn holds_earlier_life(&self) -> bool {
        self.records.iter().flatten().any(|record| record.generation != self.generation)
    }

    /// Notes for the engine what a device that maps guest RAM may have written to chains which ended without it.
    pub fn note_touched(&mut self, dma: &mut Dma<'_>) {
        self.touched.drain(..).for_each(|segment| dma.wrote(segment.gpa, segment.length as usize));
    }

    /// The guest's driver enabled the queue.
    pub fn attach_guest(&mut self, ring: GuestRing) {
        self.guest = Some(ring);
    }

    /// The guest reset the device: from now on nothing is written to its memory. The device may still hold chains.
    pub fn reset_guest(&mut self) {
        self.guest = None;
        self.generation += 1;
        self.forget(|record| !record.out);
    }

    /// A device process is there, with an empty region. What is outstanding is held, until [`Self::publish`] or
    /// [`Self::release`].
    pub fn attach_device(&mut self, event_idx: bool, region: &Region) {
        let mut ring = DeviceRing::new(region, Control::of(self.index), event_idx);
        ring.ask_call(region);
        self.device = Some(ring);
    }

    /// Publishes what is held, in its old order, as far as there is room: another queue may have taken some. True if the
    /// device wants a kick.
    fn release_all(&mut self, bounce: &mut Bounce<'_>, dma: &mut Dma<'_>, kind: &dyn Kind) -> bool {
        let mut kick = false;
        for number in self.in_order(|record| !record.out) {
            let before = self.held;
            kick |= self.release(number, bounce, dma, kind);
            if self.held == before {
                break;
            }
        }
        kick
    }

    /// Publishes chain `number` if it is held and there is room. True if the device wants a kick.
    pub fn release(&mut self, number: u16, bounce: &mut Bounce<'_>, dma: &mut Dma<'_>, kind: &dyn Kind) -> bool {
        let (Some(Some(record)), Some(ring)) = (self.records.get_mut(usize::from(number)), &mut self.device) else {
            return false;
        };
        if record.out {
            return false;
        }
        let Some(extent) = self.transfer.place(&record.chain, bounce.pool, self.chains) else {
            // Not even an empty region takes it: the guest must not wait for what nobody can have.
            if transfer::check(&record.chain, bounce.pool, self.chains).is_err() {
                self.fail(number, dma, kind);
            }
            return false;
        };
        record.extent = extent;
        let place = Place { queue: self.index, number, extent };
        self.transfer.send(&record.chain, place, ring, bounce.region, dma.ram(), self.chains);
        (record.out, self.held) = (true, self.held - 1);
        ring.publish(bounce.region)
    }

    /// The device process is gone, and its region with it: what it had is held for the next.
    pub fn detach_device(&mut self) {
        self.device = None;
        let generation = self.generation;
        self.forget(|record| record.generation != generation);
        self.records.iter_mut().flatten().for_each(|record| record.out = false);
        self.held = CHAINS - self.free.len() as u16;
    }

    /// Moves chains to the device, what is held first and then the guest's, until there is no more of either chains or room.
    /// True if the device wants a kick: also beside an error, before which chains may have been published, and a device asks
    /// only once.
    pub fn publish(
        &mut self,
        bounce: &mut Bounce<'_>,
        dma: &mut Dma<'_>,
        kind: &dyn Kind,
    ) -> (bool, Result<(), GuestError>) {
        let again = self.held > 0 && self.release_all(bounce, dma, kind);
        let moved = if self.held == 0 { self.fill(bounce, dma) } else { Ok(()) };
        (self.device.as_mut().is_some_and(|ring| ring.publish(bounce.region)) || again, moved)
    }

    fn fill(&mut self, bounce: &mut Bounce<'_>, dma: &mut Dma<'_>) -> Result<(), GuestError> {
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
            transfer::check(&chain, bounce.pool, self.chains)?;
            let Some(extent) = self.transfer.place(&chain, bounce.pool, self.chains) else { return Ok(()) };
            guest.take();
            self.free.pop();
            let place = Place { queue: self.index, number, extent };
            self.transfer.send(&chain, place, device, bounce.region, dma.ram(), self.chains);
            self.sequence += 1;
            let (generation, sequence) = (self.generation, self.sequence);
            self.records[usize::from(number)] = Some(Record { chain, extent, generation, sequence, out: true });
        }
    }

    /// Takes what the device completed. After an error the completions before it count, with the interrupt that the guest
    /// wants for them and asks for only once, and the device must go.
    pub fn harvest(&mut self, bounce: &mut Bounce<'_>, dma: &mut Dma<'_>) -> (Harvest, Result<(), PeerError>) {
        let mut completed = 0;
        let result = self.drain(bounce, dma, &mut completed);
        let interrupt = self.guest.as_mut().is_some_and(|guest| guest.publish(dma));
        (Harvest { completed, interrupt }, result)
    }

    fn drain(&mut self, bounce: &mut Bounce<'_>, dma: &mut Dma<'_>, completed: &mut u16) -> Result<(), PeerError> {
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
                self.complete(number, length, bounce, dma)?;
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
    ) -> Result<(), PeerError> {
        let slot = self.records.get_mut(usize::from(number));
        let id = u32::from(number) * u32::from(PER_CHAIN);
        let Some(record) = slot.and_then(|slot| slot.take_if(|record| record.out)) else {
            return Err(PeerError::Id(id));
        };
        let room = record.chain.in_bytes();
        if u64::from(length) > room {
            // Still outstanding: the next process gets it.
            self.records[usize::from(number)] = Some(record);
            return Err(PeerError::Length(length, room));
        }
        bounce.pool.give(record.extent);
        if record.generation == self.generation
            && let Some(guest) = &mut self.guest
        {
            let place = Place { queue: self.index, number, extent: record.extent };
            self.transfer.receive(&record.chain, place, length, bounce.region, dma, self.chains);
            guest.put(dma, record.chain.head, length);
            self.free.push(number);
        } else {
            self.discard(number, record);
        }
        Ok(())
    }

    /// True if the device completed something that was not taken.
    pub fn has_completed(&self, region: &Region) -> bool {
        self.device.as_ref().is_some_and(|device| device.has_completed(region))
    }

    /// Says whether the device is to call when it completes something. After asking for it, look again.
    pub fn want_calls(&mut self, region: &Region, wanted: bool) {
        match &mut self.device {
            Some(device) if wanted => device.ask_call(region),
            Some(device) => device.decline_calls(region),
            None => {}
        }
    }

    /// Fails every outstanding chain of this generation that is not lent: there is no device, and there will be none. True
    /// if the guest wants an interrupt.
    pub fn fail_all(&mut self, dma: &mut Dma<'_>, kind: &dyn Kind) -> bool {
        if !self.chains.are_lent() {
            (0..CHAINS).for_each(|number| self.fail(number, dma, kind));
        }
        self.guest.as_mut().is_some_and(|guest| guest.publish(dma))
    }

    /// What was being sent by a process that is gone is lost. True if the guest wants an interrupt.
    pub fn lose(&mut self, dma: &mut Dma<'_>, kind: &dyn Kind) -> bool {
        if self.held == 0 || !matches!(self.chains, Chains::Sent(_)) {
            return false;
        }
        self.in_order(|record| !record.out).into_iter().for_each(|number| self.fail(number, dma, kind));
        self.guest.as_mut().is_some_and(|guest| guest.publish(dma))
    }

    /// Chain `number` is held and is to go to no process any more: fails it, and returns what it was and whether the guest
    /// wants an interrupt.
    pub fn condemn(&mut self, number: u16, dma: &mut Dma<'_>, kind: &dyn Kind) -> Option<(Specimen, bool)> {
        let record = self.records.get(usize::from(number))?.as_ref().filter(|record| !record.out)?;
        let specimen = specimen::of(&record.chain, dma.ram(), self.chains, kind);
        self.fail(number, dma, kind);
        Some((specimen, self.guest.as_mut().is_some_and(|guest| guest.publish(dma))))
    }

    /// Takes what the guest has made available, and fails it: there is no device. The guest sees it after
    /// [`Self::fail_all`].
    pub fn refuse(&mut self, dma: &mut Dma<'_>, kind: &dyn Kind) -> Result<(), GuestError> {
        let Some(guest) = self.guest.as_mut().filter(|_| !self.chains.are_lent()) else { return Ok(()) };
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
        if record.generation == self.generation
            && let Some(guest) = &mut self.guest
        {
            let length = kind.fail(&record.chain, dma);
            guest.put(dma, record.chain.head, length);
        }
        self.discard(number, record);
        self.note_touched(dma);
    }

    fn forget(&mut self, which: impl Fn(&Record) -> bool) {
        for number in 0..CHAINS {
            if let Some(record) = self.records[usize::from(number)].take_if(|record| which(record)) {
                self.discard(number, record);
            }
        }
    }

    /// A chain has ended, and its device told nobody what it wrote.
    fn discard(&mut self, number: u16, record: Record) {
        self.free.push(number);
        self.held -= u16::from(!record.out);
        if self.transfer == Transfer::Direct {
            self.touched.extend(record.chain.writable);
        }
    }
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod direct_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod net_tests;
#[cfg(test)]
mod tests;
