//! Fetches and accesses through page tables: exact faults at page borders, and code seen through two mappings.

use iced_x86::code_asm::*;

use super::*;
use crate::cpu::{Exception, cr0, reg};
use crate::mmu::Flush;

const TABLE: u32 = 0x10_1000;

/// The first 4 MiB mapped one to one, as supervisor pages.
fn machine() -> Machine {
    let mut m = Machine::flat();
    m.poke(0x10_0000, &(TABLE | 3).to_le_bytes());
    for page in 0..1024u32 {
        m.poke(TABLE + page * 4, &(page << 12 | 3).to_le_bytes());
    }
    m.v.state.cr3 = 0x10_0000;
    m.v.state.cr0 |= cr0::PG | cr0::WP;
    m
}

fn map(m: &mut Machine, linear: u32, entry: u32) {
    m.poke(TABLE + (linear >> 12) * 4, &entry.to_le_bytes());
    m.v.mmu.flush(Flush::Page(linear));
}

#[test]
fn an_instruction_that_runs_into_an_absent_page() {
    let mut m = machine();
    map(&mut m, CODE + 0x1000, 0);
    m.v.state.eip = CODE + 0xffe;
    m.poke(CODE + 0xffe, &[0xb8, 1]);
    assert_eq!(m.engine.attempt(&mut m.v), Err(Exception::page_fault(CODE + 0x1000, 0).into()));
    assert_eq!(m.v.state.eip, CODE + 0xffe);
    // UD2 ends before the border: the next page does not matter.
    m.poke(CODE + 0xffe, &[0x0f, 0x0b]);
    assert_eq!(m.engine.attempt(&mut m.v), Err(crate::cpu::Stop::ud()));
}

#[test]
fn a_straddling_instruction_follows_both_of_its_pages() {
    let mut m = machine();
    m.poke(0x30_0000, &[7, 0, 0, 0, 0xf4]);
    m.poke(0x30_1000, &[9, 0, 0, 0, 0xf4]);
    m.poke(CODE + 0xfff, &[0xb8]);
    for (frame, value) in [(0x30_0000, 7), (0x30_1000, 9)] {
        map(&mut m, CODE + 0x1000, frame | 3);
        m.v.state.eip = CODE + 0xfff;
        m.v.state.halted = false;
        assert_eq!(crate::engine::Engine::run(&mut m.engine, &mut m.v), crate::engine::Exit::Halted);
        assert_eq!(m.r(reg::EAX), value);
    }
}

#[test]
fn a_store_through_another_mapping_changes_code() {
    let mut m = machine();
    map(&mut m, 0x30_0000, CODE | 3);
    m.run(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 3).unwrap();
        a.set_label(&mut top).unwrap();
        a.inc(eax).unwrap();
        // Turns the `inc eax` (40) into `inc edx` (42).
        a.mov(byte_ptr(0x30_0005), 0x42).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
    });
    assert_eq!((m.r(reg::EAX), m.r(reg::EDX)), (1, 2));
}

#[test]
fn read_modify_write_faults_as_a_write_and_changes_nothing() {
    let mut m = machine();
    map(&mut m, DATA, DATA | 1);
    m.set(reg::EAX, 5);
    let done = m.one(|a| a.add(dword_ptr(DATA), eax).unwrap());
    assert_eq!(done, Err(Exception::page_fault(DATA, 3).into()));
    map(&mut m, DATA, 0);
    let done = m.one(|a| a.xadd(dword_ptr(DATA + 4), eax).unwrap());
    assert_eq!(done, Err(Exception::page_fault(DATA + 4, 2).into()));
    assert_eq!(m.r(reg::EAX), 5);
}

#[test]
fn a_fault_inside_rep_leaves_exact_counters() {
    let mut m = machine();
    map(&mut m, DATA + 0x1000, 0);
    m.set(reg::EDI, DATA + 0xf00);
    m.set(reg::ECX, 0x200);
    m.program(|a| a.rep().stosb().unwrap());
    m.v.state.eip = CODE;
    let done = loop {
        let done = m.engine.attempt(&mut m.v);
        if done.is_err() {
            break done;
        }
    };
    assert_eq!(done, Err(Exception::page_fault(DATA + 0x1000, 2).into()));
    assert_eq!((m.r(reg::EDI), m.r(reg::ECX), m.v.state.eip), (DATA + 0x1000, 0x100, CODE));
}

/// Neither a fault nor an interrupt shows what the iterations so far left in the flags, however many they were.
#[test]
fn a_fault_inside_a_repeated_comparison_shows_the_flags_from_before() {
    use crate::cpu::eflags::{CF, FIXED, RF, SF};
    for count in [1u32, 5, 5000] {
        let mut m = machine();
        let bytes = 4 * count;
        let end = (DATA + bytes).next_multiple_of(0x1000);
        map(&mut m, end, 0);
        m.set(reg::EDI, end - bytes);
        m.set(reg::ESI, DATA);
        m.set(reg::ECX, 0x10_0000);
        m.v.state.eflags = FIXED | CF | SF;
        // All equal: each iteration sets ZF and PF, and clears the others.
        m.program(|a| a.repe().cmpsd().unwrap());
        m.v.state.eip = CODE;
        let done = loop {
            let done = m.engine.attempt(&mut m.v);
            assert_eq!(m.flags() & !RF, FIXED | CF | SF, "{count} iterations");
            if done.is_err() {
                break done;
            }
        };
        assert_eq!(done, Err(Exception::page_fault(end, 0).into()));
        assert_eq!((m.r(reg::EDI), m.r(reg::ECX)), (end, 0x10_0000 - count));
    }
}
