//! What a processor's pins are wired to: ports, memory-mapped registers, the interrupt controllers, and the lines that
//! ask for its attention. The engine sees the board through this file alone.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// The board, as a processor sees it. Implementations lock inside; `vcpu` is the index of the calling processor.
///
/// Every value is untrusted guest data; no call may fail, block for long or panic. What nothing decodes reads as all
/// ones and ignores writes.
pub trait Bus: Send + Sync {
    /// IN: `width` is 1, 2 or 4 bytes.
    fn port_read(&self, vcpu: usize, port: u16, width: u8) -> u32;
    /// OUT: `width` is 1, 2 or 4 bytes.
    fn port_write(&self, vcpu: usize, port: u16, width: u8, value: u32);
    /// A load from physical `address` outside RAM; `width` is 1, 2, 4 or 8 bytes.
    fn mmio_read(&self, vcpu: usize, address: u64, width: u8) -> u64;
    /// A store to physical `address` outside RAM; `width` is 1, 2, 4 or 8 bytes.
    fn mmio_write(&self, vcpu: usize, address: u64, width: u8, value: u64);
    /// The interrupt-acknowledge cycle: the vector of the highest-priority pending interrupt, from the local APIC or,
    /// through it, the i8259 pair. None when the request went away.
    fn acknowledge(&self, vcpu: usize) -> Option<u8>;
    /// RDMSR of IA32_APIC_BASE (1Bh), IA32_TSC_DEADLINE (6E0h, in *host* TSC units) or an x2APIC register
    /// (800h–8FFh). None means #GP(0).
    fn apic_msr_read(&self, vcpu: usize, msr: u32) -> Option<u64>;
    /// WRMSR of the same. False means #GP(0).
    fn apic_msr_write(&self, vcpu: usize, msr: u32, value: u64) -> bool;
}

/// A board with nothing on it: for tests, measurements, and processors that only compute.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptyBus;

impl Bus for EmptyBus {
    fn port_read(&self, _: usize, _: u16, width: u8) -> u32 {
        u32::MAX >> (32 - 8 * width.clamp(1, 4) as u32)
    }
    fn port_write(&self, _: usize, _: u16, _: u8, _: u32) {}
    fn mmio_read(&self, _: usize, _: u64, width: u8) -> u64 {
        u64::MAX >> (64 - 8 * width.clamp(1, 8) as u32)
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn acknowledge(&self, _: usize) -> Option<u8> {
        None
    }
    fn apic_msr_read(&self, _: usize, _: u32) -> Option<u64> {
        None
    }
    fn apic_msr_write(&self, _: usize, _: u32, _: u64) -> bool {
        false
    }
}

/// The wires into one processor, shared with the board and with the threads that watch timers and descriptors.
#[derive(Debug, Default)]
pub struct Lines {
    /// INTR: an interrupt controller has a deliverable interrupt. Level: the board sets and clears it.
    intr: AtomicBool,
    /// NMI: edge, cleared when the processor takes it.
    nmi: AtomicBool,
    /// The machine wants the processor's thread back: `Engine::run` returns `Exit::Requested`.
    request: AtomicBool,
    /// Thread id of the processor's thread while it runs an engine, else 0: where a kick's signal goes.
    thread: AtomicI32,
}

impl Lines {
    /// True if the processor has anything to look at between two instructions.
    #[inline]
    pub fn any(&self) -> bool {
        self.intr.load(Ordering::Relaxed) | self.nmi.load(Ordering::Relaxed) | self.request.load(Ordering::Relaxed)
    }
    /// Level of INTR.
    #[inline]
    pub fn intr(&self) -> bool {
        self.intr.load(Ordering::Acquire)
    }
    /// Drives INTR. A rising edge kicks the processor.
    pub fn set_intr(&self, level: bool) {
        if self.intr.swap(level, Ordering::AcqRel) != level && level {
            self.kick();
        }
    }
    /// Raises NMI.
    pub fn raise_nmi(&self) {
        self.nmi.store(true, Ordering::Release);
        self.kick();
    }
    /// Takes a pending NMI.
    pub fn take_nmi(&self) -> bool {
        self.nmi.swap(false, Ordering::AcqRel)
    }
    /// True while an NMI is pending.
    pub fn nmi(&self) -> bool {
        self.nmi.load(Ordering::Acquire)
    }
    /// Asks for the processor's thread.
    pub fn request(&self) {
        self.request.store(true, Ordering::Release);
        self.kick();
    }
    /// Takes a pending request.
    pub fn take_request(&self) -> bool {
        self.request.swap(false, Ordering::AcqRel)
    }
    /// True while a request is pending.
    pub fn requested(&self) -> bool {
        self.request.load(Ordering::Acquire)
    }
    /// Says which thread runs the processor (its kernel thread id), or 0 when none does.
    pub fn set_thread(&self, tid: i32) {
        self.thread.store(tid, Ordering::Release);
    }

    /// The signal that interrupts a processor's thread: emulated code is left at the next instruction boundary.
    pub fn kick_signal() -> i32 {
        libc::SIGRTMIN()
    }

    /// Interrupts the processor's thread, unless the caller is that thread.
    #[allow(unsafe_code)]
    pub fn kick(&self) {
        let tid = self.thread.load(Ordering::Acquire);
        // SAFETY: gettid and tgkill take plain integers; a thread that has ended gives ESRCH, which is harmless.
        unsafe {
            if tid != 0 && tid != libc::gettid() {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, Self::kick_signal());
            }
        }
    }
}
