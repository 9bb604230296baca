//! Address spaces: two of them sharing code or not at one linear address, supervisor code in the upper half, and ring 3
//! programs that rewrite themselves.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::runtime::SAVED;
use tests::bare::tables::pte;
use tests::bare::{Bare, Emit, at, sel};

/// The linear page that differs.
pub(super) const PAGE: u32 = at::FREE;
/// A linear page with the same code in both spaces, which calls PAGE directly.
pub(super) const CALLER: u32 = at::FREE + 0x2000;
/// The second directory, and its table for the 4 MiB around PAGE.
pub(super) const PD2: u32 = at::FREE + 0x10_0000;
pub(super) const PT2: u32 = PD2 + 0x1000;
/// Where the upper half begins: it shows the first 4 MiB or, in `upper_spaces`, those around PAGE.
const UPPER: u32 = 0xc000_0000;

/// `mov eax, value; ret` at physical `place`.
pub(super) fn function(b: &mut Bare, place: u32, value: u32) -> Emit {
    b.poke(place, 0xb8 | value << 8)?;
    b.poke(place + 4, value >> 24 | 0xc300)
}

pub(super) fn set_directory(b: &mut Bare, root: u32) -> Emit {
    b.asm.mov(eax, root)?;
    b.asm.mov(cr3, eax)
}

/// Paging on, with PAGE in frame PAGE under the first directory and in frame PAGE + 1000h under the second.
fn two_spaces(b: &mut Bare) -> Emit {
    function(b, PAGE, 1)?;
    function(b, PAGE + 0x1000, 2)?;
    // call PAGE; ret
    let distance = PAGE.wrapping_sub(CALLER + 5);
    b.poke(CALLER, 0xe8 | distance << 8)?;
    b.poke(CALLER + 4, distance >> 24 | 0xc300)?;
    b.page_4k()?;
    for (from, to) in [(at::PD, PD2), (at::PD + 0x3000, PT2)] {
        b.asm.mov(esi, from)?;
        b.asm.mov(edi, to)?;
        b.asm.mov(ecx, 1024)?;
        b.asm.rep().movsd()?;
    }
    b.poke(PD2 + 8, PT2 | 7)?;
    b.poke(PT2, (PAGE + 0x1000) | 7)
}

/// Calls `place`, adds what it returns to ESI, and goes to the other space: as many times as EDI says.
pub(super) fn alternate(b: &mut Bare, place: u32, switch: impl FnOnce(&mut Bare) -> Emit) -> Emit {
    let mut again = b.asm.create_label();
    b.asm.xor(esi, esi)?;
    b.asm.mov(edi, 1000)?;
    b.asm.set_label(&mut again)?;
    b.asm.mov(ebx, place)?;
    b.asm.call(ebx)?;
    // The sum is sensitive to order: s = 3 s + value.
    b.asm.lea(esi, dword_ptr(esi + esi * 2))?;
    b.asm.add(esi, eax)?;
    switch(b)?;
    b.asm.dec(edi)?;
    b.asm.jnz(again)
}

fn toggle(b: &mut Bare) -> Emit {
    b.asm.mov(eax, cr3)?;
    b.asm.xor(eax, (at::PD ^ PD2) as i32)?;
    b.asm.mov(cr3, eax)
}

/// Ring 3 goes to the other space by SYSENTER and comes back by SYSEXIT.
fn by_sysenter(b: &mut Bare) -> Emit {
    let (mut over, mut handler) = (b.asm.create_label(), b.asm.create_label());
    b.asm.jmp(over)?;
    b.asm.set_label(&mut handler)?;
    toggle(b)?;
    b.asm.sysexit()?;
    b.asm.set_label(&mut over)?;
    b.address(handler)?;
    b.asm.mov(ebx, eax)?;
    b.asm.xor(edx, edx)?;
    b.asm.mov(ecx, 0x174)?;
    b.asm.mov(eax, u32::from(sel::CODE))?;
    b.asm.wrmsr()?;
    b.asm.mov(ecx, 0x175)?;
    b.asm.mov(eax, at::STACK1)?;
    b.asm.wrmsr()?;
    b.asm.mov(ecx, 0x176)?;
    b.asm.mov(eax, ebx)?;
    b.asm.wrmsr()?;
    set_directory(b, at::PD)?;
    b.fault_in_ring3("sysenter", |b| {
        alternate(b, PAGE, |b| {
            let mut back = b.asm.create_label();
            b.address(back)?;
            b.asm.mov(edx, eax)?;
            b.asm.mov(ecx, esp)?;
            b.asm.sysenter()?;
            b.asm.set_label(&mut back)?;
            b.asm.nop()
        })
    })?;
    b.show_memory("sysenter", SAVED + 4)
}

/// The value of `alternate` for values that alternate between 1 and 2.
pub(super) fn expected() -> u32 {
    (0..1000).fold(0u32, |sum, i| sum.wrapping_mul(3).wrapping_add(1 + i % 2))
}

/// INVLPG alone changes which code is at an address, for indirect calls and for a direct one from another page.
#[test]
fn same_address_other_code_by_invlpg() -> Outcome {
    check(
        |b| {
            two_spaces(b)?;
            for (name, place) in [("indirect", PAGE), ("direct", CALLER)] {
                alternate(b, place, |b| {
                    b.asm.xor(dword_ptr(pte(PAGE)), 0x1000)?;
                    b.asm.invlpg(byte_ptr(PAGE))
                })?;
                b.asm.mov(eax, esi)?;
                b.show(name)?;
            }
            Ok(())
        },
        &format!("indirect {0:08x}\ndirect {0:08x}", expected()),
        &[],
    )
}

/// The same linear address holds other code in each space, reached by indirect and by direct calls from shared code, at
/// ring 0 and at ring 3.
#[test]
fn same_address_other_code() -> Outcome {
    let sum = expected();
    check(
        |b| {
            two_spaces(b)?;
            for (name, place) in [("indirect", PAGE), ("direct", CALLER)] {
                set_directory(b, at::PD)?;
                alternate(b, place, toggle)?;
                b.asm.mov(eax, esi)?;
                b.show(name)?;
            }
            let (mut over, mut handler) = (b.asm.create_label(), b.asm.create_label());
            b.asm.jmp(over)?;
            b.asm.set_label(&mut handler)?;
            toggle(b)?;
            b.asm.iretd()?;
            b.asm.set_label(&mut over)?;
            b.gate(0x30, 8, handler, 0xee)?;
            for (name, place) in [("ring 3", PAGE), ("ring 3 direct", CALLER)] {
                set_directory(b, at::PD)?;
                b.fault_in_ring3(name, |b| alternate(b, place, |b| b.asm.int(0x30)))?;
                b.show_memory(name, SAVED + 4)?;
            }
            by_sysenter(b)?;
            // An entry of the space that is not current changes, its directory's entry too.
            set_directory(b, at::PD)?;
            function(b, PAGE + 0x3000, 3)?;
            for (name, place, value) in [("table", PT2, PAGE + 0x3000), ("directory", PD2 + 8, at::PD + 0x3000)] {
                set_directory(b, at::PD)?;
                b.poke(place, value | 7)?;
                set_directory(b, PD2)?;
                b.asm.mov(ebx, CALLER)?;
                b.asm.call(ebx)?;
                b.show(name)?;
            }
            Ok(())
        },
        &format!(
            "indirect {sum:08x}
             direct {sum:08x}
             ring 3: #31 at +0000001a cs 001b fl 00000002 sp 0023:001c0000
             ring 3 {sum:08x}
             ring 3 direct: #31 at +0000001a cs 001b fl 00000002 sp 0023:001c0000
             ring 3 direct {sum:08x}
             sysenter: #31 at +00000024 cs 001b fl 00000002 sp 0023:001c0000
             sysenter {sum:08x}
             table 00000003
             directory 00000001"
        ),
        &[],
    )
}

/// The same in the supervisor's upper half, with entries that are not global.
#[test]
fn upper_spaces() -> Outcome {
    let sum = expected();
    check(
        |b| {
            two_spaces(b)?;
            b.poke(at::PD + (UPPER >> 20), (at::PD + 0x3000) | 3)?;
            b.poke(PD2 + (UPPER >> 20), PT2 | 3)?;
            for (name, place) in [("indirect", UPPER), ("direct", UPPER + 0x2000)] {
                set_directory(b, at::PD)?;
                alternate(b, place, toggle)?;
                b.asm.mov(eax, esi)?;
                b.show(name)?;
            }
            // Data there differs as well.
            for root in [at::PD, PD2, at::PD] {
                set_directory(b, root)?;
                b.show_memory("data", UPPER)?;
            }
            b.asm.mov(dword_ptr(UPPER + 0x10), 0x77)?;
            set_directory(b, PD2)?;
            b.show_memory("other's", UPPER + 0x10)?;
            set_directory(b, at::PD)?;
            b.show_memory("written", PAGE + 0x10)
        },
        &format!(
            "indirect {sum:08x}
             direct {sum:08x}
             data 000001b8
             data 000002b8
             data 000001b8
             other's 00000000
             written 00000077"
        ),
        &[],
    )
}

/// Goes on at the same code in the upper half.
fn upper(b: &mut Bare) -> Emit {
    let mut here = b.asm.create_label();
    b.address(here)?;
    b.asm.add(eax, UPPER as i32)?;
    b.asm.jmp(eax)?;
    b.asm.set_label(&mut here)?;
    b.asm.nop()
}

/// Supervisor code in the upper half, and pages of each kind in the lower half and its own.
#[test]
fn upper_half_kernel() -> Outcome {
    let read = |b: &mut Bare| b.asm.mov(eax, dword_ptr(PAGE));
    let write = |b: &mut Bare| b.asm.mov(dword_ptr(PAGE), eax);
    check(
        |b| {
            b.page_4k()?;
            b.poke(at::PD + (UPPER >> 20), (at::PD + 0x1000) | 7)?;
            for wp in [false, true] {
                if wp {
                    b.cr0_set(0x1_0000)?;
                }
                for (name, flags) in
                    [("absent", 0), ("supervisor", 3), ("supervisor read-only", 1), ("user", 7), ("user read-only", 5)]
                {
                    b.poke(pte(PAGE), PAGE | flags)?;
                    b.asm.invlpg(byte_ptr(PAGE))?;
                    b.print(&format!("{name}\n"))?;
                    b.fault("read", upper, read)?;
                    b.fault("write", upper, write)?;
                    b.asm.mov(eax, dword_ptr(pte(PAGE)))?;
                    b.asm.and(eax, 0xfff)?;
                    b.show("entry")?;
                    b.fault_in_ring3("read 3", read)?;
                }
            }
            // String instructions from one half to the other.
            b.poke(pte(PAGE), PAGE | 3)?;
            b.asm.invlpg(byte_ptr(PAGE))?;
            b.poke(at::SCRATCH, 0x1234_5678)?;
            b.fault(
                "copy",
                |b| {
                    upper(b)?;
                    b.asm.mov(esi, at::SCRATCH + UPPER)?;
                    b.asm.mov(edi, PAGE + 0x40)?;
                    b.asm.mov(ecx, 1)
                },
                |b| b.asm.rep().movsd(),
            )?;
            b.show_memory("copied", PAGE + 0x40)
        },
        &upper_half_report(),
        &[],
    )
}

fn upper_half_report() -> String {
    let mut text = String::new();
    for wp in [false, true] {
        for (name, flags) in
            [("absent", 0u32), ("supervisor", 3), ("supervisor read-only", 1), ("user", 7), ("user read-only", 5)]
        {
            let fault = |error: u32| format!("#14 err {error:08x} at +c0000000 cs 0008 fl 00010002 cr2 00800000");
            let (present, writable) = (flags & 1 != 0, flags & 1 != 0 && (flags & 2 != 0 || !wp));
            let read = if present { "none".into() } else { fault(0) };
            let write = if writable { "none".into() } else { fault(2 | flags & 1) };
            let entry = flags | u32::from(present) << 5 | u32::from(writable) << 6;
            let user = if flags & 5 == 5 {
                "#31 at +00000007 cs 001b fl 00000002 sp 0023:001c0000".into()
            } else {
                format!("#14 err {:08x} at +00000000 cs 001b fl 00010002 sp 0023:001c0000 cr2 00800000", 4 | flags & 1)
            };
            text += &format!("{name}\nread: {read}\nwrite: {write}\nentry {entry:08x}\nread 3: {user}\n");
        }
    }
    text + "copy: none\ncopied 12345678\n"
}

/// Ring 3 increments the immediate of a function before each call: through the function's own address, through another
/// one, and across a page border whose second page is the one written, or both are one frame.
#[test]
fn ring_3_rewrites_itself() -> Outcome {
    const ALIAS: u32 = at::FREE + 0x8000;
    const TWICE: u32 = at::FREE + 0xa000;
    check(
        |b| {
            b.page_4k()?;
            b.poke(pte(ALIAS), PAGE | 7)?;
            b.poke(pte(ALIAS + 0x1000), (PAGE + 0x1000) | 7)?;
            b.poke(pte(TWICE), TWICE | 7)?;
            b.poke(pte(TWICE + 0x1000), TWICE | 7)?;
            b.flush()?;
            for (name, code, immediate) in [
                ("own address", PAGE, PAGE + 1),
                ("alias", PAGE, ALIAS + 1),
                ("border", PAGE + 0xffd, PAGE + 0x1000),
                ("border alias", PAGE + 0xffd, ALIAS + 0x1000),
                ("border in one frame", TWICE + 0xffd, TWICE + 0x1000),
            ] {
                function(b, code, 0)?;
                b.fault_in_ring3(name, |b| {
                    let mut again = b.asm.create_label();
                    b.asm.xor(esi, esi)?;
                    b.asm.mov(edi, 100)?;
                    b.asm.set_label(&mut again)?;
                    b.asm.inc(byte_ptr(immediate))?;
                    b.asm.mov(ebx, code)?;
                    b.asm.call(ebx)?;
                    b.asm.lea(esi, dword_ptr(esi + esi * 2))?;
                    b.asm.add(esi, eax)?;
                    b.asm.dec(edi)?;
                    b.asm.jnz(again)
                })?;
                b.show_memory(name, SAVED + 4)?;
            }
            Ok(())
        },
        &rewritten_report(),
        &[],
    )
}

fn rewritten_report() -> String {
    let sum = |shift: u32| (1..=100u32).fold(0u32, |sum, i| sum.wrapping_mul(3).wrapping_add(i << shift));
    [("own address", 0), ("alias", 0), ("border", 16), ("border alias", 16), ("border in one frame", 16)]
        .map(|(name, shift)| {
            let sum = sum(shift);
            format!("{name}: #31 at +0000001e cs 001b fl 00000002 sp 0023:001c0000\n{name} {sum:08x}\n")
        })
        .concat()
}
