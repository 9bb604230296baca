//! Operands that are reached by the window's base without prefixes: sums that come round the address space are what the
//! guest's own are.

use iced_x86::code_asm::*;

use super::{CACHE_SIZE, DATA, agree, agree_within};

const ROUNDS: u32 = 50;

#[test]
fn sums_that_come_round_fault_once() {
    let (end, translator) = agree_within(CACHE_SIZE, |a| {
        let mut head = a.create_label();
        a.mov(esi, ROUNDS).unwrap();
        a.mov(dword_ptr(DATA), 0x1234_5678).unwrap();
        a.set_label(&mut head).unwrap();
        a.mov(ebx, 0u32.wrapping_sub(0x100)).unwrap();
        a.mov(eax, dword_ptr(ebx + (DATA + 0x100))).unwrap();
        a.mov(ecx, u32::MAX).unwrap();
        a.add(eax, dword_ptr(ecx * 4 + (DATA + 4))).unwrap();
        a.mov(dword_ptr(ecx * 8 + (DATA + 16)), eax).unwrap();
        a.rol(word_ptr(ecx * 2 + (DATA + 10)), 3).unwrap();
        a.push(dword_ptr(ebx + (DATA + 0x108))).unwrap();
        a.pop(dword_ptr(ecx * 4 + (DATA + 4))).unwrap();
        a.movzx(edx, byte_ptr(ebx + (DATA + 0x101))).unwrap();
        a.lea(edi, dword_ptr(edi + edx)).unwrap();
        a.dec(esi).unwrap();
        a.jne(head).unwrap();
    });
    assert_eq!(end.gpr[6], 0);
    let stats = &translator.stats;
    // Seven operands, in as many blocks as there are faults to learn them by.
    assert!((7..=8).contains(&stats.learnt_wrapping), "{stats:?}");
    assert!(stats.exits_fault < u64::from(ROUNDS), "{stats:?}");
}

#[test]
fn operands_at_the_edges() {
    let end = agree(|a| {
        // The last bytes that there are, the first, and what lies across.
        for (base, displacement) in
            [(0u32, 0i32), (2, -2), (u32::MAX, 1), (0x8000_0000, i32::MIN), (4, -3), (0xffff_fffe, 3)]
        {
            a.mov(ebx, base).unwrap();
            a.mov(dword_ptr(ebx + displacement), 0x0102_0304).unwrap();
            a.add(eax, dword_ptr(ebx + displacement)).unwrap();
            a.mov(ecx, dword_ptr(ebx + displacement)).unwrap();
            a.bts(dword_ptr(ebx + displacement), eax).unwrap();
            a.lea(edi, dword_ptr(edi + ecx * 2)).unwrap();
        }
    });
    assert_ne!(end.gpr[0], 0);
}

/// A pointer that is compared, moved and read through, and one that is stored through between.
#[test]
fn pointers_are_followed() {
    let end = agree(|a| {
        let mut head = a.create_label();
        for n in 0..16 {
            a.mov(dword_ptr(DATA + 8 * n), DATA + 8 * (n + 1)).unwrap();
            a.mov(dword_ptr(DATA + 8 * n + 4), n).unwrap();
        }
        a.mov(eax, DATA).unwrap();
        a.mov(ecx, 16).unwrap();
        a.set_label(&mut head).unwrap();
        a.add(edx, dword_ptr(eax + 4)).unwrap();
        a.add(dword_ptr(eax + 4), edx).unwrap();
        a.mov(eax, dword_ptr(eax)).unwrap();
        a.mov(bh, byte_ptr(eax + 4)).unwrap();
        a.mov(byte_ptr(eax + 5), bh).unwrap();
        a.dec(ecx).unwrap();
        a.jne(head).unwrap();
    });
    assert_eq!(end.gpr[0], DATA + 8 * 16);
}
