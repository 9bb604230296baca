//! Ways between rings 3 and 0 while paging is on: INT, SYSENTER and SYSEXIT, call gates, each many times in a loop.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::runtime::SAVED;
use tests::bare::tables::{call_gate, pte};
use tests::bare::{Bare, Emit, at, sel};

/// Counts entries.
const COUNT: u32 = at::SCRATCH;
/// What a handler saw.
const SEEN: u32 = at::SCRATCH + 0x10;

/// A handler's body: counts in a supervisor page that ring 3 cannot reach, and notes its CS, SS and IF.
fn count(b: &mut Bare) -> Emit {
    b.asm.inc(dword_ptr(COUNT))?;
    b.asm.mov(eax, cs)?;
    b.asm.mov(dword_ptr(SEEN), eax)?;
    b.asm.mov(eax, ss)?;
    b.asm.mov(dword_ptr(SEEN + 4), eax)?;
    b.asm.pushfd()?;
    b.asm.pop(eax)?;
    b.asm.and(eax, 0x200)?;
    b.asm.mov(dword_ptr(SEEN + 8), eax)
}

fn report(b: &mut Bare, name: &str) -> Emit {
    b.show_memory(name, COUNT)?;
    b.show_memory("esi", SAVED + 4)?;
    b.show_memory("cs", SEEN)?;
    b.show_memory("ss", SEEN + 4)?;
    b.show_memory("if", SEEN + 8)?;
    b.poke(COUNT, 0)
}

/// ESI counts what ring 3 did, by hundreds and with a push and a pop around each `enter`.
fn hundred(b: &mut Bare, enter: impl FnOnce(&mut Bare) -> Emit) -> Emit {
    let mut again = b.asm.create_label();
    b.asm.xor(esi, esi)?;
    b.asm.set_label(&mut again)?;
    b.asm.push(esi)?;
    enter(b)?;
    b.asm.pop(edi)?;
    b.asm.sub(edi, esi)?;
    b.asm.lea(esi, dword_ptr(esi + edi + 1))?;
    b.asm.cmp(esi, 100)?;
    b.asm.jne(again)
}

/// Every way in switches the stack and, but for call gates, clears IF (it is clear here); every way out comes back to
/// where the next round expects it. What is the supervisor's stays out of ring 3's reach.
#[test]
fn with_paging() -> Outcome {
    check(
        |b| {
            let labels: Vec<CodeLabel> = (0..4).map(|_| b.asm.create_label()).collect();
            let [mut over, mut int, mut fast, mut far] = labels[..] else { return Ok(()) };
            b.asm.jmp(over)?;
            b.asm.set_label(&mut int)?;
            count(b)?;
            b.asm.iretd()?;
            b.asm.set_label(&mut fast)?;
            count(b)?;
            b.asm.sysexit()?;
            b.asm.set_label(&mut far)?;
            count(b)?;
            b.asm.retf()?;
            b.asm.set_label(&mut over)?;
            b.page_4k()?;
            // What handlers count in is the supervisor's alone.
            b.poke(pte(at::SCRATCH), at::SCRATCH | 3)?;
            b.flush()?;
            b.poke(COUNT, 0)?;
            b.gate(0x30, sel::CODE, int, 0xee)?;
            b.fault_in_ring3("int", |b| hundred(b, |b| b.asm.int(0x30)))?;
            report(b, "ints")?;
            b.msr(0x174, u32::from(sel::CODE))?;
            b.msr(0x175, at::STACK - 0x4000)?;
            b.address(fast)?;
            b.asm.mov(ebx, eax)?;
            b.msr(0x176, 0)?;
            b.asm.mov(eax, ebx)?;
            b.asm.wrmsr()?;
            b.fault_in_ring3("sysenter", |b| {
                hundred(b, |b| {
                    let mut back = b.asm.create_label();
                    b.address(back)?;
                    b.asm.mov(edx, eax)?;
                    b.asm.mov(ecx, esp)?;
                    b.asm.sysenter()?;
                    b.asm.set_label(&mut back)?;
                    b.asm.nop()
                })
            })?;
            report(b, "sysenters")?;
            b.set_descriptor(0x40, call_gate(sel::CODE, 0, 0, 0xec))?;
            b.address(far)?;
            b.asm.mov(word_ptr(at::GDT + 0x40), ax)?;
            b.asm.shr(eax, 16)?;
            b.asm.mov(word_ptr(at::GDT + 0x46), ax)?;
            b.fault_in_ring3("call gate", |b| hundred(b, |b| b.asm.db(&[0x9a, 0, 0, 0, 0, 0x43, 0])))?;
            report(b, "calls")?;
            b.fault_in_ring3("closed", |b| b.poke(COUNT, 0))?;
            b.fault_in_ring3("sysexit", |b| b.asm.sysexit())?;
            b.msr(0x174, 0)?;
            b.fault_in_ring3("no sysenter", |b| b.asm.sysenter())
        },
        "int: #31 at +00000013 cs 001b fl 00000002 sp 0023:001c0000
         ints 00000064
         esi 00000064
         cs 00000008
         ss 00000010
         if 00000000
         sysenter: #31 at +0000001d cs 001b fl 00000002 sp 0023:001c0000
         sysenters 00000064
         esi 00000064
         cs 00000008
         ss 00000010
         if 00000000
         call gate: #31 at +00000018 cs 001b fl 00000002 sp 0023:001c0000
         calls 00000064
         esi 00000064
         cs 00000008
         ss 00000010
         if 00000000
         closed: #14 err 00000007 at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00187000
         sysexit: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         no sysenter: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000",
        &[],
    )
}
