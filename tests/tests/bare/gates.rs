//! Transfers between rings: call gates, returns, conforming code, and the stacks that the TSS names (SDM 3A 5.8).

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::tables::{call_gate, descriptor};
use tests::bare::{Bare, Emit, at, sel};

/// `lcall` through selector `gate`; the offset is ignored.
fn far_call(b: &mut Bare, gate: u8) -> Emit {
    b.asm.db(&[0x9a, 0xef, 0xbe, 0xad, 0xde, gate, 0])
}

/// Fills a GDT slot with a call gate to `label`, which is known at run time only. Clobbers EAX and EBX.
fn gate(b: &mut Bare, slot: u16, code: u16, label: CodeLabel, parameters: u8, access: u8) -> Emit {
    b.set_descriptor(slot, call_gate(code, 0, parameters, access))?;
    b.address(label)?;
    let place = at::GDT + u32::from(slot);
    b.asm.mov(word_ptr(place), ax)?;
    b.asm.shr(eax, 16)?;
    b.asm.mov(word_ptr(place + 6), ax)
}

/// Ring 3 calls ring 0 with two parameters, which are copied to the stack of ring 0; RETF drops them from both stacks.
#[test]
fn call_with_parameters() -> Outcome {
    check(
        |b| {
            let (mut over, mut entry) = (b.asm.create_label(), b.asm.create_label());
            b.asm.jmp(over)?;
            b.asm.set_label(&mut entry)?;
            b.asm.mov(ebp, esp)?;
            b.asm.mov(eax, cs)?;
            b.show("cs")?;
            b.asm.mov(eax, ss)?;
            b.show("ss")?;
            for (name, offset) in
                [("caller cs", 4), ("parameter", 8), ("parameter", 12), ("caller esp", 16), ("caller ss", 20)]
            {
                b.asm.mov(eax, dword_ptr(ebp + offset))?;
                b.show(name)?;
            }
            b.asm.mov(eax, ebp)?;
            b.show("esp")?;
            b.asm.retf_1(8)?;
            b.asm.set_label(&mut over)?;
            b.asm.nop()?;
            gate(b, 0x40, sel::CODE, entry, 2, 0xec)?;
            b.fault_in_ring3("call", |b| {
                b.asm.push(0x111)?;
                b.asm.push(0x222)?;
                far_call(b, 0x43)
            })
        },
        "call: cs 00000008
         ss 00000010
         caller cs 0000001b
         parameter 00000222
         parameter 00000111
         caller esp 001bfff8
         caller ss 00000023
         esp 0019bfe8
         #31 at +00000013 cs 001b fl 00000002 sp 0023:001c0000",
        &[],
    )
}

/// Who may call: the gate's DPL, presence, its target's DPL; and what the stack switch checks.
#[test]
fn checks() -> Outcome {
    check(
        |b| {
            let (mut over, mut entry) = (b.asm.create_label(), b.asm.create_label());
            b.asm.jmp(over)?;
            b.asm.set_label(&mut entry)?;
            b.asm.int(0x80)?;
            b.asm.set_label(&mut over)?;
            b.asm.nop()?;
            gate(b, 0x40, sel::CODE, entry, 0, 0x8c)?; // DPL 0
            gate(b, 0x48, sel::CODE, entry, 0, 0x6c)?; // not present
            gate(b, 0x50, sel::CODE3, entry, 0, 0xec)?; // to ring 3
            gate(b, 0x58, sel::DATA, entry, 0, 0xec)?; // to data
            gate(b, 0x60, 0, entry, 0, 0xec)?; // to nothing
            gate(b, 0x68, sel::CODE1, entry, 0, 0xec)?; // to ring 1
            b.set_descriptor(0x70, descriptor(0, 0xf_ffff, 0x9f, 0xc))?; // conforming, ring 0
            for (name, selector) in [("dpl", 0x43), ("not present", 0x4b), ("data", 0x5b), ("null", 0x63)] {
                b.fault_in_ring3(name, |b| far_call(b, selector))?;
            }
            // Ring 1's stack segment has the wrong DPL, is not present, is null.
            b.set_descriptor(0x78, descriptor(0, 0xf_ffff, 0x33, 0xc))?;
            for (name, stack) in
                [("ss1 of dpl 0", 0x11), ("ss1 not present", 0x79), ("ss1 null", 0), ("ss1 code", 0x31)]
            {
                b.poke(at::TSS + 16, stack)?;
                b.fault_in_ring3(name, |b| far_call(b, 0x6b))?;
            }
            b.poke(at::TSS + 16, u32::from(sel::DATA1))?;
            // Those that succeed are reported from their target.
            for (name, selector) in [("same ring", 0x53), ("ring 1", 0x6b)] {
                b.fault_in_ring3(name, |b| {
                    b.expect_at(entry)?;
                    far_call(b, selector)
                })?;
            }
            b.fault_in_ring3("conforming", |b| {
                b.expect_at(entry)?;
                b.asm.push(0x70)?;
                b.asm.push(eax)?;
                b.asm.jmp(fword_ptr(esp))
            })
        },
        "dpl: #13 err 00000040 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         not present: #11 err 00000048 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         data: #13 err 00000010 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         null: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         ss1 of dpl 0: #10 err 00000010 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         ss1 not present: #12 err 00000078 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         ss1 null: #10 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         ss1 code: #10 err 00000030 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         same ring: #31 at +00000002 cs 001b fl 00000002 sp 0023:001bfff8
         ring 1: #31 at +00000002 cs 0031 fl 00000002 sp 0039:001afff0
         conforming: #31 at +00000002 cs 0073 fl 00000002 sp 0023:001bfff8",
        // A stack segment that is not present is #SS (CALL in SDM 2A); QEMU says #TS.
        &["ss1 not present"],
    )
}

/// IRET to an outer ring loads null into segment registers that the new ring may not use, and refuses an inner one.
#[test]
fn returns() -> Outcome {
    check(
        |b| {
            let mut outer = b.asm.create_label();
            b.fault(
                "to ring 3",
                |_| Ok(()),
                |b| {
                    b.asm.mov(eax, u32::from(sel::DATA))?;
                    b.asm.mov(fs, eax)?;
                    b.asm.mov(eax, u32::from(sel::DATA3))?;
                    b.asm.mov(gs, eax)?;
                    b.ring3(outer)?;
                    b.asm.set_label(&mut outer)?;
                    b.asm.mov(eax, fs)?;
                    b.asm.mov(dword_ptr(at::SCRATCH), eax)?;
                    b.asm.mov(eax, gs)?;
                    b.asm.mov(dword_ptr(at::SCRATCH + 4), eax)?;
                    b.expect_at(outer)?;
                    b.asm.int(0x80)
                },
            )?;
            b.show_memory("fs", at::SCRATCH)?;
            b.show_memory("gs", at::SCRATCH + 4)?;
            b.fault_in_ring3("iret to ring 0", |b| {
                b.asm.push(2)?;
                b.asm.push(8)?;
                b.asm.push(0)?;
                b.asm.iretd()
            })?;
            // Ring 3 can change neither IOPL nor IF, silently.
            b.fault_in_ring3("popf", |b| {
                b.asm.push(0x3202)?;
                b.asm.popfd()
            })?;
            b.fault_in_ring3("retf null", |b| {
                b.asm.push(0)?;
                b.asm.push(0)?;
                b.asm.retf()
            })
        },
        "to ring 3: #31 at +0000001a cs 001b fl 00000002 sp 0023:001c0000
         fs 00000000
         gs 00000023
         iret to ring 0: #13 err 00000008 at +00000006 cs 001b fl 00010002 sp 0023:001bfff4
         popf: #31 at +00000008 cs 001b fl 00000002 sp 0023:001c0000
         retf null: #13 err 00000000 at +00000004 cs 001b fl 00010002 sp 0023:001bfff8",
        &[],
    )
}
