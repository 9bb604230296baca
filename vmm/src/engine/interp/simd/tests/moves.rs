//! Data instructions: every family once, registers and memory, flags, masks.

use iced_x86::code_asm::*;

use super::*;
use crate::cpu::{eflags, reg};

#[test]
fn packed_single_add_in_registers_and_from_memory() {
    let mut b = Bench::new();
    b.set_xmm(1, ps([1.0, 2.0, 3.0, 4.0]));
    b.set_xmm(2, ps([0.5, 0.25, -3.0, 1e10]));
    b.run(|a| a.addps(xmm1, xmm2)).unwrap();
    assert_eq!(b.xmm(1), ps([1.5, 2.25, 0.0, 1e10 + 4.0]));
    b.poke(DATA, &ps([1.0; 4]).to_le_bytes());
    b.vcpu.state.gpr[reg::EBX] = DATA - 16;
    b.vcpu.state.gpr[reg::ESI] = 4;
    b.run(|a| a.addps(xmm2, ptr(ebx + esi * 4))).unwrap();
    assert_eq!(b.xmm(2), ps([1.5, 1.25, -2.0, 1e10 + 1.0]));
}

#[test]
fn general_registers_go_in_and_out_esp_included() {
    let mut b = Bench::new();
    b.vcpu.state.gpr[reg::ESP] = 0xdead_beef;
    b.run(|a| a.movd(xmm3, esp)).unwrap();
    assert_eq!(b.xmm(3), 0xdead_beef);
    b.set_xmm(4, 0x8000_0000_0000_0000_0000_0000_0000_0080);
    b.run(|a| a.pmovmskb(esp, xmm4)).unwrap();
    assert_eq!(b.vcpu.state.gpr[reg::ESP], 0x8001);
    b.vcpu.state.gpr[reg::EDI] = (-7i32) as u32;
    b.run(|a| a.cvtsi2sd(xmm0, edi)).unwrap();
    assert_eq!(b.xmm(0) as u64, (-7f64).to_bits());
    b.run(|a| a.cvttsd2si(ebp, xmm0)).unwrap();
    assert_eq!(b.vcpu.state.gpr[reg::EBP], (-7i32) as u32);
}

#[test]
fn compares_write_arithmetic_flags_only() {
    let mut b = Bench::new();
    b.vcpu.state.eflags = eflags::FIXED | eflags::IF | eflags::DF | eflags::OF | eflags::IOPL;
    b.set_xmm(0, 1f64.to_bits() as u128);
    b.set_xmm(1, 2f64.to_bits() as u128);
    b.run(|a| a.ucomisd(xmm0, xmm1)).unwrap();
    assert_eq!(b.vcpu.state.eflags, eflags::FIXED | eflags::IF | eflags::DF | eflags::IOPL | eflags::CF);
    b.run(|a| a.ptest(xmm0, xmm0)).unwrap();
    assert_eq!(b.vcpu.state.eflags & eflags::ARITH, eflags::CF);
    // Instructions that do not write flags keep them.
    b.run(|a| a.paddb(xmm0, xmm1)).unwrap();
    assert_eq!(b.vcpu.state.eflags & eflags::ARITH, eflags::CF);
}

#[test]
fn string_compare_uses_eax_edx_and_gives_ecx() {
    let mut b = Bench::new();
    b.set_xmm(0, u128::from_le_bytes(*b"needle----------"));
    b.poke(DATA + 1, b"in a haystack ne");
    b.vcpu.state.gpr[reg::EAX] = 2;
    b.vcpu.state.gpr[reg::EDX] = 16;
    // Equal ordered, unsigned bytes; the operand may be misaligned.
    b.run(|a| a.pcmpestri(xmm0, ptr(DATA + 1), 0xc)).unwrap();
    assert_eq!(b.vcpu.state.gpr[reg::ECX], 14);
    assert_ne!(b.vcpu.state.eflags & eflags::CF, 0);
}

#[test]
fn vex_clears_the_upper_half_and_legacy_keeps_it() {
    let mut b = Bench::new();
    b.vcpu.state.xsave.set_ymm(5, &[0xff; 32]);
    b.run(|a| a.pxor(xmm5, xmm5)).unwrap();
    assert_eq!(b.vcpu.state.xsave.ymm(5)[16..], [0xff; 16]);
    b.run(|a| a.vpxor(xmm5, xmm5, xmm5)).unwrap();
    assert_eq!(b.vcpu.state.xsave.ymm(5), [0; 32]);
    b.vcpu.state.xsave.set_ymm(6, &[0x11; 32]);
    b.run(|a| a.vpaddb(ymm7, ymm6, ymm6)).unwrap();
    assert_eq!(b.vcpu.state.xsave.ymm(7), [0x22; 32]);
    b.run(|a| a.vzeroupper()).unwrap();
    assert_eq!((b.vcpu.state.xsave.ymm(7)[15], b.vcpu.state.xsave.ymm(7)[16]), (0x22, 0));
}

#[test]
fn vex_bits_that_32_bit_mode_ignores_do_not_reach_the_host() {
    let mut b = Bench::new();
    b.vcpu.state.xsave.set_ymm(1, &[3; 32]);
    b.vcpu.state.xsave.set_ymm(2, &[4; 32]);
    // VPADDB xmm0, xmm1, xmm2 with VEX.vvvv's top bit clear, which would name xmm9 in 64-bit mode: C4 E1 31 FC C2.
    b.run_bytes(&[0xc4, 0xe1, 0x31, 0xfc, 0xc2]).unwrap();
    assert_eq!(b.xmm(0).to_le_bytes(), [7; 16]);
    b.vcpu.state.gpr[reg::EAX] = 0xf0;
    b.vcpu.state.gpr[reg::ECX] = 0xff;
    // ANDN ecx, eax, ecx likewise.
    b.run_bytes(&[0xc4, 0xe2, 0x38, 0xf2, 0xc9]).unwrap();
    assert_eq!(b.vcpu.state.gpr[reg::ECX], 0x0f);
}

#[test]
fn crypto_runs() {
    let mut b = Bench::new();
    // AESENC of zero with a zero key: SubBytes gives 0x63 everywhere, which MixColumns keeps.
    b.set_xmm(0, 0);
    b.set_xmm(1, 0);
    b.run(|a| a.aesenc(xmm0, xmm1)).unwrap();
    assert_eq!(b.xmm(0).to_le_bytes(), [0x63; 16]);
    b.set_xmm(0, 3);
    b.set_xmm(1, 7);
    b.run(|a| a.pclmulqdq(xmm0, xmm1, 0)).unwrap();
    assert_eq!(b.xmm(0), 9);
    b.vcpu.state.gpr[reg::EAX] = 0x3100;
    b.vcpu.state.gpr[reg::ECX] = u32::MAX;
    b.run(|a| a.crc32(ecx, ah)).unwrap();
    assert_eq!(!b.vcpu.state.gpr[reg::ECX], 0x90f5_99e3, "CRC-32C of \"1\"");
}

#[test]
fn segment_overrides_and_16_bit_addresses() {
    let mut b = Bench::new();
    b.vcpu.state.seg[seg::FS].base = DATA;
    b.poke(DATA + 0x14, &0x1234_5678u32.to_le_bytes());
    b.vcpu.state.gpr[reg::EBX] = 0xffff_fff0;
    b.vcpu.state.gpr[reg::ESI] = 0xffff_0020;
    // MOVD xmm0, fs:[bx+si+4] with a 67h prefix: the sum is cut to sixteen bits.
    b.run_bytes(&[0x64, 0x67, 0x66, 0x0f, 0x6e, 0x40, 0x04]).unwrap();
    assert_eq!(b.xmm(0), 0x1234_5678);
}

#[test]
fn masked_moves_touch_only_chosen_elements() {
    let mut b = Bench::new();
    b.poke(HOLE - 8, &[1, 0, 0, 0, 2, 0, 0, 0]);
    b.set_xmm(1, 0x8000_0000_8000_0000);
    b.vcpu.state.gpr[reg::EAX] = HOLE - 8;
    b.run(|a| a.vmaskmovps(xmm0, xmm1, ptr(eax))).unwrap();
    assert_eq!(b.xmm(0), 2 << 32 | 1);
    b.set_xmm(1, 1 << 127);
    assert_eq!(fault(b.run(|a| a.vmaskmovps(xmm0, xmm1, ptr(eax)))), vector::PF);
    // MASKMOVDQU checks its whole operand and stores the chosen bytes.
    b.vcpu.state.gpr[reg::EDI] = HOLE - 2;
    b.set_xmm(2, 0xaabb);
    b.set_xmm(3, 0x8000);
    assert_eq!(fault(b.run(|a| a.maskmovdqu(xmm2, xmm3))), vector::PF);
    b.vcpu.state.gpr[reg::EDI] = HOLE - 16;
    b.run(|a| a.maskmovdqu(xmm2, xmm3)).unwrap();
    assert_eq!(b.peek::<2>(HOLE - 16), [0, 0xaa]);
}

/// VPGATHERDD xmm0, [eax+xmm1*8], xmm2
const GATHER: [u8; 6] = [0xc4, 0xe2, 0x69, 0x90, 0x04, 0xc8];

#[test]
fn a_gather_that_faults_keeps_what_it_has() {
    let mut b = Bench::new();
    for i in 0..4u32 {
        b.poke(DATA + 8 * i, &(100 + i).to_le_bytes());
    }
    b.vcpu.state.gpr[reg::EAX] = DATA;
    b.set_xmm(1, 3 << 96 | 2 << 64 | 1 << 32);
    b.set_xmm(2, u128::MAX);
    b.run_bytes(&GATHER).unwrap();
    assert_eq!((b.xmm(0), b.xmm(2)), (103 << 96 | 102 << 64 | 101 << 32 | 100, 0));
    b.set_xmm(1, 0x1000 << 64 | 1 << 32);
    b.set_xmm(2, u128::MAX);
    b.set_xmm(0, 0);
    assert_eq!(fault(b.run_bytes(&GATHER)), vector::PF);
    assert_eq!((b.xmm(0), b.xmm(2)), (101 << 32 | 100, u128::MAX << 64));
}

#[test]
fn the_stub_cache_is_bounded() {
    let mut b = Bench::new();
    b.poke(DATA, &[5; 16]);
    for i in 0..10_000u32 {
        b.vcpu.state.gpr[reg::EAX] = DATA.wrapping_sub(i);
        b.run(|a| a.movd(xmm0, ptr(eax + i))).unwrap();
        assert_eq!(b.xmm(0), 0x0505_0505);
    }
}
