//! Instructions one by one, against results worked out here from the manual's definitions.

mod faults;
mod moves;
mod x87;

use std::sync::Arc;

use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Decoder, DecoderOptions, IcedError};

use super::*;
use crate::cpu::{EmptyBus, Lines, Segment, attr, cr0, cr4, seg, vector};
use crate::mmu::GuestRam;

/// Where test data lies: paging is on, this page and the next are mapped, the one after is not.
pub const DATA: u32 = 0x8000;
/// First byte that is not mapped.
pub const HOLE: u32 = 0xa000;
const CODE: u32 = 0x1000;

/// A processor in flat 32-bit protected mode at CPL 0 with everything that SSE and AVX need enabled.
pub struct Bench {
    pub vcpu: Vcpu,
    unit: SimdUnit,
}

impl Bench {
    pub fn new() -> Self {
        let ram = Arc::new(GuestRam::new(1 << 20).unwrap());
        // One page table at 0x3000 identity-maps 0 to HOLE.
        assert!(ram.write(0x2000, &0x3007u32.to_le_bytes()));
        for page in 0..HOLE >> 12 {
            assert!(ram.write(0x3000 + 4 * page as u64, &(page << 12 | 7).to_le_bytes()));
        }
        let mut vcpu = Vcpu::new(0, ram, Arc::new(EmptyBus), Arc::new(Lines::default()));
        let flat = |kind| Segment {
            base: 0,
            limit: u32::MAX,
            attr: attr::P | attr::S | attr::DB | attr::G | attr::ACCESSED | attr::RW | kind,
            selector: 0x10,
            pad: 0,
        };
        let s = &mut vcpu.state;
        s.seg = [flat(0); 6];
        s.seg[seg::CS] = flat(attr::CODE);
        s.cr0 = cr0::PE | cr0::PG | cr0::NE | cr0::MP | cr0::ET;
        s.cr3 = 0x2000;
        s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        s.xcr0 = 7;
        Self { vcpu, unit: SimdUnit::new() }
    }

    /// Runs the one instruction that `build` assembles, as 32-bit code.
    pub fn run(&mut self, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Flow<()> {
        let mut a = CodeAssembler::new(32).unwrap();
        build(&mut a).unwrap();
        let bytes = a.assemble(CODE as u64).unwrap();
        self.run_bytes(&bytes)
    }

    /// Runs the one instruction encoded in `bytes`.
    pub fn run_bytes(&mut self, bytes: &[u8]) -> Flow<()> {
        let insn = Decoder::with_ip(32, bytes, CODE as u64, DecoderOptions::NONE).decode();
        assert!(is_simd(insn.code()), "{insn} ({:?}) is not ours", insn.code());
        assert_eq!(insn.len(), bytes.len());
        self.vcpu.state.eip = CODE + bytes.len() as u32;
        execute(&mut self.unit, &mut self.vcpu, &insn, bytes)
    }

    pub fn poke(&mut self, at: u32, bytes: &[u8]) {
        assert!(self.vcpu.mmu.ram.write(at as u64, bytes));
    }

    pub fn peek<const N: usize>(&self, at: u32) -> [u8; N] {
        let mut b = [0; N];
        assert!(self.vcpu.mmu.ram.read(at as u64, &mut b));
        b
    }

    pub fn set_xmm(&mut self, i: usize, v: u128) {
        let mut all = self.vcpu.state.xsave.ymm(i);
        all[..16].copy_from_slice(&v.to_le_bytes());
        self.vcpu.state.xsave.set_ymm(i, &all);
    }

    pub fn xmm(&self, i: usize) -> u128 {
        u128::from_le_bytes(self.vcpu.state.xsave.ymm(i)[..16].try_into().unwrap())
    }
}

/// Four single-precision lanes.
pub fn ps(v: [f32; 4]) -> u128 {
    v.iter().rev().fold(0, |all, x| all << 32 | x.to_bits() as u128)
}

/// The exception's vector; panics if the instruction completed.
pub fn fault(flow: Flow<()>) -> u8 {
    match flow {
        Err(Stop::Exception(e)) => e.vector,
        other => panic!("expected an exception, got {other:?}"),
    }
}
