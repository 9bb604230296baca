//! ESP, which emitted code keeps as a host address: whatever the guest does to it, the stack is where ESP says.

use iced_x86::code_asm::*;

use super::{CACHE_SIZE, DATA, STACK, agree, agree_within};

/// Steps of 64 KiB that ESP is moved by without an access, and comes round the address space in.
const ROUND: u32 = 0x1_0000;

#[test]
fn esp_comes_round_without_accesses() {
    let end = agree(|a| {
        for step in 0..4 {
            let mut next = a.create_label();
            a.mov(ecx, ROUND + 3).unwrap();
            a.set_label(&mut next).unwrap();
            match step {
                0 => a.lea(esp, dword_ptr(esp + 0x1_0000)).unwrap(),
                1 => a.sub(esp, 0x1_0000).unwrap(),
                2 => a.add(esp, 0x1_0000).unwrap(),
                _ => a.lea(esp, dword_ptr(esp - 0x1_0000)).unwrap(),
            }
            a.dec(ecx).unwrap();
            a.jne(next).unwrap();
            a.push(step).unwrap();
            a.pop(dword_ptr(DATA + 8 * step)).unwrap();
            a.push(esp).unwrap();
            a.pop(dword_ptr(DATA + 8 * step + 4)).unwrap();
        }
    });
    assert_eq!(end.gpr[4], STACK);
}

/// Each instruction that can write ESP, and then an access through it.
#[test]
fn what_writes_esp_moves_the_stack() {
    let end = agree(|a| {
        let check = |a: &mut CodeAssembler| {
            a.push(eax).unwrap();
            a.add(dword_ptr(esp), 1).unwrap();
            a.pop(eax).unwrap();
            a.mov(edx, esp).unwrap();
            a.lea(esi, dword_ptr(esi + edx * 2)).unwrap();
        };
        a.mov(eax, STACK - 64).unwrap();
        a.xchg(esp, eax).unwrap();
        check(a);
        a.mov(dword_ptr(DATA), STACK - 128).unwrap();
        a.mov(esp, dword_ptr(DATA)).unwrap();
        check(a);
        a.xchg(dword_ptr(DATA), esp).unwrap();
        check(a);
        a.mov(sp, 0x8000u32 as i32).unwrap();
        check(a);
        a.inc(esp).unwrap();
        check(a);
        a.bts(esp, 4).unwrap();
        check(a);
        a.or(esp, 0x100).unwrap();
        check(a);
        a.mov(ebx, 0x10).unwrap();
        a.xadd(ebx, esp).unwrap();
        check(a);
        a.mov(eax, 5).unwrap();
        a.cmpxchg(esp, ebx).unwrap();
        check(a);
        a.bswap(esp).unwrap();
        a.bswap(esp).unwrap();
        check(a);
        a.imul_3(esp, esp, 1).unwrap();
        check(a);
        a.cmp(eax, eax).unwrap();
        a.cmovne(esp, ebx).unwrap();
        check(a);
        a.mov(ebp, STACK - 256).unwrap();
        a.mov(dword_ptr(ebp), DATA).unwrap();
        a.leave().unwrap();
        check(a);
        a.mov(esp, STACK).unwrap();
    });
    assert_eq!(end.gpr[4], STACK);
}

/// Accesses through ESP that go over either end of the address space.
#[test]
fn the_stack_wraps() {
    agree(|a| {
        a.mov(esp, 8).unwrap();
        for _ in 0..4 {
            a.push(0x1234_5678).unwrap();
        }
        a.mov(eax, dword_ptr(esp + 12)).unwrap();
        a.mov(ebx, dword_ptr(esp - 4)).unwrap();
        for _ in 0..6 {
            a.pop(edx).unwrap();
            a.add(eax, edx).unwrap();
        }
        a.mov(esp, 0x7fff_fff0).unwrap();
        a.mov(ecx, dword_ptr(esp + 0x7fff_fff0)).unwrap();
        a.mov(ecx, dword_ptr(esp + 0x9000_0000u32 as i32)).unwrap();
        a.mov(esp, STACK).unwrap();
    });
}

/// AH, CH, DH and BH to and from the stack: the rest of their registers and the flags stay, and nothing is interpreted.
#[test]
fn high_bytes_by_way_of_the_stack() {
    let (end, translator) = agree_within(CACHE_SIZE, |a| {
        a.push(0x1122_3344).unwrap();
        for (register, wide) in [(ah, eax), (ch, ecx), (dh, edx), (bh, ebx)] {
            a.mov(wide, 0x8765_4321u32).unwrap();
            a.cmp(wide, 0x9000_0000u32 as i32).unwrap();
            a.mov(register, byte_ptr(esp + 2)).unwrap();
            a.mov(byte_ptr(esp + 1), register).unwrap();
            a.adc(dword_ptr(esp), 0).unwrap();
        }
        a.mov(bh, byte_ptr(esp + 3)).unwrap();
        a.pop(edi).unwrap();
    });
    assert_eq!((end.gpr[0], end.gpr[3], end.gpr[7]), (0x8765_2221, 0x8765_1121, 0x1122_2248));
    assert_eq!(translator.stats.interpreted, 1, "only HLT");
}
