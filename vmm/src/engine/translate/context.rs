//! What emitted code reaches through r15: saved registers, where to leave to, and constants of the current mode.

use super::gate::Gates;
use crate::cpu::Segment;

/// Registers that emitted code gives a fixed meaning (iced and hardware numbering).
///
/// EAX, ECX, EDX, EBX, EBP, ESI and EDI live in the host registers of the same number with their upper halves zero;
/// r14 holds the host address, in the window that GS base points at, of the guest's ESP: see [`NEAR`]. r8 to r11 are
/// scratch within one guest instruction. RSP is the host's stack.
pub mod host {
    /// Holds the address of the window that GS base points at.
    pub const WINDOW: u8 = 12;
    /// Holds the address of the [`super::super::tripwire`]. Its low five bits are 30: as a count it is the shift from a
    /// linear address to its quarter of the address space. Its low half is [`super::INDEX_MASK`], for `pext`.
    pub const TRIPWIRE: u8 = 13;
    /// Guest ESP, as a host address; the low half is ESP itself, since windows are aligned to 4 GiB.
    pub const ESP: u8 = 14;
    /// Points at the [`super::Context`].
    pub const CONTEXT: u8 = 15;
}

/// How far r14 may be moved without being made from ESP anew, if it was used for an access this near since it was last
/// moved: what faults outside the window keeps it near the window, and what lies within 2 GiB of a window is no other.
pub const NEAR: i32 = 1 << 17;

/// Bits of a guest EIP that index the indirect-branch table: the low half of the tripwire's address.
pub const INDEX_MASK: u64 = 0x7ffe;
/// Entries of an indirect-branch table.
pub const INDEX_ENTRIES: usize = 1 << INDEX_MASK.count_ones();

/// Index into the indirect-branch table for `eip`: what `pext` makes of it.
pub const fn index(eip: u32) -> usize {
    (eip as u64 & INDEX_MASK) as usize >> INDEX_MASK.trailing_zeros()
}

/// Value of `Context::site` when emitted code was left because of a host fault.
pub const SITE_FAULT: u32 = u32::MAX;
/// Value of `Context::site` when an indirect branch missed: the target is in `Context::branch`.
pub const SITE_INDIRECT: u32 = u32::MAX - 1;
/// Value of `Context::site` when a signal asked for attention and execution stands at an instruction boundary.
pub const SITE_KICKED: u32 = u32::MAX - 2;
/// Value of `Context::site` when entering was abandoned because of a pending kick.
pub const SITE_ABANDONED: u32 = u32::MAX - 3;
/// Value of `Context::site` when a block or the code after a call was come to for another EIP: it is in
/// `Context::branch`, and `Context::fault_rip` is where.
pub const SITE_TRIPPED: u32 = u32::MAX - 4;

/// The part of a processor that emitted code works on. Its layout is known to the emitter: fields are reached by
/// `offset_of!`, the hot ones within a signed byte of the start.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Context {
    /// EAX to EDI while outside emitted code.
    pub gpr: [u32; 8],
    /// Guest CF, PF, AF, ZF, SF, OF and DF, with the host's other flags.
    pub flags: u64,
    /// Guest EFLAGS.IF, in place.
    pub interrupts: u32,
    /// Guest EFLAGS but for IF and what is in `flags`; emitted code does not change it.
    pub system_flags: u32,
    /// 1 if something may want the processor's attention: looked at where IF may have become set.
    pub pending: u64,
    /// Host stack pointer to return on.
    pub host_rsp: u64,
    /// Host address that `enter` jumps to.
    pub target: u64,
    /// Host address that `resume_fp` goes on at.
    pub resume: u64,
    /// The current indirect-branch table.
    pub branches: u64,
    /// Index of the exit site that was left through, or a `SITE_*` value.
    pub site: u32,
    /// A signal asked for attention; `enter` returns at once while set.
    pub kicked: u32,
    /// 1 while guest x87/SSE/AVX state is *not* in host registers (inverted for `jrcxz`).
    pub fp_absent: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// Current privilege level. The next field lies in the same eight bytes.
    pub cpl: u32,
    /// Not 0: a gate changed `branches`, and perhaps windows, since emitted code was entered.
    pub moved: u32,
    /// Guest TSC minus host TSC.
    pub tsc_offset: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u32,
    /// Guest EIP of a missed indirect branch.
    pub branch: u32,
    /// Guest EIP of an instruction for which Rust code is to map a page when IRET goes back to it, or 0.
    pub awaited: u32,
    /// CR0, CR2, CR3 and CR4 at their numbers; emitted code does not change them.
    pub control: [u32; 5],
    /// Host address of the window to use for each quarter of the address space.
    pub quarters: [u64; 4],
    /// Host address of the window that GS-relative accesses use; `enter` loads GS base from it.
    pub window: u64,
    /// Top of the return stack; see `returns`.
    pub return_stack: u64,
    /// Address of the tripwire.
    pub tripwire: u64,
    /// Address of `CpuState::xsave`.
    pub xsave: u64,
    /// MXCSR that Rust code expects.
    pub host_mxcsr: u32,
    /// Trap number of the fault that left emitted code.
    pub fault_trap: u32,
    /// Host instruction pointer of that fault.
    pub fault_rip: u64,
    /// CR2 of that fault if it was a page fault, else 0.
    pub fault_address: u64,
    /// Hardware error code of that fault.
    pub fault_error: u64,
    /// Where the last step towards a boundary began.
    pub stepped: u64,
    /// Base of the segment of the last x87 memory operand, where that segment has one.
    pub x87_base: u32,
    /// Address of the gates from ring to ring of the current address space: see `gate::crossing`.
    pub crossings: u64,
    /// Outcomes of instructions that change segments or privilege.
    pub gates: Gates,
}

impl Context {
    /// A context outside emitted code.
    pub fn new() -> Self {
        Self { fp_absent: 1, host_mxcsr: 0x1f80, ..Self::default() }
    }
}
