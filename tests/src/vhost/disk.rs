//! An honest virtio-blk device over bytes in memory, with switches for what tests want to go wrong.

use std::sync::{Arc, Mutex, PoisonError};

use super::session::{Device, Reaction, Session, Taken};

/// VERSION_1, FLUSH, event index, indirect descriptors and VHOST_USER_F_PROTOCOL_FEATURES.
pub const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 9;
const SECTOR: u64 = 512;

/// What a disk is told from outside, while it runs.
#[derive(Clone, Debug)]
pub struct Switches {
    /// Feature bits.
    pub features: u64,
    /// Queues that it says it has.
    pub queues: u64,
    /// Size in bytes, as announced; a change is announced.
    pub size: u64,
    /// Requests are taken, but not completed.
    pub hold: bool,
    /// Hang up.
    pub hang_up: bool,
    /// Requests at these sectors crash the process.
    pub poison: Vec<u64>,
    /// What to do with a request of the front end.
    pub reactions: Vec<(u32, Reaction)>,
}

/// A disk's medium, which outlives the connections.
#[derive(Clone, Debug)]
pub struct Disk {
    image: Arc<Mutex<Vec<u8>>>,
    switches: Arc<Mutex<Switches>>,
    held: Vec<Taken>,
    announced: u64,
    crashed: bool,
}

impl Disk {
    /// A disk of `size` zero bytes.
    pub fn new(size: u64) -> Self {
        let (features, reactions) = (FEATURES, Vec::new());
        let switches =
            Switches { features, queues: 1, size, hold: false, hang_up: false, poison: Vec::new(), reactions };
        let image = Arc::new(Mutex::new(vec![0; size as usize]));
        Self { image, switches: Arc::new(Mutex::new(switches)), held: Vec::new(), announced: size, crashed: false }
    }

    /// Changes the switches.
    pub fn switch(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut self.switches.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn switches(&self) -> Switches {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// False if the process does not survive it.
    fn carry_out(&self, session: &mut Session, taken: &Taken, poison: &[u64]) -> bool {
        let mut header = Vec::new();
        for (at, length) in &taken.readable {
            header.extend((0..u64::from(*length)).take(16).map(|i| session.read::<1>(at + i)[0]));
        }
        header.resize(16, 0);
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = header[8..16].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if poison.contains(&sector) {
            return false;
        }
        self.answer(session, taken, kind, sector);
        true
    }

    fn answer(&self, session: &mut Session, taken: &Taken, kind: u32, sector: u64) {
        let Some(((status, _), data)) = taken.writable.split_last() else { return };
        let mut image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut at, mut good) = (sector.saturating_mul(SECTOR) as usize, true);
        let parts: &[(u64, u32)] = if kind == 1 { taken.readable.get(1..).unwrap_or(&[]) } else { data };
        for (place, length) in parts {
            let range = at..at.saturating_add(*length as usize);
            match image.get_mut(range.clone()) {
                Some(bytes) if kind == 1 => fetch(session, *place, bytes),
                Some(bytes) => session.write(*place, bytes),
                None => good = false,
            }
            at = range.end;
        }
        session.write(*status, &[u8::from(!good)]);
        let written: u32 = taken.writable.iter().map(|(_, length)| length).sum();
        session.complete(taken.id.into(), written);
    }
}

/// Reads shared memory, by sectors where it can.
fn fetch(session: &Session, from: u64, to: &mut [u8]) {
    for (place, part) in (from..).step_by(SECTOR as usize).zip(to.chunks_mut(SECTOR as usize)) {
        match <&mut [u8; SECTOR as usize]>::try_from(&mut *part) {
            Ok(whole) => *whole = session.read(place),
            Err(_) => part.iter_mut().zip(place..).for_each(|(byte, place)| [*byte] = session.read(place)),
        }
    }
}

impl Device for Disk {
    fn features(&self) -> u64 {
        self.switches().features
    }

    fn queues(&self) -> u64 {
        self.switches().queues
    }

    fn config(&self) -> Vec<u8> {
        (self.switches().size / SECTOR).to_le_bytes().to_vec()
    }

    fn message(&mut self, request: u32) -> Reaction {
        let switches = self.switches();
        switches.reactions.iter().find(|(code, _)| *code == request).map_or(Reaction::Answer, |(_, reaction)| *reaction)
    }

    fn kicked(&mut self, session: &mut Session) {
        while let Some(taken) = session.take_chain() {
            self.held.push(taken);
        }
        let switches = self.switches();
        if !switches.hold {
            for taken in std::mem::take(&mut self.held) {
                self.crashed = self.crashed || !self.carry_out(session, &taken, &switches.poison);
            }
        }
    }

    fn idle(&mut self, session: &mut Session) -> bool {
        let switches = self.switches();
        if switches.size != self.announced {
            self.announced = switches.size;
            session.announce();
        }
        if session.enabled {
            self.kicked(session);
        }
        !switches.hang_up && !self.crashed
    }
}
