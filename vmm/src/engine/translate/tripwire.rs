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

use super::context::INDEX_MASK;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE: usize = 4096;
/// A readable page, and what differences other than zero can reach.
const SIZE: usize = PAGE + (1 << 32) + PAGE;
/// Where in 4 GiB the tripwire lies: emitted code uses the low half of its address as a mask.
const LOW_HALF: u64 = INDEX_MASK;

/// The tripwire of one processor.
pub struct Tripwire {
    base: NonNull<u8>,
    /// Offset of the readable page.
    page: usize,
}

// SAFETY: the mapping belongs to this value alone, and nothing writes to it.
unsafe impl Send for Tripwire {}

impl Tripwire {
    /// Maps it.
    pub fn new() -> Result<Self, nix::Error> {
        // 4 GiB more, to choose the low half of the address.
        let length = NonZeroUsize::new(SIZE + (1 << 32)).ok_or(nix::Error::EINVAL)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address the kernel chooses; the page is inside it, and so is all that follows.
        unsafe {
            let base = mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags)?.cast::<u8>();
            let page = (LOW_HALF & !(PAGE as u64 - 1)).wrapping_sub(base.as_ptr() as u64) as u32 as usize;
            let wire = Self { base, page };
            mprotect(base.add(page).cast(), PAGE, ProtFlags::PROT_READ)?;
            Ok(wire)
        }
    }

    /// Address of the last two readable bytes. Its low half is [`INDEX_MASK`], and so its low five bits are 30, which the
    /// shift for quarters relies on.
    pub fn address(&self) -> u64 {
        (self.base.as_ptr() as usize + self.page + PAGE - 2) as u64
    }
}

impl Drop for Tripwire {
    fn drop(&mut self) {
        // SAFETY: ours, and no emitted code runs once its engine is gone.
        let _ = unsafe { munmap(self.base.cast(), SIZE + (1 << 32)) };
    }
}

/// True if a fault at `address` is one of the tripwire at `wire`: the load reached beyond its page.
pub fn is_tripped(wire: u64, address: u64) -> bool {
    (wire + 2..=wire + 2 + (1 << 32)).contains(&address)
}
