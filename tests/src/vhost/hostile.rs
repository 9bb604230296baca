//! A back end that shakes hands and then does what it can to its front end: garbage in rings and region, wrong ids and
//! lengths, changes while they are read, call storms, descriptors made to block, sockets that stall or hang up.

use std::fs::File;
use std::io::Write;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::disk::FEATURES;
use super::session::{Device, Reaction, Session, Taken};

/// The device: one seed, one behaviour.
pub struct Hostile {
    rng: SmallRng,
    taken: Vec<Taken>,
    /// Turns before it hangs up.
    turns: u32,
    /// Keeps to the protocol on its socket.
    polite: bool,
}

impl Hostile {
    /// Misbehaves for about `turns` turns, then hangs up.
    pub fn new(seed: u64, turns: u32) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), taken: Vec::new(), turns, polite: false }
    }

    /// As [`Self::new`], but its socket says what the protocol says.
    pub fn honest_handshake(seed: u64, turns: u32) -> Self {
        Self { polite: true, ..Self::new(seed, turns) }
    }

    fn misbehave(&mut self, session: &mut Session) {
        let used = session.used;
        match self.rng.random_range(0..10) {
            0 => {
                let step: u16 = self.rng.random_range(0..4);
                let index = u16::from_le_bytes(session.read(used + 2)).wrapping_add(step);
                session.write(used + 2, &index.to_le_bytes());
                session.ring();
            }
            1 => session.complete(self.rng.random(), self.rng.random()),
            2 => session.complete(4 * self.rng.random_range(0..64), self.rng.random_range(0..70_000)),
            3 => {
                let mut bytes = [0; 512];
                self.rng.fill(&mut bytes[..]);
                // The control pages, or anywhere and beyond the end.
                let end = if self.rng.random() { 0x4000 } else { 0x40_0000 };
                let at = self.rng.random_range(0..end);
                session.write(at, &bytes);
            }
            4 => (0..1000).for_each(|_| session.ring()),
            5 => {
                for file in [&session.kick, &session.call].into_iter().flatten() {
                    block(file);
                }
            }
            6 => {
                // Full: the next to write waits, if it can be made to.
                if let Some(call) = session.call.as_mut().filter(|call| !is_blocking(call)) {
                    let _ = call.write(&(u64::MAX - 1).to_ne_bytes());
                }
            }
            _ => self.complete(session),
        }
    }

    /// Completes what it was given, more or less as it should be, so that the front end goes on.
    fn complete(&mut self, session: &mut Session) {
        let Some(taken) = self.taken.pop() else { return };
        // The lengths are what it wrote over them itself, perhaps.
        let room = taken.writable.iter().fold(0u32, |sum, (_, length)| sum.saturating_add(*length));
        if let Some((status, _)) = taken.writable.last() {
            session.write(*status, &[self.rng.random_range(0..3)]);
        }
        session.complete(taken.id.into(), self.rng.random_range(0..=room));
    }
}

/// Lets reads and writes of a shared descriptor block, for whoever else holds it, too.
fn block(file: &File) {
    let _ = fcntl(file, FcntlArg::F_SETFL(OFlag::O_RDWR));
}

fn is_blocking(file: &File) -> bool {
    fcntl(file, FcntlArg::F_GETFL).is_ok_and(|flags| flags & OFlag::O_NONBLOCK.bits() == 0)
}

impl Device for Hostile {
    fn features(&self) -> u64 {
        FEATURES
    }

    fn config(&self) -> Vec<u8> {
        // 64 MiB, and for the rest nothing that makes sense.
        let mut config = vec![0xff; 60];
        config[..8].copy_from_slice(&131_072u64.to_le_bytes());
        config
    }

    fn message(&mut self, _request: u32) -> Reaction {
        match self.rng.random_range(0..400) {
            _ if self.polite => Reaction::Answer,
            0 => Reaction::HangUp,
            1 => Reaction::Garbage,
            _ => Reaction::Answer,
        }
    }

    fn kicked(&mut self, session: &mut Session) {
        while let Some(taken) = session.take_chain() {
            self.taken.push(taken);
            if self.taken.len() > 256 {
                break;
            }
        }
        self.misbehave(session);
    }

    fn idle(&mut self, session: &mut Session) -> bool {
        if session.enabled {
            self.kicked(session);
            for _ in 0..self.rng.random_range(0..20) {
                self.misbehave(session);
            }
            session.announce();
        }
        self.turns = self.turns.saturating_sub(1);
        self.turns > 0
    }
}
