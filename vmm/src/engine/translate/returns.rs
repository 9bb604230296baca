//! The return stack: host return addresses of guest calls, so that the host predicts guest returns.
//!
//! A guest CALL does a host call, and a guest RET a host ret, on this stack instead of the guest's. The host return
//! address is a hint and no more: code there checks that the guest returns where its call came from, and otherwise finds
//! the target by the table. Only emitted code runs on it and only calls and returns move RSP; every exit to Rust code
//! leaves it, and entering starts it afresh. Guest memory accesses cannot reach it.
//!
//! Below the stack is a guard page: a call that finds it full faults, and is started again on an empty one. Above its
//! first entry lies the address of code for returns that have no call.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE: usize = 4096;
/// Bytes of the stack.
pub const SIZE: usize = 16 * PAGE;

/// The return stack of one processor.
pub struct ReturnStack {
    /// The guard page, and the stack after it.
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for ReturnStack {}

impl ReturnStack {
    /// An empty stack whose last return leads to executable address `underflow`.
    pub fn new(underflow: u64) -> Result<Self, nix::Error> {
        let length = NonZeroUsize::new(PAGE + SIZE).ok_or(nix::Error::EINVAL)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping at an address the kernel chooses; the last eight bytes are inside it.
        unsafe {
            let base = mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags)?;
            mprotect(base, PAGE, ProtFlags::PROT_NONE)?;
            let stack = Self { base: base.cast() };
            (stack.top() as *mut u64).write(underflow);
            Ok(stack)
        }
    }

    /// RSP of an empty stack.
    pub fn top(&self) -> u64 {
        self.base.as_ptr() as u64 + (PAGE + SIZE - 8) as u64
    }

    /// True if a fault at `address` means that the stack is full.
    pub fn is_guard(&self, address: u64) -> bool {
        (self.base.as_ptr() as u64..self.base.as_ptr() as u64 + PAGE as u64).contains(&address)
    }
}

impl Drop for ReturnStack {
    fn drop(&mut self) {
        // SAFETY: ours, and no emitted code runs once its engine is gone.
        let _ = unsafe { munmap(self.base.cast(), PAGE + SIZE) };
    }
}
