//! Virtual-8086 mode: in by IRET, out by interrupts.

use super::*;

/// Enters virtual-8086 mode at 1000h:20h with the given IOPL.
fn enter(v: &mut Vcpu, iopl: u32) {
    let flags = eflags::VM | eflags::IF | iopl << 12;
    v.stack(STACK0, &[0x20, 0x1000, flags, 0x400, 0x2000, 0x11, 0x22, 0x33, 0x44]);
    v.iret(4).unwrap();
}

#[test]
fn a_round_trip_keeps_everything() {
    let mut v = protected();
    enter(&mut v, 3);
    let flags = eflags::VM | eflags::IF | eflags::IOPL | 2;
    assert_eq!((v.state.cpl, v.state.eflags, v.esp()), (3, flags, 0x400));
    assert_eq!((v.state.seg[seg::CS].base, v.state.seg[seg::SS].base), (0x1_0000, 0x2_0000));
    assert_eq!([seg::ES, seg::DS, seg::FS, seg::GS].map(|s| v.selector(s)), [0x11, 0x22, 0x33, 0x44]);
    assert_eq!((v.state.seg[seg::DS].dpl(), v.state.seg[seg::DS].limit), (3, 0xffff));
    v.external_interrupt(0x10).unwrap();
    assert_eq!((v.state.cpl, v.selector(seg::CS), v.selector(seg::SS)), (0, CODE0, DATA0));
    assert_eq!(v.words(v.esp(), 9), [0x20, 0x1000, flags, 0x400, 0x2000, 0x11, 0x22, 0x33, 0x44]);
    assert!([seg::ES, seg::DS, seg::FS, seg::GS].iter().all(|s| !v.state.seg[*s].usable()));
    assert_eq!(v.state.eflags & (eflags::VM | eflags::IF), 0);
    v.iret(4).unwrap();
    assert_eq!((v.selector(seg::CS), v.state.eip, v.state.eflags), (0x1000, 0x20, flags));
}

#[test]
fn iopl_guards_int_and_iret() {
    let mut v = protected();
    v.set_gate(0x21, gate(CODE0, 0x6000, 0xee, 0));
    v.set_gate(3, gate(CODE0, 0x6000, 0xee, 0));
    enter(&mut v, 0);
    assert_eq!(v.software_interrupt(0x21, SoftwareInterrupt::IntN), Err(gp(0)));
    assert_eq!(v.iret(2), Err(gp(0)));
    v.software_interrupt(3, SoftwareInterrupt::Int3).unwrap();
    assert_eq!((v.state.cpl, v.state.eip), (0, 0x6000), "INT3 is not guarded");
    let mut v = protected();
    v.set_gate(0x21, gate(CODE0, 0x6000, 0xee, 0));
    enter(&mut v, 3);
    v.software_interrupt(0x21, SoftwareInterrupt::IntN).unwrap();
    assert_eq!(v.state.eip, 0x6000);
}

#[test]
fn the_handler_must_be_in_ring_0() {
    let mut v = protected();
    v.set_gate(0x21, gate(CODE3, 0x6000, 0xee, 0));
    enter(&mut v, 3);
    assert_eq!(v.software_interrupt(0x21, SoftwareInterrupt::IntN), Err(gp(CODE3 & !3)));
    v.set_gate(0x21, gate(CONFORMING, 0x6000, 0xee, 0));
    assert_eq!(v.software_interrupt(0x21, SoftwareInterrupt::IntN), Err(gp(CONFORMING)));
}

#[test]
fn programs_load_segments_and_return_as_in_real_mode() {
    let mut v = protected();
    enter(&mut v, 3);
    v.load_segment(seg::DS, 0x1234).unwrap();
    assert_eq!((v.state.seg[seg::DS].base, v.state.seg[seg::DS].attr), (0x12340, 0xf3));
    v.poke(0x2_0400, &[0x30, 0, 0, 0x11, 0x07, 0x4f]);
    v.iret(2).unwrap();
    assert_eq!((v.selector(seg::CS), v.state.eip, v.esp()), (0x1100, 0x30, 0x406));
    assert_eq!(v.state.eflags, eflags::VM | eflags::IOPL | 0x4f07 & !eflags::IOPL, "IOPL stays");
    assert_eq!(v.load_ldtr(0), Err(Stop::ud()));
    assert_eq!(v.check_io(0x80, 1), Err(gp(0)), "IOPL does not open ports here");
}
