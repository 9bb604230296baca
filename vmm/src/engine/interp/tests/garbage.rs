//! Random bytes as code, in random states: exceptions and stops are fine, panics and hangs are not.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::cpu::{Stop, eflags};
use crate::engine::{Engine, Exit};

/// Executes random code and counts the instructions that completed.
fn storm(mut m: Machine, seed: u64) -> u32 {
    let mut r = SmallRng::seed_from_u64(seed);
    let mut page = [0u8; 0x2000];
    let mut completed = 0;
    for _ in 0..60 {
        r.fill(&mut page[..]);
        m.poke(CODE, &page);
        for _ in 0..100 {
            m.v.state.gpr = std::array::from_fn(|_| r.random::<u32>() >> r.random_range(0..32));
            m.v.state.eflags =
                eflags::FIXED | r.random::<u32>() & (eflags::ARITH | eflags::DF | eflags::TF | eflags::AC);
            m.v.state.eip = CODE - m.v.state.seg[crate::cpu::seg::CS].base + r.random_range(0..0x1ff0);
            let base = m.v.state.clone();
            for _ in 0..20 {
                match m.engine.attempt(&mut m.v) {
                    Ok(()) => completed += 1,
                    Err(Stop::Exception(_) | Stop::TripleFault) => break,
                    Err(Stop::Unsupported(what)) => {
                        assert!(!what.instruction.is_empty(), "an unsupported instruction has a name");
                        break;
                    }
                }
            }
            m.v.state = base;
            m.v.mmu.flush(crate::mmu::Flush::All);
        }
    }
    completed
}

#[test]
fn in_protected_mode() {
    assert!(storm(Machine::flat(), 1) > 1000);
}

#[test]
fn at_ring_3() {
    let mut m = Machine::flat();
    m.v.state.cpl = 3;
    assert!(storm(m, 2) > 1000);
}

#[test]
fn in_real_mode() {
    assert!(storm(Machine::real(), 3) > 1000);
}

#[test]
fn the_whole_engine_survives_a_wild_jump() {
    let mut r = SmallRng::seed_from_u64(4);
    for _ in 0..50 {
        let mut m = Machine::real();
        let mut page = vec![0u8; 0x1_0000];
        r.fill(&mut page[..]);
        m.poke(0, &page);
        m.poke(CODE, &page);
        let lines = m.v.lines.clone();
        let stop = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            lines.request();
        });
        let exit = m.engine.run(&mut m.v);
        assert!(!matches!(exit, Exit::Unsupported(ref w) if w.feature.is_empty()), "{exit:?}");
        stop.join().unwrap();
    }
}
