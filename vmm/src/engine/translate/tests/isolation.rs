//! Address spaces whose supervisor pages differ and are not global, as under Linux's page-table isolation.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{CACHE_SIZE, DATA, agree_within};
use crate::cpu::reg;

const DIRECTORIES: [u32; 2] = [DATA + 0x1_0000, DATA + 0x1_1000];
const TABLES: [u32; 2] = [DATA + 0x1_2000, DATA + 0x1_3000];
const FRAMES: u32 = DATA + 0x10_0000;
/// Above the kernel split.
const PAGES: u32 = 0xc000_0000;
const COUNT: u32 = 512;
const ROUNDS: u32 = 40;

/// Paging with the first 16 MiB mapped one to one, and the same pages at PAGES in another order in each space.
fn prepare(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (space, (&directory, &table)) in (0..).zip(DIRECTORIES.iter().zip(&TABLES)) {
        (0..4).try_for_each(|n| a.mov(dword_ptr(directory + 4 * n), n << 22 | 0xe7))?;
        a.mov(dword_ptr(directory + (PAGES >> 20)), table | 0x67)?;
        let mut head = a.create_label();
        a.xor(ecx, ecx)?;
        a.set_label(&mut head)?;
        a.mov(edx, ecx)?;
        a.xor(edx, space)?;
        a.shl(edx, 12)?;
        a.add(edx, FRAMES | 0x67)?;
        a.mov(dword_ptr(ecx * 4 + table), edx)?;
        a.inc(ecx)?;
        a.cmp(ecx, COUNT)?;
        a.jne(head)?;
    }
    a.mov(eax, cr4)?;
    a.or(eax, 0x10)?;
    a.mov(cr4, eax)?;
    a.mov(eax, DIRECTORIES[0])?;
    a.mov(cr3, eax)?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8001_0000u32)?;
    a.mov(cr0, eax)
}

/// Goes to each space in turn, and stores to and reads all its pages.
fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut outer, mut inner) = (a.create_label(), a.create_label());
    prepare(a)?;
    a.mov(ebp, 2 * ROUNDS)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut outer)?;
    a.mov(eax, ebp)?;
    a.and(eax, 1)?;
    a.shl(eax, 12)?;
    a.add(eax, DIRECTORIES[0])?;
    a.mov(cr3, eax)?;
    a.mov(edi, PAGES)?;
    a.mov(ecx, COUNT)?;
    a.set_label(&mut inner)?;
    a.add(dword_ptr(edi), ecx)?;
    a.imul_3(ebx, ebx, 3)?;
    a.add(ebx, dword_ptr(edi))?;
    a.add(edi, 0x1000)?;
    a.dec(ecx)?;
    a.jne(inner)?;
    a.dec(ebp)?;
    a.jne(outer)
}

/// Going from one address space to the next does not take the supervisor's pages away each time.
#[test]
fn each_space_keeps_its_supervisor_pages() {
    let (state, translator) = agree_within(CACHE_SIZE, |a| program(a).unwrap());
    assert_eq!(state.gpr[reg::EBP], 0);
    let stats = &translator.shadow.stats;
    assert!(translator.shadow.kernel_is_local(), "{stats:?}");
    assert!(stats.pages_unmapped < u64::from(ROUNDS * COUNT), "{stats:?}");
}
