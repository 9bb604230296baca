//! What a machine stands on, made before the process confines itself: guest RAM, the engine with its executable memory,
//! the handlers of signals, timer and wake-up. None of it depends on a byte of the guest.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::MachineError;
use super::io::Shared;
use super::kick;
use crate::cpu::Lines;
use crate::engine::{self, Engine};
use crate::mmu::GuestRam;

/// See the module.
pub struct Foundation {
    pub(super) ram: Arc<GuestRam>,
    pub(super) engine: Box<dyn Engine>,
    pub(super) lines: Arc<Lines>,
    pub(super) shared: Arc<Shared>,
}

impl Foundation {
    /// `memory` bytes of RAM, and the engine of this name. The calling thread is to be the processor's.
    pub fn new(memory: u64, engine: &str) -> Result<Self, MachineError> {
        let ram = Arc::new(GuestRam::new(memory)?);
        // Engines that need more of the signal install their own handler after.
        kick::install()?;
        let engine = engine::create(engine, &ram)?;
        let lines = Arc::new(Lines::default());
        let shared = Arc::new(Shared::new(lines.clone())?);
        shared.set_alarm()?;
        Ok(Self { ram, engine, lines, shared })
    }

    /// The descriptors that it needs later.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.ram.fd(), self.shared.wake.as_fd()]
    }
}
