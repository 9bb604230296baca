//! The time-stamp counter: the host's, plus an offset.
#![allow(unsafe_code)]

use super::Vcpu;

/// The host's time-stamp counter.
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC only reads a counter; every x86-64 processor has it, and Linux does not forbid it to programs
    // unless one asks for that with PR_SET_TSC, which nothing here does.
    unsafe { core::arch::x86_64::_rdtsc() }
}

impl Vcpu {
    /// The guest's time-stamp counter. Does not check CR4.TSD.
    #[inline]
    pub fn rdtsc(&self) -> u64 {
        host_tsc().wrapping_add(self.state.tsc_offset)
    }
}
