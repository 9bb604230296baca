//! Interrupts and exceptions: frames, error codes, escalation.

use super::*;

#[test]
fn an_interrupt_from_the_user_switches_stacks() {
    let mut v = protected();
    v.go_user();
    v.state.eflags |= eflags::TF | eflags::AC;
    let before = v.state.eflags;
    v.set_gate(0x80, gate(CODE0, 0x6000, 0xef, 0));
    v.software_interrupt(0x80, SoftwareInterrupt::IntN).unwrap();
    assert_eq!(v.words(v.esp(), 5), [0x5000, CODE3 as u32, before, STACK3, DATA3 as u32]);
    assert_eq!((v.state.cpl, v.esp(), v.state.eip), (0, STACK0 - 20, 0x6000));
    assert_eq!(v.state.eflags, eflags::FIXED | eflags::IF | eflags::AC, "a trap gate keeps IF");
    v.iret(4).unwrap();
    assert_eq!((v.state.cpl, v.esp(), v.state.eflags), (3, STACK3, before));
    v.external_interrupt(0x10).unwrap();
    assert_eq!((v.state.eip, v.state.eflags & eflags::IF), (HANDLERS + 0x100, 0));
}

#[test]
fn software_interrupts_obey_the_gate() {
    let mut v = protected();
    v.go_user();
    let refused = |vector: u16| gp(vector << 3 | 2);
    assert_eq!(v.software_interrupt(13, SoftwareInterrupt::IntN), Err(refused(13)));
    assert_eq!(v.software_interrupt(3, SoftwareInterrupt::Int3), Err(refused(3)));
    assert_eq!(v.software_interrupt(0x50, SoftwareInterrupt::IntN), Err(refused(0x50)), "an empty gate");
    v.set_gate(0x50, gate(CODE0, 0, 0x6e, 0));
    assert_eq!(v.software_interrupt(0x50, SoftwareInterrupt::IntN), Err(Stop::with_error(vector::NP, 0x282)));
    v.state.idtr.limit = 0x7f;
    assert_eq!(v.software_interrupt(0x10, SoftwareInterrupt::IntN), Err(refused(0x10)));
    v.software_interrupt(1, SoftwareInterrupt::Int1).unwrap();
    assert_eq!((handler(&v), v.state.dr6), (Some(1), 0xffff_0ff0), "INT1 asks no privilege and leaves DR6");
}

#[test]
fn error_codes_say_external_while_an_event_is_delivered() {
    let mut v = protected();
    v.set_gate(0x40, gate(DATA0, 0, 0x8e, 0));
    v.external_interrupt(0x40).unwrap();
    assert_eq!((handler(&v), v.peek32(v.esp())), (Some(13), DATA0 as u32 | 1));
    let mut v = protected();
    v.external_interrupt(0x41).unwrap();
    assert_eq!((handler(&v), v.peek32(v.esp())), (Some(13), 0x41 << 3 | 3));
    let mut v = protected();
    assert_eq!(v.software_interrupt(0x41, SoftwareInterrupt::IntN), Err(gp(0x41 << 3 | 2)));
}

#[test]
fn faults_push_rf_and_traps_do_not() {
    let mut v = protected();
    v.raise(Exception::page_fault(0xdead_0000, 6)).unwrap();
    assert_eq!(v.state.cr2, 0xdead_0000);
    assert_eq!(v.words(v.esp(), 4), [6, 0x5000, CODE0 as u32, eflags::RF | 2]);
    assert_eq!(v.state.eflags, 2);
    let mut v = protected();
    v.state.dr7 |= 1 << 13;
    v.raise(Exception::debug(1 << 14)).unwrap();
    assert_eq!((v.peek32(v.esp() + 8), v.state.dr6, v.state.dr7), (2, 0xffff_4ff0, 0x400));
    v.raise(Exception::debug(2)).unwrap();
    assert_eq!(v.state.dr6, 0xffff_4ff2);
}

#[test]
fn a_fault_while_delivering_a_fault_doubles() {
    let mut v = protected();
    v.set_gate(vector::GP, 0);
    v.raise(Exception::with_error(vector::GP, 0x1234)).unwrap();
    assert_eq!((handler(&v), v.words(v.esp(), 2)), (Some(8), vec![0, 0x5000]));
    let mut v = protected();
    v.set_gate(vector::UD, 0);
    v.raise(Exception::plain(vector::UD)).unwrap();
    assert_eq!((handler(&v), v.peek32(v.esp())), (Some(13), 6 << 3 | 3), "a benign one does not");
}

#[test]
fn page_faults_double_and_others_come_in_series() {
    let mut v = protected();
    v.page();
    v.go_user();
    v.restrict(STACK0 - 4, 2);
    v.raise(Exception::with_error(vector::GP, 0)).unwrap_err();
    assert_eq!(v.state.cr2, STACK0 - 4, "the stack cannot be written: #GP, #PF, #DF, shutdown");
    let mut v = protected();
    v.page();
    v.restrict(IDT, 1);
    assert_eq!(v.raise(Exception::page_fault(0, 0)), Err(Stop::TripleFault));
    assert_eq!(v.state.cr2, IDT + 8 * 8, "the last walk was for #DF");
}

#[test]
fn without_a_double_fault_handler_the_processor_shuts_down() {
    let mut v = protected();
    v.state.idtr.limit = 0;
    let before = v.state.clone();
    assert_eq!(v.raise(Exception::plain(vector::UD)), Err(Stop::TripleFault));
    assert_eq!(v.state, before);
    assert_eq!(v.external_interrupt(0x20), Err(Stop::TripleFault));
    let mut v = real();
    v.state.idtr.limit = 0;
    assert_eq!(v.raise(Exception::plain(vector::UD)), Err(Stop::TripleFault));
}

#[test]
fn a_new_stack_that_faults_changes_nothing() {
    let mut v = protected();
    v.page();
    v.go_user();
    v.poke32(TSS + 4, 0x7008);
    v.restrict(0x6000, 1);
    v.poke32(0x7000, 0x77);
    v.set_gate(0x80, gate(CODE0, 0x5000, 0xee, 0));
    let before = v.state.clone();
    let result = v.software_interrupt(0x80, SoftwareInterrupt::IntN);
    assert_eq!(result, Err(Exception::page_fault(0x6ffc, 2).into()));
    assert_eq!((v.state.clone(), v.peek32(0x7000)), (before, 0x77));
}

#[test]
fn conforming_handlers_stay_at_the_programs_privilege() {
    let mut v = protected();
    v.set_gate(0x80, gate(CONFORMING, 0x6000, 0xee, 0));
    v.go_user();
    v.software_interrupt(0x80, SoftwareInterrupt::IntN).unwrap();
    assert_eq!((v.state.cpl, v.selector(seg::CS), v.esp()), (3, CONFORMING | 3, STACK3 - 12));
}

#[test]
fn sixteen_bit_gates_push_words() {
    let mut v = protected();
    v.set_gate(vector::GP, gate(CODE0, 0x6000, 0x86, 0));
    v.raise(Exception::with_error(vector::GP, 0x18)).unwrap();
    assert_eq!(v.esp(), STACK0 - 8);
    assert_eq!((v.peek32(v.esp()), v.peek16(v.esp() + 4)), (0x5000_0018, CODE0));
}

#[test]
fn real_mode_uses_the_vector_table() {
    let mut v = real();
    v.poke32(4 * 0x21, 0x0300_0040);
    v.state.eflags |= eflags::IF | eflags::TF;
    v.software_interrupt(0x21, SoftwareInterrupt::IntN).unwrap();
    assert_eq!((v.selector(seg::CS), v.state.eip, v.esp(), v.state.eflags), (0x300, 0x40, 0xffa, 2));
    assert_eq!((v.peek32(0x7ffa), v.peek16(0x7ffe)), (0x0100_0010, 0x302));
    v.iret(2).unwrap();
    assert_eq!((v.selector(seg::CS), v.state.eip, v.esp(), v.state.eflags), (0x100, 0x10, 0x1000, 0x302));
    v.poke32(4 * 13, 0x0300_0050);
    v.raise(Exception::with_error(vector::GP, 0x88)).unwrap();
    assert_eq!((v.state.eip, v.esp()), (0x50, 0xffa), "no error code in real mode");
    v.state.gpr[reg::ESP] = 1;
    assert_eq!(v.raise(Exception::plain(vector::UD)), Err(Stop::TripleFault), "no room on the stack");
}

#[test]
fn nmis_block_themselves_until_iret() {
    let mut v = protected();
    v.state.halted = true;
    v.nmi().unwrap();
    assert_eq!((handler(&v), v.state.nmi_blocked, v.state.halted), (Some(2), true, false));
    v.iret(4).unwrap();
    assert!(!v.state.nmi_blocked);
}
