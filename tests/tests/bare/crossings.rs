//! INT from ring 3 and IRET back, done several times over, and then once more when something that decides on what they do
//! has changed: an engine that remembers outcomes must see it. The handler runs in the upper part of the address space,
//! where kernels are.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::runtime::SAVED;
use tests::bare::tables::{descriptor, pte};
use tests::bare::{Bare, Emit, at, sel};

/// Where the handler does something else, `FRAME` from ESP is what it returns by.
const FRAME: i32 = 8;
const COUNT: u32 = at::SCRATCH;
/// What the handler saw last: ESP, and IF.
const SEEN: u32 = at::SCRATCH + 0x10;
/// Physical memory is mapped again from here on, for ring 0.
pub(super) const HIGH: u32 = 0xc000_0000;
const VECTOR: u8 = 0x30;
pub(super) const GATE: u32 = at::IDT + 8 * VECTOR as u32;

/// A change, by its name.
type Change = (&'static str, fn(&mut Bare) -> Emit);

/// Paging, with the stack of ring 0 in the upper part.
pub(super) fn prepare(b: &mut Bare) -> Emit {
    b.page_4k()?;
    for table in 0..4 {
        b.poke(at::PD + 0xc00 + table * 4, (at::PD + 0x1000 + table * 0x1000) | 3)?;
    }
    b.poke(at::TSS + 4, HIGH + at::STACK - 0x4000)?;
    b.flush()
}

/// Twelve rounds at ring 3 around INT, in the tenth of which the handler does `change`.
fn twelve(b: &mut Bare, (name, change): Change) -> Emit {
    twelve_after(b, name, |_| Ok(()), change)
}

/// As [`twelve`], with `before` done once the handler has its gate.
pub(super) fn twelve_after(
    b: &mut Bare,
    name: &str,
    before: impl FnOnce(&mut Bare) -> Emit,
    change: impl FnOnce(&mut Bare) -> Emit,
) -> Emit {
    let (mut over, mut handler, mut usual) = (b.asm.create_label(), b.asm.create_label(), b.asm.create_label());
    b.asm.jmp(over)?;
    b.asm.set_label(&mut handler)?;
    b.asm.mov(dword_ptr(SEEN), esp)?;
    b.asm.pushfd()?;
    b.asm.pop(eax)?;
    b.asm.and(eax, 0x200)?;
    b.asm.mov(dword_ptr(SEEN + 4), eax)?;
    b.asm.inc(dword_ptr(COUNT))?;
    b.asm.cmp(dword_ptr(COUNT), 10)?;
    b.asm.jne(usual)?;
    b.asm.push(edx)?;
    b.asm.push(ecx)?;
    change(b)?;
    b.asm.pop(ecx)?;
    b.asm.pop(edx)?;
    b.asm.set_label(&mut usual)?;
    b.asm.iretd()?;
    b.asm.set_label(&mut over)?;
    b.poke(COUNT, 0)?;
    b.gate(VECTOR, sel::CODE, handler, 0xee)?;
    b.asm.or(dword_ptr(GATE + 4), HIGH as i32)?;
    before(b)?;
    b.fault_in_ring3(name, |b| {
        let mut again = b.asm.create_label();
        b.asm.xor(ebx, ebx)?;
        b.asm.xor(esi, esi)?;
        b.asm.set_label(&mut again)?;
        b.asm.stc()?;
        b.asm.int(u32::from(VECTOR))?;
        b.asm.adc(esi, 0)?;
        b.asm.mov(eax, dword_ptr(at::FREE + 1))?;
        b.asm.inc(ebx)?;
        b.asm.cmp(ebx, 12)?;
        b.asm.jne(again)
    })?;
    b.show_memory(&format!("{name} rounds"), SAVED + 16)?;
    b.show_memory(&format!("{name} carries"), SAVED + 4)?;
    b.cr0_clear(0x4_0000)?;
    b.out(0x20, 0x20)?;
    b.out(0x21, 0xff)?;
    [(sel::CODE3, 0xfb), (sel::DATA3, 0xf3), (sel::CODE, 0x9b)]
        .into_iter()
        .try_for_each(|(selector, access)| b.set_descriptor(selector, descriptor(0, 0xf_ffff, access, 0xc)))
}

fn frame(word: i32) -> AsmMemoryOperand {
    dword_ptr(esp + FRAME + 4 * word)
}

/// What IRET finds on its stack, in flags, in segment registers and in the GDT.
#[test]
fn returns_change() -> Outcome {
    let changes: [Change; 14] = [
        ("plain", |_| Ok(())),
        ("carry", |b| b.asm.and(frame(2), !1)),
        ("elsewhere", |b| b.asm.add(frame(0), 3)),
        ("data for code", |b| b.asm.mov(frame(1), 0x23)),
        ("ring 1", |b| {
            b.asm.mov(frame(1), u32::from(sel::CODE1))?;
            b.asm.mov(frame(4), u32::from(sel::DATA1))
        }),
        ("stack of ring 0", |b| b.asm.mov(frame(4), u32::from(sel::DATA))),
        ("no stack", |b| b.asm.mov(frame(4), 0)),
        ("single step", |b| b.asm.or(frame(2), 0x100)),
        ("alignment", |b| {
            b.asm.or(frame(2), 0x4_0000)?;
            b.cr0_set(0x4_0000)
        }),
        ("i/o privilege", |b| b.asm.or(frame(2), 0x3000)),
        ("data of ring 0", |b| {
            b.asm.mov(eax, u32::from(sel::DATA))?;
            b.asm.mov(ds, eax)
        }),
        ("absent", |b| b.set_descriptor(sel::CODE3, descriptor(0, 0xf_ffff, 0x7b, 0xc))),
        ("read-only", |b| b.set_descriptor(sel::DATA3, descriptor(0, 0xf_ffff, 0xf1, 0xc))),
        ("interrupt", |b| {
            b.request_timer()?;
            b.asm.or(frame(2), 0x200)
        }),
    ];
    check(
        |b| {
            prepare(b)?;
            changes.into_iter().try_for_each(|change| twelve(b, change))
        },
        "plain: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         plain rounds 0000000c
         plain carries 0000000c
         carry: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         carry rounds 0000000c
         carry carries 0000000b
         elsewhere: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         elsewhere rounds 0000000c
         elsewhere carries 0000000b
         data for code: #13 err 00000020 at +bfffff88 cs 0008 fl 00010002
         data for code rounds 00000009
         data for code carries 00000009
         ring 1: #31 at +00000017 cs 0031 fl 00000002 sp 0039:001c0000
         ring 1 rounds 0000000c
         ring 1 carries 0000000c
         stack of ring 0: #13 err 00000010 at +bfffff86 cs 0008 fl 00010002
         stack of ring 0 rounds 00000009
         stack of ring 0 carries 00000009
         no stack: #13 err 00000000 at +bfffff8d cs 0008 fl 00010002
         no stack rounds 00000009
         no stack carries 00000009
         single step: #01 at +0000000a cs 001b fl 00000102 sp 0023:001c0000
         single step rounds 00000009
         single step carries 0000000a
         alignment: #17 err 00000000 at +0000000a cs 001b fl 00050002 sp 0023:001c0000
         alignment rounds 00000009
         alignment carries 0000000a
         i/o privilege: #31 at +00000017 cs 001b fl 00003002 sp 0023:001c0000
         i/o privilege rounds 0000000c
         i/o privilege carries 0000000c
         data of ring 0: #13 err 00000000 at +0000000a cs 001b fl 00010002 sp 0023:001c0000
         data of ring 0 rounds 00000009
         data of ring 0 carries 0000000a
         absent: #11 err 00000018 at +bfffff8f cs 0008 fl 00010002
         absent rounds 00000009
         absent carries 00000009
         read-only: #13 err 00000020 at +bfffff8c cs 0008 fl 00010002
         read-only rounds 00000009
         read-only carries 00000009
         interrupt: #32 at +00000007 cs 001b fl 00000202 sp 0023:001c0000
         interrupt rounds 00000009
         interrupt carries 00000009",
        &["alignment", "data of ring 0"],
    )
}

/// What INT finds in the IDT, the GDT and the task, and where its stack is.
#[test]
fn interrupts_change() -> Outcome {
    let changes: [Change; 5] = [
        ("closed", |b| b.asm.mov(byte_ptr(GATE + 5), 0x8e)),
        ("absent", |b| b.asm.mov(byte_ptr(GATE + 5), 0x6e)),
        ("trap gate", |b| {
            b.asm.mov(byte_ptr(GATE + 5), 0xef)?;
            b.asm.or(frame(2), 0x200)
        }),
        ("enabled", |b| b.asm.or(frame(2), 0x200)),
        ("stack", |b| b.asm.sub(dword_ptr(at::TSS + 4), 0x100)),
    ];
    check(
        |b| {
            prepare(b)?;
            for change in changes {
                twelve(b, change)?;
                b.show_memory("esp", SEEN)?;
                b.show_memory("if", SEEN + 4)?;
            }
            Ok(())
        },
        "closed: #13 err 00000182 at +00000005 cs 001b fl 00010002 sp 0023:001c0000
         closed rounds 0000000a
         closed carries 0000000a
         esp c019bfec
         if 00000000
         absent: #11 err 00000182 at +00000005 cs 001b fl 00010002 sp 0023:001c0000
         absent rounds 0000000a
         absent carries 0000000a
         esp c019bfec
         if 00000000
         trap gate: #31 at +00000017 cs 001b fl 00000202 sp 0023:001c0000
         trap gate rounds 0000000c
         trap gate carries 0000000c
         esp c019bfec
         if 00000200
         enabled: #31 at +00000017 cs 001b fl 00000202 sp 0023:001c0000
         enabled rounds 0000000c
         enabled carries 0000000c
         esp c019bfec
         if 00000000
         stack: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         stack rounds 0000000c
         stack carries 0000000c
         esp c019beec
         if 00000000",
        &[],
    )
}

/// Another page behind the stack's address, after INVLPG or a CR3 write, and global or not: the frame is pushed to it.
#[test]
fn stacks_move() -> Outcome {
    /// The last page of the stack, and the one that takes its place.
    const PAGE: u32 = at::STACK - 0x5000;
    const OTHER: u32 = at::STACK_B - 0x1000;
    /// Where the former can be seen all the time, and what shows that nothing was stored to it.
    const ALIAS: u32 = at::FREE + 0x5000;
    const MARK: u32 = 0x5eed;
    fn exchange(b: &mut Bare) -> Emit {
        b.asm.pushad()?;
        b.asm.mov(esi, HIGH + PAGE)?;
        b.asm.mov(edi, OTHER)?;
        b.asm.mov(ecx, 1024)?;
        b.asm.rep().movsd()?;
        // Where nothing is pushed any more.
        b.asm.mov(dword_ptr(ALIAS + 0xff8), MARK)?;
        b.asm.and(dword_ptr(pte(PAGE)), 0xfff)?;
        b.asm.or(dword_ptr(pte(PAGE)), OTHER as i32)
    }
    let changes: [Change; 2] = [
        ("invlpg", |b| {
            exchange(b)?;
            b.asm.invlpg(byte_ptr(HIGH + PAGE + 0xfff))?;
            b.asm.popad()
        }),
        ("cr3", |b| {
            exchange(b)?;
            b.flush()?;
            b.asm.popad()
        }),
    ];
    check(
        |b| {
            prepare(b)?;
            b.poke(pte(ALIAS), PAGE | 3)?;
            for change in changes {
                b.poke(pte(PAGE), PAGE | 3)?;
                b.flush()?;
                twelve(b, change)?;
                b.show_memory("left", ALIAS + 0xff8)?;
            }
            Ok(())
        },
        "invlpg: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         invlpg rounds 0000000c
         invlpg carries 0000000c
         left 00005eed
         cr3: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000
         cr3 rounds 0000000c
         cr3 carries 0000000c
         left 00005eed",
        &[],
    )
}
