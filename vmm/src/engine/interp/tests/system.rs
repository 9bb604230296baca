//! Privilege, stack frames, bit strings and what the processor does not have.

use iced_x86::code_asm::*;

use super::*;
use crate::cpu::eflags::{CF, IF, IOPL, ZF};
use crate::cpu::{Feature, Stop, cr4, reg, vector};

#[test]
fn privileged_instructions_fault_outside_ring_0() {
    let mut m = Machine::flat();
    m.v.state.cpl = 3;
    m.v.state.cr4 |= cr4::TSD | cr4::UMIP;
    m.v.state.tr.limit = 0;
    let instructions: [(&str, &[u8]); 14] = [
        ("hlt", &[0xf4]),
        ("cli", &[0xfa]),
        ("in al, dx", &[0xec]),
        ("mov cr0, eax", &[0x0f, 0x22, 0xc0]),
        ("mov eax, dr7", &[0x0f, 0x21, 0xf8]),
        ("rdmsr", &[0x0f, 0x32]),
        ("wrmsr", &[0x0f, 0x30]),
        ("invlpg [eax]", &[0x0f, 0x01, 0x38]),
        ("wbinvd", &[0x0f, 0x09]),
        ("clts", &[0x0f, 0x06]),
        ("rdtsc", &[0x0f, 0x31]),
        ("lidt [eax]", &[0x0f, 0x01, 0x18]),
        ("sgdt [eax]", &[0x0f, 0x01, 0x00]),
        ("smsw ax", &[0x0f, 0x01, 0xe0]),
    ];
    for (name, bytes) in instructions {
        m.v.state.eip = CODE;
        assert_eq!(m.bytes(bytes), Err(Stop::gp(0)), "{name}");
    }
}

#[test]
fn popf_obeys_privilege() {
    let mut m = Machine::flat();
    m.v.state.cpl = 3;
    m.run_until_ok(|a| {
        a.push(0x3202).unwrap();
        a.popfd().unwrap();
    });
    assert_eq!(m.flags() & (IF | IOPL), 0);
}

#[test]
fn frames_nest() {
    let mut m = Machine::flat();
    m.set(reg::EBP, STACK - 0x100);
    m.v.mmu.ram.write(STACK as u64 - 0x104, &0x1111u32.to_le_bytes());
    m.one(|a| a.enter(8, 2).unwrap()).unwrap();
    assert_eq!(m.r(reg::EBP), STACK - 4);
    assert_eq!(m.r(reg::ESP), STACK - 4 - 8 - 8);
    assert_eq!((m.peek(STACK - 8), m.peek(STACK - 12)), (0x1111, STACK - 4));
    m.one(|a| a.leave().unwrap()).unwrap();
    assert_eq!((m.r(reg::ESP), m.r(reg::EBP)), (STACK, STACK - 0x100));
    m.one(|a| a.pushad().unwrap()).unwrap();
    assert_eq!((m.r(reg::ESP), m.peek(STACK - 20)), (STACK - 32, STACK));
}

#[test]
fn bit_strings_reach_beyond_their_operand() {
    let mut m = Machine::flat();
    m.set(reg::EAX, -1i32 as u32);
    m.one(|a| a.bts(dword_ptr(DATA + 4), eax).unwrap()).unwrap();
    assert_eq!((m.peek(DATA), m.flags() & CF), (1 << 31, 0));
    m.one(|a| a.btr(dword_ptr(DATA + 4), eax).unwrap()).unwrap();
    assert_eq!((m.peek(DATA), m.flags() & CF), (0, CF));
}

#[test]
fn compare_and_exchange_eight_bytes() {
    let mut m = Machine::flat();
    m.poke(DATA, &0x1122_3344_5566_7788u64.to_le_bytes());
    m.one(|a| a.lock().cmpxchg8b(qword_ptr(DATA)).unwrap()).unwrap();
    assert_eq!((m.r(reg::EDX), m.r(reg::EAX), m.flags() & ZF), (0x1122_3344, 0x5566_7788, 0));
    m.set(reg::EBX, 7);
    m.one(|a| a.lock().cmpxchg8b(qword_ptr(DATA)).unwrap()).unwrap();
    assert_eq!((m.peek(DATA), m.peek(DATA + 4), m.flags() & ZF), (7, 0, ZF));
}

#[test]
fn a_model_without_a_feature_has_not_its_instructions() {
    let mut m = Machine::flat();
    m.v.model.set(Feature::Popcnt, false);
    m.v.model.set(Feature::Bmi1, false);
    m.set(reg::ECX, 8);
    assert_eq!(m.fault(|a| a.popcnt(eax, ecx).unwrap()), vector::UD);
    // TZCNT becomes BSF, which leaves its destination for a zero source.
    m.one(|a| a.tzcnt(eax, ecx).unwrap()).unwrap();
    assert_eq!(m.r(reg::EAX), 3);
    m.set(reg::ECX, 0);
    m.one(|a| a.tzcnt(eax, ecx).unwrap()).unwrap();
    assert_eq!(m.r(reg::EAX), 3);
    // MONITOR is never announced.
    assert_eq!(m.fault(|a| a.monitor().unwrap()), vector::UD);
}
