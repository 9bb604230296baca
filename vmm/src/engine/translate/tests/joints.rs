//! Ring 3 with paging: links between pages hold in one address space, and only while it maps what they lead to.

use super::{CODE, STACK, machine};
use crate::cpu::{CpuState, Vcpu, attr, cr0};
use crate::engine::translate::Translator;
use crate::engine::translate::mode::Mode;
use crate::engine::{Engine, Exit};
use crate::mmu::Flush;

/// Page directories of two address spaces, each with one page table behind it. All is where it is, but for one page.
const SPACES: [u32; 2] = [0x40_0000, 0x40_2000];
/// The page that is mapped differently, and what it may be: functions that add 1 to EAX, EBX and EDX.
const CALLED: u32 = 0x12_0000;
const FRAMES: [u32; 3] = [0x50_0000, 0x50_1000, 0x50_2000];
/// Calls in each run.
const CALLS: u32 = 10;
/// Present, writable, user.
const RIGHTS: u32 = 7;

fn entry(space: u32) -> u64 {
    (space + 0x1000 + (CALLED >> 12) * 4) as u64
}

/// How the page that is mapped differently is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Direct,
    /// By ESI.
    Indirect,
}

const CALLS_BY: [Call; 2] = [Call::Direct, Call::Indirect];

/// A machine and its state at the start, in the first address space.
fn prepared(by: Call) -> (Vcpu, CpuState) {
    // call; dec ecx; jne; hlt
    let mut program = match by {
        Call::Direct => [&[0xe8][..], &(CALLED - CODE - 5).to_le_bytes()].concat(),
        Call::Indirect => vec![0xff, 0xd6],
    };
    let back = 0u8.wrapping_sub(program.len() as u8 + 3);
    program.extend([0x49, 0x75, back, 0xf4]);
    let mut v = machine(&program);
    for (space, frame) in SPACES.into_iter().zip(FRAMES) {
        assert!(v.mmu.ram.write(space as u64, &((space + 0x1000) | RIGHTS).to_le_bytes()));
        for page in 0..1024u32 {
            assert!(v.mmu.ram.write((space + 0x1000 + page * 4) as u64, &((page << 12) | RIGHTS).to_le_bytes()));
        }
        assert!(v.mmu.ram.write(entry(space), &(frame | RIGHTS).to_le_bytes()));
    }
    for (frame, inc) in FRAMES.into_iter().zip([0x40, 0x43, 0x42]) {
        assert!(v.mmu.ram.write(frame as u64, &[inc, 0xc3]));
    }
    v.state.cr0 |= cr0::PG;
    v.state.cr3 = SPACES[0];
    v.state.cpl = 3;
    v.state.seg.iter_mut().for_each(|s| s.attr |= attr::DPL);
    v.state.gpr = [0, CALLS, 0, 0, STACK, 0, CALLED, 0];
    let start = v.state.clone();
    (v, start)
}

/// Starts again in address space `cr3`, as a guest's kernel would after writing CR3.
fn restart(v: &mut Vcpu, start: &CpuState, cr3: u32) {
    v.state = start.clone();
    v.state.cr3 = cr3;
    v.mmu.flush(Flush::NonGlobal);
}

/// Runs to the end; how often each function was called.
fn calls(t: &mut Translator, v: &mut Vcpu) -> [u32; 3] {
    // HLT in ring 3 faults, and no fault can be delivered.
    assert_eq!(t.run(v), Exit::Shutdown);
    t.check_all();
    [v.state.gpr[0], v.state.gpr[3], v.state.gpr[2]]
}

fn join(t: &mut Translator, v: &mut Vcpu) {
    let before = t.stats.joined;
    let mode = Mode::of(v).unwrap();
    t.notices(v);
    t.join_pages(v, mode);
    let by_chart = t.context.is_usable() && t.joints.goes_by_chart();
    assert!(t.stats.joined > before || by_chart, "{:?}", t.stats);
    t.check_all();
}

#[test]
fn another_address_space_has_its_own_code() {
    CALLS_BY.into_iter().for_each(another_address_space);
}

fn another_address_space(by: Call) {
    let (mut v, start) = prepared(by);
    let mut t = Translator::new(&v.mmu.ram).unwrap();
    for _ in 0..3 {
        assert_eq!(calls(&mut t, &mut v), [CALLS, 0, 0]);
        restart(&mut v, &start, SPACES[0]);
        join(&mut t, &mut v);
        assert_eq!(calls(&mut t, &mut v), [CALLS, 0, 0]);
        restart(&mut v, &start, SPACES[1]);
        assert_eq!(calls(&mut t, &mut v), [0, CALLS, 0]);
        restart(&mut v, &start, SPACES[0]);
    }
}

#[test]
fn a_page_mapped_anew_is_what_runs() {
    let flushes = [Flush::NonGlobal, Flush::Page(CALLED), Flush::All];
    for (by, flush) in CALLS_BY.into_iter().flat_map(|by| flushes.map(|flush| (by, flush))) {
        let (mut v, start) = prepared(by);
        let mut t = Translator::new(&v.mmu.ram).unwrap();
        assert_eq!(calls(&mut t, &mut v), [CALLS, 0, 0]);
        restart(&mut v, &start, SPACES[0]);
        join(&mut t, &mut v);
        assert_eq!(calls(&mut t, &mut v), [CALLS, 0, 0]);
        v.state = start.clone();
        assert!(v.mmu.ram.write(entry(SPACES[0]), &(FRAMES[2] | RIGHTS).to_le_bytes()));
        v.mmu.flush(flush);
        assert_eq!(calls(&mut t, &mut v), [0, 0, CALLS], "{by:?} {flush:?}");
    }
}

/// What is come to for the first time after the pages were joined, and what was forgotten since.
#[test]
fn what_is_not_on_the_chart_is_found() {
    let (mut v, start) = prepared(Call::Indirect);
    // The pages after it are the other functions.
    for n in 1..3 {
        assert!(v.mmu.ram.write(entry(SPACES[0]) + 4 * n, &(FRAMES[n as usize] | RIGHTS).to_le_bytes()));
    }
    let mut t = Translator::new(&v.mmu.ram).unwrap();
    assert_eq!(calls(&mut t, &mut v), [CALLS, 0, 0]);
    restart(&mut v, &start, SPACES[0]);
    join(&mut t, &mut v);
    let before = t.stats.exits_indirect;
    for (page, counts) in [(1, [0, CALLS, 0]), (2, [0, 0, CALLS]), (1, [0, CALLS, 0])] {
        v.state = start.clone();
        v.state.gpr[6] = CALLED + page * 0x1000;
        assert_eq!(calls(&mut t, &mut v), counts);
    }
    // Each was missed once.
    assert!(t.stats.exits_indirect - before <= 4, "{:?}", t.stats);
    // inc eax; ret becomes inc edx; ret.
    assert!(v.mmu.ram.write(FRAMES[0] as u64, &[0x42]));
    t.invalidate(&mut v, FRAMES[0] as u64, FRAMES[0] as u64 + 1);
    v.state = start.clone();
    assert_eq!(calls(&mut t, &mut v), [0, 0, CALLS]);
}
