//! The tripwire: a comparison that costs two instructions, no branch and no flag while it holds.
//!
//! A block entered by the table, and the code after a guest call, must know that the EIP in r8d is the one they stand for.
//! The guest's flags are live there for all that is known, so a compare is out, and jumping on RCX costs a taken branch and
//! the saving of RCX: measured, a third of the time of recursive code. Instead the difference of the two EIPs, a number
//! below 2^32, is made part of the address of a load. Its last two readable bytes are followed by 4 GiB that are not, so
//! the load goes through only where the difference is zero. Otherwise it faults, with every guest register and flag in
//! place, and the handler in [`super::fault`] leaves for the EIP in r8d.
//!
//! That fault is dear: places where it comes often are translated with the jump on RCX, see
//! [`super::translate::Environment::varied`].
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE: usize = 4096;
/// A readable page, and what differences other than zero can reach.
const SIZE: usize = PAGE + (1 << 32) + PAGE;

/// The tripwire of one processor.
pub struct Tripwire {
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone, and nothing writes to it.
unsafe impl Send for Tripwire {}

impl Tripwire {
    /// Maps it.
    pub fn new() -> Result<Self, nix::Error> {
        let length = NonZeroUsize::new(SIZE).ok_or(nix::Error::EINVAL)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address the kernel chooses; its first page is inside it.
        unsafe {
            let base = mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags)?;
            let wire = Self { base: base.cast() };
            mprotect(base, PAGE, ProtFlags::PROT_READ)?;
            Ok(wire)
        }
    }

    /// Address of the last two readable bytes. Its low five bits are 30, which the shift for quarters relies on.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64 + (PAGE - 2) as u64
    }
}

impl Drop for Tripwire {
    fn drop(&mut self) {
        // SAFETY: ours, and no emitted code runs once its engine is gone.
        let _ = unsafe { munmap(self.base.cast(), SIZE) };
    }
}

/// True if a fault at `address` is one of the tripwire at `wire`: the load reached beyond its page.
pub fn is_tripped(wire: u64, address: u64) -> bool {
    (wire + 2..=wire + 2 + (1 << 32)).contains(&address)
}
