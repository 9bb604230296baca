//! Segment loads, SYSENTER, SYSEXIT and STI, done several times over, and then once more when something that decides on
//! their outcome has changed: an engine that remembers outcomes must see it.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::runtime::SAVED;
use tests::bare::tables::{descriptor, pte};
use tests::bare::{Bare, Emit, at, sel};

/// Code that a test runs.
type Part = fn(&mut Bare) -> Emit;

/// The descriptor that changes.
const CHANGING: u32 = 0x40;
/// Where it lies.
const PLACE: u32 = at::GDT + CHANGING;
/// Another table, a copy of the first but for what a test changes.
const OTHER: u32 = at::FREE + 0x1_0000;
/// What LGDT reads.
pub(super) const POINTER: u32 = at::SCRATCH + 0x40;

/// `body` as often as `count` says; EBX counts from 0, ESI starts as 0.
pub(super) fn rounds(b: &mut Bare, count: i32, body: impl FnOnce(&mut Bare) -> Emit) -> Emit {
    let mut again = b.asm.create_label();
    b.asm.xor(ebx, ebx)?;
    b.asm.xor(esi, esi)?;
    b.asm.set_label(&mut again)?;
    body(b)?;
    b.asm.inc(ebx)?;
    b.asm.cmp(ebx, count)?;
    b.asm.jb(again)
}

fn load(b: &mut Bare, selector: u32) -> Emit {
    b.asm.mov(eax, selector)?;
    b.asm.mov(fs, eax)
}

/// The changing descriptor is flat data, and was loaded some times.
fn loaded(b: &mut Bare) -> Emit {
    b.set_descriptor(CHANGING as u16, descriptor(at::FREE, 0xf_ffff, 0x93, 0xc))?;
    rounds(b, 4, |b| load(b, CHANGING))
}

/// Sets the base of the changing descriptor to EAX, which is lost.
fn set_base(b: &mut Bare) -> Emit {
    b.asm.mov(word_ptr(PLACE + 2), ax)?;
    b.asm.shr(eax, 16)?;
    b.asm.mov(byte_ptr(PLACE + 4), al)?;
    b.asm.mov(byte_ptr(PLACE + 7), ah)
}

/// A descriptor whose base changes every fourth round, loaded in each way from memory and register.
#[test]
fn bases_change() -> Outcome {
    let sum = (0..32u32).fold(0u32, |sum, i| sum.wrapping_mul(3).wrapping_add(1 + i / 4));
    let ways: [(&str, Part); 4] = [
        ("mov", |b| b.asm.mov(fs, eax)),
        ("mov memory", |b| {
            b.asm.mov(dword_ptr(at::SCRATCH), eax)?;
            b.asm.mov(fs, word_ptr(at::SCRATCH))
        }),
        ("pop", |b| {
            b.asm.push(eax)?;
            b.asm.pop(fs)
        }),
        ("between", |b| {
            b.asm.mov(ecx, 0)?;
            b.asm.mov(fs, ecx)?;
            b.asm.mov(fs, eax)
        }),
    ];
    check(
        |b| {
            b.set_descriptor(CHANGING as u16, descriptor(0, 0xf_ffff, 0x93, 0xc))?;
            (0..8).try_for_each(|i| b.poke(at::FREE + 4 * i, i + 1))?;
            for (name, way) in ways {
                rounds(b, 32, |b| {
                    b.asm.mov(eax, ebx)?;
                    b.asm.shr(eax, 2)?;
                    b.asm.lea(eax, dword_ptr(eax * 4 + at::FREE))?;
                    set_base(b)?;
                    b.asm.mov(eax, CHANGING)?;
                    // Flags are as before a load.
                    b.asm.stc()?;
                    way(b)?;
                    b.asm.sbb(edx, edx)?;
                    b.asm.mov(eax, dword_ptr(0).fs())?;
                    b.asm.lea(esi, dword_ptr(esi + esi * 2))?;
                    b.asm.lea(esi, dword_ptr(esi + edx + 1))?;
                    b.asm.add(esi, eax)
                })?;
                b.asm.mov(eax, esi)?;
                b.show(name)?;
            }
            Ok(())
        },
        &format!("mov {sum:08x}\n mov memory {sum:08x}\n pop {sum:08x}\n between {sum:08x}"),
        &[],
    )
}

/// The accessed bit is set again after it was cleared; null selectors come between; rights and presence go.
#[test]
fn rights_change() -> Outcome {
    check(
        |b| {
            loaded(b)?;
            rounds(b, 8, |b| {
                b.asm.mov(byte_ptr(PLACE + 5), 0x92)?;
                load(b, CHANGING)?;
                b.asm.movzx(eax, byte_ptr(PLACE + 5))?;
                b.asm.add(esi, eax)
            })?;
            b.asm.mov(eax, esi)?;
            b.show("accessed")?;
            rounds(b, 8, |b| {
                load(b, CHANGING)?;
                load(b, 2)?;
                b.asm.mov(eax, fs)?;
                b.asm.lea(esi, dword_ptr(esi + eax))
            })?;
            b.asm.mov(eax, esi)?;
            b.show("null")?;
            b.fault("through null", |b| load(b, 2), |b| b.asm.mov(eax, dword_ptr(0).fs()))?;
            b.fault("weaker", loaded, |b| load(b, CHANGING | 3))?;
            for (name, access) in [("absent", 0x13), ("execute-only", 0x99), ("system", 0x83)] {
                b.fault(
                    name,
                    |b| loaded(b).and_then(|()| b.asm.mov(byte_ptr(PLACE + 5), access)),
                    |b| load(b, CHANGING),
                )?;
            }
            let narrow = |b: &mut Bare| {
                loaded(b)?;
                b.poke64(PLACE, descriptor(at::FREE, 0xfff, 0x93, 4))?;
                load(b, CHANGING)
            };
            b.fault("limit", narrow, |b| b.asm.mov(eax, dword_ptr(0xffd).fs()))?;
            let read_only = |b: &mut Bare| {
                loaded(b)?;
                b.poke64(PLACE, descriptor(at::FREE, 0xf_ffff, 0x91, 0xc))?;
                load(b, CHANGING)
            };
            b.fault("read-only", read_only, |b| b.asm.mov(dword_ptr(0).fs(), eax))
        },
        "accessed 00000498
         null 00000010
         through null: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         weaker: #13 err 00000040 at +00000005 cs 0008 fl 00010002
         absent: #11 err 00000040 at +00000005 cs 0008 fl 00010002
         execute-only: #13 err 00000040 at +00000005 cs 0008 fl 00010002
         system: #13 err 00000040 at +00000005 cs 0008 fl 00010002
         limit: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         read-only: #13 err 00000000 at +00000000 cs 0008 fl 00010002",
        &["through null", "limit", "read-only"],
    )
}

/// LGDT of `limit` and `base`.
pub(super) fn table(b: &mut Bare, base: u32, limit: u32) -> Emit {
    b.poke(POINTER, limit | base << 16)?;
    b.poke(POINTER + 4, base >> 16)?;
    b.asm.lgdt(fword_ptr(POINTER))
}

/// The table in [`OTHER`], in which the changing descriptor has another base. The words there are 1 and 2.
fn other_table(b: &mut Bare) -> Emit {
    b.poke(at::FREE, 1)?;
    b.poke(at::FREE + 4, 2)?;
    loaded(b)?;
    b.asm.mov(esi, at::GDT)?;
    b.asm.mov(edi, OTHER)?;
    b.asm.mov(ecx, 1024)?;
    b.asm.rep().movsd()?;
    b.poke64(OTHER + CHANGING, descriptor(at::FREE + 4, 0xf_ffff, 0x93, 0xc))
}

/// What FS shows after a load.
fn seen(b: &mut Bare, name: &str) -> Emit {
    rounds(b, 4, |b| load(b, CHANGING))?;
    b.asm.mov(eax, dword_ptr(0).fs())?;
    b.show(name)
}

/// Another table, by LGDT and by page tables, with and without global entries, under two- and three-level paging.
#[test]
fn tables_change() -> Outcome {
    let spaces: [(&str, u32, Part); 2] = [
        ("two levels", pte(at::GDT), Bare::page_4k),
        ("three levels", at::PDPT + 0x2000 + (at::GDT >> 9), Bare::page_pae),
    ];
    let mut text =
        "first 00000001\nlgdt 00000002\nback 00000001\nshort: #13 err 00000040 at +00000005 cs 0008 fl 00010002\n"
            .to_owned();
    for (name, ..) in spaces {
        text += &format!("{name}\nfirst 00000001\ninvlpg 00000002\ncr3 00000001\nglobal 00000001\ninvlpg 00000002\n");
    }
    check(
        |b| {
            other_table(b)?;
            seen(b, "first")?;
            table(b, OTHER, 0xfff)?;
            seen(b, "lgdt")?;
            table(b, at::GDT, 0xfff)?;
            seen(b, "back")?;
            b.fault("short", |b| table(b, at::GDT, CHANGING + 6), |b| load(b, CHANGING))?;
            table(b, at::GDT, 0xfff)?;
            for (name, entry, paging) in spaces {
                b.print(&format!("{name}\n"))?;
                b.cr0_clear(0x8000_0000)?;
                paging(b)?;
                b.cr4_set(0x80)?;
                seen(b, "first")?;
                b.poke(entry, OTHER | 7)?;
                b.asm.invlpg(byte_ptr(at::GDT))?;
                seen(b, "invlpg")?;
                b.poke(entry, at::GDT | 7)?;
                b.flush()?;
                seen(b, "cr3")?;
                b.poke(entry, at::GDT | 0x107)?;
                b.asm.invlpg(byte_ptr(at::GDT))?;
                seen(b, "global")?;
                b.poke(entry, OTHER | 0x107)?;
                b.asm.invlpg(byte_ptr(at::GDT))?;
                seen(b, "invlpg")?;
            }
            Ok(())
        },
        &text,
        &["short"],
    )
}

/// Writes the address of `handler` to IA32_SYSENTER_EIP.
fn set_handler(b: &mut Bare, handler: CodeLabel) -> Emit {
    b.address(handler)?;
    b.asm.mov(ecx, 0x176)?;
    b.asm.xor(edx, edx)?;
    b.asm.wrmsr()
}

/// SYSENTER from ring 3, which comes back behind it.
fn enter(b: &mut Bare) -> Emit {
    let mut back = b.asm.create_label();
    b.address(back)?;
    b.asm.mov(edx, eax)?;
    b.asm.mov(ecx, esp)?;
    b.asm.sysenter()?;
    b.asm.set_label(&mut back)?;
    b.asm.nop()
}

/// In a handler: goes on where the tenth entry does something else, and makes it do `body`.
fn at_tenth(b: &mut Bare, body: impl FnOnce(&mut Bare) -> Emit) -> Emit {
    let mut usual = b.asm.create_label();
    b.asm.inc(dword_ptr(at::SCRATCH))?;
    b.asm.cmp(dword_ptr(at::SCRATCH), 10)?;
    b.asm.jne(usual)?;
    b.asm.push(edx)?;
    b.asm.push(ecx)?;
    body(b)?;
    b.asm.pop(ecx)?;
    b.asm.pop(edx)?;
    b.asm.set_label(&mut usual)?;
    b.asm.nop()
}

/// A handler, whose label it is.
fn handler(b: &mut Bare, body: impl FnOnce(&mut Bare) -> Emit) -> Emit<CodeLabel> {
    let (mut over, mut start) = (b.asm.create_label(), b.asm.create_label());
    b.asm.jmp(over)?;
    b.asm.set_label(&mut start)?;
    body(b)?;
    b.asm.set_label(&mut over)?;
    b.asm.nop()?;
    Ok(start)
}

/// Twelve entries from ring 3, of which the tenth is special.
fn twelve(b: &mut Bare, name: &str, handler: CodeLabel) -> Emit {
    b.poke(at::SCRATCH, 0)?;
    set_handler(b, handler)?;
    b.fault_in_ring3(name, |b| {
        rounds(b, 12, |b| {
            enter(b)?;
            b.asm.mov(eax, dword_ptr(at::FREE + 1))?;
            b.asm.rdtsc()
        })
    })?;
    b.show_memory(&format!("{name} rounds"), SAVED + 16)?;
    b.cr0_clear(0x4_0000)?;
    b.asm.mov(eax, cr4)?;
    b.asm.and(eax, !4)?;
    b.asm.mov(cr4, eax)
}

/// SYSEXIT with an interrupt that STI held off, with AC set, to a ring 3 that may not read the time stamp, and where
/// IA32_SYSENTER_CS names nothing; SYSENTER to another handler.
#[test]
fn rings_change() -> Outcome {
    check(
        |b| {
            b.page_4k()?;
            b.msr(0x174, u32::from(sel::CODE))?;
            b.msr(0x175, at::STACK - 0x4000)?;
            let plain = handler(b, |b| at_tenth(b, |_| Ok(())).and_then(|()| b.asm.sysexit()))?;
            twelve(b, "plain", plain)?;
            let held = handler(b, |b| {
                at_tenth(b, Bare::request_timer)?;
                b.asm.sti()?;
                b.asm.sysexit()
            })?;
            twelve(b, "interrupt", held)?;
            b.out(0x20, 0x20)?;
            b.out(0x21, 0xff)?;
            let aligned = handler(b, |b| {
                at_tenth(b, |b| {
                    b.cr0_set(0x4_0000)?;
                    b.asm.push(0x4_0002)?;
                    b.asm.popfd()
                })?;
                b.asm.sysexit()
            })?;
            twelve(b, "alignment", aligned)?;
            let untimed = handler(b, |b| at_tenth(b, |b| b.cr4_set(4)).and_then(|()| b.asm.sysexit()))?;
            twelve(b, "time stamp", untimed)?;
            let nothing = handler(b, |b| at_tenth(b, |b| b.msr(0x174, 0)).and_then(|()| b.asm.sysexit()))?;
            b.poke(at::SCRATCH + 4, 0)?;
            twelve(b, "no sysexit", nothing)?;
            b.msr(0x174, u32::from(sel::CODE))?;
            let counted = handler(b, |b| b.asm.add(dword_ptr(at::SCRATCH + 4), 1).and_then(|()| b.asm.sysexit()))?;
            let moves = handler(b, |b| at_tenth(b, |b| set_handler(b, counted)).and_then(|()| b.asm.sysexit()))?;
            twelve(b, "other handler", moves)?;
            b.show_memory("counted", at::SCRATCH + 4)
        },
        "plain: #31 at +0000001f cs 001b fl 00000002 sp 0023:001c0000
         plain rounds 0000000c
         interrupt: #32 at +0000000f cs 001b fl 00000202 sp 0023:001c0000
         interrupt rounds 00000009
         alignment: #17 err 00000000 at +00000010 cs 001b fl 00050002 sp 0023:001c0000
         alignment rounds 00000009
         time stamp: #13 err 00000000 at +00000015 cs 001b fl 00010002 sp 0023:001c0000
         time stamp rounds 00000009
         no sysexit: #13 err 00000000 at +ffffff8f cs 0008 fl 00010002
         no sysexit rounds 00000009
         other handler: #31 at +0000001f cs 001b fl 00000002 sp 0023:001c0000
         other handler rounds 0000000c
         counted 00000002",
        &["alignment"],
    )
}

/// With a timer that ticks all the while, none of many STI lets an interrupt in before the instruction after it is done,
/// and one that is behind a jump, a call or a return comes when that is done.
#[test]
fn shadows_hold() -> Outcome {
    check(
        |b| {
            let mut over = b.asm.create_label();
            let mut tick = b.asm.create_label();
            b.asm.jmp(over)?;
            b.asm.set_label(&mut tick)?;
            b.tick()?;
            b.asm.set_label(&mut over)?;
            b.asm.nop()?;
            for (name, way) in [("call", 0), ("jump", 1), ("return", 2), ("push", 3)] {
                b.fault(name, Bare::request_timer, |b| {
                    let (mut to, mut more) = (b.asm.create_label(), b.asm.create_label());
                    b.address(to)?;
                    b.asm.push(eax)?;
                    b.asm.sti()?;
                    match way {
                        0 => b.asm.call(to)?,
                        1 => b.asm.jmp(to)?,
                        2 => b.asm.ret()?,
                        _ => b.asm.push(ecx)?,
                    }
                    b.asm.nop()?;
                    b.asm.set_label(&mut to)?;
                    b.asm.cli()?;
                    b.asm.set_label(&mut more)?;
                    b.asm.nop()
                })?;
                b.out(0x20, 0x20)?;
            }
            b.gate(0x20, 8, tick, 0x8e)?;
            b.poke(at::SCRATCH, 0)?;
            b.out(0x43, 0x34)?;
            b.out(0x40, 0)?;
            b.out(0x40, 4)?;
            b.out(0x21, 0xfe)?;
            rounds(b, 3_000_000, |b| {
                b.asm.sti()?;
                b.asm.cli()
            })?;
            b.show_memory("let in", at::SCRATCH)?;
            let mut wait = b.asm.create_label();
            b.asm.set_label(&mut wait)?;
            b.asm.sti()?;
            b.asm.nop()?;
            b.asm.cli()?;
            b.asm.cmp(dword_ptr(at::SCRATCH), 20)?;
            b.asm.jb(wait)?;
            b.out(0x21, 0xff)
        },
        "call: #32 at +0000000d cs 0008 fl 00000202
         jump: #32 at +0000000a cs 0008 fl 00000202
         return: #32 at +00000009 cs 0008 fl 00000202
         push: #32 at +00000008 cs 0008 fl 00000202
         let in 00000000",
        &[],
    )
}
