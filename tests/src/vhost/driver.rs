//! A guest at register level: brings a virtio-blk function up, submits requests, and checks what comes back. Its rings
//! are laid out and read here from the specification (virtio 1.2, §2.7 and §4.1), not with the code under test.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::Rng;
use vmm::chipset::PciFunction;
use vmm::mmu::GuestRam;
use vmm::virtio::{
    Assigned, Block, Command, DeviceEvent, Dma, Event, FrontEnd, Kind, Parts, Pins, Port, VirtioPci, Wanted,
};

use super::session::{Device, serve};

/// Nothing happens for so long: stuck, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
const QUEUE: u16 = 128;
/// Parts of queue `n`, in the 64 KiB that start at n × 64 KiB.
const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const RINGS: u64 = 0x1_0000;
/// Request `n` has its header, status and data in the 16 KiB from here plus n × 16 KiB.
const REQUESTS: u64 = 0x10_0000;
const STEP: u64 = 0x4000;
/// Bytes of data of a request.
pub const DATA: usize = 8192;
/// Requests that can be under way: each takes three descriptors.
pub const SLOTS: u16 = QUEUE / 3;
const RAM: u64 = 4 << 20;

const STATUS: u64 = 0x14;
const NOTIFY: u64 = 0x3000;
const NOTIFY_STEP: u64 = 4;
/// VERSION_1 and event index, and FLUSH.
const WANTED: u64 = 1 << 32 | 1 << 29 | 1 << 9;

/// What reached the guest's pins and the machine.
#[derive(Debug, Default)]
struct Seen {
    attention: bool,
    messages: Vec<u32>,
    line: bool,
    events: Vec<DeviceEvent>,
    /// Frames with code that the device wrote, by its own account.
    code: Vec<u64>,
}

#[derive(Debug, Default)]
struct Wires {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Wires {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

struct Slot(Arc<Wires>);

impl Pins for Slot {
    fn message(&self, _address: u64, data: u32) {
        self.0.note(|seen| seen.messages.push(data));
    }
    fn line(&self, level: bool) {
        self.0.note(|seen| seen.line = level);
    }
}

/// A guest with one disk.
pub struct Driver {
    /// Its memory.
    pub ram: Arc<GuestRam>,
    /// The function.
    pub device: Arc<VirtioPci>,
    wires: Arc<Wires>,
    /// Of each queue: what was made available, and what was found used.
    indices: Vec<(u16, u16)>,
    /// Slots under way, with whether they write.
    pub waiting: BTreeMap<u16, bool>,
}

/// Runs `device` behind a new connection; the other end is for the front end.
pub fn connect(mut device: impl Device + Send + 'static) -> std::io::Result<(OwnedFd, JoinHandle<()>)> {
    let (ours, theirs) = UnixStream::pair()?;
    // An error is a front end that hung up in the middle, which is its right.
    let thread = std::thread::spawn(move || drop(serve(theirs, &mut device)));
    Ok((ours.into(), thread))
}

impl Driver {
    /// A disk behind `socket`, before its driver has touched it. An error is the front end's reason.
    pub fn new(socket: OwnedFd) -> Result<Self, String> {
        Self::with(socket, 1, false)
    }

    /// A disk of which the driver uses `queues` queues, and whose process maps guest RAM if it is `shared`. Request `n` is
    /// for queue `n` modulo `queues`.
    pub fn with(socket: OwnedFd, queues: u16, shared: bool) -> Result<Self, String> {
        let (wires, ram) = (Arc::new(Wires::default()), GuestRam::new(RAM).map_err(|e| e.to_string())?);
        let (attention, reports, ram) = (wires.clone(), wires.clone(), Arc::new(ram));
        let port = Arc::new(Port::new(Box::new(move || attention.note(|seen| seen.attention = true))));
        let given = shared.then(|| ram.clone());
        let wanted =
            Wanted { queues: 4, least_queues: 1, config_size: Block.config_size(), bounce: 1 << 20, ram: given };
        let front_end = FrontEnd::new("test", wanted, port).map_err(|e| e.to_string())?;
        front_end.send(Command::Adopt { serial: 0, socket });
        let first = match front_end.port.wait(PATIENCE) {
            Some(Event::Offered { serial, offer, kicks }) => (serial, offer, kicks),
            Some(Event::Lost { reason, .. }) => return Err(reason),
            _ => return Err("no offer".into()),
        };
        let device = VirtioPci::new(Parts {
            name: "test".into(),
            kind: Box::new(Block),
            pins: Box::new(Slot(wires.clone())),
            report: Box::new(move |_, event| reports.note(|seen| seen.events.push(event))),
            front_end,
            first,
            ram: ram.clone(),
            assigned: Assigned { base: 0xe000_0000, irq: 10 },
        });
        let indices = vec![(0, 0); usize::from(queues)];
        Ok(Self { ram, device, wires, indices, waiting: BTreeMap::new() })
    }

    fn write(&self, offset: u64, width: u8, value: u64) {
        self.device.bar_write(0, offset, width, value);
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        self.device.bar_read(0, STATUS, 1) as u8
    }

    /// Capacity in sectors, as the configuration says.
    pub fn capacity(&self) -> u64 {
        self.device.bar_read(0, 0x2000, 8)
    }

    /// Resets the device, which reads back 0 at once, and forgets the rings.
    pub fn reset(&mut self) {
        self.write(STATUS, 1, 0);
        assert_eq!(self.status(), 0);
        self.forget();
    }

    /// Resets the device and waits for it to read back 0.
    pub fn reset_slowly(&mut self) {
        self.write(STATUS, 1, 0);
        self.until(|driver, _| driver.status() == 0);
        self.forget();
    }

    /// Writes the device status.
    pub fn set_status(&self, status: u8) {
        self.write(STATUS, 1, status.into());
    }

    fn forget(&mut self) {
        for (queue, indices) in (0..).zip(&mut self.indices) {
            assert!(self.ram.write(queue * RINGS + AVAIL, &[0; 0x2000]));
            *indices = (0, 0);
        }
        self.waiting.clear();
    }

    /// Negotiates, sets the queues up and MSI-X (vector 0 for changes with data 100, vector 1 for queue 0 with 101, and so
    /// on) or INTx, and sets DRIVER_OK.
    pub fn start(&mut self, msix: bool) {
        for status in [1, 3] {
            self.write(STATUS, 1, status);
        }
        for half in [0, 1] {
            self.write(0, 4, half);
            let offered = self.device.bar_read(0, 4, 4);
            self.write(8, 4, half);
            self.write(0xc, 4, WANTED >> (32 * half) & offered & 0xffff_ffff);
        }
        self.write(STATUS, 1, 0xb);
        assert_eq!(self.status(), 0xb, "features are accepted");
        if msix {
            for vector in 0..=self.indices.len() as u64 {
                self.write(0x4000 + 16 * vector, 8, 0xfee0_0000);
                self.write(0x4008 + 16 * vector, 8, 100 + vector);
            }
            self.write(0x10, 2, 0);
        }
        self.device.config_write(0x9a, 2, if msix { 0x8000 } else { 0 });
        for number in 0..self.indices.len() as u64 {
            let rings = number * RINGS;
            let queue = [(0x16, 2, number), (0x18, 2, QUEUE.into()), (0x1a, 2, 1 + number)];
            let places = [(0x20, DESCRIPTORS), (0x28, AVAIL), (0x30, USED)].map(|(at, place)| (at, 8, rings + place));
            let enabled = [(0x1c, 2, 1)];
            let all = queue.into_iter().chain(places).chain(enabled);
            all.for_each(|(offset, width, value)| self.write(offset, width, value));
        }
        self.write(STATUS, 1, 0xf);
    }

    fn base(slot: u16) -> u64 {
        REQUESTS + STEP * u64::from(slot)
    }

    /// Where the data of `slot` lies.
    pub fn data(slot: u16) -> u64 {
        Self::base(slot) + 0x1000
    }

    /// Submits a read of sector 16 × `slot`, or a write of `fill` to it. False if the slot is under way.
    pub fn submit(&mut self, slot: u16, write: Option<u8>) -> bool {
        if self.waiting.contains_key(&slot) || slot >= SLOTS {
            return false;
        }
        let (base, queue) = (Self::base(slot), self.queue_of(slot));
        let (rings, (avail, used)) = (queue as u64 * RINGS, self.indices[queue]);
        let header = u128::from(write.is_some()) | u128::from(slot) << 68;
        let put = |at: u64, bytes: &[u8]| assert!(self.ram.write(at, bytes));
        put(base, &header.to_le_bytes());
        put(base + 16, &[0xee]);
        put(Self::data(slot), &[write.unwrap_or(0xdd); DATA]);
        let data = if write.is_some() { 1 } else { 3 };
        let parts = [(base, 16, 1), (Self::data(slot), DATA as u32, data), (base + 16, 1, 2u16)];
        for (index, (at, length, flags)) in (3 * slot..).zip(parts) {
            let word =
                u128::from(at) | u128::from(length) << 64 | u128::from(flags) << 96 | u128::from(index + 1) << 112;
            put(rings + DESCRIPTORS + 16 * u64::from(index), &word.to_le_bytes());
        }
        put(rings + AVAIL + 4 + 2 * u64::from(avail % QUEUE), &(3 * slot).to_le_bytes());
        put(rings + AVAIL + 2, &avail.wrapping_add(1).to_le_bytes());
        // An interrupt for each completion.
        put(rings + AVAIL + 4 + 2 * u64::from(QUEUE), &used.to_le_bytes());
        self.indices[queue].0 = avail.wrapping_add(1);
        self.waiting.insert(slot, write.is_some());
        self.write(NOTIFY + NOTIFY_STEP * queue as u64, 2, queue as u64);
        true
    }

    fn queue_of(&self, slot: u16) -> usize {
        usize::from(slot) % self.indices.len()
    }

    /// Lets the device work if it wants to, else waits up to `limit` for it to want to. False if it never did.
    pub fn serve(&self, limit: Duration) -> bool {
        let seen = self.wires.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.wires.changed.wait_timeout_while(seen, limit, |seen| !seen.attention);
        let wanted = std::mem::take(&mut waited.unwrap_or_else(PoisonError::into_inner).0.attention);
        if wanted {
            let mut dma = Dma::new(&self.ram);
            self.device.serve(&mut dma);
            self.wires.note(|seen| seen.code.extend(dma.into_code_frames()));
        }
        wanted
    }

    /// Slots that came back since the last call, with their status byte and first byte of data. Each was waited for.
    pub fn collect(&mut self) -> Vec<(u16, u8, u8)> {
        let (mut found, byte) = (Vec::new(), |at| self.ram.read_u32(at).unwrap_or(0) as u8);
        for queue in 0..self.indices.len() {
            let (rings, mut used) = (queue as u64 * RINGS, self.indices[queue].1);
            let index = self.ram.read_u32(rings + USED).unwrap_or(0) >> 16;
            while u32::from(used) != index {
                let head = self.ram.read_u32(rings + USED + 4 + 8 * u64::from(used % QUEUE)).unwrap_or(u32::MAX);
                let slot = (head / 3) as u16;
                let known = head.is_multiple_of(3) && self.queue_of(slot) == queue;
                assert!(known && self.waiting.remove(&slot).is_some(), "head {head} was not under way");
                used = used.wrapping_add(1);
                found.push((slot, byte(Self::base(slot) + 16), byte(Self::data(slot))));
            }
            let _ = self.ram.write(rings + AVAIL + 4 + 2 * u64::from(QUEUE), &used.to_le_bytes());
            self.indices[queue].1 = used;
        }
        found
    }

    /// Serves until `done` says so; what came back meanwhile.
    pub fn until(&mut self, mut done: impl FnMut(&Self, &[(u16, u8, u8)]) -> bool) -> Vec<(u16, u8, u8)> {
        let (mut found, end) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            found.extend(self.collect());
            if done(self, &found) {
                return found;
            }
            assert!(Instant::now() < end, "stuck with {:?} under way: {:?}", self.waiting, self.wires);
            self.serve(Duration::from_millis(50));
        }
    }

    /// Serves until nothing is under way.
    pub fn finish(&mut self) -> Vec<(u16, u8, u8)> {
        self.until(|driver, _| driver.waiting.is_empty())
    }

    /// What the machine was told so far.
    pub fn events(&self) -> Vec<DeviceEvent> {
        self.wires.seen.lock().unwrap_or_else(PoisonError::into_inner).events.clone()
    }

    /// Frames marked as code that the engine was told of since the last call.
    pub fn written_code(&self) -> Vec<u64> {
        std::mem::take(&mut self.wires.seen.lock().unwrap_or_else(PoisonError::into_inner).code)
    }

    /// Data of the interrupt messages since the last call.
    pub fn messages(&self) -> Vec<u32> {
        std::mem::take(&mut self.wires.seen.lock().unwrap_or_else(PoisonError::into_inner).messages)
    }

    /// One thing that a hostile driver does with its rings and tables, or any access to any register.
    pub fn misbehave(&mut self, rng: &mut impl Rng, registers: bool) {
        let value: u64 = if rng.random() { rng.random() } else { 1 << rng.random_range(0..64) };
        let width = 1 << rng.random_range(0..4);
        match rng.random_range(0..8) {
            0 if registers => self.write(STATUS, 1, rng.random_range(0..=0xff)),
            1 if registers => self.write(rng.random_range(0..0x40), width, value),
            2 if registers => self.write(rng.random_range(0..0x8000), width, value),
            3 if registers => drop(self.device.bar_read(0, rng.random_range(0..0x8008), width)),
            4 if registers => self.device.config_write(rng.random_range(0..0x40) * 4, 4, value as u32),
            5 => drop(self.submit(rng.random_range(0..SLOTS), rng.random::<bool>().then_some(1))),
            6 => self.write(NOTIFY, 2, 0),
            _ => {
                let at = DESCRIPTORS + 2 * rng.random_range(0..0x1800);
                let bytes = if rng.random() { rng.random_range(0..4u16) } else { rng.random() }.to_le_bytes();
                assert!(self.ram.write(at, &bytes));
            }
        }
    }

    /// Level of INTA.
    pub fn line(&self) -> bool {
        self.wires.seen.lock().unwrap_or_else(PoisonError::into_inner).line
    }

    /// Reads the ISR register.
    pub fn isr(&self) -> u8 {
        self.device.bar_read(0, 0x1000, 1) as u8
    }

    /// All of RAM.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        assert!(self.ram.read(0, &mut bytes));
        bytes
    }

    /// Checks that since `before` nothing changed but the used ring and what requests under way at that time may write.
    pub fn assert_only_changed(&self, before: &[u8], waiting: &BTreeMap<u16, bool>) {
        let mut after = self.snapshot();
        let mut restore = |at: u64, length: usize| {
            let range = at as usize..at as usize + length;
            after[range.clone()].copy_from_slice(&before[range]);
        };
        for rings in (0..self.indices.len() as u64).map(|queue| queue * RINGS) {
            restore(rings + USED, 6 + 8 * usize::from(QUEUE));
            // Our own, in `collect`.
            restore(rings + AVAIL + 4 + 2 * u64::from(QUEUE), 2);
        }
        for (slot, writes) in waiting {
            restore(Self::base(*slot) + 16, 1);
            if !writes {
                restore(Self::data(*slot), DATA);
            }
        }
        if after != before {
            let first = after.iter().zip(before).position(|(a, b)| a != b);
            panic!("byte {first:x?} was changed, which no request lets the device write");
        }
    }
}
