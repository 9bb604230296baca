//! The rules of the processor against the manual: a small machine with tables built by hand.

mod events;
mod garbage;
mod identity;
mod levels;
mod registers;
mod segments;
mod switches;
mod v8086;

use std::sync::Arc;

use super::*;
use crate::mmu::GuestRam;

const GDT: u32 = 0x1000;
const IDT: u32 = 0x2000;
const TSS: u32 = 0x3000;
const OTHER_TSS: u32 = 0x3100;
const LDT: u32 = 0x3400;
/// Tops of stacks.
const STACK0: u32 = 0x8000;
const STACK3: u32 = 0x9000;
const TASK_STACK: u32 = 0xa000;

const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const CODE3: u16 = 0x1b;
const DATA3: u16 = 0x23;
const TSS_SELECTOR: u16 = 0x28;
const OTHER_SELECTOR: u16 = 0x30;
const CONFORMING: u16 = 0x38;
const LDT_SELECTOR: u16 = 0x40;
/// Free for each test.
const SPARE: u16 = 0x48;
const SPARE2: u16 = 0x50;
/// Not present data, DPL 0.
const ABSENT: u16 = 0x58;
const GDT_LIMIT: u32 = 0x67;

/// Where the interrupt handlers start: vector v is at HANDLERS + 16 v.
const HANDLERS: u32 = 0x2_0000;

/// Access bytes of descriptors.
const CODE: u32 = 0x9b;
const DATA: u32 = 0x93;
const DPL3: u32 = 0x60;

fn descriptor(base: u32, limit: u32, access: u32, flags: u32) -> u64 {
    let low = limit & 0xffff | base << 16;
    let high = base >> 16 & 0xff | access << 8 | limit & 0xf_0000 | flags << 20 | base & 0xff00_0000;
    (high as u64) << 32 | low as u64
}

fn flat(access: u32) -> u64 {
    descriptor(0, 0xf_ffff, access, 0xc)
}

fn gate(selector: u16, offset: u32, access: u32, parameters: u32) -> u64 {
    let low = (selector as u32) << 16 | offset & 0xffff;
    let high = offset & 0xffff_0000 | access << 8 | parameters;
    (high as u64) << 32 | low as u64
}

impl Vcpu {
    fn poke(&mut self, at: u32, bytes: &[u8]) {
        assert!(self.mmu.ram.write(at as u64, bytes));
    }
    fn poke32(&mut self, at: u32, value: u32) {
        self.poke(at, &value.to_le_bytes());
    }
    fn peek32(&self, at: u32) -> u32 {
        self.mmu.ram.read_u32(at as u64).unwrap()
    }
    fn peek16(&self, at: u32) -> u16 {
        self.peek32(at) as u16
    }
    fn set_descriptor(&mut self, selector: u16, value: u64) {
        self.poke(GDT + (selector & 0xfff8) as u32, &value.to_le_bytes());
    }
    fn access_byte(&self, selector: u16) -> u8 {
        (self.peek32(GDT + (selector & 0xfff8) as u32 + 4) >> 8) as u8
    }
    fn set_gate(&mut self, vector: u8, value: u64) {
        self.poke(IDT + vector as u32 * 8, &value.to_le_bytes());
    }
    fn words(&self, at: u32, n: usize) -> Vec<u32> {
        (0..n).map(|i| self.peek32(at + 4 * i as u32)).collect()
    }
    /// Puts `values` on top of the stack, the first at the lowest address, and points ESP there.
    fn stack(&mut self, top: u32, values: &[u32]) {
        let at = top - 4 * values.len() as u32;
        for (i, v) in values.iter().enumerate() {
            self.poke32(at + 4 * i as u32, *v);
        }
        self.state.gpr[reg::ESP] = at;
    }
    fn esp(&self) -> u32 {
        self.state.gpr[reg::ESP]
    }
    fn selector(&self, which: usize) -> u16 {
        self.state.seg[which].selector
    }
    /// Moves to CPL 3 with flat segments, as IRET would.
    fn go_user(&mut self) {
        self.stack(STACK0, &[0x5000, CODE3 as u32, 0x202, STACK3, DATA3 as u32]);
        self.iret(4).unwrap();
        for which in [seg::DS, seg::ES] {
            self.load_segment(which, DATA3).unwrap();
        }
        assert_eq!(self.state.cpl, 3);
    }
    /// Turns on 32-bit paging over a page directory at 0x10000: the first 4 MiB identical, for the user too.
    fn page(&mut self) {
        self.poke32(0x1_0000, 0x1_1007);
        for i in 0..1024 {
            self.poke32(0x1_1000 + 4 * i, i << 12 | 7);
        }
        self.write_cr(3, 0x1_0000).unwrap();
        self.write_cr(0, self.state.cr0 | cr0::PG | cr0::WP).unwrap();
    }
    /// Clears bits of the page-table entry of `linear`.
    fn restrict(&mut self, linear: u32, bits: u32) {
        let at = 0x1_1000 + (linear >> 12) * 4;
        let pte = self.peek32(at);
        self.poke32(at, pte & !bits);
        self.mmu.flush(crate::mmu::Flush::All);
    }
}

/// A processor in real mode.
fn real() -> Vcpu {
    let ram = Arc::new(GuestRam::new(4 << 20).unwrap());
    let mut v = Vcpu::new(0, ram, Arc::new(EmptyBus), Arc::default());
    start_real(&mut v);
    v
}

fn start_real(v: &mut Vcpu) {
    v.state.seg[seg::CS] = Segment { attr: 0x9b, ..Segment::real(0x100) };
    v.state.seg[seg::SS] = Segment::real(0x700);
    v.state.gpr[reg::ESP] = 0x1000;
    v.state.idtr = TableRegister { base: 0, limit: 0x3ff };
    v.state.eip = 0x10;
}

/// A processor in protected mode, ring 0, flat, with 32-bit interrupt gates of DPL 0 for all exceptions.
fn protected() -> Vcpu {
    let mut v = real();
    build(&mut v);
    v
}

/// Takes a processor after power-up to the state that [`protected`] describes.
fn build(v: &mut Vcpu) {
    start_real(v);
    v.poke(GDT, &[0; 0x2400]);
    v.state.gdtr = TableRegister { base: GDT, limit: GDT_LIMIT };
    v.state.idtr = TableRegister { base: IDT, limit: 0x7ff };
    v.set_descriptor(CODE0, flat(CODE));
    v.set_descriptor(DATA0, flat(DATA));
    v.set_descriptor(CODE3, flat(CODE | DPL3));
    v.set_descriptor(DATA3, flat(DATA | DPL3));
    v.set_descriptor(TSS_SELECTOR, descriptor(TSS, 0x67, 0x89, 0));
    v.set_descriptor(OTHER_SELECTOR, descriptor(OTHER_TSS, 0x67, 0x89, 0));
    v.set_descriptor(CONFORMING, flat(CODE | 4));
    v.set_descriptor(LDT_SELECTOR, descriptor(LDT, 0x1f, 0x82, 0));
    v.set_descriptor(ABSENT, flat(DATA & !0x80));
    for vector in 0..32 {
        v.set_gate(vector, gate(CODE0, HANDLERS + 16 * vector as u32, 0x8e, 0));
    }
    v.poke32(TSS + 4, STACK0);
    v.poke32(TSS + 8, DATA0 as u32);
    v.poke32(TSS + 0x64, 0x68 << 16);
    v.write_cr(0, cr0::PE | cr0::NE | cr0::ET).unwrap();
    v.far_jump(CODE0, 0x5000, 4).unwrap();
    for which in [seg::SS, seg::DS, seg::ES, seg::FS, seg::GS] {
        v.load_segment(which, DATA0).unwrap();
    }
    v.load_tr(TSS_SELECTOR).unwrap();
    v.state.gpr[reg::ESP] = STACK0;
}

fn gp(code: u16) -> Stop {
    Stop::gp(code)
}

/// The handler that runs: None if EIP is at none.
fn handler(v: &Vcpu) -> Option<u8> {
    let at = v.state.eip.wrapping_sub(HANDLERS);
    (at < 0x200 && at.is_multiple_of(16)).then_some((at / 16) as u8)
}
