//! Small programs, run by the translator and by the interpreter from the same state: everything must agree at the end.

mod churn;
mod crossings;
mod demand;
mod isolation;
mod joints;
mod kicks;
mod mixed;
mod near;
mod segments;
mod stack;
mod targets;

use std::sync::Arc;

use iced_x86::code_asm::*;

use super::cache::SEGMENTS;
use super::context::INDEX_ENTRIES;
use super::{CACHE_SIZE, Translator};
use crate::cpu::{CpuState, EmptyBus, Lines, Segment, Vcpu, attr, cr0, cr4, reg, seg};
use crate::engine::interp::Interpreter;
use crate::engine::{Engine, Exit};
use crate::mmu::GuestRam;

pub(super) const CODE: u32 = 0x10_0000;
pub(super) const DATA: u32 = 0x20_0000;
const STACK: u32 = 0x30_0000;
const RAM: u64 = 16 << 20;

/// A processor in flat 32-bit protected mode at ring 0 with paging off, about to run `program` at [`CODE`].
pub(super) fn machine(program: &[u8]) -> Vcpu {
    let ram = Arc::new(GuestRam::new(RAM).unwrap());
    assert!(ram.write(CODE as u64, program));
    let mut v = Vcpu::new(0, ram, Arc::new(EmptyBus), Arc::new(Lines::default()));
    let flat = |selector, kind| Segment {
        base: 0,
        limit: u32::MAX,
        attr: attr::P | attr::S | attr::DB | attr::G | attr::RW | attr::ACCESSED | kind,
        selector,
        pad: 0,
    };
    v.state.cr0 |= cr0::PE | cr0::NE;
    v.state.cr4 |= cr4::OSFXSR;
    v.state.seg = [flat(16, 0); 6];
    v.state.seg[seg::CS] = flat(8, attr::CODE);
    v.state.gpr = [1, 2, 3, 4, STACK, 6, DATA, DATA + 0x1000];
    v.state.eip = CODE;
    v
}

/// Runs `program` to its HLT on both engines and compares state and RAM; the final state.
fn agree(build: impl Fn(&mut CodeAssembler)) -> CpuState {
    agree_at(0, build).0
}

/// As [`agree`], in ring `cpl`. Only ring 0 may halt: in the others HLT faults, and no fault can be delivered.
fn agree_at(cpl: u8, build: impl Fn(&mut CodeAssembler)) -> (CpuState, Translator) {
    agree_in(cpl, CACHE_SIZE, build)
}

/// As [`agree`], with a code cache of `size` bytes; and the translator as it is then.
fn agree_within(size: usize, build: impl Fn(&mut CodeAssembler)) -> (CpuState, Translator) {
    agree_in(0, size, build)
}

/// As [`agree_at`] and [`agree_within`]; with blocks that check their own source, too.
fn agree_in(cpl: u8, size: usize, build: impl Fn(&mut CodeAssembler)) -> (CpuState, Translator) {
    agree_when(true, cpl, size, &build);
    agree_when(false, cpl, size, &build)
}

fn agree_when(mixed: bool, cpl: u8, size: usize, build: &impl Fn(&mut CodeAssembler)) -> (CpuState, Translator) {
    let mut a = CodeAssembler::new(32).unwrap();
    build(&mut a);
    a.hlt().unwrap();
    let program = a.assemble(CODE as u64).unwrap();
    let (mut left, mut right) = (machine(&program), machine(&program));
    for state in [&mut left.state, &mut right.state] {
        state.cpl = cpl;
        state.seg.iter_mut().for_each(|s| s.attr |= u32::from(cpl) << attr::DPL_SHIFT);
    }
    let end = if cpl == 0 { Exit::Halted } else { Exit::Shutdown };
    let mut interp = Interpreter::new();
    assert_eq!(interp.run(&mut left), end);
    let mut translator = Translator::with_cache(&right.mmu.ram, size).unwrap();
    if mixed {
        translator.registry.mix_all();
    }
    assert_eq!(translator.run(&mut right), end);
    translator.check_all();
    for (i, (l, r)) in left.state.xsave.0.iter().zip(&right.state.xsave.0).enumerate() {
        assert_eq!(l, r, "XSAVE area at byte {i}");
    }
    assert_eq!(left.state, right.state);
    let (mut l, mut r) = (vec![0; RAM as usize], vec![0; RAM as usize]);
    assert!(left.mmu.ram.read(0, &mut l) && right.mmu.ram.read(0, &mut r));
    assert!(l == r, "RAM differs");
    (right.state, translator)
}

/// Branches to what is translated already go there: into the middle of a block too, and with x87 state in use.
#[test]
fn code_is_translated_once() {
    let (state, translator) = agree_within(CACHE_SIZE, |a| {
        let (mut outer, mut inner, mut join) = (a.create_label(), a.create_label(), a.create_label());
        a.fninit().unwrap();
        a.fldz().unwrap();
        a.mov(ecx, 30).unwrap();
        a.set_label(&mut outer).unwrap();
        a.mov(edx, 3).unwrap();
        a.set_label(&mut inner).unwrap();
        a.inc(eax).unwrap();
        a.fld1().unwrap();
        a.faddp(st1, st0).unwrap();
        a.test(eax, 4).unwrap();
        a.je(join).unwrap();
        a.add(ebx, 2).unwrap();
        a.set_label(&mut join).unwrap();
        a.dec(edx).unwrap();
        a.jne(inner).unwrap();
        a.dec(ecx).unwrap();
        a.jne(outer).unwrap();
        a.fstp(qword_ptr(DATA)).unwrap();
        a.fninit().unwrap();
    });
    assert_eq!(state.gpr[reg::EAX], 91);
    let stats = &translator.stats;
    assert_eq!((stats.blocks, stats.exits_direct), (1, 0), "{stats:?}");
}

/// A function that was come into at each of its instructions is one block again once its own has gone.
#[test]
fn what_began_inside_a_block_does_not_cut_it_up() {
    const LENGTH: u32 = 20;
    let (function, inside) = (CODE + 5, CODE + 10);
    let (state, translator) = agree_within(CACHE_SIZE, |a| {
        let mut start = a.create_label();
        a.db(&[0xe9]).unwrap();
        a.dd(&[5 + LENGTH + 1]).unwrap();
        a.add(eax, 0x100_0000).unwrap();
        (0..LENGTH).for_each(|_| a.inc(ebx).unwrap());
        a.ret().unwrap();
        a.set_label(&mut start).unwrap();
        a.mov(edi, function).unwrap();
        a.call(edi).unwrap();
        for at in inside..inside + LENGTH {
            a.mov(edi, at).unwrap();
            a.call(edi).unwrap();
        }
        a.mov(byte_ptr(inside - 1), 2).unwrap();
        a.call(function as u64).unwrap();
    });
    assert_eq!(state.gpr[reg::EBX], 4 + 2 * LENGTH + LENGTH * (LENGTH + 1) / 2);
    let blocks = translator.registry.ids().into_iter().map(|id| translator.registry.block(id));
    let whole = blocks.filter(|b| b.live && b.key.eip == function).map(|b| b.origins.filter(|o| o.is_entry()).count());
    assert_eq!(whole.collect::<Vec<_>>(), [LENGTH as usize + 2]);
}

/// Functions that share a place in the table of their address space are found without Rust code, and not when gone.
#[test]
fn the_shared_table_keeps_what_the_other_has_no_place_for() {
    let first = CODE + 5;
    // Of the index's bits, the lowest is bit 1 of EIP.
    let apart = 2 * INDEX_ENTRIES;
    let second = first + apart as u32;
    let (state, translator) = agree_within(CACHE_SIZE, |a| {
        let (mut start, mut head) = (a.create_label(), a.create_label());
        a.jmp(start).unwrap();
        a.inc(eax).unwrap();
        a.ret().unwrap();
        a.db(&vec![0xcc; apart - 2]).unwrap();
        a.inc(ebx).unwrap();
        a.ret().unwrap();
        a.set_label(&mut start).unwrap();
        a.mov(ecx, 1000).unwrap();
        a.mov(esi, first).unwrap();
        a.mov(edi, second).unwrap();
        a.set_label(&mut head).unwrap();
        a.call(esi).unwrap();
        a.call(edi).unwrap();
        a.dec(ecx).unwrap();
        a.jne(head).unwrap();
        // inc ebp instead of inc ebx.
        a.mov(byte_ptr(second), 0x45).unwrap();
        a.call(esi).unwrap();
        a.call(edi).unwrap();
        a.call(edi).unwrap();
    });
    assert_eq!((state.gpr[reg::EAX], state.gpr[reg::EBX], state.gpr[reg::EBP]), (1002, 1004, 8));
    assert!(translator.stats.exits_indirect < 20, "{:?}", translator.stats);
}

/// More code than the cache holds, in a loop that also uses code which stays wanted throughout, and rewrites some.
#[test]
fn old_translations_make_room() {
    const FUNCTIONS: u32 = 600;
    let (state, translator) = agree_within(SEGMENTS << 14, |a| {
        let (mut head, mut shared, mut start) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 4).unwrap();
        a.jmp(start).unwrap();
        a.set_label(&mut shared).unwrap();
        a.inc(eax).unwrap();
        a.ret().unwrap();
        a.set_label(&mut start).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut head).unwrap();
        for n in 0..FUNCTIONS {
            let mut next = a.create_label();
            a.call(shared).unwrap();
            a.add(edx, n).unwrap();
            a.jmp(next).unwrap();
            a.db(&[0xcc; 40]).unwrap();
            a.set_label(&mut next).unwrap();
        }
        // The operand of an instruction of the first page.
        a.inc(dword_ptr(CODE + 1)).unwrap();
        a.dec(ecx).unwrap();
        a.jne(head).unwrap();
    });
    assert_eq!(state.gpr[reg::EAX], 4 * FUNCTIONS);
    assert!(translator.stats.evictions >= 8, "only {} segments evicted", translator.stats.evictions);
    let counted: std::collections::HashSet<_> = translator.registry.watched_in(0, u64::MAX).into_iter().collect();
    for frame in (0..RAM).step_by(0x1000) {
        let watched = translator.shadow.ram().is_code(frame);
        assert_eq!(watched, counted.contains(&frame), "frame {frame:#x}");
    }
}

/// A function that adds what was pushed last to EAX, by way of a frame of its own, and then does `more`.
fn adding(a: &mut CodeAssembler, function: &mut CodeLabel, more: impl Fn(&mut CodeAssembler)) {
    a.set_label(function).unwrap();
    a.push(ebp).unwrap();
    a.mov(ebp, esp).unwrap();
    a.sub(esp, 16).unwrap();
    a.mov(edx, dword_ptr(ebp + 8)).unwrap();
    a.mov(dword_ptr(ebp - 4), edx).unwrap();
    a.add(eax, dword_ptr(esp + 12)).unwrap();
    more(a);
    a.leave().unwrap();
    a.ret().unwrap();
}

#[test]
fn a_loop_with_calls_and_stack_traffic() {
    let state = agree(|a| {
        let mut head = a.create_label();
        let mut function = a.create_label();
        let mut done = a.create_label();
        a.mov(ecx, 1000).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut head).unwrap();
        a.push(ecx).unwrap();
        a.call(function).unwrap();
        a.add(esp, 4).unwrap();
        a.dec(ecx).unwrap();
        a.jne(head).unwrap();
        a.jmp(done).unwrap();
        adding(a, &mut function, |_| ());
        a.set_label(&mut done).unwrap();
        a.nop().unwrap();
    });
    assert_eq!(state.gpr[reg::EAX], 500_500);
}

#[test]
fn strings_and_flags() {
    agree(|a| {
        a.mov(ecx, 5000).unwrap();
        a.mov(eax, 0x1234_5678).unwrap();
        a.mov(edi, DATA).unwrap();
        a.rep().stosd().unwrap();
        a.mov(ecx, 3000).unwrap();
        a.mov(esi, DATA).unwrap();
        a.mov(edi, DATA + 0x8000).unwrap();
        a.rep().movsb().unwrap();
        a.stc().unwrap();
        a.push(eax).unwrap();
        a.sbb(eax, ecx).unwrap();
        a.lahf().unwrap();
        a.pushfd().unwrap();
        a.pop(ebx).unwrap();
        a.std().unwrap();
        a.movsd().unwrap();
        a.cld().unwrap();
        a.mov(ecx, 100).unwrap();
        a.mov(edi, DATA).unwrap();
        a.mov(al, 0x99).unwrap();
        a.repne().scasb().unwrap();
        a.mov(ah, byte_ptr(esp)).unwrap();
        a.xchg(esp, eax).unwrap();
        a.xchg(esp, eax).unwrap();
    });
}

#[test]
fn code_that_rewrites_itself() {
    let state = agree(|a| {
        let mut head = a.create_label();
        let mut patched = a.create_label();
        a.mov(ecx, 20).unwrap();
        a.xor(eax, eax).unwrap();
        let mut here = a.create_label();
        a.call(here).unwrap();
        a.set_label(&mut here).unwrap();
        a.pop(esi).unwrap();
        a.set_label(&mut head).unwrap();
        // pop (1) and inc (3) precede `mov edx, imm32`, whose immediate is one byte further.
        a.inc(dword_ptr(esi + 5)).unwrap();
        a.set_label(&mut patched).unwrap();
        a.mov(edx, 0).unwrap();
        a.add(eax, edx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(head).unwrap();
    });
    assert_eq!(state.gpr[reg::EAX], 210);
}

#[test]
fn devices_are_reached() {
    agree(|a| {
        let mut head = a.create_label();
        a.mov(ecx, 20).unwrap();
        a.set_label(&mut head).unwrap();
        a.mov(eax, dword_ptr(0xd000_0000u32)).unwrap();
        a.mov(dword_ptr(DATA + 4), eax).unwrap();
        a.mov(byte_ptr(0xd000_0000u32), al).unwrap();
        a.dec(ecx).unwrap();
        a.jne(head).unwrap();
    });
}

#[test]
fn floating_point_survives_exits() {
    agree(|a| {
        let mut head = a.create_label();
        a.mov(ecx, 50).unwrap();
        a.fninit().unwrap();
        a.fld1().unwrap();
        a.set_label(&mut head).unwrap();
        a.fld1().unwrap();
        a.faddp(st1, st0).unwrap();
        a.cpuid().unwrap();
        a.mov(ecx, dword_ptr(DATA)).unwrap();
        a.inc(ecx).unwrap();
        a.mov(dword_ptr(DATA), ecx).unwrap();
        a.cmp(ecx, 50).unwrap();
        a.jne(head).unwrap();
        a.fstp(qword_ptr(DATA + 16)).unwrap();
        a.fninit().unwrap();
    });
}

/// The first access to a page leaves emitted code in the middle of a block that has x87 and SSE state loaded.
#[test]
fn floating_point_survives_page_faults() {
    agree(|a| {
        let mut head = a.create_label();
        a.mov(ecx, 50).unwrap();
        a.fninit().unwrap();
        a.fldpi().unwrap();
        a.xorps(xmm1, xmm1).unwrap();
        a.set_label(&mut head).unwrap();
        a.fld1().unwrap();
        a.faddp(st1, st0).unwrap();
        a.movd(xmm0, ecx).unwrap();
        a.mov(dword_ptr(edi), ecx).unwrap();
        a.paddd(xmm1, xmm0).unwrap();
        a.fadd_2(st0, st0).unwrap();
        a.add(edi, 0x1000).unwrap();
        a.dec(ecx).unwrap();
        a.jne(head).unwrap();
        a.fstp(qword_ptr(DATA + 16)).unwrap();
        a.movd(eax, xmm1).unwrap();
        a.fninit().unwrap();
    });
}

/// One frame executed at more addresses than are remembered of all frames.
#[test]
fn one_frame_at_many_addresses() {
    const DIRECTORY: u32 = DATA + 0x1_0000;
    const TABLE: u32 = DATA + 0x1_1000;
    const FRAME: u32 = DATA + 0x1_2000;
    const PAGES: u32 = 0x4000_0000;
    const COUNT: u32 = 3 << 10;
    let (state, translator) = agree_within(CACHE_SIZE, |a| {
        let mut back = a.create_label();
        // inc ebx; add eax, 1000h; dec ecx; jz 11; jmp eax; 11: jmp edx
        for (at, code) in [(0, 0x1000_0543u32), (4, 0x7449_0000), (8, 0xffe0_ff02), (12, 0xe2)] {
            a.mov(dword_ptr(FRAME + at), code).unwrap();
        }
        a.mov(edi, TABLE).unwrap();
        a.mov(eax, FRAME | 0x67).unwrap();
        a.mov(ecx, 1024).unwrap();
        a.rep().stosd().unwrap();
        (0..4).for_each(|n| a.mov(dword_ptr(DIRECTORY + 4 * n), n << 22 | 0xe7).unwrap());
        let tables = 0..COUNT.div_ceil(1024);
        tables.for_each(|n| a.mov(dword_ptr(DIRECTORY + (PAGES >> 20) + 4 * n), TABLE | 0x67).unwrap());
        a.mov(eax, cr4).unwrap();
        a.or(eax, cr4::PSE as i32).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, DIRECTORY).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 0x8000_0000u32 as i32).unwrap();
        a.mov(cr0, eax).unwrap();
        a.mov(ecx, COUNT).unwrap();
        a.mov(eax, PAGES).unwrap();
        a.call(back).unwrap();
        a.set_label(&mut back).unwrap();
        a.pop(edx).unwrap();
        // This far behind where EDX points: POP, ADD and JMP.
        a.add(edx, 6).unwrap();
        a.jmp(eax).unwrap();
    });
    assert_eq!(state.gpr[reg::EBX], 4 + COUNT);
    assert!(translator.stats.evictions > 0, "{:?}", translator.stats);
}
