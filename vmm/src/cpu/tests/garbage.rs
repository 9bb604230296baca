//! Whatever a guest puts into tables and registers, a rule ends in success, an exception or shutdown; and one that fails
//! leaves what the engine does not restore.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const CASES: usize = 60_000;

/// Makes some descriptors, gates and TSS fields random, most of them nearly sensible.
fn scramble(v: &mut Vcpu, rng: &mut SmallRng) {
    for _ in 0..rng.random_range(1..12) {
        let access = rng.random_range(0..256) | if rng.random_bool(0.7) { 0x80 } else { 0 };
        let any = match rng.random_range(0..4) {
            0 => rng.random::<u64>(),
            1 => gate(rng.random_range(0..0x70), rng.random_range(0..0x9000), access, rng.random_range(0..32)),
            2 => descriptor(rng.random_range(0..0x4000), rng.random_range(0..0x200), access, rng.random_range(0..16)),
            _ => flat(access),
        };
        match rng.random_range(0..3) {
            0 => v.set_gate(rng.random_range(0..0x60), any),
            _ => v.set_descriptor(rng.random_range(1..13) * 8, any),
        }
    }
    for _ in 0..rng.random_range(0..20) {
        let value = if rng.random() { rng.random_range(0..0x70) } else { rng.random() };
        v.poke32(TSS + 2 * rng.random_range(0..0x100), value);
    }
    for _ in 0..10 {
        let value = if rng.random() { rng.random_range(0..0x70) } else { rng.random() };
        v.poke32((v.esp() & 0xfffc) + 4 * rng.random_range(0..8), value);
    }
    match rng.random_range(0..8) {
        0 => v.state.gpr[reg::ESP] = rng.random(),
        1 => v.state.tr.limit = rng.random_range(0..0x70),
        2 => v.state.idtr.limit = rng.random_range(0..0x300),
        3 => v.state.gdtr.base = rng.random(),
        4 => v.state.tr.base = rng.random(),
        5 => v.state.eflags = rng.random::<u32>() & (eflags::ALL & !eflags::VM) | eflags::FIXED,
        _ => {}
    }
}

fn act(v: &mut Vcpu, rng: &mut SmallRng) -> Flow<()> {
    let selector = if rng.random_bool(0.9) { rng.random_range(0..0x70) } else { rng.random() };
    let size = if rng.random() { 4 } else { 2 };
    let vector = rng.random_range(0..0x60);
    match rng.random_range(0..17) {
        0 => v.load_segment(rng.random_range(0..6), selector),
        1 => v.load_ldtr(selector),
        2 => v.load_tr(selector),
        3 => v.far_jump(selector, rng.random(), size),
        4 => v.far_call(selector, rng.random_range(0..0x10000), size),
        5 => v.far_return(size, rng.random()),
        6 | 7 => v.iret(size),
        8 => v.software_interrupt(vector, SoftwareInterrupt::IntN),
        9 => v.raise(Exception::with_error(rng.random_range(0..20), 0)),
        10 => v.external_interrupt(vector),
        11 => v.check_io(rng.random(), 4),
        12 => v.write_cr(rng.random_range(0..5), rng.random()),
        13 => v.write_dr(rng.random_range(0..8), rng.random()),
        14 => v.wrmsr(rng.random_range(0..0x800), rng.random()),
        15 => v.lar(selector).and_then(|_| v.lsl(selector)).map(|_| ()),
        _ => v.sysenter().and_then(|()| v.sysexit()),
    }
}

/// What a failing rule may not have changed.
fn kept(s: &CpuState) -> ([Segment; 6], Segment, Segment, [u32; 3], u8) {
    (s.seg, s.ldtr, s.tr, [s.cr0, s.cr3, s.cr4], s.cpl)
}

#[test]
fn no_garbage_breaks_the_rules() {
    let mut rng = SmallRng::seed_from_u64(1);
    let ram = protected();
    for case in 0..CASES {
        // One RAM for all: rebuilding it each time would be the whole cost.
        let mut v = Vcpu::new(0, ram.mmu.ram.clone(), Arc::new(EmptyBus), Arc::default());
        build(&mut v);
        if rng.random_bool(0.3) {
            v.page();
        }
        if rng.random() {
            v.go_user();
        }
        scramble(&mut v, &mut rng);
        for _ in 0..3 {
            let before = kept(&v.state);
            if let Err(Stop::Exception(_)) = act(&mut v, &mut rng) {
                assert_eq!(kept(&v.state), before, "case {case}");
            }
            assert!(v.state.cpl <= 3 && v.state.eflags & eflags::FIXED != 0, "case {case}");
        }
    }
}
