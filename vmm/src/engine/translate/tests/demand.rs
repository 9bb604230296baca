//! Pages that the guest's page-fault handler supplies when they are first touched.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{CACHE_SIZE, DATA, agree_within};
use crate::cpu::reg;

const DIRECTORY: u32 = DATA + 0x1_0000;
const TABLE: u32 = DATA + 0x1_1000;
const IDT: u32 = DATA + 0x1_2000;
const GDT: u32 = DATA + 0x1_3000;
/// Where the frames that the handler gives out begin.
const FRAMES: u32 = DATA + 0x10_0000;
/// A part of the address space that only the handler maps.
const PAGES: u32 = 0x4000_0000;
const COUNT: u32 = 100;

/// Descriptor tables, paging with the first 16 MiB mapped one to one, and the handler for page faults at EAX.
fn prepare(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (at, value) in [(GDT + 8, 0x00cf_9b00_0000_ffffu64), (GDT + 16, 0x00cf_9300_0000_ffff)] {
        a.mov(dword_ptr(at), value as u32)?;
        a.mov(dword_ptr(at + 4), (value >> 32) as u32)?;
    }
    a.mov(edx, 8 << 16)?;
    a.mov(dx, ax)?;
    a.mov(ax, 0x8e00)?;
    a.mov(dword_ptr(IDT + 14 * 8), edx)?;
    a.mov(dword_ptr(IDT + 14 * 8 + 4), eax)?;
    for (at, base, limit) in [(DATA, GDT, 0x17u32), (DATA + 8, IDT, 0x7f)] {
        a.mov(dword_ptr(at), base << 16 | limit)?;
        a.mov(dword_ptr(at + 4), base >> 16)?;
    }
    a.lgdt(fword_ptr(DATA))?;
    a.lidt(fword_ptr(DATA + 8))?;
    (0..4).try_for_each(|n| a.mov(dword_ptr(DIRECTORY + 4 * n), n << 22 | 0xe7))?;
    a.mov(dword_ptr(DIRECTORY + (PAGES >> 20)), TABLE | 0x67)?;
    a.mov(eax, cr4)?;
    a.or(eax, 0x10)?;
    a.mov(cr4, eax)?;
    a.mov(eax, DIRECTORY)?;
    a.mov(cr3, eax)?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8001_0000u32)?;
    a.mov(cr0, eax)
}

fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut start, mut head) = (a.create_label(), a.create_label());
    // Pushes the address of the handler, which follows.
    a.call(start)?;
    a.push(eax)?;
    a.push(edx)?;
    a.mov(eax, cr2)?;
    a.sub(eax, PAGES)?;
    a.shr(eax, 12)?;
    a.mov(edx, eax)?;
    a.shl(edx, 12)?;
    a.add(edx, FRAMES | 0x67)?;
    a.mov(dword_ptr(eax * 4 + TABLE), edx)?;
    a.inc(ebp)?;
    a.pop(edx)?;
    a.pop(eax)?;
    a.add(esp, 4)?;
    a.iretd()?;
    a.set_label(&mut start)?;
    a.pop(eax)?;
    prepare(a)?;
    a.mov(edi, PAGES)?;
    a.mov(ecx, COUNT)?;
    a.xor(ebp, ebp)?;
    a.set_label(&mut head)?;
    a.mov(dword_ptr(edi), ecx)?;
    a.add(ebx, dword_ptr(edi))?;
    a.add(edi, 0x1000)?;
    a.dec(ecx)?;
    a.jne(head)
}

/// What a page-fault handler has mapped is mapped in the window as it returns: the access does not fault on the host again.
#[test]
fn one_host_fault_for_each_page_fault() {
    let (state, translator) = agree_within(CACHE_SIZE, |a| program(a).unwrap());
    assert_eq!(state.gpr[reg::EBP], COUNT);
    assert!(translator.shadow.stats.anticipated >= u64::from(COUNT), "{:?}", translator.shadow.stats);
    assert!(translator.shadow.stats.faults < u64::from(COUNT + COUNT / 2), "{:?}", translator.shadow.stats);
}
