//! Traps, interrupts, shadows and HLT between instructions, in real mode, where handlers are four bytes of a table.

use super::*;
use crate::cpu::eflags::{FIXED, IF, RF, TF};
use crate::cpu::{Exception, InterruptShadow, Stop, reg};
use crate::engine::{Engine, Exit};

/// A real-mode machine whose vectors 0 to 63 lead to HLTs at `8000h:vector * 16`.
fn machine(code: &[u8]) -> Machine {
    let mut m = Machine::real();
    for vector in 0..64u32 {
        m.poke(vector * 4, &(0x1000 + vector * 16).to_le_bytes()[..2]);
        m.poke(vector * 4 + 2, &[0, 0x10]);
        m.poke(0x1_1000 + vector * 16, &[0xf4]);
    }
    m.poke(CODE, code);
    m
}

/// Runs to a HLT and says which vector's handler it was in, and the return address on the stack.
fn handler(m: &mut Machine) -> (u32, u16) {
    assert_eq!(m.engine.run(&mut m.v), Exit::Halted);
    assert_eq!(m.v.state.seg[crate::cpu::seg::CS].selector, 0x1000);
    let top = DATA + m.r(reg::ESP);
    ((m.v.state.eip - 1 - 0x1000) / 16, m.peek(top) as u16)
}

#[test]
fn single_step_traps_after_one_instruction() {
    let mut m = machine(&[0x40, 0x43, 0xf4]);
    m.v.state.eflags = FIXED | TF;
    assert_eq!(handler(&mut m), (1, 1));
    assert_eq!((m.r(reg::EAX), m.r(reg::EBX), m.v.state.dr6 >> 14 & 1), (1, 0, 1));
}

#[test]
fn mov_ss_holds_off_the_single_step_trap() {
    // mov ss, cx; inc ax; inc bx
    let mut m = machine(&[0x8e, 0xd1, 0x40, 0x43]);
    m.set(reg::ECX, DATA >> 4);
    m.v.state.eflags = FIXED | TF;
    assert_eq!(handler(&mut m), (1, 3));
    assert_eq!((m.r(reg::EAX), m.r(reg::EBX)), (1, 0));
}

#[test]
fn software_interrupts_clear_tf_without_a_trap() {
    // int 20h
    let mut m = machine(&[0xcd, 0x20]);
    m.v.state.eflags = FIXED | TF;
    assert_eq!(handler(&mut m), (0x20, 2));
}

#[test]
fn sti_lets_one_instruction_pass() {
    // sti; inc ax; inc bx
    let mut m = machine(&[0xfb, 0x40, 0x43]);
    *m.bus.vector.lock().unwrap() = Some(0x30);
    m.v.lines.set_intr(true);
    assert_eq!(handler(&mut m), (0x30, 2));
    assert_eq!((m.r(reg::EAX), m.r(reg::EBX)), (1, 0));
}

#[test]
fn halt_waits_and_an_interrupt_ends_it() {
    // sti; hlt
    let mut m = machine(&[0xfb, 0xf4]);
    assert_eq!(m.engine.run(&mut m.v), Exit::Halted);
    assert!(m.v.state.halted && m.v.state.eip == 2);
    assert_eq!(m.engine.run(&mut m.v), Exit::Halted);
    *m.bus.vector.lock().unwrap() = Some(0x21);
    m.v.lines.set_intr(true);
    assert_eq!(handler(&mut m), (0x21, 2));
}

#[test]
fn nmi_and_requests() {
    let mut m = machine(&[0xeb, 0xfe]);
    m.v.lines.request();
    assert_eq!(m.engine.run(&mut m.v), Exit::Requested);
    m.v.lines.raise_nmi();
    assert_eq!(handler(&mut m), (2, 0));
    assert!(m.v.state.nmi_blocked);
    m.v.lines.raise_nmi();
    assert_eq!(m.engine.run(&mut m.v), Exit::Halted);
    assert!(m.v.lines.nmi(), "a second NMI waits for IRET");
}

#[test]
fn instruction_breakpoints_fault_once() {
    let mut m = machine(&[0x40, 0x43, 0xf4]);
    m.v.state.dr[0] = CODE + 1;
    m.v.state.dr7 |= 2;
    m.v.state.eflags = FIXED | IF;
    assert_eq!(m.engine.attempt(&mut m.v), Ok(()));
    assert_eq!(m.engine.attempt(&mut m.v), Err(Exception::debug(1).into()));
    m.v.state.eflags |= RF;
    assert_eq!(m.engine.attempt(&mut m.v), Ok(()));
    assert_eq!((m.r(reg::EBX), m.flags() & RF), (1, 0));
}

#[test]
fn data_breakpoints_trap_after_the_access() {
    // mov [10h], al; inc bx
    let mut m = machine(&[0xa2, 0x10, 0x00, 0x43]);
    m.v.state.dr[1] = DATA + 0x10;
    m.v.write_dr(7, 0x400 | 8 | 1 << 20).unwrap();
    assert_eq!(handler(&mut m), (1, 3));
    assert_eq!((m.v.state.dr6 & 0xf, m.r(reg::EBX)), (2, 0));
}

#[test]
fn faults_drop_the_shadow_and_report_their_own_address() {
    // mov ss, cx; ud2
    let mut m = machine(&[0x8e, 0xd1, 0x0f, 0x0b]);
    m.set(reg::ECX, DATA >> 4);
    assert_eq!(handler(&mut m), (6, 2));
    assert_eq!(m.v.state.shadow, InterruptShadow::None);
}

#[test]
fn a_triple_fault_shuts_down() {
    let mut m = machine(&[0x0f, 0x0b]);
    m.v.state.idtr.limit = 0;
    assert_eq!(m.engine.run(&mut m.v), Exit::Shutdown);
    let mut m = machine(&[0x0f, 0x0b]);
    m.v.state.idtr.limit = 0;
    assert_eq!(m.engine.step(&mut m.v), Err(Stop::TripleFault));
}

#[test]
fn repeated_strings_are_interruptible() {
    // sti; rep lodsb
    let mut m = machine(&[0xfb, 0xf3, 0xac]);
    m.set(reg::ECX, 0xffff);
    *m.bus.vector.lock().unwrap() = Some(0x31);
    m.v.lines.set_intr(true);
    let (vector, back) = handler(&mut m);
    assert_eq!((vector, back), (0x31, 1));
    assert!(m.r(reg::ECX) > 0 && m.r(reg::ECX) + m.r(reg::ESI) == 0xffff);
}
