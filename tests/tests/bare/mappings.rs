//! Mappings that change behind code which an engine has linked, or remembered, under the old ones.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::tables::pte;
use tests::bare::{Bare, Emit, at};

use super::spaces::{CALLER, PAGE, PD2, PT2, alternate, expected, function, set_directory};

/// Entry bits: present, writable, user; and accessed, global.
const PLAIN: u32 = 7;
const GLOBAL: u32 = 0x127;
/// The table for the 4 MiB around PAGE under the first directory.
const TABLE: u32 = at::PD + 0x3000;
/// CR4.PGE.
const PGE: u32 = 0x80;

/// Calls `place` with ECX as `argument`; EBX is lost.
fn call(b: &mut Bare, place: u32, argument: u32) -> Emit {
    b.asm.mov(ecx, argument)?;
    b.asm.mov(ebx, place)?;
    b.asm.call(ebx)
}

/// Maps the page of `place` anew in the table at `table`, and says so.
fn remap(b: &mut Bare, table: u32, place: u32, entry: u32) -> Emit {
    b.poke(table + (place >> 12 & 0x3ff) * 4, entry)?;
    b.asm.invlpg(byte_ptr(place))
}

/// A jump lies across two pages, of which only the second changes: nothing else is ever executed there.
#[test]
fn a_jump_goes_on_in_another_page() -> Outcome {
    const JUMP: u32 = PAGE + 0xffe;
    const TAILS: [u32; 2] = [PAGE + 0x4000, PAGE + 0x5000];
    const FUNCTIONS: [u32; 2] = [PAGE + 0x8000, PAGE + 0x8100];
    check(
        |b| {
            for (i, (tail, to)) in TAILS.into_iter().zip(FUNCTIONS).enumerate() {
                let distance = to - (JUMP + 5);
                b.poke(JUMP - 2, 0xe9_0000 | distance << 24)?;
                b.poke(tail, distance >> 8)?;
                function(b, to, i as u32 + 1)?;
            }
            b.page_4k()?;
            remap(b, TABLE, PAGE + 0x1000, TAILS[0] | PLAIN)?;
            alternate(b, JUMP, |b| {
                b.asm.xor(dword_ptr(pte(PAGE + 0x1000)), (TAILS[0] ^ TAILS[1]) as i32)?;
                b.asm.invlpg(byte_ptr(PAGE + 0x1000))
            })?;
            b.asm.mov(eax, esi)?;
            b.show("sum")
        },
        &format!("sum {:08x}", expected()),
        &[],
    )
}

/// Supervisor code on global pages jumps from one to the other. INVLPG in one address space changes the second, after the
/// first was last come to in another space.
#[test]
fn a_global_page_changes_in_one_space() -> Outcome {
    check(
        |b| {
            function(b, PAGE, 1)?;
            function(b, PAGE + 0x1000, 2)?;
            let distance = PAGE.wrapping_sub(CALLER + 5);
            b.poke(CALLER, 0xe9 | distance << 8)?;
            b.poke(CALLER + 4, distance >> 24)?;
            b.page_4k()?;
            for place in [PAGE, CALLER] {
                b.poke(pte(place), place | GLOBAL)?;
            }
            for (from, to) in [(at::PD, PD2), (TABLE, PT2)] {
                b.asm.mov(esi, from)?;
                b.asm.mov(edi, to)?;
                b.asm.mov(ecx, 1024)?;
                b.asm.rep().movsd()?;
            }
            b.poke(PD2 + 8, PT2 | PLAIN)?;
            b.cr4_set(PGE)?;

            for (name, root, table, frame) in [
                ("first", at::PD, TABLE, PAGE),
                ("second", PD2, PT2, PAGE),
                ("second, changed", PD2, PT2, PAGE + 0x1000),
                ("first again", at::PD, TABLE, PAGE),
                ("second again", PD2, PT2, PAGE + 0x1000),
                ("first, changed", at::PD, TABLE, PAGE + 0x1000),
            ] {
                set_directory(b, root)?;
                (0..4).try_for_each(|_| call(b, CALLER, 0))?;
                remap(b, table, PAGE, frame | GLOBAL)?;
                call(b, CALLER, 0)?;
                b.show(name)?;
            }
            Ok(())
        },
        "first 00000001\nsecond 00000001\nsecond, changed 00000002\nfirst again 00000001\nsecond again 00000002\n\
         first, changed 00000002",
        &[],
    )
}

/// An instruction is executed for the first time while its page has another frame in the guest's tables, and INVLPG has
/// not said so yet: whichever frame's it was, afterwards it is that of the frame which is mapped.
#[test]
fn a_stale_mapping_is_not_remembered() -> Outcome {
    check(
        |b| {
            // test ecx, ecx; jz 7; sldt eax; 7: ret. The other frame has str eax.
            for (frame, instruction) in [(PAGE, 0xc3c0_000f), (PAGE + 0x1000, 0xc3c8_000f)] {
                b.poke(frame, 0x0374_c985)?;
                b.poke(frame + 4, instruction)?;
            }
            b.page_4k()?;
            for argument in [0, 0, 0, 1] {
                if argument == 1 {
                    b.poke(pte(PAGE), (PAGE + 0x1000) | PLAIN)?;
                }
                call(b, PAGE, argument)?;
            }
            remap(b, TABLE, PAGE, PAGE | PLAIN)?;
            call(b, PAGE, 1)?;
            b.show("LDT")
        },
        "LDT 00000000",
        &[],
    )
}

/// What a 4 MiB page shows.
const LARGE: u32 = 0x1000_0000;

/// Global pages that change, with a flush after which the old ones must not be seen: INVLPG; CR3, while CR4.PGE is clear;
/// any change of CR4.PGE; and the end of paging (SDM vol. 3, §4.10.4.1). They were read and executed before.
#[test]
fn global_pages_are_flushed() -> Outcome {
    const FRAMES: [u32; 2] = [PAGE + 0x4000, PAGE + 0x5000];
    const LARGES: [u32; 2] = [PAGE, PAGE + 0x40_0000];
    const SMALL: (u32, [u32; 2]) = (pte(PAGE), [FRAMES[0] | GLOBAL, FRAMES[1] | GLOBAL]);
    const DIRECTORY: (u32, [u32; 2]) = (at::PD + (LARGE >> 20), [LARGES[0] | GLOBAL | 0xc0, LARGES[1] | GLOBAL | 0xc0]);
    type Way = (bool, fn(&mut Bare, u32) -> Emit);
    let ways: [Way; 5] = [
        (true, |b, linear| b.asm.invlpg(byte_ptr(linear + 0xabc))),
        (false, |b, _| b.flush()),
        (true, |b, _| pge(b, false)),
        (false, |b, _| pge(b, true)),
        (true, |b, _| b.cr0_clear(0x8000_0000).and_then(|()| b.cr0_set(0x8000_0000))),
    ];
    let upper = crate::crossings::HIGH + PAGE;
    let kinds = [
        ("read", PAGE, SMALL, false),
        ("executed", PAGE, SMALL, true),
        ("read above", upper, SMALL, false),
        ("executed above", upper, SMALL, true),
        ("large, read", LARGE, DIRECTORY, false),
        ("large, executed", LARGE, DIRECTORY, true),
    ];
    check(
        |b| {
            for frame in [FRAMES, LARGES] {
                for (value, place) in (1..).zip(frame) {
                    function(b, place, value)?;
                    b.poke(place + 0x10, value)?;
                }
            }
            crate::crossings::prepare(b)?;
            b.cr4_set(0x10)?;
            for (name, linear, (entry, values), executed) in kinds {
                let access = |b: &mut Bare| match executed {
                    true => call(b, linear, 0),
                    false => b.asm.mov(eax, dword_ptr(linear + 0x10)),
                };
                b.asm.xor(esi, esi)?;
                for (global, way) in ways {
                    pge(b, global)?;
                    b.poke(entry, values[0])?;
                    b.asm.invlpg(byte_ptr(linear))?;
                    (0..4).try_for_each(|_| access(b))?;
                    b.poke(entry, values[1])?;
                    way(b, linear)?;
                    access(b)?;
                    b.asm.shl(esi, 4)?;
                    b.asm.add(esi, eax)?;
                }
                b.asm.mov(eax, esi)?;
                b.show(name)?;
            }
            Ok(())
        },
        "read 00022222\nexecuted 00022222\nread above 00022222\nexecuted above 00022222\n\
         large, read 00022222\nlarge, executed 00022222",
        &[],
    )
}

/// CR4.PGE, on or off. Clobbers EAX.
fn pge(b: &mut Bare, on: bool) -> Emit {
    b.asm.mov(eax, cr4)?;
    match on {
        true => b.asm.or(eax, PGE as i32)?,
        false => b.asm.and(eax, !PGE as i32)?,
    }
    b.asm.mov(cr4, eax)
}

/// The same for a global page that ring 3 reads, with what changes it and flushes in a handler that INT goes to.
#[test]
fn global_pages_of_ring_3_are_flushed() -> Outcome {
    const NEXT: u32 = PAGE + 0x6000;
    /// EAX at the report.
    const SEEN: u32 = tests::bare::runtime::SAVED + 28;
    type Way = (&'static str, bool, fn(&mut Bare) -> Emit);
    let ways: [Way; 4] = [
        ("invlpg", true, |b| b.asm.invlpg(byte_ptr(PAGE))),
        ("cr3", false, Bare::flush),
        ("pge off", true, |b| pge(b, false)),
        ("pge on", false, |b| pge(b, true)),
    ];
    check(
        |b| {
            b.poke(PAGE + 1, 1)?;
            b.poke(NEXT + 1, 2)?;
            crate::crossings::prepare(b)?;
            for (name, global, way) in ways {
                pge(b, global)?;
                remap(b, TABLE, PAGE, PAGE | GLOBAL)?;
                let change = |b: &mut Bare| b.poke(pte(PAGE), NEXT | GLOBAL).and_then(|()| way(b));
                crate::crossings::twelve_after(b, name, |_| Ok(()), change)?;
                b.show_memory("eax", SEEN)?;
            }
            Ok(())
        },
        &["invlpg", "cr3", "pge off", "pge on"]
            .map(|name| {
                format!(
                    "{name}: #31 at +00000017 cs 001b fl 00000002 sp 0023:001c0000\n{name} rounds 0000000c\n\
                 {name} carries 0000000c\neax 00000002\n"
                )
            })
            .concat(),
        &[],
    )
}
