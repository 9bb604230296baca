//! Ring 3: code that is come to for another EIP than it was translated for, with flags that the guest still needs.

use iced_x86::code_asm::*;

use super::{CODE, DATA, STACK, agree_at};

/// Rounds enough for every such place to be found out and translated anew.
const ROUNDS: u32 = 40;
/// A distance between EIPs that indices of the branch table do not show.
const ALIAS: u64 = 0x1_0000;

#[test]
fn returns_go_elsewhere_with_live_flags() {
    let (end, translator) = agree_at(3, |a| {
        let (mut head, mut callee, mut carry) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(esi, ROUNDS).unwrap();
        a.xor(edi, edi).unwrap();
        a.set_label(&mut head).unwrap();
        a.call(callee).unwrap();
        // Two bytes that the callee skips.
        a.ud2().unwrap();
        a.pushfd().unwrap();
        a.jc(carry).unwrap();
        a.add(edi, 3).unwrap();
        a.set_label(&mut carry).unwrap();
        a.adc(edi, 0).unwrap();
        a.pop(eax).unwrap();
        a.lea(edi, dword_ptr(edi + eax * 2)).unwrap();
        a.dec(esi).unwrap();
        a.jne(head).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut callee).unwrap();
        a.add(dword_ptr(esp), 2).unwrap();
        // CF and OF are ESI's lowest bit, and ZF is set.
        a.mov(eax, esi).unwrap();
        a.shl(eax, 31).unwrap();
        a.add(eax, eax).unwrap();
        a.ret().unwrap();
    });
    assert_eq!((end.gpr[4], end.gpr[6]), (STACK, 0));
    assert!(translator.stats.learnt_varied > 0, "{:?}", translator.stats);
}

#[test]
fn aliases_in_the_branch_table_keep_flags() {
    let (end, translator) = agree_at(3, |a| {
        let (mut head, mut start, mut done) = (a.create_label(), a.create_label(), a.create_label());
        // Two copies of `adc edx, 1; jmp [edi]`, their addresses at DATA and after.
        for i in 0..2 {
            let at = CODE as u64 + 0x2000 + i * ALIAS;
            a.mov(dword_ptr(DATA as u64 + 4 * i), at as u32).unwrap();
            a.mov(dword_ptr(at), 0xff01_d283u32).unwrap();
            a.mov(byte_ptr(at + 4), 0x27).unwrap();
        }
        a.mov(edi, DATA + 0x100).unwrap();
        a.mov(esi, ROUNDS).unwrap();
        a.xor(edx, edx).unwrap();
        a.call(start).unwrap();
        // The copies jump here.
        a.adc(edx, edx).unwrap();
        a.dec(esi).unwrap();
        a.jne(head).unwrap();
        a.jmp(done).unwrap();
        a.set_label(&mut start).unwrap();
        a.pop(dword_ptr(edi)).unwrap();
        a.set_label(&mut head).unwrap();
        a.mov(ecx, esi).unwrap();
        a.and(ecx, 1).unwrap();
        a.bt(esi, 1).unwrap();
        a.jmp(dword_ptr(ecx * 4 + DATA)).unwrap();
        a.set_label(&mut done).unwrap();
        a.nop().unwrap();
    });
    assert_eq!((end.gpr[4], end.gpr[6]), (STACK, 0));
    assert!(translator.stats.learnt_varied > 0, "{:?}", translator.stats);
}

#[test]
fn a_fault_after_that_is_not_taken_for_another() {
    let (end, translator) = agree_at(3, |a| {
        let (mut head, mut callee) = (a.create_label(), a.create_label());
        a.xor(ecx, ecx).unwrap();
        // In the second round the call is linked, and its return goes by the return stack.
        a.mov(esi, 2).unwrap();
        a.set_label(&mut head).unwrap();
        a.call(callee).unwrap();
        // Two bytes that the callee skips.
        a.ud2().unwrap();
        a.dec(esi).unwrap();
        a.jne(head).unwrap();
        // A host fault that has no address: the one before stays in CR2.
        a.div(ecx).unwrap();
        a.set_label(&mut callee).unwrap();
        a.add(dword_ptr(esp), 2).unwrap();
        a.ret().unwrap();
    });
    assert_eq!((end.gpr[4], translator.stats.exits_tripped), (STACK, 1));
}
