//! Transfers between privileges: call gates, returns, SYSENTER.

use super::*;

#[test]
fn a_call_gate_switches_stacks_and_copies_parameters() {
    let mut v = protected();
    v.set_descriptor(SPARE, gate(CODE0, 0x6000, 0xec, 2));
    v.go_user();
    v.stack(STACK3, &[0xaaaa, 0xbbbb]);
    v.far_call(SPARE | 3, 0xdead_beef, 4).unwrap();
    assert_eq!((v.state.cpl, v.selector(seg::CS), v.selector(seg::SS), v.state.eip), (0, CODE0, DATA0, 0x6000));
    assert_eq!(v.esp(), STACK0 - 24);
    let frame = [0x5000, CODE3 as u32, 0xaaaa, 0xbbbb, STACK3 - 8, DATA3 as u32];
    assert_eq!(v.words(v.esp(), 6), frame);
    v.load_segment(seg::FS, DATA0).unwrap();
    v.far_return(4, 8).unwrap();
    assert_eq!((v.state.cpl, v.selector(seg::CS), v.selector(seg::SS), v.esp()), (3, CODE3, DATA3, STACK3));
    assert!(!v.state.seg[seg::FS].usable(), "an inner data segment must not survive");
    assert_eq!(v.selector(seg::DS), DATA3);
}

#[test]
fn sixteen_bit_gates_push_words() {
    let mut v = protected();
    v.set_descriptor(SPARE, gate(CODE0, 0xffff_6000, 0xe4, 1));
    v.go_user();
    v.stack(STACK3, &[0x1111_2222]);
    v.far_call(SPARE, 0, 4).unwrap();
    assert_eq!((v.state.eip, v.esp()), (0x6000, STACK0 - 10));
    let words: Vec<u16> = (0..5).map(|i| v.peek16(v.esp() + 2 * i)).collect();
    assert_eq!(words, [0x5000, CODE3, 0x2222, (STACK3 - 4) as u16, DATA3]);
}

#[test]
fn gates_refuse_what_they_must() {
    let mut v = protected();
    v.set_descriptor(SPARE, gate(CODE0, 0x6000, 0x8c, 0));
    v.go_user();
    assert_eq!(v.far_call(SPARE | 3, 0, 4), Err(gp(SPARE)), "gate of DPL 0");
    v.set_descriptor(SPARE, gate(CODE0, 0x6000, 0xec, 0));
    assert_eq!(v.far_jump(SPARE, 0, 4), Err(gp(CODE0)), "JMP cannot raise privilege");
    v.set_descriptor(SPARE, gate(CODE0, 0x6000, 0x6c, 0));
    assert_eq!(v.far_call(SPARE, 0, 4), Err(Stop::with_error(vector::NP, SPARE)));
    v.set_descriptor(SPARE, gate(DATA0, 0x6000, 0xec, 0));
    assert_eq!(v.far_call(SPARE, 0, 4), Err(gp(DATA0)));
    v.set_descriptor(SPARE, gate(0, 0x6000, 0xec, 0));
    assert_eq!(v.far_call(SPARE, 0, 4), Err(gp(0)));
    v.set_descriptor(SPARE, gate(CODE0, 0x6000, 0xec, 0));
    v.poke32(TSS + 8, CODE0 as u32);
    assert_eq!(v.far_call(SPARE, 0, 4), Err(Stop::with_error(vector::TS, CODE0)));
    v.poke32(TSS + 8, ABSENT as u32);
    assert_eq!(v.far_call(SPARE, 0, 4), Err(Stop::with_error(vector::SS, ABSENT)));
    v.set_descriptor(SPARE2, descriptor(0, 0x0f, DATA, 4));
    v.poke32(TSS + 8, SPARE2 as u32);
    assert_eq!(v.far_call(SPARE, 0, 4), Err(Stop::with_error(vector::SS, SPARE2)), "frame beyond the limit");
    v.state.tr.limit = 8;
    assert_eq!(v.far_call(SPARE, 0, 4), Err(Stop::with_error(vector::TS, TSS_SELECTOR)));
    assert_eq!((v.state.cpl, v.esp(), v.state.eip), (3, STACK3, 0x5000));
}

#[test]
fn returns_refuse_what_they_must() {
    let mut v = protected();
    v.stack(STACK0, &[0x5000, 0]);
    assert_eq!(v.far_return(4, 0), Err(gp(0)));
    v.stack(STACK0, &[0x5000, CODE3 as u32 & !3]);
    assert_eq!(v.far_return(4, 0), Err(gp(CODE3 & !3)), "RPL and DPL differ");
    v.stack(STACK0, &[0x5000, CODE3 as u32, STACK3, DATA0 as u32]);
    assert_eq!(v.far_return(4, 0), Err(gp(DATA0)));
    v.stack(STACK0, &[0x5000, CODE3 as u32, STACK3, 0]);
    assert_eq!(v.far_return(4, 0), Err(gp(0)));
    v.go_user();
    v.stack(STACK3, &[0x5000, CODE0 as u32]);
    assert_eq!(v.far_return(4, 0), Err(gp(CODE0)), "no return inward");
}

#[test]
fn iret_loads_flags_by_privilege() {
    let mut v = protected();
    v.state.nmi_blocked = true;
    v.stack(STACK0, &[0x5000, CODE0 as u32, !eflags::VM & !eflags::NT]);
    v.iret(4).unwrap();
    let all = eflags::ALL & !eflags::VM & !eflags::NT | eflags::FIXED;
    assert_eq!((v.state.eflags, v.state.nmi_blocked), (all, false));
    v.state.eflags = eflags::FIXED;
    v.go_user();
    assert_eq!(v.state.eflags, 0x202);
    v.stack(STACK3, &[0x5000, CODE3 as u32, eflags::IOPL | eflags::VM | eflags::CF]);
    v.iret(4).unwrap();
    assert_eq!(v.state.eflags, 0x203, "IF, IOPL and VM belong to the system");
    v.state.eflags |= eflags::AC | eflags::IOPL;
    v.poke(STACK3 - 6, &[0, 0x50, CODE3 as u8, 0, 0, 0]);
    v.state.gpr[reg::ESP] = STACK3 - 6;
    v.iret(2).unwrap();
    assert_eq!(v.state.eflags, eflags::AC | eflags::IOPL | 2, "the short form keeps the upper half");
}

#[test]
fn sysenter_and_sysexit_are_flat() {
    let mut v = protected();
    assert_eq!(v.sysenter(), Err(gp(0)));
    for (msr, value) in [(0x174, 0x60), (0x175, 0x7000), (0x176, 0x6000)] {
        v.wrmsr(msr, value).unwrap();
    }
    v.go_user();
    assert_eq!(v.sysexit(), Err(gp(0)));
    v.sysenter().unwrap();
    assert_eq!((v.selector(seg::CS), v.selector(seg::SS), v.state.cpl), (0x60, 0x68, 0));
    assert_eq!((v.state.eip, v.esp(), v.state.eflags & eflags::IF), (0x6000, 0x7000, 0));
    v.state.gpr[reg::ECX] = STACK3;
    v.state.gpr[reg::EDX] = 0x5555;
    v.sysexit().unwrap();
    assert_eq!((v.selector(seg::CS), v.selector(seg::SS), v.state.cpl), (0x73, 0x7b, 3));
    assert_eq!((v.state.eip, v.esp()), (0x5555, STACK3));
    assert!(v.state.seg[seg::CS].flat() && v.state.seg[seg::CS].dpl() == 3);
}
