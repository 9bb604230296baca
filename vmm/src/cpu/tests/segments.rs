//! Segment, LDT and TR loads; LAR, LSL, VERR, VERW; far transfers that stay at one privilege.

use super::*;

#[test]
fn data_loads_obey_type_and_privilege() {
    let mut v = protected();
    v.set_descriptor(SPARE, flat(0x99)); // execute-only code
    v.set_descriptor(SPARE2, descriptor(0x1234_5678, 0xf_ffff, 0x92, 4));
    assert_eq!(v.load_segment(seg::DS, SPARE), Err(gp(SPARE)));
    assert_eq!(v.load_segment(seg::DS, ABSENT), Err(Stop::with_error(vector::NP, ABSENT)));
    assert_eq!(v.load_segment(seg::DS, 0x68), Err(gp(0x68)), "beyond the GDT");
    assert_eq!(v.load_segment(seg::DS, 0x0c), Err(gp(0x0c)), "no LDT");
    assert_eq!(v.load_segment(seg::DS, TSS_SELECTOR), Err(gp(TSS_SELECTOR)));
    assert_eq!(v.load_segment(seg::CS, CODE0), Err(Stop::ud()));
    assert_eq!(v.selector(seg::DS), DATA0, "a fault leaves the register");
    v.load_segment(seg::DS, SPARE2).unwrap();
    assert_eq!(v.access_byte(SPARE2), 0x93, "accessed is set in memory");
    let s = v.state.seg[seg::DS];
    assert_eq!((s.base, s.limit, s.attr), (0x1234_5678, 0xf_ffff, 0x4093));
    v.load_segment(seg::DS, 3).unwrap();
    assert!(!v.state.seg[seg::DS].usable());
    v.go_user();
    assert_eq!(v.load_segment(seg::DS, DATA0), Err(gp(DATA0)));
    v.load_segment(seg::FS, CONFORMING).unwrap();
}

#[test]
fn stack_loads_are_stricter() {
    let mut v = protected();
    assert_eq!(v.load_segment(seg::SS, 0), Err(gp(0)));
    assert_eq!(v.load_segment(seg::SS, CODE0), Err(gp(CODE0)));
    assert_eq!(v.load_segment(seg::SS, DATA3), Err(gp(DATA3 & !3)));
    assert_eq!(v.load_segment(seg::SS, ABSENT), Err(Stop::with_error(vector::SS, ABSENT)));
    v.set_descriptor(SPARE, flat(0x91));
    assert_eq!(v.load_segment(seg::SS, SPARE), Err(gp(SPARE)), "read-only");
}

#[test]
fn local_descriptors_come_from_the_ldt() {
    let mut v = protected();
    assert_eq!(v.load_ldtr(DATA0), Err(gp(DATA0)));
    v.load_ldtr(LDT_SELECTOR).unwrap();
    v.poke(LDT + 8, &descriptor(0x100, 0xff, DATA, 4).to_le_bytes());
    v.load_segment(seg::ES, 0x0c).unwrap();
    assert_eq!((v.state.seg[seg::ES].base, v.state.seg[seg::ES].limit), (0x100, 0xff));
    assert_eq!(v.load_segment(seg::ES, 0x24), Err(gp(0x24)), "beyond the LDT");
    v.load_ldtr(0).unwrap();
    assert_eq!(v.load_segment(seg::ES, 0x0c), Err(gp(0x0c)));
}

#[test]
fn the_task_register_takes_an_available_tss_once() {
    let mut v = protected();
    assert_eq!(v.access_byte(TSS_SELECTOR), 0x8b);
    assert_eq!(v.load_tr(TSS_SELECTOR), Err(gp(TSS_SELECTOR)), "busy");
    assert_eq!(v.load_tr(0), Err(gp(0)));
    v.go_user();
    assert_eq!(v.load_tr(OTHER_SELECTOR), Err(gp(0)));
    assert_eq!(real().load_tr(OTHER_SELECTOR), Err(Stop::ud()));
}

#[test]
fn inspection_clears_zf_instead_of_faulting() {
    let mut v = protected();
    v.set_descriptor(SPARE, gate(CODE0, 0, 0x8e, 0));
    assert_eq!(v.lar(DATA0), Ok(Some(0x00c0_9300 | 0xf_0000)));
    assert_eq!(v.lsl(DATA0), Ok(Some(u32::MAX)));
    assert_eq!(v.lsl(TSS_SELECTOR), Ok(Some(0x67)));
    assert_eq!((v.lar(0), v.lsl(0), v.lar(0xfff8)), (Ok(None), Ok(None), Ok(None)));
    assert_eq!((v.lar(SPARE), v.lsl(SPARE)), (Ok(None), Ok(None)), "interrupt gates are not shown");
    assert_eq!((v.verr(CODE0), v.verw(CODE0), v.verw(DATA0)), (Ok(true), Ok(false), Ok(true)));
    v.go_user();
    assert_eq!((v.verr(DATA0), v.verr(DATA3), v.lar(DATA0)), (Ok(false), Ok(true), Ok(None)));
    assert_eq!(v.verr(CONFORMING), Ok(true));
    assert_eq!(real().verr(8), Err(Stop::ud()));
}

#[test]
fn real_mode_segments_keep_their_limit() {
    let mut v = real();
    v.state.seg[seg::DS].limit = u32::MAX;
    v.load_segment(seg::DS, 0x1234).unwrap();
    assert_eq!((v.state.seg[seg::DS].base, v.state.seg[seg::DS].limit), (0x12340, u32::MAX));
    v.far_call(0x200, 0x30, 2).unwrap();
    assert_eq!((v.selector(seg::CS), v.state.eip, v.esp()), (0x200, 0x30, 0xffc));
    assert_eq!(v.peek32(0x7ffc), 0x0100_0010);
    v.far_return(2, 4).unwrap();
    assert_eq!((v.selector(seg::CS), v.state.eip, v.esp()), (0x100, 0x10, 0x1004));
    assert_eq!(v.far_jump(0x200, 0x1_0000, 4), Err(gp(0)));
}

#[test]
fn direct_transfers_keep_privilege() {
    let mut v = protected();
    assert_eq!(v.far_jump(0, 0, 4), Err(gp(0)));
    assert_eq!(v.far_jump(DATA0, 0, 4), Err(gp(DATA0)));
    assert_eq!(v.far_jump(CODE3, 0, 4), Err(gp(CODE3 & !3)));
    v.set_descriptor(SPARE, descriptor(0, 0xff, CODE, 4));
    assert_eq!(v.far_jump(SPARE, 0x100, 4), Err(gp(0)), "beyond the limit");
    v.set_descriptor(SPARE, flat(CODE & !0x80));
    assert_eq!(v.far_jump(SPARE, 0, 4), Err(Stop::with_error(vector::NP, SPARE)));
    v.far_call(CONFORMING, 0x6000, 4).unwrap();
    assert_eq!(v.words(STACK0 - 8, 2), [0x5000, CODE0 as u32]);
    v.far_return(4, 0).unwrap();
    assert_eq!((v.state.eip, v.esp()), (0x5000, STACK0));
    v.go_user();
    v.far_jump(CONFORMING | 3, 0x7000, 4).unwrap();
    assert_eq!((v.state.cpl, v.selector(seg::CS)), (3, CONFORMING | 3));
    assert_eq!(v.far_jump(CODE0, 0, 4), Err(gp(CODE0)));
}

#[test]
fn a_call_whose_frame_does_not_fit_stores_nothing() {
    let mut v = protected();
    v.page();
    v.restrict(0x7000, 1);
    v.poke32(0x8000, 0x1111_1111);
    v.state.gpr[reg::ESP] = 0x8004;
    // CS would go to 8000h, EIP to the absent page below.
    assert_eq!(v.far_call(CODE0, 0x6000, 4), Err(Exception::page_fault(0x7ffc, 2).into()));
    assert_eq!((v.peek32(0x8000), v.esp(), v.state.eip), (0x1111_1111, 0x8004, 0x5000));
}
