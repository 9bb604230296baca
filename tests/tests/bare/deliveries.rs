//! Pages that are gone when an interrupt or exception is delivered, or when a segment is loaded: of the IDT, the GDT, the
//! TSS, the stack. Each was used several times before, so that an engine which remembers outcomes has something to
//! forget. INT faults as a whole, with nothing changed but what was pushed, and can be repeated (SDM vol. 3, §6.12.1).

use std::error::Error;

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::runtime::EXPECTED;
use tests::bare::tables::{descriptor, pte};
use tests::bare::{Bare, Emit, at, sel};

use super::crossings::{GATE, HIGH, prepare, twelve_after};
use super::remembered::{POINTER, rounds, table};
use super::resets::resets;

/// What the handler at ring 3 saw: error code and relative EIP; how often it was called; which entry it sets to what.
const SEEN: u32 = at::SCRATCH + 0x80;
/// The second page of each table that lies across two.
const IDT: u32 = at::FREE + 0x2_1000;
const GDT: u32 = at::FREE + 0x2_3000;
const TSS: u32 = at::FREE + 0x2_5000;
/// How much of them lies in the first.
const IDT_BEFORE: u32 = 0x20 * 8;
const GDT_BEFORE: u32 = 0x40;
const TSS_BEFORE: u32 = 4;
/// Page that ends at the top of the stack for ring 0, and where it is seen too, with the page below.
const STACK: u32 = at::STACK - 0x5000;
const ALIAS: u32 = at::FREE + 0x3_1000;

/// `count` doublewords from `from` to `to`. Clobbers ECX, ESI and EDI.
fn copy(b: &mut Bare, from: u32, to: u32, count: u32) -> Emit {
    b.asm.mov(esi, from)?;
    b.asm.mov(edi, to)?;
    b.asm.mov(ecx, count)?;
    b.asm.rep().movsd()
}

/// LIDT of a whole table at `base`.
fn idt(b: &mut Bare, base: u32) -> Emit {
    b.poke(POINTER, 0x7ff | base << 16)?;
    b.poke(POINTER + 4, base >> 16)?;
    b.asm.lidt(fword_ptr(POINTER))
}

/// LTR of a TSS at `base`.
fn task(b: &mut Bare, base: u32) -> Emit {
    b.set_descriptor(sel::TSS, descriptor(base, 0x67, 0x89, 0))?;
    b.asm.mov(eax, u32::from(sel::TSS))?;
    b.asm.ltr(ax)
}

/// The page of `linear` is gone.
fn take(b: &mut Bare, linear: u32, page: u32) -> Emit {
    b.asm.mov(dword_ptr(pte(page)), 0)?;
    b.asm.invlpg(byte_ptr(linear))
}

/// A handler for page faults at ring 3 that supplies the page. It needs no other stack than ring 3 has.
fn supplier(b: &mut Bare, page: u32, entry: u32) -> Emit {
    let (mut over, mut handler) = (b.asm.create_label(), b.asm.create_label());
    b.asm.jmp(over)?;
    b.asm.set_label(&mut handler)?;
    b.asm.pop(dword_ptr(SEEN))?;
    b.asm.push(eax)?;
    b.asm.pushfd()?;
    b.asm.mov(eax, dword_ptr(esp + 8))?;
    b.asm.sub(eax, dword_ptr(EXPECTED))?;
    b.asm.mov(dword_ptr(SEEN + 4), eax)?;
    b.asm.inc(dword_ptr(SEEN + 8))?;
    b.asm.mov(dword_ptr(pte(page)), entry)?;
    b.asm.popfd()?;
    b.asm.pop(eax)?;
    b.asm.iretd()?;
    b.asm.set_label(&mut over)?;
    b.poke(SEEN + 8, 0)?;
    b.gate(14, sel::CODE3, handler, 0x8e)
}

fn supplied(b: &mut Bare, name: &str) -> Emit {
    b.show_memory(&format!("{name}: faults"), SEEN + 8)?;
    b.show_memory("error", SEEN)?;
    b.show_memory("at", SEEN + 4)?;
    b.asm.mov(eax, cr2)?;
    b.show("cr2")?;
    match b.reporter(14) {
        Some(handler) => b.gate(14, sel::CODE, handler, 0x8e),
        None => Ok(()),
    }
}

/// The handler goes on by another mapping of its stack, whose page is about to go.
fn leave_stack(b: &mut Bare) -> Emit {
    b.asm.lea(esp, dword_ptr(esp + (ALIAS.wrapping_sub(HIGH + STACK)) as i32))
}

/// What INT reads and writes is absent, or not to be written, and is supplied by a handler that stays at ring 3.
#[test]
fn pages_of_an_int_are_supplied() -> Outcome {
    check(
        |b| {
            prepare(b)?;
            b.poke(pte(ALIAS), STACK | 7)?;
            b.poke(pte(ALIAS - 0x1000), (STACK - 0x1000) | 7)?;
            b.cr0_set(0x1_0000)?;

            supplier(b, IDT, IDT | 7)?;
            let moved = |b: &mut Bare| {
                copy(b, at::IDT, IDT - IDT_BEFORE, 0x200)?;
                idt(b, IDT - IDT_BEFORE)
            };
            twelve_after(b, "idt", moved, |b| take(b, IDT, IDT))?;
            idt(b, at::IDT)?;
            supplied(b, "idt")?;

            supplier(b, GDT, GDT | 7)?;
            let moved = |b: &mut Bare| {
                b.set_descriptor(0x50, descriptor(0, 0xf_ffff, 0x9b, 0xc))?;
                b.asm.mov(word_ptr(GATE + 2), 0x50)?;
                copy(b, at::GDT, GDT - GDT_BEFORE, 0x40)?;
                table(b, GDT - GDT_BEFORE, 0xff)
            };
            twelve_after(b, "gdt", moved, |b| take(b, GDT, GDT))?;
            table(b, at::GDT, 0xff)?;
            supplied(b, "gdt")?;

            supplier(b, TSS, TSS | 7)?;
            let moved = |b: &mut Bare| {
                copy(b, at::TSS, TSS - TSS_BEFORE, 26)?;
                task(b, TSS - TSS_BEFORE)
            };
            twelve_after(b, "tss", moved, |b| take(b, TSS, TSS))?;
            task(b, at::TSS)?;
            supplied(b, "tss")?;

            supplier(b, STACK, STACK | 7)?;
            let none = |_: &mut Bare| Ok(());
            twelve_after(b, "stack", none, |b| leave_stack(b).and_then(|()| take(b, HIGH + STACK, STACK)))?;
            supplied(b, "stack")?;
            b.show_memory("entry", pte(STACK))?;

            supplier(b, STACK, STACK | 7)?;
            twelve_after(b, "read-only", none, |b| {
                leave_stack(b)?;
                b.poke(pte(STACK), STACK | 5)?;
                b.asm.invlpg(byte_ptr(HIGH + STACK))
            })?;
            supplied(b, "read-only")?;

            // SS and ESP go to one page, and what follows to the one below.
            supplier(b, STACK - 0x1000, (STACK - 0x1000) | 7)?;
            let across = |b: &mut Bare| b.poke(at::TSS + 4, HIGH + STACK + 8);
            twelve_after(b, "half", across, |b| {
                leave_stack(b)?;
                take(b, HIGH + STACK - 0x1000, STACK - 0x1000)
            })?;
            supplied(b, "half")
        },
        "idt: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         idt rounds 0000000c
         idt carries 0000000c
         idt: faults 00000001
         error 00000000
         at 00000005
         cr2 00821080
         gdt: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         gdt rounds 0000000c
         gdt carries 0000000c
         gdt: faults 00000001
         error 00000000
         at 00000005
         cr2 00823010
         tss: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         tss rounds 0000000c
         tss carries 0000000c
         tss: faults 00000001
         error 00000000
         at 00000005
         cr2 00825000
         stack: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         stack rounds 0000000c
         stack carries 0000000c
         stack: faults 00000001
         error 00000002
         at 00000005
         cr2 c019bffc
         entry 0019b067
         read-only: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         read-only rounds 0000000c
         read-only carries 0000000c
         read-only: faults 00000001
         error 00000003
         at 00000005
         cr2 c019bffc
         half: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         half rounds 0000000c
         half carries 0000000c
         half: faults 00000001
         error 00000002
         at 00000005
         cr2 c019affc",
        &[],
    )
}

/// IRET to ring 3 finds a half of its frame, and descriptors, on pages that are gone; so does a load of FS.
#[test]
fn pages_of_returns_and_loads_go() -> Outcome {
    check(
        |b| {
            prepare(b)?;
            let across = |b: &mut Bare| b.poke(at::TSS + 4, HIGH + STACK + 8);
            twelve_after(b, "frame", across, |b| take(b, HIGH + STACK, STACK))?;
            b.poke(pte(STACK), STACK | 7)?;
            b.poke(at::TSS + 4, HIGH + STACK + 0x1000)?;
            // The descriptors of ring 3 are on the second page.
            copy(b, at::GDT, GDT - 0x18, 0x40)?;
            let moved = |b: &mut Bare| table(b, GDT - 0x18, 0xff);
            twelve_after(b, "descriptor", moved, |b| take(b, GDT, GDT))?;
            b.poke(pte(GDT), GDT | 7)?;
            b.fault(
                "load",
                |b| {
                    rounds(b, 4, |b| {
                        b.asm.mov(eax, u32::from(sel::DATA3))?;
                        b.asm.mov(fs, eax)
                    })?;
                    take(b, GDT, GDT)
                },
                |b| b.asm.mov(fs, eax),
            )?;
            table(b, at::GDT, 0xff)
        },
        "frame: #14 err 00000000 at +bfffff86 cs 0008 fl 00010002 cr2 c019b000
         frame rounds 00000009
         frame carries 00000009
         descriptor: #14 err 00000000 at +bfffff70 cs 0008 fl 00010002 cr2 00823000
         descriptor rounds 00000009
         descriptor carries 00000009
         load: #14 err 00000000 at +00000000 cs 0008 fl 00010002 cr2 00823008",
        &[],
    )
}

/// The gate for page faults is on a page that is gone: a page fault while one is delivered is a double fault, and CR2 is
/// the second one's.
#[test]
fn the_page_fault_gate_is_gone() -> Outcome {
    const BEFORE: u32 = 10 * 8;
    check(
        |b| {
            b.page_4k()?;
            copy(b, at::IDT, IDT - BEFORE, 0x200)?;
            idt(b, IDT - BEFORE)?;
            b.poke(pte(at::FREE), 0)?;
            b.asm.invlpg(byte_ptr(at::FREE))?;
            b.fault("present", |_| Ok(()), |b| b.asm.mov(eax, dword_ptr(at::FREE + 4)))?;
            take(b, IDT, IDT)?;
            // An abort: what RF is in its saved flags is not said.
            b.poke(tests::bare::runtime::FLAG_MASK, 0xfffe_f72a)?;
            b.fault("absent", |_| Ok(()), |b| b.asm.mov(eax, dword_ptr(at::FREE + 4)))?;
            b.asm.mov(eax, cr2)?;
            b.show("cr2")?;
            idt(b, at::IDT)
        },
        "present: #14 err 00000000 at +00000000 cs 0008 fl 00010002 cr2 00800004
         absent: #08 err 00000000 at +00000000 cs 0008 fl 00000002
         cr2 00821020",
        &[],
    )
}

/// With the TSS gone no stack for a handler at ring 0 is found, for INT, the page fault, or the double fault.
#[test]
fn without_a_task_there_is_no_way_in() -> Result<(), Box<dyn Error>> {
    resets(|b| {
        prepare(b)?;
        twelve_after(b, "tss", |_| Ok(()), |b| take(b, at::TSS, at::TSS))
    })
}
