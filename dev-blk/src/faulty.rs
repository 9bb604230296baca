//! Faults of a test build: requests that crash the process that carries them out, each in another way. They are known by the
//! sector at which they begin. Nothing that serves anybody is built with this.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use crate::request::{Operation, SECTOR};

/// A read from here writes to an address where nothing is.
pub const STRAY_WRITE: u64 = 2048;
/// A read from here aborts.
pub const ABORT: u64 = 4096;
/// A read from here makes a system call that no disk needs.
pub const VIOLATION: u64 = 6144;
/// A write to here panics.
pub const PANIC: u64 = 8192;
/// A read from the second of these is a stray write if the process has read from the first.
pub const TOGETHER: [u64; 2] = [10240, 12288];

/// A read from here never ends, and computes all the time.
pub const SPIN: u64 = 14336;

/// Called before each request is carried out.
pub fn before(operation: Operation) {
    static FIRST: AtomicBool = AtomicBool::new(false);
    match operation {
        Operation::Read { offset } if offset == STRAY_WRITE * SECTOR => stray_write(),
        Operation::Read { offset } if offset == ABORT * SECTOR => std::process::abort(),
        Operation::Read { offset } if offset == VIOLATION * SECTOR => drop(nix::unistd::getppid()),
        Operation::Write { offset } if offset == PANIC * SECTOR => panic!("a write that this build cannot stand"),
        Operation::Read { offset } if offset == TOGETHER[0] * SECTOR => FIRST.store(true, Ordering::Relaxed),
        Operation::Read { offset } if offset == TOGETHER[1] * SECTOR && FIRST.load(Ordering::Relaxed) => stray_write(),
        Operation::Read { offset } if offset == SPIN * SECTOR => loop {
            std::hint::spin_loop();
        },
        _ => {}
    }
}

fn stray_write() {
    // SAFETY: there is none. Nothing is mapped below vm.mmap_min_addr: the write faults, which is its purpose.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) }
}
