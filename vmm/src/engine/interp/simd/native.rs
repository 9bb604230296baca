//! Runs one instruction on this host's processor, on the guest's registers. All of the room's unsafe code is here.
//!
//! [`StubMemory`] holds stubs: one encoded instruction and a RET each, in a memfd that is mapped twice, writable here
//! and executable there, never both. [`enter`] is the world switch: it loads the guest's XSAVE area, general registers
//! and arithmetic flags, calls the stub, and saves them back. What a stub may contain is decided by `classify`: no
//! control transfer, no stack use, no memory but `[r8]`, nothing privileged.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use memfd::{FileSeal, MemfdOptions};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::cpu::XsaveArea;

/// Room for one stub: fifteen bytes of instruction and a RET, rounded up.
const SLOT: usize = 32;
/// Stubs held at once.
pub const SLOTS: usize = 4096;
const BYTES: usize = SLOT * SLOTS;
const RET: u8 = 0xc3;
/// INT3, which ends the process loudly should anything run past a stub.
const FILL: u8 = 0xcc;
/// Longest instruction.
const MAX_INSTRUCTION: usize = 15;

/// What a stub runs on. The assembly below knows it by offset.
#[repr(C, align(64))]
pub struct Frame {
    /// x87, SSE and AVX registers, in and out. XSTATE_BV must be a subset of what the host's XCR0 enables.
    pub area: XsaveArea,
    /// The memory operand: the stub's `[r8]`.
    pub operand: [u8; 64],
    /// Guest general registers, in and out. ESP is in the host's r9d.
    pub gpr: [u32; 8],
    /// Arithmetic flags, in and out; no other flag may be set on entry.
    pub flags: u64,
    code: u64,
    /// State components to load and save.
    mask: u32,
    host_mxcsr: u32,
    host_fcw: u16,
}

impl Frame {
    /// An empty frame for this host.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            area: XsaveArea::default(),
            operand: [0; 64],
            gpr: [0; 8],
            flags: 0,
            code: 0,
            mask: host_components(),
            host_mxcsr: 0,
            host_fcw: 0,
        })
    }
    /// State components that the host can load and save, of x87, SSE and AVX: a mask as in XCR0.
    pub fn components(&self) -> u32 {
        self.mask
    }
}

/// The part of the host's XCR0 that covers x87, SSE and AVX; 0 on a host without XSAVE.
fn host_components() -> u32 {
    if !std::arch::is_x86_feature_detected!("xsave") {
        return 0;
    }
    // SAFETY: XSAVE was detected, which here means CR4.OSXSAVE is set, so XGETBV does not fault.
    unsafe { std::arch::x86_64::_xgetbv(0) as u32 & 7 }
}

/// Loads guest state from `frame`, calls the stub, saves guest state back, and restores the host's.
///
/// # Safety
/// `frame.code` must be a stub made by [`StubMemory::add`] and `frame.mask` a subset of the host's XCR0.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(frame: *mut Frame) {
    std::arch::naked_asm!(
        "push rbx",
        "push rbp",
        "push r15",
        "mov r15, rdi",
        "stmxcsr [r15 + {host_mxcsr}]",
        "fnstcw [r15 + {host_fcw}]",
        "mov eax, [r15 + {mask}]",
        "xor edx, edx",
        "xrstor [r15 + {area}]",
        "lea r8, [r15 + {operand}]",
        "push qword ptr [r15 + {flags}]",
        "popfq",
        "mov eax, [r15 + {gpr} + 0]",
        "mov ecx, [r15 + {gpr} + 4]",
        "mov edx, [r15 + {gpr} + 8]",
        "mov ebx, [r15 + {gpr} + 12]",
        "mov r9d, [r15 + {gpr} + 16]",
        "mov ebp, [r15 + {gpr} + 20]",
        "mov esi, [r15 + {gpr} + 24]",
        "mov edi, [r15 + {gpr} + 28]",
        "call [r15 + {code}]",
        "mov [r15 + {gpr} + 0], eax",
        "mov [r15 + {gpr} + 4], ecx",
        "mov [r15 + {gpr} + 8], edx",
        "mov [r15 + {gpr} + 12], ebx",
        "mov [r15 + {gpr} + 16], r9d",
        "mov [r15 + {gpr} + 20], ebp",
        "mov [r15 + {gpr} + 24], esi",
        "mov [r15 + {gpr} + 28], edi",
        "pushfq",
        "pop qword ptr [r15 + {flags}]",
        "mov eax, [r15 + {mask}]",
        "xor edx, edx",
        "xsave [r15 + {area}]",
        // The psABI's state at a call: x87 empty, MXCSR and control word as they were, upper halves clean.
        "fninit",
        "fldcw [r15 + {host_fcw}]",
        "ldmxcsr [r15 + {host_mxcsr}]",
        "test byte ptr [r15 + {mask}], 4",
        "jz 2f",
        "vzeroupper",
        "2:",
        "pop r15",
        "pop rbp",
        "pop rbx",
        "ret",
        area = const offset_of!(Frame, area),
        operand = const offset_of!(Frame, operand),
        gpr = const offset_of!(Frame, gpr),
        flags = const offset_of!(Frame, flags),
        code = const offset_of!(Frame, code),
        mask = const offset_of!(Frame, mask),
        host_mxcsr = const offset_of!(Frame, host_mxcsr),
        host_fcw = const offset_of!(Frame, host_fcw),
    )
}

/// A stub, by its place. Valid until [`StubMemory::clear`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

/// Executable memory for stubs.
pub struct StubMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    used: usize,
}

// SAFETY: both mappings belong to this value alone, and no reference into them is ever formed.
unsafe impl Send for StubMemory {}

impl StubMemory {
    /// Maps room for [`SLOTS`] stubs. The error says which step failed.
    pub fn new() -> Result<Self, String> {
        let options = MemfdOptions::default().close_on_exec(true).allow_sealing(true);
        let file = options.create("simd-stubs").map_err(|e| format!("creating the stub memfd: {e}"))?;
        file.as_file().set_len(BYTES as u64).map_err(|e| format!("sizing the stub memfd: {e}"))?;
        let seals = [FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealSeal];
        file.add_seals(&seals).map_err(|e| format!("sealing the stub memfd: {e}"))?;
        let length = const { NonZeroUsize::new(BYTES).unwrap() };
        let map = |prot| {
            // SAFETY: a fresh shared mapping at an address the kernel chooses; nothing else is replaced.
            unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, file.as_file(), 0) }
                .map_err(|e| format!("mapping the stub memfd with {prot:?}: {e}"))
        };
        let writable = map(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let executable = map(ProtFlags::PROT_READ | ProtFlags::PROT_EXEC).inspect_err(|_| {
            // SAFETY: the mapping was just made and nothing uses it.
            let _ = unsafe { munmap(writable, BYTES) };
        })?;
        // SAFETY: the whole mapping is ours and writable.
        unsafe { std::ptr::write_bytes(writable.cast::<u8>().as_ptr(), FILL, BYTES) };
        Ok(Self { writable: writable.cast(), executable: executable.cast(), used: 0 })
    }

    /// Adds a stub that runs `instruction`. None when the memory is full, or the instruction longer than fifteen bytes.
    pub fn add(&mut self, instruction: &[u8]) -> Option<Slot> {
        if self.used == SLOTS || instruction.len() > MAX_INSTRUCTION {
            return None;
        }
        let mut bytes = [FILL; SLOT];
        bytes[..instruction.len()].copy_from_slice(instruction);
        bytes[instruction.len()] = RET;
        let slot = Slot(self.used);
        self.used += 1;
        // SAFETY: slot < SLOTS, so the copy stays inside the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.writable.as_ptr().add(slot.0 * SLOT), SLOT) };
        Some(slot)
    }

    /// Forgets every stub.
    pub fn clear(&mut self) {
        self.used = 0;
        // Slots that may already have run are about to be rewritten through the other mapping: serialise (SDM vol. 3,
        // §9.1.3). CPUID is the instruction that every processor has for it.
        let _ = std::arch::x86_64::__cpuid(0);
    }

    /// Runs `slot` on `frame`.
    pub fn run(&self, slot: Slot, frame: &mut Frame) {
        assert!(slot.0 < self.used, "a stub outlived its memory");
        frame.code = self.executable.as_ptr() as u64 + (slot.0 * SLOT) as u64;
        // SAFETY: the slot was made by `add` and not cleared; the mask comes from the host's XCR0; the frame is
        // exclusively ours.
        unsafe { enter(frame) };
    }
}

impl Drop for StubMemory {
    fn drop(&mut self) {
        for at in [self.writable, self.executable] {
            // SAFETY: both mappings are ours and nothing borrows them.
            let _ = unsafe { munmap(at.cast(), BYTES) };
        }
    }
}
