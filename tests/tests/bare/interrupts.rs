//! Hardware interrupts: the interrupt shadow, gates and IF, the 8259A's priorities, the 8254 as their source.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::{Bare, Emit, at};

fn none(_: &mut Bare) -> Emit {
    Ok(())
}

/// STI holds interrupts for one instruction, POPF and IRET do not; CLI right after STI lets none in (SDM 2B, STI).
#[test]
fn shadow() -> Outcome {
    check(
        |b| {
            b.fault("sti nop nop", Bare::request_timer, |b| {
                b.asm.sti()?;
                b.asm.nop()?;
                b.asm.nop()
            })?;
            b.fault("sti cli", Bare::request_timer, |b| {
                b.asm.sti()?;
                b.asm.cli()?;
                b.asm.nop()
            })?;
            b.fault("popf", Bare::request_timer, |b| {
                b.asm.push(0x202)?;
                b.asm.popfd()?;
                b.asm.nop()
            })?;
            b.fault(
                "sti sti",
                |b| b.request_timer().and_then(|()| b.asm.sti()).and_then(|()| b.asm.cli()),
                |b| {
                    b.asm.sti()?;
                    b.asm.sti()?;
                    b.asm.nop()
                },
            )?;
            b.fault("sti hlt", Bare::request_timer, |b| {
                b.asm.sti()?;
                b.asm.hlt()
            })?;
            b.fault("iret", Bare::request_timer, |b| {
                let mut target = b.asm.create_label();
                b.address(target)?;
                b.asm.push(0x202)?;
                b.asm.push(8)?;
                b.asm.push(eax)?;
                b.asm.iretd()?;
                b.asm.set_label(&mut target)?;
                b.asm.nop()
            })
        },
        "sti nop nop: #32 at +00000002 cs 0008 fl 00000202
         sti cli: none
         popf: #32 at +00000006 cs 0008 fl 00000202
         sti sti: #32 at +00000002 cs 0008 fl 00000202
         sti hlt: #32 at +00000002 cs 0008 fl 00000202
         iret: #32 at +0000000e cs 0008 fl 00000202",
        &[],
    )
}

/// Three ticks wake three HLTs, through a handler that returns; a trap gate leaves IF as it is, an interrupt gate not.
#[test]
fn ticks_and_gates() -> Outcome {
    check(
        |b| {
            let (mut over, mut tick, mut flags, mut again) =
                (b.asm.create_label(), b.asm.create_label(), b.asm.create_label(), b.asm.create_label());
            b.asm.jmp(over)?;
            b.asm.set_label(&mut tick)?;
            b.tick()?;
            b.asm.set_label(&mut flags)?;
            b.asm.pushfd()?;
            b.asm.pop(ecx)?;
            b.asm.iretd()?;
            b.asm.set_label(&mut over)?;
            b.asm.nop()?;
            b.gate(0x20, 8, tick, 0x8e)?;
            b.poke(at::SCRATCH, 0)?;
            b.out(0x43, 0x34)?;
            b.out(0x40, 0)?;
            b.out(0x40, 0x10)?;
            b.out(0x21, 0xfe)?;
            b.asm.sti()?;
            b.asm.set_label(&mut again)?;
            b.asm.hlt()?;
            b.asm.cmp(dword_ptr(at::SCRATCH), 3)?;
            b.asm.jb(again)?;
            b.asm.cli()?;
            b.out(0x21, 0xff)?;
            b.asm.mov(eax, dword_ptr(at::SCRATCH))?;
            b.asm.cmp(eax, 3)?;
            b.asm.sbb(eax, eax)?;
            b.show("missing")?;
            for (name, access) in [("interrupt gate", 0x8e), ("trap gate", 0x8f)] {
                b.gate(0x30, 8, flags, access)?;
                b.asm.sti()?;
                b.asm.int(0x30)?;
                b.asm.cli()?;
                b.asm.mov(eax, ecx)?;
                b.asm.and(eax, 0x200)?;
                b.show(name)?;
            }
            Ok(())
        },
        "missing 00000000
         interrupt gate 00000000
         trap gate 00000200",
        &[],
    )
}

/// A busy loop is interrupted too, without any instruction that looks for interrupts.
#[test]
fn busy_loop() -> Outcome {
    check(
        |b| {
            let mut spin = b.asm.create_label();
            b.fault("loop", none, |b| {
                b.expect_at(spin)?;
                b.out(0x43, 0x30)?;
                b.out(0x40, 0xff)?;
                b.out(0x40, 0x40)?;
                b.out(0x21, 0xfe)?;
                b.asm.sti()?;
                b.asm.set_label(&mut spin)?;
                b.asm.jmp(spin)
            })
        },
        "loop: #32 at +00000000 cs 0008 fl 00000202",
        &[],
    )
}

/// The 8259A delivers the timer (input 0) before the serial port (input 4), each once, by its vector; a masked input
/// stays requested.
#[test]
fn priorities() -> Outcome {
    check(
        |b| {
            b.request_timer()?;
            // The serial port asks as soon as its "transmitter empty" interrupt is enabled; OUT2 lets it through.
            b.asm.mov(edx, 0x3fc)?;
            b.asm.mov(al, 8)?;
            b.asm.out(dx, al)?;
            b.asm.mov(edx, 0x3f9)?;
            b.asm.mov(al, 2)?;
            b.asm.out(dx, al)?;
            let take = |b: &mut Bare| -> Emit {
                b.asm.sti()?;
                b.asm.nop()?;
                b.asm.nop()?;
                b.asm.cli()
            };
            b.fault("both open", |b| b.out(0x21, 0xee), take)?;
            b.asm.mov(edx, 0x3f9)?;
            b.asm.mov(al, 0)?;
            b.asm.out(dx, al)?;
            // The timer is in service: nothing of the same or lower priority comes through.
            b.asm.mov(edx, 0x3f9)?;
            b.asm.mov(al, 2)?;
            b.asm.out(dx, al)?;
            b.fault("in service", none, take)?;
            b.asm.mov(edx, 0x3f9)?;
            b.asm.mov(al, 0)?;
            b.asm.out(dx, al)?;
            b.asm.mov(al, 2)?;
            b.asm.out(dx, al)?;
            b.fault("after eoi", |b| b.out(0x20, 0x20), take)?;
            b.out(0x20, 0x0b)?;
            b.asm.xor(eax, eax)?;
            b.asm.in_(al, 0x20)?;
            b.show("in service")
        },
        "both open: #32 at +00000002 cs 0008 fl 00000202
         in service: none
         after eoi: #36 at +00000002 cs 0008 fl 00000202
         in service 00000010",
        &[],
    )
}
