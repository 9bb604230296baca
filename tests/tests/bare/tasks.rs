//! Hardware task switches and virtual-8086 mode (SDM 3A chapter 7, 3B chapter 20).

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::tables::descriptor;
use tests::bare::{Bare, Emit, at, sel};

/// Fills TSS B: it starts at `label` with its own stack, flat segments, and `eax` in EAX.
fn task(b: &mut Bare, label: CodeLabel, value: u32) -> Emit {
    b.set_descriptor(0x40, descriptor(at::TSS_B, 0x67, 0x89, 0))?;
    b.asm.mov(edi, at::TSS_B)?;
    b.asm.xor(eax, eax)?;
    b.asm.mov(ecx, 26)?;
    b.asm.rep().stosd()?;
    b.address(label)?;
    b.asm.mov(dword_ptr(at::TSS_B + 32), eax)?;
    for (offset, field) in [(36, 2), (40, value), (56, at::STACK_B), (76, u32::from(sel::CODE))] {
        b.poke(at::TSS_B + offset, field)?;
    }
    for offset in [72, 80, 84, 88, 92] {
        b.poke(at::TSS_B + offset, u32::from(sel::DATA))?;
    }
    b.poke(at::TSS_B + 100, 0x68 << 16)
}

/// A task is called, sees its state, returns by IRET; busy bits, NT and the back link are as the manual says.
#[test]
fn call_and_return() -> Outcome {
    check(
        |b| {
            let (mut over, mut entry) = (b.asm.create_label(), b.asm.create_label());
            b.asm.jmp(over)?;
            b.asm.set_label(&mut entry)?;
            b.show("eax of the task")?;
            b.asm.pushfd()?;
            b.asm.pop(eax)?;
            b.asm.and(eax, 0x4000)?;
            b.show("nt")?;
            b.asm.mov(eax, esp)?;
            b.show("esp")?;
            b.asm.str(eax)?;
            b.show("tr")?;
            b.show_memory("link", at::TSS_B)?;
            b.show_memory("busy a", at::GDT + 0x2c)?;
            b.show_memory("busy b", at::GDT + 0x44)?;
            b.asm.mov(eax, cr0)?;
            b.asm.and(eax, 8)?;
            b.show("ts")?;
            b.asm.mov(eax, 0x77)?;
            b.asm.iretd()?;
            b.show("called again: eax")?;
            b.asm.jmp(entry)?;
            b.asm.set_label(&mut over)?;
            b.asm.nop()?;
            task(b, entry, 0x1234)?;
            b.asm.mov(ebx, 0x5678)?;
            b.asm.db(&[0x9a, 0, 0, 0, 0, 0x40, 0])?;
            b.asm.mov(eax, ebx)?;
            b.show("ebx kept")?;
            b.asm.str(eax)?;
            b.show("tr")?;
            b.show_memory("busy a", at::GDT + 0x2c)?;
            b.show_memory("busy b", at::GDT + 0x44)?;
            b.show_memory("saved eax", at::TSS_B + 40)?;
            // Busy: the task that runs cannot be called.
            b.fault("busy", |_| Ok(()), |b| b.asm.db(&[0x9a, 0, 0, 0, 0, 0x28, 0]))?;
            // The second call goes on after the IRET.
            b.asm.db(&[0x9a, 0, 0, 0, 0, 0x40, 0])
        },
        "eax of the task 00001234
         nt 00004000
         esp 001d0000
         tr 00000040
         link 00000028
         busy a 00008b18
         busy b 00008b18
         ts 00000008
         ebx kept 00005678
         tr 00000028
         busy a 00008b18
         busy b 00008918
         saved eax 00000077
         busy: #13 err 00000028 at +00000000 cs 0008 fl 00010002
         called again: eax 00000077
         eax of the task 00000077
         nt 00004000
         esp 001d0000
         tr 00000040
         link 00000028
         busy a 00008b18
         busy b 00008b18
         ts 00000008",
        &[],
    )
}

/// A double fault by a task gate works even though the stack is gone: the way kernels catch stack overflows.
#[test]
fn double_fault_task() -> Outcome {
    check(
        |b| {
            let (mut over, mut entry) = (b.asm.create_label(), b.asm.create_label());
            b.asm.jmp(over)?;
            b.asm.set_label(&mut entry)?;
            b.asm.pop(eax)?;
            b.show("error")?;
            b.show_memory("old esp", at::TSS + 56)?;
            b.asm.mov(eax, cr2)?;
            b.show("cr2")?;
            b.jump_to_end()?;
            b.asm.set_label(&mut over)?;
            b.asm.nop()?;
            b.page_4k()?;
            task(b, entry, 0)?;
            b.poke(at::TSS_B + 28, at::PD)?;
            b.poke64(at::IDT + 8 * 8, 0x8500_0040_0000)?;
            b.poke(tests::bare::tables::pte(at::FREE), 0)?;
            b.asm.invlpg(byte_ptr(at::FREE))?;
            b.asm.mov(esp, at::FREE + 0x800)?;
            b.asm.push(eax)
        },
        "error 00000000
         old esp 00800800
         cr2 008007fc",
        &[],
    )
}

/// Runs 16-bit code in virtual-8086 mode, at 1000:0000 with the stack at 2000:1000; its report is relative to 0.
fn v86(b: &mut Bare, name: &str, iopl: u32, code: &[u8]) -> Emit {
    let setup = |b: &mut Bare| -> Emit {
        for (index, byte) in code.iter().enumerate() {
            b.asm.mov(byte_ptr(0x1_0000 + index as u32), u32::from(*byte))?;
        }
        b.poke(tests::bare::runtime::EXPECTED, 0)
    };
    b.fault(name, setup, |b| {
        for word in [0x5000, 0x4000, 0x3000, 0x3000, 0x2000, 0x1000, 0x2_0002 | iopl << 12, 0x1000, 0] {
            b.asm.push(word as i32)?;
        }
        b.asm.iretd()
    })
}

/// Virtual-8086 mode: segments are paragraphs, privilege is 3, and IOPL decides over the sensitive instructions.
#[test]
fn virtual_8086() -> Outcome {
    check(
        |b| {
            let handler = b.reporter(31);
            if let Some(handler) = handler {
                b.gate(0x21, sel::CODE, handler, 0xee)?;
            }
            b.poke(0x1_2350, 0)?;
            v86(b, "hlt", 0, &[0xf4])?;
            v86(b, "hlt, iopl 3", 3, &[0xf4])?;
            v86(b, "cli", 0, &[0xfa])?;
            v86(b, "cli, iopl 3", 3, &[0xfa, 0xf4])?;
            v86(b, "pushf", 2, &[0x9c])?;
            v86(b, "int", 0, &[0xcd, 0x21])?;
            v86(b, "int, iopl 3", 3, &[0xcd, 0x21])?;
            v86(b, "int, closed gate", 3, &[0xcd, 0x22])?;
            v86(b, "int3", 0, &[0xcc])?;
            v86(b, "in", 3, &[0xe4, 0x60])?;
            v86(b, "lar", 3, &[0x0f, 0x02, 0xc0])?;
            v86(b, "mov ax, cr0", 3, &[0x0f, 0x20, 0xc0])?;
            v86(b, "push", 0, &[0x1e, 0xf4])?;
            v86(b, "limit", 0, &[0x66, 0xa1, 0xfe, 0xff, 0xf4])?;
            // mov ax, 1234h; mov ds, ax; mov [10h], ax; hlt
            v86(b, "store", 0, &[0xb8, 0x34, 0x12, 0x8e, 0xd8, 0xa3, 0x10, 0x00, 0xf4])?;
            b.show_memory("stored", 0x1_2350)?;
            b.show_memory("pushed", 0x2_0ffc)
        },
        "hlt: #13 err 00000000 at +00000000 cs 1000 fl 00030002 sp 2000:00001000
         hlt, iopl 3: #13 err 00000000 at +00000000 cs 1000 fl 00033002 sp 2000:00001000
         cli: #13 err 00000000 at +00000000 cs 1000 fl 00030002 sp 2000:00001000
         cli, iopl 3: #13 err 00000000 at +00000001 cs 1000 fl 00033002 sp 2000:00001000
         pushf: #13 err 00000000 at +00000000 cs 1000 fl 00032002 sp 2000:00001000
         int: #13 err 00000000 at +00000000 cs 1000 fl 00030002 sp 2000:00001000
         int, iopl 3: #31 at +00000002 cs 1000 fl 00023002 sp 2000:00001000
         int, closed gate: #13 err 00000112 at +00000000 cs 1000 fl 00033002 sp 2000:00001000
         int3: #03 at +00000001 cs 1000 fl 00020002 sp 2000:00001000
         in: #13 err 00000000 at +00000000 cs 1000 fl 00033002 sp 2000:00001000
         lar: #06 at +00000000 cs 1000 fl 00033002 sp 2000:00001000
         mov ax, cr0: #13 err 00000000 at +00000000 cs 1000 fl 00033002 sp 2000:00001000
         push: #13 err 00000000 at +00000001 cs 1000 fl 00030002 sp 2000:00000ffe
         limit: #13 err 00000000 at +00000000 cs 1000 fl 00030002 sp 2000:00001000
         store: #13 err 00000000 at +00000008 cs 1000 fl 00030002 sp 2000:00001000
         stored 00001234
         pushed 30000000",
        &["limit"],
    )
}
