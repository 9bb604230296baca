//! Architectural state of one processor. Plain data with a fixed layout: emitted code reaches it by offset.

/// Bits of EFLAGS (SDM vol. 1, §3.4.3).
pub mod eflags {
    #![allow(missing_docs)]
    pub const CF: u32 = 1 << 0;
    /// Always one.
    pub const FIXED: u32 = 1 << 1;
    pub const PF: u32 = 1 << 2;
    pub const AF: u32 = 1 << 4;
    pub const ZF: u32 = 1 << 6;
    pub const SF: u32 = 1 << 7;
    pub const TF: u32 = 1 << 8;
    pub const IF: u32 = 1 << 9;
    pub const DF: u32 = 1 << 10;
    pub const OF: u32 = 1 << 11;
    pub const IOPL: u32 = 3 << 12;
    pub const NT: u32 = 1 << 14;
    pub const RF: u32 = 1 << 16;
    pub const VM: u32 = 1 << 17;
    pub const AC: u32 = 1 << 18;
    pub const VIF: u32 = 1 << 19;
    pub const VIP: u32 = 1 << 20;
    pub const ID: u32 = 1 << 21;
    /// The six flags that arithmetic instructions write.
    pub const ARITH: u32 = CF | PF | AF | ZF | SF | OF;
    /// Every bit that exists; all others read as zero but for FIXED.
    pub const ALL: u32 = ARITH | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

/// Bits of CR0 (SDM vol. 3, §2.5).
pub mod cr0 {
    #![allow(missing_docs)]
    pub const PE: u32 = 1 << 0;
    pub const MP: u32 = 1 << 1;
    pub const EM: u32 = 1 << 2;
    pub const TS: u32 = 1 << 3;
    pub const ET: u32 = 1 << 4;
    pub const NE: u32 = 1 << 5;
    pub const WP: u32 = 1 << 16;
    pub const AM: u32 = 1 << 18;
    pub const NW: u32 = 1 << 29;
    pub const CD: u32 = 1 << 30;
    pub const PG: u32 = 1 << 31;
}

/// Bits of CR4 (SDM vol. 3, §2.5).
pub mod cr4 {
    #![allow(missing_docs)]
    pub const VME: u32 = 1 << 0;
    pub const PVI: u32 = 1 << 1;
    pub const TSD: u32 = 1 << 2;
    pub const DE: u32 = 1 << 3;
    pub const PSE: u32 = 1 << 4;
    pub const PAE: u32 = 1 << 5;
    pub const MCE: u32 = 1 << 6;
    pub const PGE: u32 = 1 << 7;
    pub const PCE: u32 = 1 << 8;
    pub const OSFXSR: u32 = 1 << 9;
    pub const OSXMMEXCPT: u32 = 1 << 10;
    pub const UMIP: u32 = 1 << 11;
    pub const OSXSAVE: u32 = 1 << 18;
    pub const SMEP: u32 = 1 << 20;
    pub const SMAP: u32 = 1 << 21;
}

/// Indices of `CpuState::gpr`: the encoding of the ModRM field.
pub mod reg {
    #![allow(missing_docs)]
    pub const EAX: usize = 0;
    pub const ECX: usize = 1;
    pub const EDX: usize = 2;
    pub const EBX: usize = 3;
    pub const ESP: usize = 4;
    pub const EBP: usize = 5;
    pub const ESI: usize = 6;
    pub const EDI: usize = 7;
}

/// Indices of `CpuState::seg`: the encoding of the segment field (SDM vol. 2, table B-8).
pub mod seg {
    #![allow(missing_docs)]
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// Bits of `Segment::attr`: bits 8 to 23 of a descriptor's upper word, moved to bit 0 (the format of VMX access rights,
/// SDM vol. 3, table 24-2).
pub mod attr {
    #![allow(missing_docs)]
    /// Type, with `S`: bit 0 accessed, bit 1 writable/readable, bit 2 expand-down/conforming, bit 3 code.
    pub const TYPE: u32 = 0xf;
    pub const ACCESSED: u32 = 1 << 0;
    /// Data: writable. Code: readable.
    pub const RW: u32 = 1 << 1;
    /// Data: expand-down. Code: conforming.
    pub const EC: u32 = 1 << 2;
    pub const CODE: u32 = 1 << 3;
    /// Code or data, rather than system.
    pub const S: u32 = 1 << 4;
    pub const DPL_SHIFT: u32 = 5;
    pub const DPL: u32 = 3 << 5;
    pub const P: u32 = 1 << 7;
    pub const AVL: u32 = 1 << 12;
    pub const L: u32 = 1 << 13;
    /// Default operand size 32 (D), or big stack (B).
    pub const DB: u32 = 1 << 14;
    pub const G: u32 = 1 << 15;
    /// Holds a null selector: any access through it is #GP(0) (#SS for SS).
    pub const UNUSABLE: u32 = 1 << 16;
}

/// A segment register with its hidden part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Linear base address.
    pub base: u32,
    /// Highest valid offset, in bytes (granularity applied). For expand-down segments, the highest *invalid* offset.
    pub limit: u32,
    /// Access rights; see [`attr`].
    pub attr: u32,
    /// Visible selector.
    pub selector: u16,
    /// Zero, so that the selector can be read as 32 bits.
    pub pad: u16,
}

impl Segment {
    /// A real-mode segment: base is selector × 16, limit 64 KiB, read/write data, accessed, present.
    pub const fn real(selector: u16) -> Self {
        Self {
            base: (selector as u32) << 4,
            limit: 0xffff,
            attr: attr::P | attr::S | attr::RW | attr::ACCESSED,
            selector,
            pad: 0,
        }
    }
    /// A null selector's hidden part.
    pub const fn null(selector: u16) -> Self {
        Self { base: 0, limit: 0, attr: attr::UNUSABLE, selector, pad: 0 }
    }
    /// Descriptor privilege level.
    #[inline]
    pub const fn dpl(&self) -> u8 {
        ((self.attr & attr::DPL) >> attr::DPL_SHIFT) as u8
    }
    /// True unless the register holds a null selector.
    #[inline]
    pub const fn usable(&self) -> bool {
        self.attr & attr::UNUSABLE == 0
    }
    /// Default size bit (CS) or big bit (SS).
    #[inline]
    pub const fn big(&self) -> bool {
        self.attr & attr::DB != 0
    }
    /// Base 0, limit 4 GiB − 1, expand-up, present: accesses through it need no check.
    #[inline]
    pub const fn flat(&self) -> bool {
        self.base == 0
            && self.limit == u32::MAX
            && self.attr & (attr::UNUSABLE | attr::P) == attr::P
            && self.attr & (attr::CODE | attr::EC) != attr::EC
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u32,
    /// Limit in bytes, inclusive.
    pub limit: u32,
}

/// What holds off interrupts for one instruction (SDM vol. 3, §6.8.3).
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterruptShadow {
    /// Nothing.
    #[default]
    None,
    /// STI set IF: maskable interrupts wait.
    Sti,
    /// MOV SS or POP SS: interrupts, NMI and debug traps wait.
    MovSs,
}

/// Model-specific registers with plain storage. Those that live elsewhere (local APIC, TSC) are not here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Msrs {
    pub sysenter_cs: u32,
    pub sysenter_esp: u32,
    pub sysenter_eip: u32,
    pub efer: u32,
    pub pat: u64,
    pub misc_enable: u64,
    pub tsc_adjust: u64,
    pub tsc_aux: u32,
    pub spec_ctrl: u32,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
    pub mcg_status: u64,
    pub mc0: [u64; 4],
    pub debugctl: u64,
}

/// Size of the XSAVE area: legacy region, header, AVX upper halves (standard format; SDM vol. 1, §13.4).
pub const XSAVE_SIZE: usize = 512 + 64 + 256;

/// x87, MMX, SSE and AVX state in the standard XSAVE format. XSTATE_BV is always 7 here: every component is explicit.
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Eq)]
pub struct XsaveArea(pub [u8; XSAVE_SIZE]);

impl Default for XsaveArea {
    /// State after FNINIT with MXCSR at its reset value.
    fn default() -> Self {
        let mut area = [0; XSAVE_SIZE];
        area[0..2].copy_from_slice(&0x037fu16.to_le_bytes());
        area[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        area[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
        area[512..520].copy_from_slice(&7u64.to_le_bytes());
        Self(area)
    }
}

impl std::fmt::Debug for XsaveArea {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "XsaveArea(fcw {:02x}{:02x})", self.0[1], self.0[0])
    }
}

/// Everything a guest program can observe of its processor, but for the local APIC and the TSC's running value.
#[repr(C, align(64))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI: index with [`reg`].
    pub gpr: [u32; 8],
    /// Offset of the next instruction in CS.
    pub eip: u32,
    /// EFLAGS, complete at every instruction boundary.
    pub eflags: u32,
    /// ES, CS, SS, DS, FS, GS: index with [`seg`].
    pub seg: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// TR. A busy TSS has its busy bit set in `attr`.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: u32,
    /// CR2.
    pub cr2: u32,
    /// CR3.
    pub cr3: u32,
    /// CR4.
    pub cr4: u32,
    /// The PDPTE registers, loaded by MOV CR3 under PAE (SDM vol. 3, §4.4.1).
    pub pdpte: [u64; 4],
    /// DR0 to DR3.
    pub dr: [u32; 4],
    /// DR6.
    pub dr6: u32,
    /// DR7.
    pub dr7: u32,
    /// All ones, or with bit 20 clear while A20 is masked. Applied to physical addresses.
    pub a20_mask: u32,
    /// Current privilege level, 0 to 3. In real mode 0, in virtual-8086 mode 3.
    pub cpl: u8,
    /// What holds off interrupts at the next boundary.
    pub shadow: InterruptShadow,
    /// An NMI handler is running: NMIs wait for IRET.
    pub nmi_blocked: bool,
    /// HLT was executed and nothing has woken the processor.
    pub halted: bool,
    /// Extended control register 0: which state components XSAVE manages.
    pub xcr0: u64,
    /// Guest TSC minus host TSC, modulo 2^64.
    pub tsc_offset: u64,
    /// Model-specific registers.
    pub msr: Msrs,
    /// x87, MMX, SSE and AVX state.
    pub xsave: XsaveArea,
}

impl Default for CpuState {
    /// State after power-up (SDM vol. 3, table 9-1).
    fn default() -> Self {
        let code = Segment {
            base: 0xffff_0000,
            selector: 0xf000,
            attr: attr::P | attr::S | attr::CODE | attr::RW | attr::ACCESSED,
            ..Segment::real(0)
        };
        let mut segs = [Segment::real(0); 6];
        segs[seg::CS] = code;
        Self {
            gpr: [0, 0, 0x600, 0, 0, 0, 0, 0],
            eip: 0xfff0,
            eflags: eflags::FIXED,
            seg: segs,
            ldtr: Segment { attr: attr::P | 2, limit: 0xffff, ..Segment::real(0) },
            tr: Segment { attr: attr::P | 11, limit: 0xffff, ..Segment::real(0) },
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            pdpte: [0; 4],
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            a20_mask: u32::MAX,
            cpl: 0,
            shadow: InterruptShadow::None,
            nmi_blocked: false,
            halted: false,
            xcr0: 1,
            tsc_offset: 0,
            msr: Msrs { pat: 0x0007_0406_0007_0406, misc_enable: 1, ..Msrs::default() },
            xsave: XsaveArea::default(),
        }
    }
}

impl CpuState {
    /// CR0.PE: protected mode, which includes virtual-8086 mode.
    #[inline]
    pub const fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }
    /// Virtual-8086 mode.
    #[inline]
    pub const fn v8086(&self) -> bool {
        self.eflags & eflags::VM != 0
    }
    /// Real or virtual-8086 mode: segment loads multiply by sixteen.
    #[inline]
    pub const fn real_or_v8086(&self) -> bool {
        !self.protected() || self.v8086()
    }
    /// Paging is on.
    #[inline]
    pub const fn paging(&self) -> bool {
        self.cr0 & cr0::PG != 0
    }
    /// I/O privilege level.
    #[inline]
    pub const fn iopl(&self) -> u8 {
        ((self.eflags & eflags::IOPL) >> 12) as u8
    }
}
