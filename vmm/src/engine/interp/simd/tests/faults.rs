//! What is checked before and after: mode bits, alignment, page faults, SIMD floating-point exceptions.

use iced_x86::code_asm::*;

use super::*;
use crate::cpu::reg;

#[test]
fn mode_bits_decide_between_ud_and_nm() {
    let with = |change: fn(&mut crate::cpu::CpuState), bytes: &[u8]| {
        let mut b = Bench::new();
        change(&mut b.vcpu.state);
        b.run_bytes(bytes)
    };
    const SSE: &[u8] = &[0x0f, 0x58, 0xc1];
    const MMX: &[u8] = &[0x0f, 0xfc, 0xc1];
    const AVX: &[u8] = &[0xc5, 0xf4, 0x58, 0xc0];
    const X87: &[u8] = &[0xd8, 0xc1];
    const WAIT: &[u8] = &[0x9b];
    for (change, name, expect) in [
        ((|s| s.cr0 |= cr0::EM) as fn(&mut crate::cpu::CpuState), "EM", [6, 6, 0, 7, 0]),
        (|s| s.cr0 |= cr0::TS, "TS", [7, 7, 7, 7, 7]),
        (|s| s.cr0 = s.cr0 & !cr0::MP | cr0::TS, "TS without MP", [7, 7, 7, 7, 0]),
        (|s| s.cr4 &= !cr4::OSFXSR, "no OSFXSR", [6, 0, 0, 0, 0]),
        (|s| s.cr4 &= !cr4::OSXSAVE, "no OSXSAVE", [0, 0, 6, 0, 0]),
        (|s| s.xcr0 = 3, "no AVX in XCR0", [0, 0, 6, 0, 0]),
        (|s| s.cr0 &= !(cr0::PE | cr0::PG), "real mode", [0, 0, 6, 0, 0]),
    ] {
        for (bytes, expect) in [SSE, MMX, AVX, X87, WAIT].into_iter().zip(expect) {
            match with(change, bytes) {
                Ok(()) => assert_eq!(expect, 0, "{name}: {bytes:02x?}"),
                other => assert_eq!(fault(other), expect, "{name}: {bytes:02x?}"),
            }
        }
    }
}

#[test]
fn alignment_is_demanded_where_the_manual_says() {
    let mut b = Bench::new();
    b.vcpu.state.gpr[reg::EAX] = DATA + 8;
    assert_eq!(fault(b.run(|a| a.movaps(xmm0, ptr(eax)))), vector::GP);
    assert_eq!(fault(b.run(|a| a.paddd(xmm0, ptr(eax)))), vector::GP);
    assert_eq!(fault(b.run(|a| a.vmovaps(xmm0, ptr(eax)))), vector::GP);
    assert_eq!(fault(b.run(|a| a.vmovdqa(ptr(eax + 8), ymm0))), vector::GP);
    b.run(|a| a.movups(xmm0, ptr(eax))).unwrap();
    b.run(|a| a.vpaddd(xmm0, xmm0, ptr(eax))).unwrap();
    b.run(|a| a.cvtps2pd(xmm0, ptr(eax + 1))).unwrap();
}

#[test]
fn a_page_fault_names_the_page_and_changes_nothing() {
    let mut b = Bench::new();
    b.set_xmm(0, u128::MAX);
    b.vcpu.state.gpr[reg::EAX] = HOLE - 4;
    let before = b.vcpu.state.clone();
    let Err(Stop::Exception(e)) = b.run(|a| a.movups(ptr(eax), xmm0)) else { panic!("no fault") };
    assert_eq!((e.vector, e.payload, e.error), (vector::PF, HOLE, 2));
    let Err(Stop::Exception(e)) = b.run(|a| a.movupd(xmm0, ptr(eax + 12))) else { panic!("no fault") };
    assert_eq!((e.vector, e.payload, e.error), (vector::PF, HOLE + 8, 0));
    assert_eq!(b.peek::<4>(HOLE - 4), [0; 4]);
    b.vcpu.state.eip = before.eip;
    assert_eq!(b.vcpu.state, before);
    // Exactly the operand's bytes are touched.
    b.run(|a| a.movss(xmm0, dword_ptr(eax))).unwrap();
    b.run(|a| a.pinsrw(xmm0, ptr(eax + 2), 0)).unwrap();
}

#[test]
fn segment_limits_come_before_alignment() {
    let mut b = Bench::new();
    b.vcpu.state.seg[seg::SS].limit = DATA;
    b.vcpu.state.gpr[reg::EBP] = DATA;
    assert_eq!(fault(b.run(|a| a.movq(mm0, ptr(ebp)))), vector::SS);
}

#[test]
fn masked_simd_exceptions_set_flags_and_unmasked_ones_fault() {
    let mut b = Bench::new();
    b.set_xmm(0, ps([1.0, 1.0, 1.0, 1.0]));
    b.set_xmm(1, ps([0.0, 1.0, 3.0, 1.0]));
    b.run(|a| a.divps(xmm0, xmm1)).unwrap();
    assert_eq!(b.vcpu.state.xsave.mxcsr(), 0x1f80 | 1 << 2 | 1 << 5);
    assert_eq!(b.xmm(0) as u32, f32::INFINITY.to_bits());

    b.vcpu.state.xsave.set_mxcsr(0x1f80 & !(1 << 9));
    b.set_xmm(0, ps([1.0; 4]));
    assert_eq!(fault(b.run(|a| a.divps(xmm0, xmm1))), vector::XM);
    assert_eq!(b.xmm(0), ps([1.0; 4]), "the destination keeps its value");
    assert_ne!(b.vcpu.state.xsave.mxcsr() & 1 << 2, 0);

    b.vcpu.state.cr4 &= !cr4::OSXMMEXCPT;
    assert_eq!(fault(b.run(|a| a.divps(xmm0, xmm1))), vector::UD);
}

#[test]
fn rounding_follows_the_guest_and_the_host_keeps_its_own() {
    let mut b = Bench::new();
    b.vcpu.state.xsave.set_mxcsr(0x1f80 | 2 << 13);
    b.set_xmm(0, 1.25f32.to_bits() as u128);
    b.run(|a| a.cvtss2si(eax, xmm0)).unwrap();
    assert_eq!(b.vcpu.state.gpr[reg::EAX], 2, "rounded up");
    assert_eq!(std::hint::black_box(1.0f32) / 3.0, 0.333_333_34);
}

#[test]
fn mxcsr_has_reserved_bits() {
    let mut b = Bench::new();
    b.poke(DATA, &0x1_0000u32.to_le_bytes());
    assert_eq!(fault(b.run(|a| a.ldmxcsr(ptr(DATA)))), vector::GP);
    b.poke(DATA, &0xffffu32.to_le_bytes());
    b.run(|a| a.ldmxcsr(ptr(DATA))).unwrap();
    b.run(|a| a.vstmxcsr(ptr(DATA + 2))).unwrap();
    assert_eq!(b.peek::<4>(DATA + 2), [0xff, 0xff, 0, 0]);
}
