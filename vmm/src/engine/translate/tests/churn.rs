//! Ring 3 touching a page that ring 0 keeps changing, through a page table of their own: each fault is the guest's to
//! see, and the engine is to need few of its own.

use iced_x86::code_asm::*;

use super::{CODE, DATA, machine};
use crate::cpu::{Segment, Vcpu, attr, cr0, cr4, eflags, reg, seg};
use crate::engine::interp::Interpreter;
use crate::engine::translate::Translator;
use crate::engine::{Engine, Exit};

const DIRECTORY: u32 = 0x40_0000;
const TABLE: u32 = 0x40_1000;
const IDT: u32 = 0x41_0000;
const GDT: u32 = 0x41_1000;
const TSS: u32 = 0x41_2000;
const KERNEL_STACK: u32 = 0x42_0000;
/// Counts page faults.
const FAULTS: u32 = 0x42_1000;
const FRAME: u32 = 0x50_0000;
/// Linear address of [`FRAME`], and its entry.
const PAGE: u32 = 0x8000_0000;
const ENTRY: u32 = TABLE;
const KERNEL: u32 = 0x11_0000;
const ROUNDS: u32 = 2000;
/// Accessed, dirty, user, writable, present.
const READY: u32 = 0x67;

/// What ring 0 does to the page at each call.
#[derive(Clone, Copy)]
enum Change {
    /// Takes the right to store, and gives it back.
    Protect,
    /// Takes the page; the page-fault handler gives it back.
    Unmap,
}

/// Ring 0: INT 80h changes the page, or halts when ESI is 0; the page-fault handler counts. Their addresses.
fn kernel(a: &mut CodeAssembler, change: Change) -> (CodeLabel, CodeLabel) {
    let (mut call, mut fault, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut call).unwrap();
    a.test(esi, esi).unwrap();
    a.jz(end).unwrap();
    match change {
        Change::Protect => {
            a.and(dword_ptr(ENTRY), !2).unwrap();
            a.invlpg(byte_ptr(PAGE)).unwrap();
            a.or(dword_ptr(ENTRY), 2).unwrap();
        }
        Change::Unmap => a.and(dword_ptr(ENTRY), !1).unwrap(),
    }
    a.invlpg(byte_ptr(PAGE)).unwrap();
    a.iretd().unwrap();
    a.set_label(&mut end).unwrap();
    a.hlt().unwrap();
    a.set_label(&mut fault).unwrap();
    a.inc(dword_ptr(FAULTS)).unwrap();
    a.or(dword_ptr(ENTRY), 1).unwrap();
    a.add(esp, 4).unwrap();
    a.iretd().unwrap();
    (call, fault)
}

fn store(v: &Vcpu, at: u32, values: &[u32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(v.mmu.ram.write(at as u64, &bytes));
}

/// A processor in ring 3 about to run `user`, with ring 0 behind it.
fn prepared(user: &[u8], change: Change) -> Vcpu {
    let mut v = machine(user);
    let mut a = CodeAssembler::new(32).unwrap();
    let (call, fault) = kernel(&mut a, change);
    let assembled = a.assemble_options(KERNEL as u64, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS);
    let assembled = assembled.unwrap();
    assert!(v.mmu.ram.write(KERNEL as u64, &assembled.inner.code_buffer));
    // The first 8 MiB are where they are, in large pages.
    store(&v, DIRECTORY, &[READY | 0x80, 0x40_0000 | READY | 0x80]);
    store(&v, DIRECTORY + (PAGE >> 20), &[TABLE | READY]);
    store(&v, TABLE, &[FRAME | READY]);
    for (vector, handler, dpl) in [(14, fault, 0), (0x80, call, 3)] {
        let at = assembled.label_ip(&handler).unwrap() as u32;
        store(&v, IDT + 8 * vector, &[8 << 16 | at & 0xffff, at & 0xffff_0000 | 0x8e00 | dpl << 13]);
    }
    let flat = |kind: u32| [0xffff, 0xcf_0000 | kind << 8];
    let [code0, data0, code3, data3] = [0x9b, 0x93, 0xfb, 0xf3].map(flat);
    store(&v, GDT + 8, &[code0, data0, code3, data3].concat());
    store(&v, TSS + 4, &[KERNEL_STACK, 16]);
    let s = &mut v.state;
    (s.gdtr.base, s.gdtr.limit, s.idtr.base, s.idtr.limit) = (GDT, 0x2f, IDT, 0x7ff);
    s.tr = Segment { base: TSS, limit: 0x67, attr: attr::P | 0xb, selector: 0x28, ..s.tr };
    s.cr3 = DIRECTORY;
    s.cr4 |= cr4::PSE;
    s.cr0 |= cr0::PG | cr0::WP;
    s.cpl = 3;
    s.seg.iter_mut().for_each(|s| (s.attr, s.selector) = (s.attr | 3 << attr::DPL_SHIFT, 0x23));
    s.seg[seg::CS].selector = 0x1b;
    s.eflags |= eflags::IF;
    v
}

/// Runs rounds of a call and `touch`, which may use EAX, ECX and EDI, on both engines; page faults, and the translator.
fn churn(change: Change, touch: impl Fn(&mut CodeAssembler)) -> (u32, Translator) {
    let mut a = CodeAssembler::new(32).unwrap();
    let mut head = a.create_label();
    a.mov(esi, ROUNDS).unwrap();
    a.xor(ebx, ebx).unwrap();
    a.set_label(&mut head).unwrap();
    a.int(0x80).unwrap();
    a.mov(edi, PAGE + 8).unwrap();
    a.mov(eax, esi).unwrap();
    touch(&mut a);
    a.add(ebx, dword_ptr(PAGE + 8)).unwrap();
    a.dec(esi).unwrap();
    a.jne(head).unwrap();
    a.int(0x80).unwrap();
    let user = a.assemble(CODE as u64).unwrap();
    let (mut left, mut right) = (prepared(&user, change), prepared(&user, change));
    assert_eq!(Interpreter::new().run(&mut left), Exit::Halted);
    let mut translator = Translator::new(&right.mmu.ram).unwrap();
    assert_eq!(translator.run(&mut right), Exit::Halted);
    translator.check_all();
    assert_eq!(left.state, right.state);
    assert_eq!(right.state.gpr[reg::EBX], ROUNDS * (ROUNDS + 1) / 2);
    let read = |v: &Vcpu, at: u32| v.mmu.ram.read_u32(at as u64).unwrap();
    for at in [FAULTS, ENTRY, FRAME + 8, DATA] {
        assert_eq!(read(&left, at), read(&right, at), "at {at:#x}");
    }
    (read(&right, FAULTS), translator)
}

fn plain_store(a: &mut CodeAssembler) {
    a.mov(dword_ptr(edi), eax).unwrap();
}

#[test]
fn a_page_that_is_protected_again_and_again_is_stored_to_without_host_faults() {
    let (faults, translator) = churn(Change::Protect, plain_store);
    assert_eq!(faults, 0);
    assert!(translator.stats.spared > ROUNDS as u64 / 2, "{:?}", translator.stats);
    assert!(translator.shadow.stats.faults < ROUNDS as u64 / 4, "{:?}", translator.shadow.stats);
}

#[test]
fn a_page_that_goes_again_and_again_faults_in_the_guest_alone() {
    let (faults, translator) = churn(Change::Unmap, plain_store);
    assert_eq!(faults, ROUNDS);
    assert!(translator.stats.spared > ROUNDS as u64 / 2, "{:?}", translator.stats);
    assert!(translator.shadow.stats.faults < ROUNDS as u64 / 4, "{:?}", translator.shadow.stats);
}

/// String instructions stay translated: their faults cost one host fault each, not a second on return from the handler.
#[test]
fn pages_are_mapped_as_page_fault_handlers_return() {
    let (faults, translator) = churn(Change::Unmap, |a| {
        a.mov(ecx, 2).unwrap();
        a.rep().stosd().unwrap();
    });
    assert_eq!(faults, ROUNDS);
    let stats = &translator.shadow.stats;
    assert!(stats.anticipated >= ROUNDS as u64 - 10, "{stats:?}");
    assert!(stats.faults < ROUNDS as u64 * 3 / 2, "{stats:?}");
}
