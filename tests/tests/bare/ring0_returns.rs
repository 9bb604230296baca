//! IRET from ring 0 to ring 0, done several times over and then once more when something that decides on it has changed,
//! and with frames that end where the next page, or the address space, ends.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::tables::{descriptor, pte};
use tests::bare::{Bare, Emit, at, sel};

use super::remembered::rounds;

/// A change, by its name; the frame is at ESP.
type Change = (&'static str, fn(&mut Bare) -> Emit);

/// Selector of the code segment that is returned to.
const CODE: u16 = 0x40;
/// A page boundary: the page below it holds frames, and the one above is absent.
const BOUNDARY: u32 = at::FREE + 0x1_0000;
/// The sum of what came back.
const SUM: u32 = at::SCRATCH + 0x20;

/// Pushes a frame that leads behind the IRET.
fn frame(b: &mut Bare, back: CodeLabel) -> Emit {
    b.asm.pushfd()?;
    b.asm.push(u32::from(CODE))?;
    b.address(back)?;
    b.asm.push(eax)
}

/// Twelve rounds of IRET to ring 0, with `change` before the tenth one.
fn twelve(b: &mut Bare, (name, change): Change) -> Emit {
    b.set_descriptor(CODE, descriptor(0, 0xf_ffff, 0x9b, 0xc))?;
    b.poke(SUM, 0)?;
    b.fault(
        name,
        |_| Ok(()),
        |b| {
            rounds(b, 12, |b| {
                let (mut back, mut usual) = (b.asm.create_label(), b.asm.create_label());
                b.asm.stc()?;
                frame(b, back)?;
                b.asm.cmp(ebx, 9)?;
                b.asm.jne(usual)?;
                change(b)?;
                b.asm.set_label(&mut usual)?;
                b.asm.clc()?;
                b.asm.iretd()?;
                b.asm.set_label(&mut back)?;
                b.asm.adc(dword_ptr(SUM), 0)
            })
        },
    )?;
    b.show_memory(&format!("{name} carries"), SUM)?;
    b.asm.mov(dword_ptr(at::TSS), 0)?;
    b.out(0x20, 0x20)?;
    b.out(0x21, 0xff)
}

/// What is in the frame, in EFLAGS and in the GDT. NT makes it a return to the task that the TSS names.
#[test]
fn returns_change() -> Outcome {
    let changes: [Change; 10] = [
        ("plain", |_| Ok(())),
        ("carry", |b| b.asm.and(dword_ptr(esp + 8), !1)),
        ("nested", |b| {
            b.asm.pushfd()?;
            b.asm.or(dword_ptr(esp), 0x4000)?;
            b.asm.popfd()?;
            b.asm.or(dword_ptr(esp + 8), 0x4000)
        }),
        ("only the frame is nested", |b| b.asm.or(dword_ptr(esp + 8), 0x4000)),
        ("data for code", |b| b.asm.mov(dword_ptr(esp + 4), u32::from(sel::DATA))),
        ("code of ring 3", |b| b.asm.mov(dword_ptr(esp + 4), u32::from(sel::CODE3 & !3))),
        ("absent", |b| b.set_descriptor(CODE, descriptor(0, 0xf_ffff, 0x1b, 0xc))),
        ("short", |b| b.set_descriptor(CODE, descriptor(0, 0xff, 0x9b, 0x4))),
        ("single step", |b| b.asm.or(dword_ptr(esp + 8), 0x100)),
        ("interrupt", |b| {
            b.request_timer()?;
            b.asm.or(dword_ptr(esp + 8), 0x200)
        }),
    ];
    check(
        |b| changes.into_iter().try_for_each(|change| twelve(b, change)),
        "plain: none
         plain carries 0000000c
         carry: none
         carry carries 0000000b
         nested: #10 err 00000000 at +00000025 cs 0040 fl 00014002
         nested carries 00000009
         only the frame is nested: #10 err 00000000 at +0000001c cs 0040 fl 00014002
         only the frame is nested carries 0000000a
         data for code: #13 err 00000010 at +0000001c cs 0040 fl 00010002
         data for code carries 00000009
         code of ring 3: #13 err 00000018 at +0000001c cs 0040 fl 00010002
         code of ring 3 carries 00000009
         absent: #11 err 00000040 at +00000028 cs 0040 fl 00010002
         absent carries 00000009
         short: #13 err 00000000 at +00000028 cs 0040 fl 00010002
         short carries 00000009
         single step: #01 at +00000024 cs 0040 fl 00000102
         single step carries 0000000a
         interrupt: #32 at +0000003c cs 0040 fl 00000202
         interrupt carries 00000009",
        // QEMU checks no limit where execution goes on.
        &["short"],
    )
}

/// A frame of three words at the end of a page, with none behind it, and at the end of the address space; there also one
/// of five, which goes on at address 0.
#[test]
fn frames_end_where_a_page_ends() -> Outcome {
    /// Shows the first 4 MiB again in the last.
    const LAST: u32 = at::PD + 0xffc;
    check(
        |b| {
            b.set_descriptor(CODE, descriptor(0, 0xf_ffff, 0x9b, 0xc))?;
            b.page_4k()?;
            b.poke(LAST, (at::PD + 0x1000) | 7)?;
            b.poke(pte(BOUNDARY), 0)?;
            b.flush()?;
            for (name, top) in [("page", BOUNDARY), ("address space", 0)] {
                b.asm.mov(ebp, esp)?;
                rounds(b, 6, |b| {
                    let mut back = b.asm.create_label();
                    b.asm.mov(esp, top)?;
                    frame(b, back)?;
                    b.asm.iretd()?;
                    b.asm.set_label(&mut back)?;
                    b.asm.add(esi, esp)
                })?;
                b.asm.mov(esp, ebp)?;
                b.asm.mov(eax, esi)?;
                b.show(name)?;
            }
            b.fault(
                "around",
                |_| Ok(()),
                |b| {
                    let mut outer = b.asm.create_label();
                    b.expect_at(outer)?;
                    b.asm.mov(ebx, eax)?;
                    b.asm.mov(esp, 8)?;
                    b.asm.push(i32::from(sel::DATA3))?;
                    b.asm.push(at::STACK3 as i32)?;
                    b.asm.push(2)?;
                    b.asm.push(i32::from(sel::CODE3))?;
                    b.asm.push(ebx)?;
                    b.asm.iretd()?;
                    b.asm.set_label(&mut outer)?;
                    b.asm.int(0x80)
                },
            )
        },
        "page 03060000
         address space 00000000
         around: #31 at +00000002 cs 001b fl 00000002 sp 0023:001c0000",
        &[],
    )
}
