//! Segment loads, and ring 0 with GS as its users left it: null, flat, or with a base.

use iced_x86::code_asm::*;
use iced_x86::{IcedError, Mnemonic};

use super::{CACHE_SIZE, CODE, DATA, agree, agree_within, machine};
use crate::cpu::reg;
use crate::engine::translate::Translator;
use crate::engine::{Engine, Exit};

const GDT: u32 = DATA + 0x1000;
const SELECTORS: u32 = DATA + 0x2000;
const FLAT: u32 = 8;
const BASED: u32 = 16;
const STEPS: u32 = 400;

/// Loads each of `selectors` into GS in turn, 32 times over; after each some 50 blocks of code run. `used` says that code
/// reaches memory through GS where that has a base.
fn program(a: &mut CodeAssembler, selectors: [u32; 4], used: bool) -> Result<(), IcedError> {
    let (mut head, mut function, mut done) = (a.create_label(), a.create_label(), a.create_label());
    for (selector, base) in [(FLAT, 0u32), (BASED, DATA)] {
        a.mov(dword_ptr(GDT + selector), base << 16 | 0xffff)?;
        a.mov(dword_ptr(GDT + selector + 4), base & 0xff00_0000 | 0xcf_9300 | base >> 16 & 0xff)?;
    }
    a.mov(dword_ptr(DATA), GDT << 16 | 0x17)?;
    a.mov(dword_ptr(DATA + 4), GDT >> 16)?;
    a.lgdt(fword_ptr(DATA))?;
    selectors.iter().zip(0..).try_for_each(|(&s, i)| a.mov(dword_ptr(SELECTORS + 4 * i), s))?;
    a.mov(ecx, 128)?;
    a.xor(eax, eax)?;
    a.set_label(&mut head)?;
    a.mov(ebx, ecx)?;
    a.and(ebx, 3)?;
    a.mov(ebx, dword_ptr(ebx * 4 + SELECTORS))?;
    a.mov(gs, ebx)?;
    a.call(function)?;
    a.dec(ecx)?;
    a.jne(head)?;
    a.jmp(done)?;
    a.set_label(&mut function)?;
    for _ in 0..STEPS {
        let mut next = a.create_label();
        a.inc(eax)?;
        a.jmp(next)?;
        a.db(&[0xcc; 40])?;
        a.set_label(&mut next)?;
    }
    if used {
        let mut unused = a.create_label();
        a.cmp(ebx, BASED)?;
        a.jne(unused)?;
        a.add(edx, dword_ptr(SELECTORS - DATA).gs())?;
        a.inc(dword_ptr(0x3000).gs())?;
        a.set_label(&mut unused)?;
    }
    a.ret()?;
    a.set_label(&mut done)?;
    a.nop()
}

#[test]
fn one_translation_for_every_gs() {
    let (_, alone) = agree_within(CACHE_SIZE, |a| program(a, [0; 4], false).unwrap());
    let (state, changing) = agree_within(CACHE_SIZE, |a| program(a, [0, FLAT, BASED, FLAT], false).unwrap());
    assert_eq!(state.gpr[reg::EAX], 128 * STEPS);
    let (alone, changing) = (alone.stats.blocks, changing.stats.blocks);
    assert!(alone > 40 && changing < alone + 10, "{alone} blocks, {changing} where GS changes");
}

#[test]
fn memory_by_way_of_a_changing_gs() {
    let (state, translator) = agree_within(CACHE_SIZE, |a| program(a, [BASED, FLAT, BASED, 0], true).unwrap());
    assert_eq!(state.gpr[reg::EAX], 128 * STEPS);
    assert!(translator.supervisor_gs);
    assert!(translator.stats.interpreted < 100, "{:?}", translator.stats);
}

/// Loads that are remembered, of a descriptor that changes half-way; few of them leave emitted code.
#[test]
fn segment_loads_stay_in_the_cache() {
    let program = |a: &mut CodeAssembler| {
        let mut head = a.create_label();
        a.mov(dword_ptr(DATA), (DATA & 0xffff) << 16 | 0x7f).unwrap();
        a.mov(dword_ptr(DATA + 4), DATA >> 16).unwrap();
        a.mov(dword_ptr(DATA + 0x18), 0xffffu32).unwrap();
        a.mov(dword_ptr(DATA + 0x1c), 0xcf9320u32).unwrap();
        a.lgdt(fword_ptr(DATA)).unwrap();
        a.mov(ecx, 1000).unwrap();
        a.mov(ebx, 0x18).unwrap();
        a.set_label(&mut head).unwrap();
        a.mov(fs, ebx).unwrap();
        a.add(eax, dword_ptr(ecx * 4).fs()).unwrap();
        a.push(fs).unwrap();
        a.pop(gs).unwrap();
        a.xor(ebx, 0x18).unwrap();
        a.mov(fs, ebx).unwrap();
        a.xor(ebx, 0x18).unwrap();
        a.push(0).unwrap();
        a.pop(es).unwrap();
        a.cmp(ecx, 500).unwrap();
        a.sete(dl).unwrap();
        a.shl(dl, 4).unwrap();
        a.add(byte_ptr(DATA + 0x1c), dl).unwrap();
        a.dec(ecx).unwrap();
        a.jne(head).unwrap();
    };
    agree(program);
    let mut a = CodeAssembler::new(32).unwrap();
    program(&mut a);
    a.hlt().unwrap();
    let mut v = machine(&a.assemble(CODE as u64).unwrap());
    let mut translator = Translator::new(&v.mmu.ram).unwrap();
    assert_eq!(translator.run(&mut v), Exit::Halted);
    let left = |kind: Mnemonic| translator.assists[kind as usize];
    assert!(left(Mnemonic::Mov) + left(Mnemonic::Pop) < 20, "{} {}", left(Mnemonic::Mov), left(Mnemonic::Pop));
}
