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
