//! The local APIC and the IOAPIC as sources of interrupts, NMI, and what an interrupt must leave alone: the progress of
//! string instructions, and x87 and SSE state.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::{Bare, Emit, at};

const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;
/// Ticks of the timer so far.
const TICKS: u32 = at::SCRATCH + 0x100;

fn none(_: &mut Bare) -> Emit {
    Ok(())
}

fn apic_on(b: &mut Bare) -> Emit {
    b.poke(LAPIC + 0x80, 0)?;
    b.poke(LAPIC + 0xf0, 0x1ff)
}

/// Spins with interrupts on; reports are relative to the loop.
fn spin(b: &mut Bare) -> Emit {
    let mut here = b.asm.create_label();
    b.expect_at(here)?;
    b.asm.sti()?;
    b.asm.set_label(&mut here)?;
    b.asm.jmp(here)
}

/// The local timer once, then the 8254 through the IOAPIC, each into a loop of one instruction; then an NMI that the
/// processor sends itself, and one more, which waits until IRET ends the first.
#[test]
fn sources() -> Outcome {
    check(
        |b| {
            apic_on(b)?;
            b.fault("lapic timer", none, |b| {
                b.poke(LAPIC + 0x3e0, 0xb)?;
                b.poke(LAPIC + 0x320, 0x2e)?;
                b.poke(LAPIC + 0x380, 100_000)?;
                spin(b)
            })?;
            b.asm.mov(eax, dword_ptr(LAPIC + 0x110))?;
            b.show("isr")?;
            b.poke(LAPIC + 0xb0, 0)?;
            b.asm.mov(eax, dword_ptr(LAPIC + 0x110))?;
            b.show("after eoi")?;
            b.asm.mov(eax, dword_ptr(LAPIC + 0x390))?;
            b.show("count")?;
            b.fault("ioapic", none, |b| {
                // Input 2, where input 0 of the 8259A goes: vector 2Dh, edge, to this processor.
                for (index, value) in [(0x15, 0), (0x14, 0x2d)] {
                    b.poke(IOAPIC, index)?;
                    b.poke(IOAPIC + 0x10, value)?;
                }
                b.out(0x43, 0x30)?;
                b.out(0x40, 0xff)?;
                b.out(0x40, 0x10)?;
                spin(b)
            })?;
            b.poke(LAPIC + 0xb0, 0)?;
            // The task priority holds it back.
            b.poke(LAPIC + 0x80, 0x30)?;
            b.poke(LAPIC + 0x310, 0)?;
            b.fault("tpr", none, |b| {
                b.poke(LAPIC + 0x300, 0x402c)?;
                b.asm.sti()?;
                b.asm.nop()?;
                b.asm.nop()?;
                b.asm.cli()
            })?;
            b.fault("tpr lowered", none, |b| {
                b.poke(LAPIC + 0x80, 0)?;
                spin(b)
            })?;
            b.poke(LAPIC + 0xb0, 0)?;
            nmi(b)
        },
        "lapic timer: #46 at +00000000 cs 0008 fl 00000202
         isr 00004000
         after eoi 00000000
         count 00000000
         ioapic: #45 at +00000000 cs 0008 fl 00000202
         tpr: none
         tpr lowered: #44 at +00000000 cs 0008 fl 00000202
         nmi: #02 at +00000000 cs 0008 fl 00000002
         blocked: none
         after iret: #02 at +00000000 cs 0008 fl 00000002",
        &[],
    )
}

fn nmi(b: &mut Bare) -> Emit {
    let send = |b: &mut Bare| b.poke(LAPIC + 0x300, 0x4400);
    let mut here = b.asm.create_label();
    b.fault("nmi", none, |b| {
        b.expect_at(here)?;
        send(b)?;
        b.asm.set_label(&mut here)?;
        b.asm.jmp(here)
    })?;
    b.fault("blocked", none, |b| {
        send(b)?;
        b.asm.mov(ecx, 1000)?;
        let mut wait = b.asm.create_label();
        b.asm.set_label(&mut wait)?;
        b.asm.dec(ecx)?;
        b.asm.jnz(wait)
    })?;
    let mut target = b.asm.create_label();
    b.fault("after iret", none, |b| {
        b.expect_at(target)?;
        b.address(target)?;
        b.asm.push(2)?;
        b.asm.push(8)?;
        b.asm.push(eax)?;
        b.asm.iretd()?;
        b.asm.set_label(&mut target)?;
        b.asm.jmp(target)
    })
}

/// The 8254 ticks at about 4 kHz into a handler that counts, and uses the string registers, x87 and SSE for itself.
fn ticking(b: &mut Bare) -> Emit {
    let (mut over, mut tick) = (b.asm.create_label(), b.asm.create_label());
    b.asm.jmp(over)?;
    b.asm.set_label(&mut tick)?;
    b.asm.pushad()?;
    b.asm.fxsave(ptr(at::SCRATCH + 0x400))?;
    b.asm.fninit()?;
    b.asm.fldpi()?;
    b.asm.pcmpeqd(xmm0, xmm0)?;
    b.asm.mov(edi, at::SCRATCH + 0x200)?;
    b.asm.mov(ecx, 16)?;
    b.asm.cld()?;
    b.asm.rep().stosd()?;
    b.asm.inc(dword_ptr(TICKS))?;
    b.out(0x20, 0x20)?;
    b.asm.fxrstor(ptr(at::SCRATCH + 0x400))?;
    b.asm.popad()?;
    b.asm.iretd()?;
    b.asm.set_label(&mut over)?;
    b.cr0_clear(0xc)?;
    b.cr4_set(0x600)?;
    b.asm.fninit()?;
    b.gate(0x20, 8, tick, 0x8e)?;
    b.poke(TICKS, 0)?;
    b.out(0x43, 0x34)?;
    b.out(0x40, 0x2a)?;
    b.out(0x40, 0x01)?;
    b.out(0x21, 0xfe)
}

/// Long copies, up and down, and long comparisons go on where an interrupt found them.
#[test]
fn strings_go_on() -> Outcome {
    const FROM: u32 = at::FREE;
    const TO: u32 = at::FREE + 0x20_0000;
    const BYTES: u32 = 0x10_0000;
    check(
        |b| {
            ticking(b)?;
            // Source: a sequence without short repetitions.
            let mut fill = b.asm.create_label();
            b.asm.mov(edi, FROM)?;
            b.asm.mov(eax, 12345)?;
            b.asm.set_label(&mut fill)?;
            b.asm.imul_3(eax, eax, 1_103_515_245)?;
            b.asm.add(eax, 12345)?;
            b.asm.stosd()?;
            b.asm.cmp(edi, FROM + BYTES)?;
            b.asm.jb(fill)?;
            for (name, down) in [("up", false), ("down", true)] {
                let mut again = b.asm.create_label();
                b.poke(TICKS, 0)?;
                b.asm.sti()?;
                b.asm.set_label(&mut again)?;
                // The target differs everywhere before each round.
                b.asm.mov(edi, TO)?;
                b.asm.mov(ecx, BYTES / 4)?;
                b.asm.xor(eax, eax)?;
                b.asm.rep().stosd()?;
                b.asm.mov(esi, if down { FROM + BYTES - 1 } else { FROM })?;
                b.asm.mov(edi, if down { TO + BYTES - 1 } else { TO })?;
                b.asm.mov(ecx, BYTES)?;
                if down {
                    b.asm.std()?;
                }
                b.asm.rep().movsb()?;
                b.asm.cld()?;
                b.asm.mov(ebx, ecx)?;
                b.asm.mov(esi, FROM)?;
                b.asm.mov(edi, TO)?;
                b.asm.mov(ecx, BYTES)?;
                b.asm.repe().cmpsb()?;
                b.asm.setne(al)?;
                b.asm.movzx(eax, al)?;
                b.asm.or(eax, ebx)?;
                b.asm.or(eax, ecx)?;
                let mut wrong = b.asm.create_label();
                b.asm.jnz(wrong)?;
                b.asm.cmp(dword_ptr(TICKS), 20)?;
                b.asm.jb(again)?;
                b.asm.set_label(&mut wrong)?;
                b.asm.cli()?;
                b.show(name)?;
            }
            Ok(())
        },
        "up 00000000
         down 00000000",
        &[],
    )
}

/// An x87 sum, an SSE sum and an integer count stay equal over many interrupts whose handler uses both units.
#[test]
fn floating_point_survives() -> Outcome {
    check(
        |b| {
            ticking(b)?;
            let mut again = b.asm.create_label();
            b.poke(at::SCRATCH, 0x3f80_0000)?; // 1.0
            b.asm.fldz()?;
            b.asm.xorps(xmm3, xmm3)?;
            b.asm.xor(esi, esi)?;
            b.asm.sti()?;
            b.asm.set_label(&mut again)?;
            for _ in 0..4 {
                b.asm.fadd(dword_ptr(at::SCRATCH))?;
                b.asm.movss(xmm0, dword_ptr(at::SCRATCH))?;
                b.asm.cvtss2sd(xmm0, xmm0)?;
                b.asm.addsd(xmm3, xmm0)?;
                b.asm.inc(esi)?;
            }
            b.asm.cmp(dword_ptr(TICKS), 50)?;
            b.asm.jb(again)?;
            b.asm.cli()?;
            b.asm.fistp(dword_ptr(at::SCRATCH + 4))?;
            b.asm.mov(eax, dword_ptr(at::SCRATCH + 4))?;
            b.asm.sub(eax, esi)?;
            b.show("x87")?;
            b.asm.cvtsd2si(eax, xmm3)?;
            b.asm.sub(eax, esi)?;
            b.show("sse")?;
            b.asm.fnstsw(ax)?;
            b.asm.and(eax, 0x3800)?;
            b.show("top")
        },
        "x87 00000000
         sse 00000000
         top 00000000",
        &[],
    )
}
