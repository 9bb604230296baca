//! Where engines are compared with each other: small boards that differ in privilege, paging and page rights, the same
//! for both engines to the byte.
//!
//! Every vector has a handler that halts, so that a case ends with its fault delivered: the frame on the stack, the
//! handler's address in EIP. #DF is a task gate, because a case at ring 0 may well have broken its stack.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rand::Rng;
use rand::rngs::SmallRng;
use vmm::cpu::{Bus, CpuState, Lines, Segment, TableRegister, Vcpu, attr, cr0, cr4, eflags, seg, vector};
use vmm::mmu::GuestRam;

use super::tables::Tables;
use crate::oracle::layout::{CODE, DATA, PAGE, READ_ONLY};

/// Added to addresses below the kernel split to reach the same memory above it.
pub const HIGH: u32 = 0x8000_0000;
/// Linear address of physical 0 while paging is on.
const SYSTEM: u32 = 0xe000_0000;
/// GDT, TSS and IDT.
const GDT: u32 = 0x1000;
const TSS: u32 = 0x1100;
const FAULT_TSS: u32 = 0x1200;
const IDT: u32 = 0x1800;
/// 16 bytes for each vector.
const HANDLERS: u32 = 0x2000;
const STACK_TOP: u32 = 0x4000;
const FAULT_STACK_TOP: u32 = 0x5000;
pub(super) const TABLES: u64 = 0x8000;
const TABLE_PAGES: u64 = 13;
const FLAT_RAM: u64 = (READ_ONLY + PAGE) as u64;
const PAGED_RAM: u64 = 1 << 20;

pub(super) const PRESENT: u64 = 1;
pub(super) const WRITABLE: u64 = 2;
pub(super) const USER: u64 = 4;
const GLOBAL: u64 = 0x100;
const NO_EXECUTE: u64 = 1 << 63;
/// EFER.NXE.
const NXE: u32 = 1 << 11;

/// Vector of the interrupt that the board raises.
pub const INTERRUPT: u8 = 0x40;

/// What kind of program a case is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Ring 0, paging off.
    Flat,
    /// Ring 3, below the kernel split.
    User,
    /// Ring 0 with code above the kernel split.
    Kernel,
    /// Ring 0 with code below the kernel split.
    LowKernel,
}

/// Everything that one pair of boards has in common.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Privilege and paging.
    pub place: Place,
    /// PAE page tables.
    pub pae: bool,
    /// CR0.WP.
    pub protect: bool,
    /// CR0.AM: alignment is checked at ring 3 if EFLAGS.AC says so.
    pub alignment: bool,
    /// IOPL 3.
    pub io: bool,
    /// The handler of [`INTERRUPT`] returns at once, rather than halt.
    pub returns: bool,
    /// Bases of FS and GS.
    pub bases: [u32; 2],
    /// What page tables say at the moment.
    pub rights: PageRights,
}

/// Page rights that change while a board is in use.
#[derive(Clone, Copy, Debug)]
pub struct PageRights {
    /// Code can be stored to.
    pub code_writable: bool,
    /// The page after the first of code is there.
    pub second: bool,
    /// The first and the last page of the address space are there.
    pub ends: bool,
    /// Supervisor data pages are user pages.
    pub user_data: bool,
    /// Entries are global.
    pub global: bool,
    /// The two code pages are exchanged.
    pub swapped: bool,
}

impl PageRights {
    /// Random rights.
    pub fn random(rng: &mut SmallRng) -> Self {
        Self {
            code_writable: rng.random_ratio(1, 2),
            second: rng.random_ratio(3, 4),
            ends: rng.random_ratio(1, 2),
            user_data: rng.random_ratio(1, 2),
            global: rng.random_ratio(1, 2),
            swapped: rng.random_ratio(1, 4),
        }
    }
}

impl Setting {
    /// A random setting of one kind.
    pub fn random(rng: &mut SmallRng, place: Place) -> Self {
        let base = |rng: &mut SmallRng| [0, 0x40, 0x1230, 0xffff_f000, HIGH][rng.random_range(0..5)];
        Self {
            place,
            pae: rng.random_ratio(1, 2),
            protect: rng.random_ratio(3, 4),
            alignment: rng.random_ratio(1, 10),
            io: rng.random_ratio(1, 4),
            returns: false,
            bases: [base(rng), base(rng)],
            rights: PageRights::random(rng),
        }
    }

    fn paging(&self) -> bool {
        self.place != Place::Flat
    }
    /// Where code is.
    pub fn code(&self) -> u32 {
        if self.place == Place::Kernel { CODE + HIGH } else { CODE }
    }
    /// Physical addresses of the code pages.
    pub fn code_frames(&self) -> [u64; 2] {
        if self.paging() { [0x2_0000, 0x2_2000] } else { [CODE as u64, (CODE + PAGE) as u64] }
    }
    /// Physical addresses of data pages: two at [`DATA`], the one after, the ends of the address space, and three above the
    /// kernel split. Those are pages of their own: what a repeated string instruction does to operands that overlap by
    /// two names is up to the host.
    pub fn data_frames(&self) -> Vec<u64> {
        match self.paging() {
            true => vec![0x3_0000, 0x3_4000, 0x3_1000, 0x3_6000, 0x3_7000, 0x3_9000, 0x3_8000, 0x3_b000],
            false => vec![DATA as u64, (DATA + PAGE) as u64, READ_ONLY as u64, 0],
        }
    }
    /// Physical ranges that are never the same by chance: descriptor tables, handlers, stacks; then page tables.
    pub fn system(&self) -> [(u64, usize); 2] {
        [(GDT as u64, 0x4000), (TABLES, (TABLE_PAGES * PAGE as u64) as usize)]
    }
    /// Physical address of the page where interrupted user code leaves its frames.
    pub fn stack_page(&self) -> u64 {
        (STACK_TOP - PAGE) as u64
    }
    /// Physical address of the flags in the task that #DF leaves.
    pub fn saved_flags(&self) -> u64 {
        TSS as u64 + 36
    }
    fn linear(&self, physical: u32) -> u32 {
        if self.paging() { SYSTEM + physical } else { physical }
    }
    fn supervisor(&self) -> bool {
        self.place != Place::User
    }

    fn pdpte(&self) -> [u64; 4] {
        std::array::from_fn(|i| (TABLES + PAGE as u64 * (i as u64 + 1)) | PRESENT)
    }

    /// The vector whose handler is at `eip`.
    pub fn vector(&self, eip: u32) -> Option<u8> {
        let offset = eip.wrapping_sub(self.linear(HANDLERS));
        (offset < PAGE).then_some((offset >> 4) as u8)
    }

    /// Processor state at the start of every case.
    pub fn state(&self) -> CpuState {
        let mut s = CpuState::default();
        let dpl = if self.supervisor() { 0 } else { 3 };
        let flat = |selector: u16, base, kind| Segment {
            base,
            limit: u32::MAX,
            attr: attr::P | attr::S | attr::DB | attr::G | attr::ACCESSED | attr::RW | dpl << attr::DPL_SHIFT | kind,
            selector: selector | dpl as u16,
            pad: 0,
        };
        let (code, data) = if self.supervisor() { (0x08, 0x10) } else { (0x18, 0x20) };
        s.seg = [flat(data, 0, 0); 6];
        s.seg[seg::CS] = flat(code, 0, attr::CODE);
        s.seg[seg::FS] = flat(0x38, self.bases[0], 3 << attr::DPL_SHIFT);
        s.seg[seg::GS] = flat(0x40, self.bases[1], 3 << attr::DPL_SHIFT);
        s.tr = Segment { base: self.linear(TSS), limit: 0x67, attr: attr::P | 11, selector: 0x28, pad: 0 };
        s.ldtr = Segment::null(0);
        s.gdtr = TableRegister { base: self.linear(GDT), limit: 0x47 };
        s.idtr = TableRegister { base: self.linear(IDT), limit: 0x7ff };
        s.cpl = dpl as u8;
        s.cr0 = cr0::PE | cr0::NE | cr0::MP | cr0::ET;
        s.cr0 |= if self.alignment { cr0::AM } else { 0 } | if self.protect { cr0::WP } else { 0 };
        s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::DE | cr4::PGE;
        s.xcr0 = 7;
        s.eflags = eflags::FIXED | if self.io { eflags::IOPL } else { 0 };
        if self.paging() {
            s.cr0 |= cr0::PG;
            s.cr3 = TABLES as u32;
        }
        if self.paging() && self.pae {
            s.cr4 |= cr4::PAE;
            s.msr.efer = NXE;
            s.pdpte = self.pdpte();
        }
        s
    }

    /// The contents of [`Self::system`]: descriptor tables and handlers, and page tables.
    pub fn images(&self) -> [Vec<u8>; 2] {
        let mut low = vec![0; 0x4000];
        self.descriptors(&mut low);
        let mut tables = Tables { pae: self.pae, bytes: vec![0; (TABLE_PAGES * PAGE as u64) as usize], next: 5 };
        match self.pae {
            true => (0..4).for_each(|i| tables.set(8 * i, self.pdpte()[i])),
            false => tables.next = 1,
        }
        if self.paging() {
            for (linear, physical, flags) in self.mappings() {
                tables.map(linear, physical, flags);
            }
        }
        [low, tables.bytes]
    }

    fn descriptors(&self, low: &mut [u8]) {
        let mut put = |at: u32, value: u64, n: usize| {
            low[(at - GDT) as usize..][..n].copy_from_slice(&value.to_le_bytes()[..n]);
        };
        let segment = |base: u32, limit: u64, access: u64, flags: u64| {
            let base = base as u64;
            limit & 0xffff
                | (base & 0xff_ffff) << 16
                | access << 40
                | (limit >> 16 & 15) << 48
                | flags << 52
                | (base >> 24) << 56
        };
        let entries = [
            0,
            segment(0, 0xf_ffff, 0x9b, 0xc),
            segment(0, 0xf_ffff, 0x93, 0xc),
            segment(0, 0xf_ffff, 0xfb, 0xc),
            segment(0, 0xf_ffff, 0xf3, 0xc),
            segment(self.linear(TSS), 0x67, 0x8b, 0),
            segment(self.linear(FAULT_TSS), 0x67, 0x89, 0),
            segment(self.bases[0], 0xf_ffff, 0xf3, 0xc),
            segment(self.bases[1], 0xf_ffff, 0xf3, 0xc),
        ];
        for (i, e) in entries.into_iter().enumerate() {
            put(GDT + 8 * i as u32, e, 8);
        }
        put(TSS + 4, self.linear(STACK_TOP) as u64, 4);
        put(TSS + 8, 0x10, 4);
        // No I/O permission map.
        put(TSS + 0x66, 0x68, 2);
        let handler = |v: u32| self.linear(HANDLERS + 16 * v) as u64;
        let cr3 = if self.paging() { TABLES } else { 0 };
        for (at, value) in [(28, cr3), (32, handler(8)), (36, 2), (56, self.linear(FAULT_STACK_TOP) as u64)] {
            put(FAULT_TSS + at, value, 4);
        }
        for at in [72, 80, 84, 88, 92] {
            put(FAULT_TSS + at, 0x10, 4);
        }
        put(FAULT_TSS + 76, 0x08, 4);
        put(FAULT_TSS + 0x66, 0x68, 2);
        for v in 0..256u32 {
            let user = matches!(v as u8, vector::BP | vector::OF);
            let gate = match v as u8 {
                vector::DF => 0x30 << 16 | 0x85 << 40,
                _ => handler(v) & 0xffff | 0x08 << 16 | if user { 0xee } else { 0x8e } << 40 | handler(v) >> 16 << 48,
            };
            put(IDT + 8 * v, gate, 8);
            let iret = self.returns && v as u8 == INTERRUPT;
            put(HANDLERS + 16 * v, if iret { 0xcf } else { 0xf4 }, 1);
        }
    }

    /// Linear page, physical page, entry bits.
    fn mappings(&self) -> Vec<(u32, u64, u64)> {
        let r = &self.rights;
        let mut all = Vec::new();
        let [mut first, mut second] = self.code_frames();
        if r.swapped {
            std::mem::swap(&mut first, &mut second);
        }
        let data = self.data_frames();
        let who = if self.supervisor() { 0 } else { USER };
        let data_bits = who | if r.user_data { USER } else { 0 } | NO_EXECUTE | PRESENT;
        let code_bits = who | PRESENT | if r.code_writable { WRITABLE } else { 0 };
        let global = if r.global { GLOBAL } else { 0 };
        all.push((self.code(), first, code_bits | global));
        if r.second {
            all.push((self.code() + PAGE, second, code_bits | global));
        }
        if self.supervisor() {
            // The same code by another name.
            all.push((self.code() ^ HIGH, first, code_bits | WRITABLE));
        }
        let halves = if self.supervisor() { &[(0, 0), (HIGH, 5)][..] } else { &[(0, 0)][..] };
        for (half, i) in halves {
            all.push((DATA + half, data[*i], data_bits | WRITABLE | global));
            all.push((DATA + PAGE + half, data[i + 1], data_bits | WRITABLE));
            all.push((READ_ONLY + half, data[i + 2], data_bits));
        }
        if r.ends {
            all.push((0, data[3], data_bits | WRITABLE));
            all.push((0u32.wrapping_sub(PAGE), data[4], data_bits | WRITABLE));
        }
        for page in 1..5 {
            let at = page * PAGE;
            all.push((SYSTEM + at, at as u64, PRESENT | WRITABLE | global));
        }
        all
    }
}

/// Ports and memory without devices, and at most one interrupt.
#[derive(Default)]
pub struct Wires {
    /// How many interrupts wait.
    pub pending: AtomicU8,
    /// The processor's lines.
    pub lines: Arc<Lines>,
}

impl Bus for Wires {
    fn port_read(&self, _: usize, port: u16, _: u8) -> u32 {
        (port as u32).wrapping_mul(0x9e37_79b9)
    }
    fn port_write(&self, _: usize, _: u16, _: u8, _: u32) {}
    fn mmio_read(&self, _: usize, address: u64, _: u8) -> u64 {
        address.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn acknowledge(&self, _: usize) -> Option<u8> {
        self.lines.set_intr(false);
        (self.pending.swap(0, Ordering::Relaxed) != 0).then_some(INTERRUPT)
    }
    fn apic_msr_read(&self, _: usize, _: u32) -> Option<u64> {
        None
    }
    fn apic_msr_write(&self, _: usize, _: u32, _: u64) -> bool {
        false
    }
}

/// A processor on a board of its own.
pub struct Board {
    /// The processor.
    pub vcpu: Vcpu,
    /// What it is wired to.
    pub wires: Arc<Wires>,
}

impl Board {
    /// A board with empty RAM.
    pub fn new(setting: &Setting) -> Self {
        let size = if setting.paging() { PAGED_RAM } else { FLAT_RAM };
        let ram = Arc::new(GuestRam::new(size).expect("RAM for a board"));
        let lines = Arc::new(Lines::default());
        let wires = Arc::new(Wires { pending: AtomicU8::new(0), lines: lines.clone() });
        Self { vcpu: Vcpu::new(0, ram, wires.clone(), lines), wires }
    }

    /// True if RAM at `at` was something else than `bytes`, which it is now.
    pub fn put(&self, at: u64, bytes: &[u8]) -> bool {
        let ram = &self.vcpu.mmu.ram;
        if ram.equals(at, bytes) {
            return false;
        }
        assert!(ram.write(at, bytes), "a board's RAM has {at:#x}");
        true
    }
}
