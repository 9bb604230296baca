//! The interpreter under test, set up to see exactly what the oracle's child sees.

use std::sync::Arc;

use vmm::cpu::{CpuState, EmptyBus, Lines, Segment, Stop, Vcpu, XsaveArea, attr, cr0, cr4, seg, vector};
use vmm::engine::interp::Interpreter;
use vmm::mmu::GuestRam;

use crate::generate::Generated;
use crate::oracle::Outcome;
use crate::oracle::layout::*;

/// Physical addresses: page directory, two page tables, the code page, the data pages.
const DIRECTORY: u64 = 0x2000;
const CODE_TABLE: u64 = 0x3000;
const DATA_TABLE: u64 = 0x4000;
const CODE_FRAME: u64 = 0x1_0000;
const DATA_FRAME: u64 = 0x1_1000;

const PRESENT_USER: u64 = 5;
const WRITABLE: u64 = 2;
const NO_EXECUTE: u64 = 1 << 63;
/// EFER.NXE.
const NXE: u32 = 1 << 11;
const INT3: u8 = 0xcc;
/// The error of a case that runs for ever.
pub(super) const ENDLESS: &str = "did not end";
/// Steps after which a case has not ended: repeated strings are the longest.
const MAX_STEPS: usize = 10_000;

/// A processor in the state of a 32-bit Linux program, and what executes its instructions.
pub struct Subject {
    vcpu: Vcpu,
    start: CpuState,
    interpreter: Interpreter,
}

impl Default for Subject {
    fn default() -> Self {
        Self::new()
    }
}

impl Subject {
    /// A processor with its page tables; data pages are zero.
    pub fn new() -> Self {
        let ram = Arc::new(GuestRam::new(1 << 20).expect("1 MiB of RAM"));
        let put = |at: u64, entry: u64| assert!(ram.write(at, &entry.to_le_bytes()), "page tables lie in RAM");
        put(DIRECTORY + 8 * (CODE as u64 >> 21 & 0x1ff), CODE_TABLE | PRESENT_USER | WRITABLE);
        put(DIRECTORY + 8 * (DATA as u64 >> 21 & 0x1ff), DATA_TABLE | PRESENT_USER | WRITABLE);
        put(CODE_TABLE, CODE_FRAME | PRESENT_USER);
        for page in 0..DATA_PAGES as u64 {
            put(DATA_TABLE + 8 * page, (DATA_FRAME + (page << 12)) | PRESENT_USER | WRITABLE | NO_EXECUTE);
        }
        let page = DATA_PAGES as u64;
        put(DATA_TABLE + 8 * page, (DATA_FRAME + (page << 12)) | PRESENT_USER | NO_EXECUTE);
        let mut vcpu = Vcpu::new(0, ram, Arc::new(EmptyBus), Arc::new(Lines::default()));
        set_program_state(&mut vcpu.state);
        let start = vcpu.state.clone();
        Self { vcpu, start, interpreter: Interpreter::new() }
    }

    /// Sets what the read-only page holds.
    pub fn set_read_only(&mut self, page: &[u8]) {
        assert!(self.vcpu.mmu.ram.write(DATA_FRAME + ((DATA_PAGES as u64) << 12), page));
    }

    /// Runs a case to its end. The error is one of the interpreter: it stopped, or did not end.
    pub fn run(&mut self, image: &[u8], generated: &Generated) -> Result<Outcome, String> {
        let case = &generated.case;
        let ram = &self.vcpu.mmu.ram;
        assert!(ram.write(DATA_FRAME, image));
        let mut page = [INT3; PAGE as usize];
        page[(case.start - CODE) as usize..][..case.code.len()].copy_from_slice(&case.code);
        assert!(ram.write(CODE_FRAME, &page));
        let state = &mut self.vcpu.state;
        state.clone_from(&self.start);
        state.gpr = case.gpr;
        state.eip = case.start;
        state.eflags = case.eflags;
        state.xsave = XsaveArea(case.xsave.as_slice().try_into().expect("a whole area"));
        self.vcpu.mmu.pending_debug = 0;
        for _ in 0..MAX_STEPS {
            let at = self.vcpu.state.eip.wrapping_sub(CODE) as usize;
            if page.get(at) == Some(&INT3) {
                self.vcpu.state.eip = self.vcpu.state.eip.wrapping_add(1);
                return Ok(self.outcome(vector::BP, 0, 0));
            }
            match self.interpreter.attempt(&mut self.vcpu) {
                Ok(()) if self.vcpu.mmu.pending_debug != 0 => return Ok(self.outcome(vector::DB, 0, 0)),
                Ok(()) => {}
                Err(Stop::Exception(e)) => {
                    let cr2 = if e.vector == vector::PF { e.payload } else { 0 };
                    return Ok(self.outcome(e.vector, e.error, cr2));
                }
                Err(other) => return Err(format!("{other:?}")),
            }
        }
        Err(ENDLESS.into())
    }

    fn outcome(&mut self, vector: u8, error: u16, cr2: u32) -> Outcome {
        self.vcpu.mmu.take_flushes();
        self.vcpu.mmu.take_code_writes();
        let mut memory = vec![0; DATA_BYTES];
        assert!(self.vcpu.mmu.ram.read(DATA_FRAME, &mut memory));
        let s = &self.vcpu.state;
        Outcome {
            gpr: s.gpr,
            eip: s.eip,
            eflags: s.eflags,
            vector: vector.into(),
            error: error.into(),
            cr2,
            xsave: s.xsave.0.to_vec(),
            memory,
        }
    }
}

/// Ring 3, flat segments with Linux's selectors, PAE with NX, everything enabled that a 64-bit kernel enables.
fn set_program_state(s: &mut CpuState) {
    let flat = |selector, kind| Segment {
        base: 0,
        limit: u32::MAX,
        attr: attr::P | attr::S | attr::DB | attr::G | attr::ACCESSED | attr::RW | 3 << attr::DPL_SHIFT | kind,
        selector,
        pad: 0,
    };
    s.seg = [flat(0x2b, 0); 6];
    s.seg[seg::CS] = flat(0x23, attr::CODE);
    s.seg[seg::FS] = Segment::null(0);
    s.seg[seg::GS] = Segment::null(0);
    // Too short for an I/O permission map: no port is allowed.
    s.tr.limit = 0x50;
    s.cpl = 3;
    s.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::MP | cr0::ET | cr0::AM;
    s.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::DE | cr4::PGE | cr4::UMIP;
    s.xcr0 = 7;
    s.msr.efer = NXE;
    s.cr3 = 0x1000;
    s.pdpte[(CODE >> 30) as usize] = DIRECTORY | 1;
}
