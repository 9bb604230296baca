//! A guest's driver and a device process for tests, both honest unless told otherwise, on either side of a shadow
//! queue. What they do is written from the specification, not with the code under test.

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;

use super::super::block::Block;
use super::super::guest_ring::{F_EVENT_IDX, F_INDIRECT_DESC, Places};
use super::super::region::{RING, RINGS, data_pages};
use super::super::{memory::Shared, pool::Pool};
use super::*;
use crate::mmu::GuestRam;
use ipc::control::MIN_BOUNCE;

pub const SIZE: u16 = 64;
pub const DESCRIPTORS: u64 = 0x1000;
pub const AVAIL: u64 = 0x2000;
pub const USED: u64 = 0x3000;
pub const INDIRECT: u64 = 0x10000;
/// Buffers of head `n` lie in the 64 KiB from here plus n × 64 KiB.
pub const BUFFERS: u64 = 0x10_0000;
pub const SPACE: u64 = 0x1_0000;
const RAM: u64 = 6 << 20;

/// Places and lengths.
pub type Parts = Vec<(u64, u32)>;

pub struct Bench {
    pub ram: Arc<GuestRam>,
    pub region: Region,
    pub pool: Pool,
    pub shadow: Shadow,
    pub rng: SmallRng,
    features: u64,
    transfer: Transfer,
    avail: u16,
    used: u16,
    device: (u16, u16),
    /// Heads the driver waits for.
    pub waiting: BTreeSet<u16>,
    /// Writable buffers of each head.
    pub writable: Vec<Vec<(u64, u32)>>,
}

pub fn pool() -> Pool {
    let (first, pages) = data_pages(MIN_BOUNCE, 1);
    Pool::new(first, pages)
}

impl Bench {
    pub fn new(rng: SmallRng, features: u64, transfer: Transfer) -> Self {
        let mut bench = Self {
            ram: Arc::new(GuestRam::new(RAM).unwrap()),
            region: Region::new(MIN_BOUNCE).unwrap(),
            pool: pool(),
            shadow: Shadow::new(0, transfer, Block.chains(0)),
            rng,
            features,
            transfer,
            avail: 0,
            used: 0,
            device: (0, 0),
            waiting: BTreeSet::new(),
            writable: vec![Vec::new(); usize::from(SIZE)],
        };
        bench.attach_guest();
        bench.attach_device();
        bench
    }

    /// Has the queue carry such chains, from nothing.
    pub fn carry(&mut self, chains: Chains) {
        self.shadow = Shadow::new(0, self.transfer, chains);
        self.attach_guest();
        self.attach_device();
    }

    pub fn attach_guest(&mut self) {
        let places = Places { size: SIZE, descriptors: DESCRIPTORS, avail: AVAIL, used: USED };
        assert!(GuestRam::write(&self.ram, AVAIL, &[0; 0x2000]));
        (self.avail, self.used) = (0, 0);
        self.waiting.clear();
        self.shadow.attach_guest(GuestRing::new(&self.ram, places, self.features).unwrap());
    }

    /// A new process, with a new region.
    pub fn attach_device(&mut self) {
        self.region = Region::new(MIN_BOUNCE).unwrap();
        self.pool = pool();
        self.device = (0, 0);
        self.shadow.attach_device(self.features & F_EVENT_IDX != 0, &self.region);
    }

    /// Gives the device one chain that is held. True if it wants a kick.
    pub fn release(&mut self, number: u16) -> bool {
        let mut bounce = Bounce { region: &self.region, pool: &mut self.pool };
        self.shadow.release(number, &mut bounce, &mut Dma::new(&self.ram), &Block)
    }

    /// Whether the device wants a kick, and what was wrong.
    pub fn try_publish(&mut self) -> (bool, Result<(), GuestError>) {
        let mut bounce = Bounce { region: &self.region, pool: &mut self.pool };
        self.shadow.publish(&mut bounce, &mut Dma::new(&self.ram), &Block)
    }

    pub fn publish(&mut self) -> Result<(), GuestError> {
        self.try_publish().1
    }

    /// What came back, and what was wrong after that.
    pub fn try_harvest(&mut self) -> (Harvest, Result<(), PeerError>) {
        let mut bounce = Bounce { region: &self.region, pool: &mut self.pool };
        self.shadow.harvest(&mut bounce, &mut Dma::new(&self.ram))
    }

    pub fn harvest(&mut self) -> Result<Harvest, PeerError> {
        let (harvest, result) = self.try_harvest();
        result.map(|()| harvest)
    }

    pub fn descriptor(&self, at: u64, (address, length): (u64, u32), flags: u16, next: u16) {
        let word = u128::from(address) | u128::from(length) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        assert!(GuestRam::write(&self.ram, at, &word.to_le_bytes()));
    }

    /// The driver submits a request of random shape under an unused head; None if all are in use. Its readable bytes
    /// are filled by `head`, its writable ones with zeroes.
    pub fn submit(&mut self) -> Option<u16> {
        let head = (0..SIZE).find(|head| !self.waiting.contains(head))?;
        let base = BUFFERS + SPACE * u64::from(head);
        let (mut at, mut list) = (base, Vec::new());
        for writable in [false, true] {
            for _ in 0..self.rng.random_range(1..5) {
                // Each is as long as a header, so that there is one.
                let length = self.rng.random_range(16..5000);
                list.push(((at, length), writable));
                at += u64::from(length) + self.rng.random_range(0..64);
            }
        }
        self.writable[usize::from(head)] = list.iter().filter(|(_, w)| *w).map(|(b, _)| *b).collect();
        assert!(GuestRam::write(&self.ram, base, &vec![0; SPACE as usize]));
        for ((place, length), _) in list.iter().filter(|(_, writable)| !writable) {
            assert!(GuestRam::write(&self.ram, *place, &vec![head as u8 + 1; *length as usize]));
        }
        // One head has one descriptor of the main table; the rest is in an indirect table.
        let table = INDIRECT + 256 * u64::from(head);
        for (i, (buffer, writable)) in (0u16..).zip(&list) {
            let more = usize::from(i) + 1 < list.len();
            let flags = u16::from(more) | u16::from(*writable) << 1;
            self.descriptor(table + 16 * u64::from(i), *buffer, flags, i + 1);
        }
        self.descriptor(DESCRIPTORS + 16 * u64::from(head), (table, 16 * list.len() as u32), 4, 0);
        self.offer(head);
        self.waiting.insert(head);
        Some(head)
    }

    /// The driver submits a chain under head 0, of one readable and one writable buffer or less.
    pub fn chain_of(&mut self, readable: u32, writable: u32) {
        let buffers = [((BUFFERS, readable), 0), ((BUFFERS + SPACE, writable), 2)];
        let given: Vec<_> = buffers.into_iter().filter(|((_, length), _)| *length > 0).collect();
        for (index, (buffer, flags)) in (0u16..).zip(&given) {
            let more = usize::from(index) + 1 < given.len();
            self.descriptor(DESCRIPTORS + 16 * u64::from(index), *buffer, flags | u16::from(more), index + 1);
        }
        self.offer(0);
    }

    /// Makes a request of descriptor `head`, long enough to be one; what follows it may be anything.
    pub fn frame(&mut self, head: u16) {
        let (last, length) = ((head + 1) % SIZE, self.rng.random_range(1..9000));
        let (more, next) = (self.rng.random_range(0..2), self.rng.random_range(0..SIZE));
        self.descriptor(DESCRIPTORS + 16 * u64::from(head), (BUFFERS, 64), 1, last);
        self.descriptor(DESCRIPTORS + 16 * u64::from(last), (BUFFERS + SPACE, length), 2 | more, next);
    }

    /// Puts `head` into the available ring.
    pub fn offer(&mut self, head: u16) {
        self.ram.store_u16(AVAIL + 4 + 2 * u64::from(self.avail % SIZE), head).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.ram.store_u16(AVAIL + 2, self.avail).unwrap();
    }

    /// What the driver finds in its used ring: heads and lengths.
    pub fn collect(&mut self) -> Vec<(u16, u32)> {
        let mut found = Vec::new();
        while self.used != self.ram.load_u16(USED + 2).unwrap() {
            let place = USED + 4 + 8 * u64::from(self.used % SIZE);
            let element = self.ram.read_u64(place).unwrap();
            found.push((element as u16, (element >> 32) as u32));
            self.used = self.used.wrapping_add(1);
        }
        found
    }

    /// Reads what the device maps: the region, and with it guest RAM if that is given away.
    pub fn device_read<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        match (self.transfer, at.checked_sub(RINGS)) {
            (Transfer::Copied, _) => self.region.read(at),
            (Transfer::Direct, Some(offset)) => self.region.read(offset),
            (Transfer::Direct, None) => Shared::read(&*self.ram, at),
        }
    }

    /// Writes it.
    pub fn device_write(&self, at: u64, bytes: &[u8]) -> Option<()> {
        match self.transfer {
            Transfer::Copied => self.region.write(at, bytes),
            Transfer::Direct => Shared::write(&*self.ram, at, bytes),
        }
    }

    /// The device takes a chain: its id, readable and writable parts. Everything it sees must lie in its memory.
    pub fn take(&mut self) -> Option<(u16, Parts, Parts)> {
        let control = Control::of(0);
        let index = self.region.load_u16(control.avail + 2).unwrap();
        if index == self.device.0 {
            return None;
        }
        let id = self.region.load_u16(control.avail + 4 + 2 * u64::from(self.device.0 % RING)).unwrap();
        self.device.0 = self.device.0.wrapping_add(1);
        let (mut parts, mut at) = ([Vec::new(), Vec::new()], id);
        let direct = self.transfer == Transfer::Direct;
        let mut table = if direct { RINGS } else { 0 } + control.descriptors;
        loop {
            let word = u128::from_le_bytes(self.device_read(table + 16 * u64::from(at)).unwrap());
            let (address, length, flags) = (word as u64, (word >> 64) as u32, (word >> 96) as u16);
            if direct && flags == 4 && table >= RINGS {
                assert!(at == id, "one level");
                (table, at) = (address, 0);
                continue;
            }
            assert!(self.device_read::<1>(address + u64::from(length) - 1).is_some(), "outside the device's memory");
            assert!(length > 0 && flags & 4 == 0);
            parts[usize::from(flags >> 1 & 1)].push((address, length));
            if flags & 1 == 0 {
                let [readable, writable] = parts;
                return Some((id, readable, writable));
            }
            at = (word >> 112) as u16;
        }
    }

    /// The device gives a chain back.
    pub fn give(&mut self, id: u32, length: u32) {
        let used = Control::of(0).used;
        let element = u64::from(id) | u64::from(length) << 32;
        self.region.write(used + 4 + 8 * u64::from(self.device.1 % RING), &element.to_le_bytes()).unwrap();
        self.device.1 = self.device.1.wrapping_add(1);
        self.region.store_u16(used + 2, self.device.1).unwrap();
    }

    /// The honest device: checks that what it reads is one request's bytes, fills what it may write with the same
    /// value plus 100, and completes. False if there was nothing.
    pub fn work(&mut self) -> bool {
        let Some((id, readable, writable)) = self.take() else { return false };
        let mark = self.device_read::<1>(readable[0].0).unwrap()[0];
        for (at, length) in &readable {
            let bytes = (0..u64::from(*length)).map(|i| self.device_read::<1>(at + i).unwrap()[0]);
            assert!(bytes.into_iter().all(|byte| byte == mark), "a request's bytes arrive whole");
        }
        for (at, length) in &writable {
            self.device_write(*at, &vec![mark + 100; *length as usize]).unwrap();
        }
        self.give(id.into(), writable.iter().map(|(_, length)| length).sum());
        true
    }

    /// All of RAM.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        assert!(GuestRam::read(&self.ram, 0, &mut bytes));
        bytes
    }

    /// Checks that since `before` only used ring and writable buffers of `heads` changed.
    pub fn assert_only_changed(&self, before: &[u8], heads: &BTreeSet<u16>) {
        let mut after = self.snapshot();
        let mut restore = |at: u64, length: u64| {
            let range = at as usize..(at + length) as usize;
            after[range.clone()].copy_from_slice(&before[range]);
        };
        restore(USED, 6 + 8 * u64::from(SIZE));
        for head in heads {
            for (at, length) in &self.writable[usize::from(*head)] {
                restore(*at, u64::from(*length));
            }
        }
        if after != before {
            let first = after.iter().zip(before).position(|(a, b)| a != b);
            panic!("byte {first:x?} was changed, which the device must not reach");
        }
    }
}

pub const BOTH: u64 = F_INDIRECT_DESC | F_EVENT_IDX;
