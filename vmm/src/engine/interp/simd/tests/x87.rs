//! x87: arithmetic, pending exceptions, environments, and the save and restore instructions.

use iced_x86::code_asm::*;

use super::*;
use crate::cpu::reg;

#[test]
fn arithmetic_on_the_stack() {
    let mut b = Bench::new();
    b.poke(DATA, &2.5f64.to_le_bytes());
    b.run(|a| a.fld(qword_ptr(DATA))).unwrap();
    b.run(|a| a.fld1()).unwrap();
    b.run(|a| a.faddp(st1, st0)).unwrap();
    b.run(|a| a.fstp(dword_ptr(DATA + 8))).unwrap();
    assert_eq!(b.peek::<4>(DATA + 8), 3.5f32.to_le_bytes());
    assert_eq!((b.vcpu.state.xsave.tags(), b.vcpu.state.xsave.top()), (0, 0));
    assert_eq!(b.vcpu.state.xsave.fip(), CODE, "FIP is the guest's");
}

#[test]
fn a_pending_exception_waits_for_a_waiting_instruction() {
    let mut b = Bench::new();
    b.poke(DATA, &0x0300u16.to_le_bytes());
    b.run(|a| a.fldcw(word_ptr(DATA))).unwrap();
    // Stack underflow, invalid unmasked: the store does not happen, ES is set.
    b.poke(DATA + 4, &[0xee; 8]);
    b.run(|a| a.fst(qword_ptr(DATA + 4))).unwrap();
    assert_eq!(b.peek::<8>(DATA + 4), [0xee; 8]);
    assert!(b.vcpu.state.xsave.x87_pending());
    assert_eq!((b.vcpu.state.xsave.fdp(), b.vcpu.state.xsave.fop()), (DATA + 4, 0x515));
    b.run(|a| a.fnstsw(ax)).unwrap();
    assert_eq!(b.vcpu.state.gpr[reg::EAX] & 0x80c1, 0x80c1);
    for flow in [b.run(|a| a.fld1()), b.run(|a| a.wait()), b.run(|a| a.emms()), b.run(|a| a.fldcw(word_ptr(DATA)))] {
        assert_eq!(fault(flow), vector::MF);
    }
    // SSE does not look at it, and leaves it pending.
    b.run(|a| a.addps(xmm0, xmm0)).unwrap();
    assert!(b.vcpu.state.xsave.x87_pending());
    b.vcpu.state.cr0 &= !cr0::NE;
    assert!(matches!(b.run(|a| a.fld1()), Err(Stop::Unsupported(_))));
    b.run(|a| a.fnclex()).unwrap();
    b.run(|a| a.fld1()).unwrap();
}

#[test]
fn environments_in_both_sizes() {
    let mut b = Bench::new();
    b.run(|a| a.fldpi()).unwrap();
    b.run(|a| a.fldz()).unwrap();
    b.run_bytes(&[0xd9, 0x35, 0, 0x80, 0, 0]).unwrap();
    let image = b.peek::<28>(DATA);
    let field = |i: usize| u32::from_le_bytes(image[4 * i..][..4].try_into().unwrap());
    // TOP is 6; physical register 7 holds pi (valid), 6 zero.
    assert_eq!([field(0), field(1), field(2)], [0xffff_037f, 0xffff_3000, 0xffff_1fff]);
    assert_eq!([field(3), field(4), field(6)], [CODE, 0, 0xffff_0000]);
    // The 16-bit form, and back.
    b.run_bytes(&[0x66, 0xd9, 0x35, 0x40, 0x80, 0, 0]).unwrap();
    assert_eq!(b.peek::<6>(DATA + 0x40), [0x7f, 3, 0, 0x30, 0xff, 0x1f]);
    let before = b.vcpu.state.xsave.clone();
    b.run(|a| a.fninit()).unwrap();
    assert_eq!((b.vcpu.state.xsave.tags(), b.vcpu.state.xsave.top()), (0, 0));
    b.run_bytes(&[0x66, 0xd9, 0x25, 0x40, 0x80, 0, 0]).unwrap();
    assert_eq!(b.vcpu.state.xsave, before, "registers return to their places with TOP");
}

#[test]
fn fnsave_and_frstor_round_trip() {
    let mut b = Bench::new();
    b.run(|a| a.fldpi()).unwrap();
    b.run(|a| a.fldl2e()).unwrap();
    let before = b.vcpu.state.xsave.clone();
    b.run_bytes(&[0xdd, 0x35, 0, 0x80, 0, 0]).unwrap();
    assert_eq!(b.vcpu.state.xsave.fsw(), 0);
    b.run_bytes(&[0xdd, 0x25, 0, 0x80, 0, 0]).unwrap();
    assert_eq!(b.vcpu.state.xsave, before);
}

#[test]
fn mmx_marks_all_registers_valid_and_emms_empties_them() {
    let mut b = Bench::new();
    b.vcpu.state.gpr[reg::EAX] = 0x0102_0304;
    b.run(|a| a.fld1()).unwrap();
    b.run(|a| a.movd(mm5, eax)).unwrap();
    assert_eq!((b.vcpu.state.xsave.tags(), b.vcpu.state.xsave.top()), (0xff, 0));
    assert_eq!(b.vcpu.state.xsave.mm(5), [4, 3, 2, 1, 0, 0, 0, 0]);
    b.run(|a| a.emms()).unwrap();
    assert_eq!(b.vcpu.state.xsave.tags(), 0);
}

#[test]
fn fxsave_and_xsave_round_trip() {
    let mut b = Bench::new();
    b.run(|a| a.fldpi()).unwrap();
    b.vcpu.state.xsave.set_ymm(3, &[0x5a; 32]);
    b.vcpu.state.xsave.set_mxcsr(0x1fa0);
    let full = b.vcpu.state.xsave.clone();
    assert_eq!(fault(b.run(|a| a.fxsave(ptr(DATA + 8)))), vector::GP);
    b.run(|a| a.fxsave(ptr(DATA))).unwrap();
    b.vcpu.state.gpr[reg::EAX] = u32::MAX;
    assert_eq!(fault(b.run(|a| a.xsave(ptr(DATA + 0x410)))), vector::GP);
    b.run(|a| a.xsave(ptr(DATA + 0x400))).unwrap();
    assert_eq!(b.peek::<8>(DATA + 0x600), 7u64.to_le_bytes());
    b.vcpu.state.xsave = Default::default();
    b.run(|a| a.xrstor(ptr(DATA + 0x400))).unwrap();
    assert_eq!(b.vcpu.state.xsave.0[..28], full.0[..28]);
    assert_eq!(b.vcpu.state.xsave.0[32..], full.0[32..]);
    assert_eq!(fault(b.run(|a| a.xsavec(ptr(DATA + 0x800)))), vector::UD, "not announced");
    b.vcpu.state.xsave = Default::default();
    b.run(|a| a.fxrstor(ptr(DATA))).unwrap();
    assert_eq!(b.vcpu.state.xsave.0[32..512], full.0[32..512]);
    // Restoring nothing but asking for everything initialises.
    b.poke(DATA + 0x600, &[0; 8]);
    b.run(|a| a.xrstor(ptr(DATA + 0x400))).unwrap();
    assert_eq!(b.vcpu.state.xsave.ymm(3), [0; 32]);
    assert_eq!(b.vcpu.state.xsave.mxcsr(), 0x1fa0, "the standard form loads MXCSR regardless");
    b.poke(DATA + 0x600, &[8]);
    assert_eq!(fault(b.run(|a| a.xrstor(ptr(DATA + 0x400)))), vector::GP);
}

#[test]
fn xcr0_accepts_only_coherent_values() {
    let mut b = Bench::new();
    b.vcpu.state.gpr[reg::ECX] = 0;
    b.vcpu.state.gpr[reg::EDX] = 0;
    for (value, valid) in [(7, true), (3, true), (1, true), (0, false), (2, false), (5, false), (15, false)] {
        b.vcpu.state.gpr[reg::EAX] = value;
        assert_eq!(b.run(|a| a.xsetbv()).is_ok(), valid, "XCR0 = {value}");
    }
    b.run(|a| a.xgetbv()).unwrap();
    assert_eq!((b.vcpu.state.gpr[reg::EAX], b.vcpu.state.gpr[reg::EDX]), (1, 0));
    b.vcpu.state.cpl = 3;
    assert_eq!(fault(b.run(|a| a.xsetbv())), vector::GP);
    b.vcpu.state.cr4 = 0;
    assert_eq!(fault(b.run(|a| a.xgetbv())), vector::UD);
}
