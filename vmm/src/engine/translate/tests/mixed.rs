//! Pages that mix code and data that are both in use.

use iced_x86::code_asm::*;

use super::{CODE, DATA, agree, agree_at};
use crate::cpu::reg;

/// What stores cost until a page is known to be mixed.
const LEARNING: u64 = 100;
/// Data on the page of the code.
const BESIDE: u32 = CODE + 0x800;
/// What follows the short jump that a program begins with.
const FUNCTION: u32 = CODE + 2;

#[test]
fn data_beside_code_is_stored_to_at_full_speed() {
    for cpl in [0, 3] {
        let (state, translator) = agree_at(cpl, |a| {
            let (mut head, mut over) = (a.create_label(), a.create_label());
            a.mov(ecx, 5000).unwrap();
            a.set_label(&mut head).unwrap();
            a.add(dword_ptr(BESIDE), 3).unwrap();
            a.jmp(over).unwrap();
            a.dd(&[0x0b0f_0b0f]).unwrap();
            a.set_label(&mut over).unwrap();
            a.inc(word_ptr(BESIDE + 4)).unwrap();
            a.dec(ecx).unwrap();
            a.jne(head).unwrap();
            a.mov(eax, dword_ptr(BESIDE)).unwrap();
            a.mov(ebx, dword_ptr(BESIDE + 4)).unwrap();
        });
        assert_eq!((state.gpr[reg::EAX], state.gpr[reg::EBX]), (15_000, 5000));
        let stats = translator.stats;
        assert!(stats.code_stores < LEARNING && stats.stale == 0 && stats.blocks < LEARNING, "{stats:?}");
    }
}

/// Each iteration counts beside the code, and rewrites the instruction right behind the store and one behind a call.
#[test]
fn code_that_changes_is_noticed_at_once() {
    let (state, translator) = agree_at(0, |a| {
        let (mut head, mut here, mut start) = (a.create_label(), a.create_label(), a.create_label());
        a.jmp(start).unwrap();
        a.mov(eax, 0x1234_5678).unwrap();
        a.ret().unwrap();
        a.set_label(&mut start).unwrap();
        a.mov(ecx, 2000).unwrap();
        a.set_label(&mut head).unwrap();
        a.inc(dword_ptr(BESIDE)).unwrap();
        a.call(here).unwrap();
        a.set_label(&mut here).unwrap();
        a.pop(edx).unwrap();
        // One byte of POP, three of this, and the opcode of the next: its immediate is rewritten.
        a.mov(byte_ptr(edx + 5), cl).unwrap();
        a.mov(al, 0x55).unwrap();
        a.movzx(eax, al).unwrap();
        a.add(ebx, eax).unwrap();
        a.mov(dword_ptr(FUNCTION + 1), ecx).unwrap();
        a.mov(eax, FUNCTION).unwrap();
        a.call(eax).unwrap();
        a.add(esi, eax).unwrap();
        a.dec(ecx).unwrap();
        a.jne(head).unwrap();
    });
    let (sum, low) = ((1..=2000u32).sum::<u32>(), (1..=2000u32).map(|n| n & 0xff).sum::<u32>());
    assert_eq!((state.gpr[reg::EBX], state.gpr[reg::ESI]), (4 + low, DATA + sum));
    assert!(translator.stats.stale > 2000, "{:?}", translator.stats);
}

/// Code on a page whose data and other code change: only what changed is translated anew.
#[test]
fn only_changed_blocks_are_translated_again() {
    let (state, translator) = agree_at(0, |a| {
        let (mut head, mut same, mut start) = (a.create_label(), a.create_label(), a.create_label());
        a.jmp(start).unwrap();
        a.mov(eax, 7).unwrap();
        a.ret().unwrap();
        a.set_label(&mut start).unwrap();
        a.mov(ecx, 3000).unwrap();
        a.mov(edx, FUNCTION).unwrap();
        a.set_label(&mut head).unwrap();
        a.inc(dword_ptr(BESIDE)).unwrap();
        a.call(edx).unwrap();
        a.add(ebx, eax).unwrap();
        a.test(ecx, 511).unwrap();
        a.jne(same).unwrap();
        a.inc(dword_ptr(FUNCTION + 1)).unwrap();
        a.set_label(&mut same).unwrap();
        a.dec(ecx).unwrap();
        a.jne(head).unwrap();
    });
    // The function's value goes up by one after each of five rounds whose number is a multiple of 512.
    let value = |n: u32| 7 + (1..=5).filter(|k| n < k * 512).count() as u32;
    assert_eq!(state.gpr[reg::EBX], 4 + (1..=3000).map(value).sum::<u32>());
    let stats = translator.stats;
    assert!(stats.code_stores < LEARNING && (1..20).contains(&stats.stale), "{stats:?}");
}

/// A repeated store that changes its own instruction goes on as what stands there now, with the next iteration.
#[test]
fn a_repeated_store_over_itself_ends_there() {
    // Where it lies, its first store as seen from there, and the direction; what is left to do, and where EDI is.
    for (at, first, back, left, moved) in [
        // REP STOSB becomes NOP, STOSB.
        (45, -20i32, false, 5000 - 21, 2),
        (0xffd, -0x400, false, 5000 - 0x401, 2),
        // It becomes PAUSE.
        (45, 1, true, 4999, 0),
        (0xfff, 1, false, 4999, 2),
    ] {
        let rep = CODE + at;
        let state = agree(|a| {
            a.mov(edi, rep.wrapping_add_signed(first)).unwrap();
            a.mov(ecx, 5000).unwrap();
            a.mov(al, 0x90).unwrap();
            if back { a.std() } else { a.cld() }.unwrap();
            (13..at).for_each(|_| a.nop().unwrap());
            a.rep().stosb().unwrap();
        });
        assert_eq!((state.gpr[reg::ECX], state.gpr[reg::EDI]), (left, rep + moved), "at {at:#x}");
    }
}

/// FOP is that of the instruction which was executed, though another is there when it is asked for.
#[test]
fn an_x87_instruction_is_remembered_as_it_was() {
    let (state, _) = agree_at(0, |a| {
        let mut here = a.create_label();
        a.mov(ebx, DATA).unwrap();
        a.mov(dword_ptr(ebx), 0).unwrap();
        // Division by zero is not masked.
        a.mov(word_ptr(ebx + 4), 0x37b).unwrap();
        a.fldcw(word_ptr(ebx + 4)).unwrap();
        a.call(here).unwrap();
        a.set_label(&mut here).unwrap();
        a.pop(esi).unwrap();
        a.fld1().unwrap();
        a.fdiv(dword_ptr(ebx)).unwrap();
        a.mov(byte_ptr(esi + 4), 0x77).unwrap();
    });
    assert_eq!(state.xsave.0[6..8], [0x33, 0]);
}
