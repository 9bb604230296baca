//! Arithmetic, logic, moves, stack, strings and transfers in flat protected mode.

use iced_x86::code_asm::*;

use super::*;
use crate::cpu::eflags::*;
use crate::cpu::{cr4, reg, vector};
use crate::engine::interp::cache::MAX_OPS;
use crate::engine::{Engine, Exit};

#[test]
fn a_loop_runs_and_halts() {
    let mut m = Machine::flat();
    m.run(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 1000).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(eax, ecx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
    });
    assert_eq!(m.r(reg::EAX), 500_500);
}

#[test]
fn arithmetic_flags() {
    let mut m = Machine::flat();
    m.set(reg::EAX, 0x7fff_ffff);
    m.one(|a| a.add(eax, 1).unwrap()).unwrap();
    assert_eq!((m.r(reg::EAX), m.flags()), (1 << 31, FIXED | OF | SF | AF | PF));
    m.set(reg::EAX, 0xff);
    m.one(|a| a.add(al, 1).unwrap()).unwrap();
    assert_eq!((m.r(reg::EAX), m.flags()), (0, FIXED | CF | ZF | AF | PF));
    m.one(|a| a.sbb(eax, 0).unwrap()).unwrap();
    assert_eq!((m.r(reg::EAX), m.flags()), (u32::MAX, FIXED | CF | SF | AF | PF));
    m.one(|a| a.inc(eax).unwrap()).unwrap();
    assert_eq!((m.r(reg::EAX), m.flags()), (0, FIXED | CF | ZF | AF | PF));
    m.set(reg::EBX, 0x1234);
    m.one(|a| a.mov(ah, bl).unwrap()).unwrap();
    assert_eq!(m.r(reg::EAX), 0x3400);
}

#[test]
fn division() {
    let mut m = Machine::flat();
    m.set(reg::EAX, 100);
    m.set(reg::ECX, 7);
    m.one(|a| a.div(ecx).unwrap()).unwrap();
    assert_eq!((m.r(reg::EAX), m.r(reg::EDX)), (14, 2));
    m.set(reg::ECX, 0);
    assert_eq!(m.fault(|a| a.div(ecx).unwrap()), vector::DE);
    m.set(reg::EAX, 0x8000_0000);
    m.set(reg::EDX, u32::MAX);
    m.set(reg::ECX, u32::MAX);
    assert_eq!(m.fault(|a| a.idiv(ecx).unwrap()), vector::DE);
    m.set(reg::EAX, -100i32 as u32);
    m.set(reg::EDX, u32::MAX);
    m.set(reg::ECX, 7);
    m.one(|a| a.idiv(ecx).unwrap()).unwrap();
    assert_eq!((m.r(reg::EAX) as i32, m.r(reg::EDX) as i32), (-14, -2));
    m.set(reg::EDX, 1 << 31);
    m.set(reg::EAX, 0);
    assert_eq!(m.fault(|a| a.idiv(ecx).unwrap()), vector::DE);
}

/// Flags that the manual leaves undefined, as Intel processors have them.
#[test]
fn bzhi_clears_parity() {
    let mut m = Machine::flat();
    m.v.state.eflags |= PF | AF;
    m.set(reg::EBX, 0x77);
    m.set(reg::ECX, 2);
    m.one(|a| a.bzhi(eax, ebx, ecx).unwrap()).unwrap();
    assert_eq!((m.r(reg::EAX), m.flags()), (3, FIXED));
}

#[test]
fn string_copies_in_bulk_and_by_element_agree() {
    let pattern: Vec<u8> = (0..12000u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
    for (offset, count) in [(0u32, 2000u32), (4093, 1500), (3, 17), (1, 5)] {
        let mut m = Machine::flat();
        m.poke(DATA, &pattern);
        m.set(reg::ESI, DATA + offset);
        m.set(reg::EDI, DATA + 0x1_0000 + 5);
        m.set(reg::ECX, count);
        m.run(|a| a.rep().movsd().unwrap());
        assert_eq!(m.r(reg::ECX), 0);
        assert_eq!(m.r(reg::ESI), DATA + offset + 4 * count);
        let mut got = vec![0; 4 * count as usize];
        assert!(m.v.mmu.ram.read(DATA as u64 + 0x1_0005, &mut got));
        assert_eq!(got, pattern[offset as usize..][..got.len()]);
    }
}

#[test]
fn an_overlapping_copy_repeats_its_pattern() {
    let mut m = Machine::flat();
    m.poke(DATA, &[0xab, 0xcd]);
    m.set(reg::ESI, DATA);
    m.set(reg::EDI, DATA + 2);
    m.set(reg::ECX, 100);
    m.run(|a| a.rep().movsb().unwrap());
    assert_eq!(m.peek(DATA + 96), 0xcdab_cdab);
}

#[test]
fn code_that_changes_its_own_next_instruction() {
    let mut m = Machine::flat();
    // The store turns the `inc eax` (40) that follows it into `inc ebx` (43); the second pass stores the same byte.
    m.run(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 3).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(byte_ptr(CODE + 12), 0x43).unwrap();
        a.db(&[0x40]).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
    });
    assert_eq!((m.r(reg::EAX), m.r(reg::EBX)), (0, 3));
}

#[test]
fn floating_point_reaches_its_unit() {
    let mut m = Machine::flat();
    m.run(|a| {
        a.fninit().unwrap();
        a.fld1().unwrap();
        a.fldpi().unwrap();
        a.faddp(st1, st0).unwrap();
        a.fistp(dword_ptr(DATA)).unwrap();
    });
    assert_eq!(m.peek(DATA), 4);
}

/// The decode cache runs full, and is emptied, while a SIMD instruction is decoded; the second time it is another one.
#[test]
fn a_full_decode_cache_mixes_nothing_up() {
    let mut m = Machine::flat();
    m.v.state.cr4 |= cr4::OSFXSR;
    let count = MAX_OPS as u32;
    m.poke(CODE, &vec![0x90; MAX_OPS]);
    // PXOR or PCMPEQD of XMM0 with itself; HLT. That HLT is in the cache the second time.
    for (skip, opcode, expected) in [(0, 0xef, 0), (1, 0x76, 0xff)] {
        m.poke(CODE + count, &[0x66, 0x0f, opcode, 0xc0, 0xf4]);
        m.v.state.eip = CODE + skip;
        m.v.state.halted = false;
        assert_eq!(m.engine.run(&mut m.v), Exit::Halted);
        assert_eq!(m.v.state.xsave.0[160..176], [expected; 16], "opcode {opcode:#x}");
    }
    assert!(m.engine.stats().contains(&("decode cache emptied".to_string(), 2)));
}
