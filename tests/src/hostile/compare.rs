//! What both engines must agree on when a quiet machine has ended on both.

use vmm::cpu::{Segment, attr, eflags};

use super::run::Outcome;
use super::values::place;

const FRAME: usize = 0x1000;
/// Accessed and dirty bits: processors may set accessed bits of what they never used.
const USED: u8 = 0x60;
/// FOP, FIP and FDP: which instruction was last.
const X87_POINTERS: std::ops::Range<usize> = 6..24;

/// Bytes changed in a page of code that say that a repeated string ran over it.
const OVERRUN: usize = 64;

/// Differences, one line each. None if the machines rewrote their own page tables (a processor may see such changes early
/// or late, and so may each engine) or ran over their code with a repeated string: how far one gets that overwrites
/// itself depends on where it is interrupted.
pub fn differences(image: &[(u64, Vec<u8>)], a: &Outcome, b: &Outcome) -> Option<Vec<String>> {
    if [a, b].iter().any(|o| tables_changed(image, o) || code_overrun(image, o)) {
        return None;
    }
    let mut all = Vec::new();
    let mut check = |name: &str, a: String, b: String| {
        if a != b {
            all.push(format!("{name}: translate {a}, interp {b}"));
        }
    };
    let (s, t) = (&a.state, &b.state);
    check("end", format!("{:?} {}", a.end, a.why), format!("{:?} {}", b.end, b.why));
    check("gpr", format!("{:08x?}", s.gpr), format!("{:08x?}", t.gpr));
    check("eip", format!("{:08x}", s.eip), format!("{:08x}", t.eip));
    // RF of a processor that has shut down is nobody's.
    check("eflags", format!("{:08x}", s.eflags & !eflags::RF), format!("{:08x}", t.eflags & !eflags::RF));
    check("segments", segments(&s.seg), segments(&t.seg));
    let control = |s: &vmm::cpu::CpuState| {
        format!("{:x?} cpl {}", [s.cr0, s.cr2, s.cr3, s.cr4, s.dr6, s.dr7, s.gdtr.base, s.idtr.base], s.cpl)
    };
    check("control", control(s), control(t));
    for at in (0..s.xsave.0.len()).step_by(16) {
        let part = |s: &vmm::cpu::CpuState| {
            let keep = |i: usize| if X87_POINTERS.contains(&i) { 0 } else { s.xsave.0[i] };
            format!("{:02x?}", (at..at + 16).map(keep).collect::<Vec<_>>())
        };
        check(&format!("xsave +{at:#x}"), part(s), part(t));
    }
    memory(a, b, &mut all);
    Some(all)
}

fn segments(all: &[Segment]) -> String {
    let one = |s: &Segment| match s.attr & attr::UNUSABLE {
        0 => format!("{:04x} {:x}+{:x} {:x}", s.selector, s.base, s.limit, s.attr),
        _ => format!("{:04x} null", s.selector),
    };
    all.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn memory(a: &Outcome, b: &Outcome, all: &mut Vec<String>) {
    let (mut x, mut y) = ([0; FRAME], [0; FRAME]);
    for at in (0..a.ram.size()).step_by(FRAME) {
        a.ram.read(at, &mut x);
        if b.ram.equals(at, &x) {
            continue;
        }
        b.ram.read(at, &mut y);
        let tables = is_table(at);
        let differs = |i: &usize| (x[*i] ^ y[*i]) & if tables { !USED } else { 0xff } != 0;
        if let Some(i) = (0..FRAME).find(differs) {
            let part = |bytes: &[u8; FRAME]| format!("{:02x?}", &bytes[i & !7..(i & !7) + 8]);
            all.push(format!("memory at {:x}: translate {}, interp {}", at + i as u64, part(&x), part(&y)));
            return;
        }
    }
}

fn is_table(at: u64) -> bool {
    (place::PDPT as u64..place::TABLES_END as u64).contains(&at)
}

fn tables_changed(image: &[(u64, Vec<u8>)], outcome: &Outcome) -> bool {
    image.iter().filter(|(at, _)| is_table(*at)).any(|(at, bytes)| {
        let mut now = vec![0; bytes.len()];
        outcome.ram.read(*at, &mut now);
        bytes.iter().zip(&now).any(|(old, new)| (old ^ new) & !USED != 0)
    })
}

fn code_overrun(image: &[(u64, Vec<u8>)], outcome: &Outcome) -> bool {
    image.iter().filter(|(at, _)| (place::CODE as u64..place::HANDLERS as u64).contains(at)).any(|(at, bytes)| {
        let mut now = vec![0; bytes.len()];
        outcome.ram.read(*at, &mut now);
        bytes.iter().zip(&now).filter(|(old, new)| old != new).count() > OVERRUN
    })
}
