//! Page tables that change all the time: the same few instructions meet entries that are absent, read-only, of another frame
//! or of another size, at ring 3 and thousands of times, so that whatever a monitor learns from faults is learnt.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::runtime::SAVED;
use tests::bare::tables::pte;
use tests::bare::{Bare, Emit, at};

/// The linear page whose entry changes.
const PAGE: u32 = at::FREE;
/// The two frames that it shows, which are also mapped one to one.
const A: u32 = at::FREE + 0x4000;
const B: u32 = at::FREE + 0x7000;
/// The entry that the page-fault handler puts in, and how often it did.
const REPAIR: u32 = at::SCRATCH + 0x40;
const FAULTS: u32 = at::SCRATCH + 0x44;
/// Times round.
const ROUNDS: u32 = 200;

/// Gates for `int 30h`, which makes EDX the entry of PAGE and forgets the old one, and for page faults, which REPAIR ends.
fn handlers(b: &mut Bare) -> Emit {
    let (mut set, mut repair, mut over) = (b.asm.create_label(), b.asm.create_label(), b.asm.create_label());
    b.asm.jmp(over)?;
    b.asm.set_label(&mut set)?;
    b.asm.mov(dword_ptr(pte(PAGE)), edx)?;
    b.asm.invlpg(byte_ptr(PAGE))?;
    b.asm.iretd()?;
    b.asm.set_label(&mut repair)?;
    b.asm.push(eax)?;
    b.asm.mov(eax, dword_ptr(REPAIR))?;
    b.asm.mov(dword_ptr(pte(PAGE)), eax)?;
    b.asm.inc(dword_ptr(FAULTS))?;
    b.asm.pop(eax)?;
    b.asm.add(esp, 4)?;
    b.asm.iretd()?;
    b.asm.set_label(&mut over)?;
    b.gate(0x30, 8, set, 0xee)?;
    b.gate(14, 8, repair, 0x8e)
}

/// ESI = 3 ESI + EAX + the entry of PAGE: sensitive to what was read, to accessed and dirty bits, and to order.
fn note(b: &mut Bare) -> Emit {
    b.asm.lea(esi, dword_ptr(esi + esi * 2))?;
    b.asm.add(esi, eax)?;
    b.asm.add(esi, dword_ptr(pte(PAGE)))
}

fn set(b: &mut Bare, entry: u32) -> Emit {
    b.asm.mov(edx, entry)?;
    b.asm.int(0x30)
}

/// What [`round`] must leave in ESI, with the contents of A and B.
struct Model {
    sum: u32,
    a: u32,
    b: u32,
}

impl Model {
    fn note(&mut self, value: u32, entry: u32) {
        self.sum = self.sum.wrapping_mul(3).wrapping_add(value).wrapping_add(entry);
    }

    fn round(&mut self, value: u32) {
        self.a = value;
        self.note(self.a, A | 0x67);
        self.note(self.a, A | 0x27);
        self.note(self.b, B | 0x27);
        self.b = value;
        self.note(self.b, B | 0x67);
        self.note(self.b, B | 0x65);
        self.b = value;
        self.note(self.b, B | 0x67);
    }
}

/// One time round, with EDI to store. `store` and `load` are the only instructions that touch PAGE.
fn round(b: &mut Bare, store: CodeLabel, load: CodeLabel) -> Emit {
    // Read-only: the store faults once and then goes to A.
    set(b, B | 5)?;
    b.asm.call(store)?;
    b.asm.mov(eax, dword_ptr(A))?;
    note(b)?;
    // Absent: the load faults and finds A. It sets no dirty bit.
    set(b, 0)?;
    b.asm.call(load)?;
    note(b)?;
    // Another frame.
    set(b, B | 7)?;
    b.asm.call(load)?;
    note(b)?;
    b.asm.call(store)?;
    b.asm.mov(eax, dword_ptr(B))?;
    note(b)?;
    // Rights taken away, and given back with no INVLPG, which needs none.
    set(b, B | 0x65)?;
    b.asm.mov(eax, dword_ptr(B))?;
    note(b)?;
    b.asm.mov(dword_ptr(pte(PAGE)), B | 0x67)?;
    b.asm.call(store)?;
    b.asm.mov(eax, dword_ptr(B))?;
    note(b)
}

/// Every kind of change under one store and one load, then the store alone for as long again, then the changes once more.
#[test]
fn one_store_and_many_entries() -> Outcome {
    let mut model = Model { sum: 0, a: 0, b: 0 };
    (0..2 * ROUNDS).rev().for_each(|i| model.round(i % ROUNDS + 1));
    check(
        |b| {
            b.page_4k()?;
            b.cr0_set(0x1_0000)?;
            b.poke(REPAIR, A | 7)?;
            b.poke(FAULTS, 0)?;
            b.poke(A, 0)?;
            b.poke(B, 0)?;
            handlers(b)?;
            b.fault_in_ring3("rounds", |b| {
                let (mut store, mut load, mut start) =
                    (b.asm.create_label(), b.asm.create_label(), b.asm.create_label());
                b.asm.jmp(start)?;
                b.asm.set_label(&mut store)?;
                b.asm.mov(dword_ptr(PAGE), edi)?;
                b.asm.ret()?;
                b.asm.set_label(&mut load)?;
                b.asm.mov(eax, dword_ptr(PAGE))?;
                b.asm.ret()?;
                b.asm.set_label(&mut start)?;
                b.asm.xor(esi, esi)?;
                for _ in 0..2 {
                    let (mut again, mut alone) = (b.asm.create_label(), b.asm.create_label());
                    b.asm.mov(edi, ROUNDS)?;
                    b.asm.set_label(&mut again)?;
                    round(b, store, load)?;
                    b.asm.dec(edi)?;
                    b.asm.jnz(again)?;
                    b.asm.mov(edi, 3000)?;
                    b.asm.set_label(&mut alone)?;
                    b.asm.call(store)?;
                    b.asm.dec(edi)?;
                    b.asm.jnz(alone)?;
                }
                // The report's address is told from here.
                let mut end = b.asm.create_label();
                b.expect_at(end)?;
                b.asm.set_label(&mut end)?;
                b.asm.nop()
            })?;
            b.show_memory("sum", SAVED + 4)?;
            b.show_memory("faults", FAULTS)
        },
        &format!(
            "rounds: #31 at +00000003 cs 001b fl 00000002 sp 0023:001c0000
             sum {:08x}
             faults {:08x}",
            model.sum,
            4 * ROUNDS
        ),
        &[],
    )
}

/// A page table takes the place of a 4 MiB page: one INVLPG forgets all that was mapped by it.
#[test]
fn large_page_split() -> Outcome {
    const LARGE: u32 = 0x1000_0000;
    const TABLE: u32 = at::FREE + 0x10_0000;
    let directory = at::PD + (LARGE >> 22) * 4;
    check(
        |b| {
            for (place, value) in [(A, 1), (A + 0x1000, 2), (B, 3), (B + 0x1000, 4)] {
                b.poke(place, value)?;
            }
            b.page_4k()?;
            b.cr4_set(0x10)?;
            b.poke(directory, at::FREE | 0x87)?;
            b.show_memory("large", LARGE + 0x4000)?;
            b.show_memory("its neighbour", LARGE + 0x5000)?;
            b.poke(TABLE + 4 * 4, B | 7)?;
            b.poke(TABLE + 4 * 5, (B + 0x1000) | 7)?;
            b.poke(directory, TABLE | 7)?;
            b.asm.invlpg(byte_ptr(LARGE + 0x4000))?;
            b.show_memory("small", LARGE + 0x4000)?;
            b.show_memory("its neighbour", LARGE + 0x5000)?;
            // And back.
            b.poke(directory, at::FREE | 0x87)?;
            b.asm.invlpg(byte_ptr(LARGE + 0x4000))?;
            b.asm.invlpg(byte_ptr(LARGE + 0x5000))?;
            b.show_memory("large", LARGE + 0x4000)?;
            b.show_memory("its neighbour", LARGE + 0x5000)
        },
        "large 00000001
         its neighbour 00000002
         small 00000003
         its neighbour 00000004
         large 00000001
         its neighbour 00000002",
        &[],
    )
}
