//! Segmentation: limits, types, privilege and presence (SDM 3A chapter 5), and the instructions that ask about them.

use std::error::Error;

use iced_x86::code_asm::*;
use tests::bare::harness::check;
use tests::bare::tables::descriptor;
use tests::bare::{Bare, Emit, at, sel};

type Outcome = Result<(), Box<dyn Error>>;

fn none(_: &mut Bare) -> Emit {
    Ok(())
}

/// Loads a data segment register.
fn load(b: &mut Bare, segment: AsmRegisterSegment, selector: u16) -> Emit {
    b.asm.mov(eax, u32::from(selector))?;
    b.asm.mov(segment, eax)
}

/// Offsets at and past the limit, for segments that grow up and down, by bytes and by pages. QEMU checks no data limits.
#[test]
fn limits() -> Outcome {
    check(
        |b| {
            b.set_descriptor(0x40, descriptor(at::FREE, 0xff, 0x93, 4))?;
            b.set_descriptor(0x48, descriptor(at::FREE, 0xfff, 0x97, 4))?;
            b.set_descriptor(0x50, descriptor(at::FREE, 0, 0x93, 0xc))?;
            b.set_descriptor(0x58, descriptor(at::FREE, 0x0fff, 0x97, 0))?;
            load(b, fs, 0x40)?;
            b.fault("last", none, |b| b.asm.mov(eax, dword_ptr(0xfc).fs()))?;
            b.fault("past", |b| load(b, fs, 0x40), |b| b.asm.mov(eax, dword_ptr(0xfd).fs()))?;
            b.fault("byte past", |b| load(b, fs, 0x40), |b| b.asm.mov(byte_ptr(0x100).fs(), 1))?;
            b.fault("wraps", |b| load(b, fs, 0x40), |b| b.asm.mov(eax, dword_ptr(0xffff_fffe_u32).fs()))?;
            b.fault("down below", |b| load(b, fs, 0x48), |b| b.asm.mov(al, byte_ptr(0xfff).fs()))?;
            b.fault("down first", |b| load(b, fs, 0x48), |b| b.asm.mov(al, byte_ptr(0x1000).fs()))?;
            b.fault("down 16-bit top", |b| load(b, fs, 0x58), |b| b.asm.mov(al, byte_ptr(0xffff).fs()))?;
            b.fault("down 16-bit past", |b| load(b, fs, 0x58), |b| b.asm.mov(al, byte_ptr(0x1_0000).fs()))?;
            b.fault("page last", |b| load(b, fs, 0x50), |b| b.asm.mov(eax, dword_ptr(0xffc).fs()))?;
            b.fault("page past", |b| load(b, fs, 0x50), |b| b.asm.mov(eax, dword_ptr(0xffe).fs()))?;
            stack_limit(b)
        },
        "last: none
         past: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         byte past: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         wraps: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         down below: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         down first: none
         down 16-bit top: none
         down 16-bit past: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         page last: none
         page past: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         stack past: #12 err 00000000 at +00000000 cs 001b fl 00010002 sp 0043:00000102",
        &["past", "byte past", "wraps", "down below", "down 16-bit past", "page past", "stack past"],
    )
}

/// A ring 3 stack whose limit is passed by a push: #SS, and ESP is as before.
fn stack_limit(b: &mut Bare) -> Emit {
    b.set_descriptor(0x40, descriptor(at::FREE, 0xff, 0xf3, 4))?;
    b.fault_in_ring("stack past", sel::CODE3, 0x43, 0x102, |b| b.asm.push(eax))
}

/// What may be loaded into which register: #GP, #NP or #SS with the selector, RPL cleared.
#[test]
fn loads() -> Outcome {
    check(
        |b| {
            b.set_descriptor(0x40, descriptor(0, 0xf_ffff, 0x13, 0xc))?; // data, not present
            b.set_descriptor(0x48, descriptor(0, 0xf_ffff, 0x99, 0xc))?; // code, execute-only
            b.set_descriptor(0x50, descriptor(0, 0xf_ffff, 0x91, 0xc))?; // data, read-only
            b.set_descriptor(0x58, descriptor(0, 0xf_ffff, 0x9a, 0xc))?; // code, readable, not accessed
            for (name, selector) in [
                ("not present", 0x40),
                ("execute-only", 0x48),
                ("read-only", 0x50),
                ("readable code", 0x58),
                ("tss", sel::TSS),
                ("null", 3),
                ("beyond", 0x100),
                ("no ldt", 0x44),
                ("rpl 3 of dpl 0", 0x13),
                ("dpl 3", sel::DATA3),
            ] {
                b.fault(&format!("fs: {name}"), none, |b| load(b, fs, selector))?;
                b.fault(&format!("ss: {name}"), none, |b| load(b, ss, selector))?;
                load(b, ss, sel::DATA)?;
            }
            b.fault("mov cs", none, |b| b.asm.db(&[0x8e, 0xc8]))?;
            b.fault("use null", |b| load(b, fs, 0), |b| b.asm.mov(al, byte_ptr(0).fs()))?;
            b.fault("write read-only", |b| load(b, fs, 0x50), |b| b.asm.mov(byte_ptr(at::FREE).fs(), al))?;
            b.fault("write code", |b| load(b, fs, 0x58), |b| b.asm.mov(byte_ptr(at::FREE).fs(), al))?;
            b.show_memory("accessed bit", at::GDT + 0x5c)
        },
        "fs: not present: #11 err 00000040 at +00000005 cs 0008 fl 00010002
         ss: not present: #12 err 00000040 at +00000005 cs 0008 fl 00010002
         fs: execute-only: #13 err 00000048 at +00000005 cs 0008 fl 00010002
         ss: execute-only: #13 err 00000048 at +00000005 cs 0008 fl 00010002
         fs: read-only: none
         ss: read-only: #13 err 00000050 at +00000005 cs 0008 fl 00010002
         fs: readable code: none
         ss: readable code: #13 err 00000058 at +00000005 cs 0008 fl 00010002
         fs: tss: #13 err 00000028 at +00000005 cs 0008 fl 00010002
         ss: tss: #13 err 00000028 at +00000005 cs 0008 fl 00010002
         fs: null: none
         ss: null: #13 err 00000000 at +00000005 cs 0008 fl 00010002
         fs: beyond: #13 err 00000100 at +00000005 cs 0008 fl 00010002
         ss: beyond: #13 err 00000100 at +00000005 cs 0008 fl 00010002
         fs: no ldt: #13 err 00000044 at +00000005 cs 0008 fl 00010002
         ss: no ldt: #13 err 00000044 at +00000005 cs 0008 fl 00010002
         fs: rpl 3 of dpl 0: #13 err 00000010 at +00000005 cs 0008 fl 00010002
         ss: rpl 3 of dpl 0: #13 err 00000010 at +00000005 cs 0008 fl 00010002
         fs: dpl 3: none
         ss: dpl 3: #13 err 00000020 at +00000005 cs 0008 fl 00010002
         mov cs: #06 at +00000000 cs 0008 fl 00010002
         use null: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         write read-only: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         write code: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         accessed bit 00cf9b00",
        &["use null", "write read-only", "write code"],
    )
}

/// LAR, LSL, VERR, VERW and ARPL: answers in registers and ZF, never an exception.
#[test]
fn questions() -> Outcome {
    check(
        |b| {
            b.set_descriptor(0x40, descriptor(0, 0x1234, 0x13, 4))?;
            b.set_descriptor(0x48, descriptor(0, 0xf_ffff, 0x99, 0xc))?;
            b.set_descriptor(0x50, descriptor(0, 0x1_2345, 0x92, 0x0c))?;
            for selector in [0u32, 0x10, 0x13, 0x1b, 0x28, 0x40, 0x48, 0x50, 0x100, 0x44] {
                b.print(&format!("{selector:02x}:\n"))?;
                ask(b, "lar", selector, |a| a.lar(edx, ecx))?;
                ask(b, "lsl", selector, |a| a.lsl(edx, ecx))?;
                ask(b, "verr", selector, |a| a.verr(cx))?;
                ask(b, "verw", selector, |a| a.verw(cx))?;
            }
            b.asm.mov(ecx, 0x10)?;
            b.asm.mov(edx, 3)?;
            b.asm.arpl(cx, dx)?;
            b.asm.mov(eax, ecx)?;
            b.show("arpl")
        },
        "00:
         lar 0000dead lsl 0000dead verr 0000dead verw 0000dead
         10:
         lar 00c09300z lsl ffffffffz verr 0000deadz verw 0000deadz
         13:
         lar 0000dead lsl 0000dead verr 0000dead verw 0000dead
         1b:
         lar 00c0fb00z lsl ffffffffz verr 0000deadz verw 0000dead
         28:
         lar 00008b00z lsl 00000067z verr 0000dead verw 0000dead
         40:
         lar 00401300z lsl 00001234z verr 0000deadz verw 0000deadz
         48:
         lar 00c09900z lsl ffffffffz verr 0000dead verw 0000dead
         50:
         lar 00c09200z lsl 12345fffz verr 0000deadz verw 0000deadz
         100:
         lar 0000dead lsl 0000dead verr 0000dead verw 0000dead
         44:
         lar 0000dead lsl 0000dead verr 0000dead verw 0000dead
         arpl 00000013",
        &[],
    )
}

/// One question about the selector in ECX: prints EDX, and "z" if ZF says yes. VERW ends the line.
fn ask(b: &mut Bare, name: &str, selector: u32, op: impl FnOnce(&mut CodeAssembler) -> Emit) -> Emit {
    b.asm.mov(ecx, selector)?;
    b.asm.mov(edx, 0xdead)?;
    op(&mut b.asm)?;
    b.asm.pushfd()?;
    b.print(&format!("{name} "))?;
    b.asm.mov(eax, edx)?;
    if name == "lar" {
        b.asm.and(eax, 0xfff0_ffffu32 as i32)?; // bits 16 to 19 are undefined
    }
    b.hex()?;
    b.asm.popfd()?;
    let (mut no, end) = (b.asm.create_label(), if name == "verw" { "\n" } else { " " });
    b.asm.jnz(no)?;
    b.print("z")?;
    b.asm.set_label(&mut no)?;
    b.asm.nop()?;
    b.print(end)
}

/// Code segment limits, checked by far and near transfers, and a 16-bit stack that wraps in SP alone.
#[test]
fn code_limits_and_small_stacks() -> Outcome {
    check(
        |b| {
            b.set_descriptor(0x40, descriptor(0, 0xfff, 0x9b, 4))?;
            b.set_descriptor(0x48, descriptor(at::FREE, 0xffff, 0x93, 0))?;
            b.fault("far jump", none, |b| b.asm.db(&[0xea, 0, 0x10, 0, 0, 0x40, 0]))?;
            b.fault("far call", none, |b| b.asm.db(&[0x9a, 0, 0x10, 0, 0, 0x40, 0]))?;
            b.fault("data", none, |b| b.asm.db(&[0xea, 0, 0, 0, 0, 0x10, 0]))?;
            b.fault("rpl", none, |b| b.asm.db(&[0xea, 0, 0, 0, 0, 0x0b, 0]))?;
            b.fault("null", none, |b| b.asm.db(&[0xea, 0, 0, 0, 0, 0, 0]))?;
            b.asm.mov(ebp, esp)?;
            load(b, ss, 0x48)?;
            b.asm.mov(esp, 0x1234_0000u32)?;
            b.asm.push(0x55)?;
            b.asm.mov(ebx, esp)?;
            load(b, ss, sel::DATA)?;
            b.asm.mov(esp, ebp)?;
            b.asm.mov(eax, ebx)?;
            b.show("small esp")?;
            b.show_memory("small stack", at::FREE + 0xfffc)
        },
        "far jump: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         far call: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         data: #13 err 00000010 at +00000000 cs 0008 fl 00010002
         rpl: #13 err 00000008 at +00000000 cs 0008 fl 00010002
         null: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         small esp 1234fffc
         small stack 00000055",
        // The limit is checked for the new EIP: error code 0, not the selector.
        &["far call"],
    )
}
