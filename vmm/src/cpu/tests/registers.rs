//! Control registers, debug registers, MSRs and ports.

use super::*;

#[test]
fn cr0_refuses_impossible_modes() {
    let mut v = protected();
    assert_eq!(v.write_cr(0, cr0::PG), Err(gp(0)));
    assert_eq!(v.write_cr(0, cr0::PE | cr0::NW), Err(gp(0)));
    assert_eq!(v.write_cr(1, 0), Err(Stop::ud()));
    assert_eq!(v.read_cr(8), Err(Stop::ud()));
    v.write_cr(0, cr0::PE | 0x40).unwrap();
    assert_eq!(v.read_cr(0), Ok(cr0::PE | cr0::ET), "reserved bits are ignored, ET is fixed");
    v.lmsw(cr0::TS as u16 | cr0::MP as u16).unwrap();
    assert_eq!(v.read_cr(0), Ok(cr0::PE | cr0::ET | cr0::TS | cr0::MP), "LMSW cannot leave protected mode");
    v.clts().unwrap();
    assert_eq!(v.read_cr(0), Ok(cr0::PE | cr0::ET | cr0::MP));
    v.go_user();
    assert_eq!((v.read_cr(0), v.clts(), v.lmsw(0)), (Err(gp(0)), Err(gp(0)), Err(gp(0))));
}

#[test]
fn pae_loads_its_pointers_checked() {
    let mut v = protected();
    v.poke32(0x1_0000, 0x1_1001);
    for i in 0..2 {
        v.poke32(0x1_1000 + 8 * i, i << 21 | 0x87);
    }
    v.write_cr(4, cr4::PAE).unwrap();
    v.write_cr(3, 0x1_0000).unwrap();
    assert_eq!(v.state.pdpte[0], 0, "not before paging is on");
    v.write_cr(0, v.state.cr0 | cr0::PG).unwrap();
    assert_eq!(v.state.pdpte[0], 0x1_1001);
    v.poke32(0x1_0020, 0x1_1003);
    assert_eq!(v.write_cr(3, 0x1_0020), Err(gp(0)), "R/W is reserved in a PDPTE");
    assert_eq!(v.state.cr3, 0x1_0000);
    assert_eq!(v.write_cr(4, 1 << 13), Err(gp(0)));
    assert_eq!(v.write_cr(4, cr4::VME), Err(gp(0)), "not announced");
}

#[test]
fn xcr0_takes_what_the_model_has() {
    let mut v = protected();
    v.model.set(Feature::Xsave, true);
    v.model.set(Feature::Avx, true);
    assert_eq!(v.xsetbv(0, 7), Err(Stop::ud()));
    v.write_cr(4, cr4::OSXSAVE).unwrap();
    v.xsetbv(0, 7).unwrap();
    assert_eq!(v.cpuid(0xd, 0), [7, 832, 832, 0]);
    assert_ne!(v.cpuid(1, 0)[2] & 1 << 27, 0);
    for (index, value) in [(1, 1), (0, 0), (0, 5), (0, 1 << 9 | 7)] {
        assert_eq!(v.xsetbv(index, value), Err(gp(0)));
    }
    v.model.set(Feature::Avx, false);
    assert_eq!(v.xsetbv(0, 7), Err(gp(0)));
}

#[test]
fn debug_registers_alias_and_guard() {
    let mut v = protected();
    v.write_dr(4, 0xffff_ffff).unwrap();
    assert_eq!(v.read_dr(6), Ok(0xffff_efff));
    v.write_dr(7, 0xffff_dfff).unwrap();
    assert_eq!(v.read_dr(5), Ok(0xffff_07ff));
    v.write_cr(4, cr4::DE).unwrap();
    assert_eq!(v.read_dr(5), Err(Stop::ud()));
    v.write_dr(7, 1 << 13).unwrap();
    assert_eq!(v.read_dr(0), Err(Exception::debug(1 << 13).into()));
}

#[test]
fn data_breakpoints_are_noted() {
    let mut v = protected();
    v.write_dr(1, 0x5004).unwrap();
    v.write_dr(7, 1 << 2 | 0b1101 << 20).unwrap();
    v.store(0x5006, 1u8, v.privilege()).unwrap();
    assert_eq!(std::mem::take(&mut v.mmu.pending_debug), 2);
    v.load::<u32>(0x5004, v.privilege()).unwrap();
    assert_eq!(v.mmu.pending_debug, 0, "a write breakpoint");
    v.write_cr(4, cr4::DE).unwrap();
    v.write_dr(0, 0x3f8).unwrap();
    v.write_dr(7, 1 | 0b0010 << 16).unwrap();
    v.check_io(0x3f8, 1).unwrap();
    assert_eq!(v.mmu.pending_debug, 1);
}

#[test]
fn ports_ask_the_bitmap() {
    let mut v = protected();
    v.check_io(0xffff, 1).unwrap();
    v.go_user();
    assert_eq!(v.check_io(0x60, 1), Err(gp(0)), "the limit leaves no bitmap");
    v.state.tr.limit = 0x68 + 0x20;
    v.poke(TSS + 0x68 + 0xc, &[0b1111_1100]);
    v.check_io(0x60, 2).unwrap();
    assert_eq!(v.check_io(0x61, 2), Err(gp(0)));
    v.check_io(0xf8, 4).unwrap();
    assert_eq!(v.check_io(0x100, 1), Err(gp(0)), "the second byte lies beyond the limit");
    v.state.eflags |= eflags::IOPL;
    v.check_io(0x61, 4).unwrap();
}

#[test]
fn msrs_check_what_they_take() {
    let mut v = protected();
    assert_eq!(v.rdmsr(0x1234), Err(gp(0)));
    assert_eq!(v.wrmsr(0x277, 2), Err(gp(0)));
    v.wrmsr(0xc000_0080, 1 << 11).unwrap();
    assert_eq!(v.rdmsr(0xc000_0080), Ok(1 << 11));
    assert_eq!(v.wrmsr(0xc000_0080, 1 << 8), Err(gp(0)), "no long mode");
    assert_eq!(v.wrmsr(0x200, 2), Err(gp(0)), "no memory type 2");
    v.wrmsr(0x201, 0xf_c000_0800).unwrap();
    assert_eq!((v.rdmsr(0x201), v.rdmsr(0xfe)), (Ok(0xf_c000_0800), Ok(0x508)));
    assert_eq!((v.rdmsr(0x49), v.wrmsr(0x49, 1)), (Err(gp(0)), Ok(())), "write-only");
    assert_eq!(v.rdmsr(0x1b), Err(gp(0)), "no APIC on this board");
    v.go_user();
    assert_eq!((v.rdmsr(0x10), v.wrmsr(0x10, 0)), (Err(gp(0)), Err(gp(0))));
}

#[test]
fn the_counter_can_be_set_and_adjusted() {
    let mut v = protected();
    v.wrmsr(0x10, 5_000_000_000).unwrap();
    let now = v.rdmsr(0x10).unwrap();
    assert!((5_000_000_000..6_000_000_000).contains(&now), "{now}");
    let adjust = v.rdmsr(0x3b).unwrap();
    assert_eq!(adjust, v.state.tsc_offset);
    v.wrmsr(0x3b, 0).unwrap();
    assert_eq!(v.state.tsc_offset, 0, "the counter is the host's again");
}
