//! Hardware task switches.

use super::*;

/// Fills the other TSS with a ring-0 task.
fn other_task(v: &mut Vcpu) {
    for (offset, value) in [
        (0x20, 0x6000),
        (0x24, 0x202),
        (0x28, 0x1111),
        (0x38, TASK_STACK),
        (0x48, DATA0 as u32),
        (0x4c, CODE0 as u32),
        (0x50, DATA0 as u32),
        (0x54, DATA0 as u32),
    ] {
        v.poke32(OTHER_TSS + offset, value);
    }
}

#[test]
fn a_jump_to_a_tss_switches_and_back() {
    let mut v = protected();
    other_task(&mut v);
    v.state.gpr[reg::EAX] = 0x2222;
    v.state.dr7 = 0x4ff;
    v.far_jump(OTHER_SELECTOR, 0, 4).unwrap();
    assert_eq!((v.state.eip, v.state.gpr[reg::EAX], v.esp(), v.state.eflags), (0x6000, 0x1111, TASK_STACK, 0x202));
    assert_eq!((v.state.tr.selector, v.state.tr.attr & 0xf), (OTHER_SELECTOR, 11));
    assert_eq!((v.access_byte(TSS_SELECTOR), v.access_byte(OTHER_SELECTOR)), (0x89, 0x8b));
    assert_ne!(v.state.cr0 & cr0::TS, 0);
    assert_eq!(v.state.dr7, 0x4aa, "local breakpoints end with the task");
    assert_eq!((v.peek32(TSS + 0x20), v.peek32(TSS + 0x28), v.peek16(TSS + 0x4c)), (0x5000, 0x2222, CODE0));
    v.far_jump(TSS_SELECTOR, 0, 4).unwrap();
    assert_eq!((v.state.eip, v.state.gpr[reg::EAX], v.esp()), (0x5000, 0x2222, STACK0));
}

#[test]
fn calls_nest_and_iret_returns() {
    let mut v = protected();
    other_task(&mut v);
    v.set_descriptor(SPARE, gate(OTHER_SELECTOR, 0, 0x85, 0));
    v.far_call(SPARE, 0, 4).unwrap();
    assert_eq!(v.state.eflags, 0x202 | eflags::NT);
    assert_eq!(v.peek16(OTHER_TSS), TSS_SELECTOR, "the back link");
    assert_eq!((v.access_byte(TSS_SELECTOR), v.access_byte(OTHER_SELECTOR)), (0x8b, 0x8b));
    assert_eq!(v.far_jump(TSS_SELECTOR, 0, 4), Err(gp(TSS_SELECTOR)), "tasks are not recursive");
    v.state.eip = 0x6002;
    v.iret(4).unwrap();
    assert_eq!((v.state.eip, v.state.tr.selector, v.state.eflags & eflags::NT), (0x5000, TSS_SELECTOR, 0));
    assert_eq!((v.access_byte(TSS_SELECTOR), v.access_byte(OTHER_SELECTOR)), (0x8b, 0x89));
    assert_eq!((v.peek32(OTHER_TSS + 0x20), v.peek32(OTHER_TSS + 0x24)), (0x6002, 0x202), "NT is saved clear");
}

#[test]
fn iret_checks_the_back_link() {
    let mut v = protected();
    v.state.eflags |= eflags::NT;
    v.poke32(TSS, OTHER_SELECTOR as u32);
    assert_eq!(v.iret(4), Err(Stop::with_error(vector::TS, OTHER_SELECTOR)), "not busy");
    v.poke32(TSS, 0x0c);
    assert_eq!(v.iret(4), Err(Stop::with_error(vector::TS, 0x0c)), "local");
}

#[test]
fn a_double_fault_may_be_a_task() {
    let mut v = protected();
    other_task(&mut v);
    v.set_gate(vector::DF, gate(OTHER_SELECTOR, 0, 0x85, 0));
    v.set_gate(vector::GP, 0);
    v.go_user();
    v.raise(Exception::with_error(vector::GP, 0)).unwrap();
    assert_eq!((v.state.cpl, v.state.eip, v.esp(), v.peek32(TASK_STACK - 4)), (0, 0x6000, TASK_STACK - 4, 0));
    assert_eq!((v.peek32(TSS + 0x20), v.peek16(TSS + 0x4c)), (0x5000, CODE3));
}

#[test]
fn a_bad_task_faults_in_its_own_context() {
    let mut v = protected();
    other_task(&mut v);
    v.poke32(OTHER_TSS + 0x54, CODE3 as u32 | 0xff00);
    v.far_jump(OTHER_SELECTOR, 0, 4).unwrap();
    assert_eq!((handler(&v), v.state.tr.selector), (Some(10), OTHER_SELECTOR));
    assert_eq!(v.words(v.esp(), 3), [0xff18, 0x6000, CODE0 as u32]);
    let mut v = protected();
    other_task(&mut v);
    v.set_descriptor(SPARE, descriptor(0, 0xff, CODE, 4));
    v.poke32(OTHER_TSS + 0x4c, SPARE as u32);
    v.far_jump(OTHER_SELECTOR, 0, 4).unwrap();
    assert_eq!((handler(&v), v.peek32(v.esp())), (Some(13), 0), "EIP beyond the limit");
}

#[test]
fn a_refused_switch_leaves_the_old_task() {
    let mut v = protected();
    other_task(&mut v);
    v.set_descriptor(OTHER_SELECTOR, descriptor(OTHER_TSS, 0x66, 0x89, 0));
    let before = v.state.clone();
    assert_eq!(v.far_jump(OTHER_SELECTOR, 0, 4), Err(Stop::with_error(vector::TS, OTHER_SELECTOR)));
    v.set_descriptor(OTHER_SELECTOR, descriptor(OTHER_TSS, 0x67, 0x09, 0));
    assert_eq!(v.far_call(OTHER_SELECTOR, 0, 4), Err(Stop::with_error(vector::NP, OTHER_SELECTOR)));
    assert_eq!((v.state.clone(), v.access_byte(TSS_SELECTOR)), (before, 0x8b));
}

#[test]
fn sixteen_bit_tasks_keep_the_address_space() {
    let mut v = protected();
    other_task(&mut v);
    v.set_descriptor(OTHER_SELECTOR, descriptor(OTHER_TSS, 0x2b, 0x81, 0));
    let words: [u16; 22] = [0, 0, 0, 0, 0, 0, 0, 0x1234, 2, 1, 2, 3, 4, 0xa000, 6, 7, 8, DATA0, CODE0, DATA0, 0, 0];
    for (i, w) in words.into_iter().enumerate() {
        v.poke(OTHER_TSS + 2 * i as u32, &w.to_le_bytes());
    }
    v.far_call(OTHER_SELECTOR, 0, 4).unwrap();
    assert_eq!((v.state.eip, v.state.gpr[reg::EAX], v.state.eflags), (0x1234, 0xffff_0001, 2 | eflags::NT));
    assert_eq!((v.selector(seg::ES), v.state.seg[seg::DS].usable()), (DATA0, false));
    v.state.gpr[reg::ECX] = 0x9999;
    v.iret(4).unwrap();
    assert_eq!((v.state.eip, v.esp()), (0x5000, STACK0));
    assert_eq!(v.peek16(OTHER_TSS + 0x14), 0x9999);
}

#[test]
fn tasks_bring_their_page_directory_and_debug_trap() {
    let mut v = protected();
    other_task(&mut v);
    v.page();
    v.poke32(0x1_2000, 0x1_1007);
    v.poke32(OTHER_TSS + 0x1c, 0x1_2000);
    v.poke32(OTHER_TSS + 0x64, 1);
    v.mmu.take_flushes();
    v.far_jump(OTHER_SELECTOR, 0, 4).unwrap();
    assert_eq!((v.state.cr3, v.mmu.take_flushes()), (0x1_2000, vec![crate::mmu::Flush::NonGlobal]));
    assert_eq!((handler(&v), v.state.dr6), (Some(1), 0xffff_8ff0));
    assert_eq!(v.peek32(v.esp()), 0x6000, "before the task's first instruction");
}

#[test]
fn an_interrupt_task_that_faults_ends_in_shutdown_not_recursion() {
    let mut v = protected();
    other_task(&mut v);
    v.poke32(OTHER_TSS + 0x4c, 0);
    for vector in [vector::TS, vector::DF] {
        v.set_gate(vector, gate(OTHER_SELECTOR, 0, 0x85, 0));
    }
    assert_eq!(v.raise(Exception::with_error(vector::TS, 0)), Err(Stop::TripleFault));
}
