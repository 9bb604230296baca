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

/// A machine and its state at the start, in the first address space.
fn prepared() -> (Vcpu, CpuState) {
    // call CALLED; dec ecx; jne; hlt
    let mut program = vec![0xe8];
    program.extend((CALLED - CODE - 5).to_le_bytes());
    program.extend([0x49, 0x75, 0xf8, 0xf4]);
    let mut v = machine(&program);
    for (space, frame) in SPACES.into_iter().zip(FRAMES) {
        assert!(v.mmu.ram.write(space as u64, &((space + 0x1000) | RIGHTS).to_le_bytes()));
        for page in 0..1024u32 {
            assert!(v.mmu.ram.write((space + 0x1000 + page * 4) as u64, &(page << 12 | RIGHTS).to_le_bytes()));
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
    v.state.gpr = [0, CALLS, 0, 0, STACK, 0, 0, 0];
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
    assert!(t.stats.joined > before, "{:?}", t.stats);
    t.check_all();
}

#[test]
fn another_address_space_has_its_own_code() {
    let (mut v, start) = prepared();
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
    for flush in [Flush::NonGlobal, Flush::Page(CALLED), Flush::All] {
        let (mut v, start) = prepared();
        let mut t = Translator::new(&v.mmu.ram).unwrap();
        assert_eq!(calls(&mut t, &mut v), [CALLS, 0, 0]);
        restart(&mut v, &start, SPACES[0]);
        join(&mut t, &mut v);
        assert_eq!(calls(&mut t, &mut v), [CALLS, 0, 0]);
        v.state = start.clone();
        assert!(v.mmu.ram.write(entry(SPACES[0]), &(FRAMES[2] | RIGHTS).to_le_bytes()));
        v.mmu.flush(flush);
        assert_eq!(calls(&mut t, &mut v), [0, 0, CALLS], "{flush:?}");
    }
}
