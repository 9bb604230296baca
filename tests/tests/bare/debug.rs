//! Debug exceptions: single step, the four breakpoints, general detect, and what DR6 says (SDM 3B chapter 17).

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::{Bare, Emit, at};

/// Prints and clears DR6, and switches all breakpoints off.
fn dr6_line(b: &mut Bare) -> Emit {
    b.asm.mov(eax, dr6)?;
    b.show("dr6")?;
    b.asm.mov(eax, 0xffff_0ff0u32 as i32)?;
    b.asm.mov(dr6, eax)?;
    b.asm.mov(eax, 0x400)?;
    b.asm.mov(dr7, eax)
}

/// Breakpoint 0 at an address, with the bits of DR7 that say how.
fn breakpoint(b: &mut Bare, address: u32, control: u32) -> Emit {
    b.asm.mov(eax, address)?;
    b.asm.mov(dr0, eax)?;
    b.asm.mov(eax, control)?;
    b.asm.mov(dr7, eax)
}

/// TF: the trap comes after the instruction that follows the one which set it. INT clears it, and so does the trap.
#[test]
fn single_step() -> Outcome {
    let step = |b: &mut Bare| -> Emit {
        b.asm.push(0x102)?;
        b.asm.popfd()
    };
    check(
        |b| {
            b.fault("nop", |_| Ok(()), |b| step(b).and_then(|()| b.asm.nop()).and_then(|()| b.asm.nop()))?;
            dr6_line(b)?;
            b.fault(
                "jump",
                |_| Ok(()),
                |b| {
                    step(b)?;
                    b.asm.db(&[0xeb, 0x00])?;
                    b.asm.nop()
                },
            )?;
            dr6_line(b)?;
            b.fault(
                "rep stosb",
                |b| b.asm.mov(ecx, 5).and_then(|()| b.asm.mov(edi, at::SCRATCH)),
                |b| {
                    step(b)?;
                    b.asm.rep().stosb()
                },
            )?;
            b.show_memory("ecx", tests::bare::runtime::SAVED + 24)?;
            dr6_line(b)?;
            b.fault(
                "mov ss",
                |_| Ok(()),
                |b| {
                    b.asm.mov(eax, ss)?;
                    step(b)?;
                    b.asm.mov(ss, eax)?;
                    b.asm.nop()?;
                    b.asm.nop()
                },
            )?;
            dr6_line(b)?;
            b.fault("ud2", |_| Ok(()), |b| step(b).and_then(|()| b.asm.ud2()))?;
            b.fault("icebp", |_| Ok(()), |b| b.asm.db(&[0xf1]))?;
            dr6_line(b)
        },
        "nop: #01 at +00000007 cs 0008 fl 00000102
         dr6 ffff4ff0
         jump: #01 at +00000008 cs 0008 fl 00000102
         dr6 ffff4ff0
         rep stosb: #01 at +00000006 cs 0008 fl 00010102
         ecx 00000004
         dr6 ffff4ff0
         mov ss: #01 at +0000000b cs 0008 fl 00000102
         dr6 ffff4ff0
         ud2: #06 at +00000006 cs 0008 fl 00010102
         icebp: #01 at +00000001 cs 0008 fl 00000002
         dr6 ffff0ff0",
        // QEMU does not know the instruction F1.
        &["icebp"],
    )
}

/// Instruction breakpoints are faults, though RF is saved as it was; data ones are traps; RF lets one instruction pass; GD guards the registers.
#[test]
fn breakpoints() -> Outcome {
    check(
        |b| {
            // Execution, at a copy of `nop; nop; ret`.
            b.poke(at::FREE, 0xc3_9090)?;
            let go = |b: &mut Bare| -> Emit {
                b.asm.mov(ebx, at::FREE)?;
                b.asm.call(ebx)
            };
            let from_free = |b: &mut Bare, control: u32| -> Emit {
                b.poke(tests::bare::runtime::EXPECTED, at::FREE)?;
                breakpoint(b, at::FREE + 1, control)
            };
            b.fault("execute", |b| from_free(b, 0x401), go)?;
            dr6_line(b)?;
            b.fault("disabled", |b| from_free(b, 0x400), go)?;
            dr6_line(b)?;
            b.fault(
                "rf",
                |b| from_free(b, 0x402),
                |b| {
                    // IRET with RF in the flags passes the breakpoint once; `ret` comes back here.
                    let mut back = b.asm.create_label();
                    b.address(back)?;
                    b.asm.push(eax)?;
                    b.asm.push(0x1_0002)?;
                    b.asm.push(8)?;
                    b.asm.push((at::FREE + 1) as i32)?;
                    b.asm.iretd()?;
                    b.asm.set_label(&mut back)?;
                    b.asm.nop()
                },
            )?;
            dr6_line(b)?;
            b.fault("write", |b| breakpoint(b, at::SCRATCH, 0x000d_0401), |b| b.poke(at::SCRATCH, 1))?;
            dr6_line(b)?;
            b.fault(
                "read is no write",
                |b| breakpoint(b, at::SCRATCH, 0x000d_0401),
                |b| b.asm.mov(eax, dword_ptr(at::SCRATCH)),
            )?;
            dr6_line(b)?;
            b.fault(
                "access",
                |b| breakpoint(b, at::SCRATCH, 0x000f_0401),
                |b| b.asm.mov(al, byte_ptr(at::SCRATCH + 3)),
            )?;
            dr6_line(b)?;
            b.fault(
                "beside",
                |b| breakpoint(b, at::SCRATCH, 0x000f_0401),
                |b| b.asm.mov(al, byte_ptr(at::SCRATCH + 4)),
            )?;
            dr6_line(b)?;
            b.fault("general detect", |b| breakpoint(b, 0, 0x2400), |b| b.asm.mov(eax, dr3))?;
            b.asm.mov(eax, dr6)?;
            b.show("general dr6")?;
            b.asm.mov(eax, 0xffff_0ff0u32 as i32)?;
            b.asm.mov(dr6, eax)?;
            // DR4 and DR5 are DR6 and DR7 until CR4.DE makes them undefined.
            b.fault("dr4", |_| Ok(()), |b| b.asm.db(&[0x0f, 0x21, 0xe0]))?;
            b.cr4_set(8)?;
            b.fault("dr4 with de", |_| Ok(()), |b| b.asm.db(&[0x0f, 0x21, 0xe0]))?;
            b.fault("port", |b| breakpoint(b, 0x61, 0x0002_0401), |b| b.asm.in_(al, 0x61))?;
            dr6_line(b)
        },
        "execute: #01 at +00000001 cs 0008 fl 00000002
         dr6 ffff0ff1
         disabled: none
         dr6 ffff0ff0
         rf: none
         dr6 ffff0ff0
         write: #01 at +0000000a cs 0008 fl 00000002
         dr6 ffff0ff1
         read is no write: none
         dr6 ffff0ff0
         access: #01 at +00000005 cs 0008 fl 00000002
         dr6 ffff0ff1
         beside: none
         dr6 ffff0ff0
         general detect: #01 at +00000000 cs 0008 fl 00010002
         general dr6 ffff2ff0
         dr4: none
         dr4 with de: #06 at +00000000 cs 0008 fl 00010002
         port: #01 at +00000002 cs 0008 fl 00000002
         dr6 ffff0ff1",
        // QEMU has no general detect.
        &["general"],
    )
}
