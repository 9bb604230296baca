//! What a guest finds on the board before it has a driver for anything: tables and identities where firmware and chipset
//! put them, and the address line that real mode's programs want switched.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check};
use tests::bare::tables::descriptor;
use tests::bare::{Bare, Emit, at};

/// ECX = the number of 16-byte boundaries from `from` up to `to` at which the two words are; the sum of `length` bytes of the
/// last one is added to EDX. Clobbers EAX, EBX and ESI.
fn search(b: &mut Bare, (from, to): (u32, u32), words: &[u32], length: u32) -> Emit {
    let (mut next, mut other, mut sum) = (b.asm.create_label(), b.asm.create_label(), b.asm.create_label());
    b.asm.mov(esi, from)?;
    b.asm.xor(ecx, ecx)?;
    b.asm.xor(edx, edx)?;
    b.asm.set_label(&mut next)?;
    for (place, word) in (0..).zip(words) {
        b.asm.cmp(dword_ptr(esi + 4 * place), *word as i32)?;
        b.asm.jne(other)?;
    }
    b.asm.inc(ecx)?;
    b.asm.mov(ebx, length)?;
    b.asm.set_label(&mut sum)?;
    b.asm.add(dl, byte_ptr(esi + ebx - 1))?;
    b.asm.dec(ebx)?;
    b.asm.jne(sum)?;
    b.asm.set_label(&mut other)?;
    b.asm.add(esi, 16)?;
    b.asm.cmp(esi, to as i32)?;
    b.asm.jb(next)
}

fn found(b: &mut Bare, name: &str) -> Emit {
    b.asm.shl(ecx, 8)?;
    b.asm.lea(eax, dword_ptr(ecx + edx))?;
    b.show(name)
}

/// MP tables and the ACPI pointer in the last 64 KiB below 1 MiB, once and with a sum of zero; the host bridge; fw_cfg's
/// signature; the HPET's vendor; the clock's "valid" bit.
#[test]
fn things_are_where_they_are_expected() -> Outcome {
    const ROM: (u32, u32) = (0xf_0000, 0x10_0000);
    check(
        |b| {
            search(b, ROM, &[u32::from_le_bytes(*b"_MP_")], 16)?;
            found(b, "mp tables")?;
            search(b, ROM, &[u32::from_le_bytes(*b"RSD "), u32::from_le_bytes(*b"PTR ")], 20)?;
            found(b, "acpi")?;
            b.asm.mov(edx, 0xcf8)?;
            b.asm.mov(eax, 0x8000_0000u32)?;
            b.asm.out(dx, eax)?;
            b.asm.mov(edx, 0xcfc)?;
            b.asm.in_(eax, dx)?;
            b.show("host bridge")?;
            b.asm.mov(edx, 0x510)?;
            b.asm.xor(eax, eax)?;
            b.asm.out(dx, ax)?;
            b.asm.inc(edx)?;
            b.asm.xor(ebx, ebx)?;
            for _ in 0..4 {
                b.asm.in_(al, dx)?;
                b.asm.mov(bl, al)?;
                b.asm.ror(ebx, 8)?;
            }
            b.asm.mov(eax, ebx)?;
            b.show("fw_cfg")?;
            b.asm.mov(eax, dword_ptr(0xfed0_0000u32))?;
            b.asm.shr(eax, 16)?;
            b.show("hpet")?;
            b.out(0x70, 0x0d)?;
            b.asm.in_(al, 0x71)?;
            b.asm.and(eax, 0x80)?;
            b.show("clock")
        },
        "mp tables 00000100\nacpi 00000100\nhost bridge 12378086\nfw_cfg 554d4551\nhpet 00008086\nclock 00000080",
        &[],
    )
}

/// With A20 closed, by port 92h and by the keyboard controller, addresses of odd megabytes are those of the even ones below.
#[test]
fn a20_is_closed_and_opened() -> Outcome {
    const EVEN: u32 = at::FREE + 0x1_0000;
    const ODD: u32 = EVEN | 0x10_0000;
    /// Code in an even megabyte, which uses no stack while A20 is closed.
    fn program(close: fn(&mut CodeAssembler) -> Emit, open: fn(&mut CodeAssembler) -> Emit) -> Emit<Vec<u8>> {
        let mut a = CodeAssembler::new(32)?;
        close(&mut a)?;
        a.mov(ebx, dword_ptr(ODD))?;
        a.mov(dword_ptr(ODD + 4), ecx)?;
        open(&mut a)?;
        a.ret()?;
        a.assemble(at::FREE.into())
    }
    fn fast(a: &mut CodeAssembler, value: u32) -> Emit {
        a.mov(eax, value)?;
        a.out(0x92, al)
    }
    /// The controller's output port, once it takes commands.
    fn slow(a: &mut CodeAssembler, value: u32) -> Emit {
        for (port, byte) in [(0x64, 0xd1), (0x60, value)] {
            let mut wait = a.create_label();
            a.set_label(&mut wait)?;
            a.in_(al, 0x64)?;
            a.test(al, 2)?;
            a.jne(wait)?;
            a.mov(eax, byte)?;
            a.out(port, al)?;
        }
        Ok(())
    }
    type Way = fn(&mut CodeAssembler) -> Emit;
    let ways: [(&str, Way, Way); 2] =
        [("port 92h", |a| fast(a, 0), |a| fast(a, 2)), ("controller", |a| slow(a, 0xdd), |a| slow(a, 0xdf))];
    check(
        |b| {
            fast(&mut b.asm, 2)?;
            for (name, close, open) in ways {
                let code = program(close, open)?;
                for (place, word) in (at::FREE..).step_by(4).zip(code.chunks(4)) {
                    let mut bytes = [0x90; 4];
                    bytes[..word.len()].copy_from_slice(word);
                    b.poke(place, u32::from_le_bytes(bytes))?;
                }
                for (place, value) in [(EVEN, 0x11), (ODD, 0x22), (EVEN + 4, 0), (ODD + 4, 0)] {
                    b.poke(place, value)?;
                }
                b.print(&format!("{name}\n"))?;
                b.asm.mov(ecx, 0x33)?;
                b.asm.mov(eax, at::FREE)?;
                b.asm.call(eax)?;
                b.asm.mov(eax, ebx)?;
                b.show("read")?;
                b.show_memory("even", EVEN + 4)?;
                b.show_memory("odd", ODD + 4)?;
                b.show_memory("open", ODD)?;
            }
            Ok(())
        },
        "port 92h\nread 00000011\neven 00000033\nodd 00000000\nopen 00000022\n\
         controller\nread 00000011\neven 00000033\nodd 00000000\nopen 00000022",
        &[],
    )
}

/// From 32-bit to 16-bit protected mode, to real mode, and back: INT by the vector table, segments that are paragraphs, an
/// address that only A20 reaches, and IRET.
#[test]
fn real_mode_and_back() -> Outcome {
    const BASE: u32 = 0x8000;
    /// Where the way back is, in that segment, and what was seen.
    const BACK: u32 = 0x300;
    const SEEN: u32 = 0x310;
    const ESP: u32 = at::SCRATCH + 0x100;
    /// 16-bit code for BASE, with the offset of what is reached by a far jump in each mode.
    fn program() -> Emit<Vec<u8>> {
        let mut a = CodeAssembler::new(16)?;
        // 16-bit protected mode: 16-bit operands, and the data segment's base counts.
        a.mov(ax, 0x50)?;
        a.mov(ds, ax)?;
        a.mov(word_ptr(SEEN), cs)?;
        a.mov(eax, cr0)?;
        a.and(al, !1)?;
        a.mov(cr0, eax)?;
        // jmp far 0800:40
        a.db(&[0xea, 0x40, 0, 0, 8])?;
        while a.assemble(0)?.len() < 0x40 {
            a.nop()?;
        }
        a.mov(ax, 0x800)?;
        a.mov(ds, ax)?;
        a.mov(ss, ax)?;
        a.mov(sp, 0x1000)?;
        a.xor(ax, ax)?;
        a.mov(es, ax)?;
        // The vector table at address 0: vector 40h leads to 0800:C0.
        a.mov(dword_ptr(SEEN + 0x10), 0x3ff)?;
        a.mov(word_ptr(SEEN + 0x14), 0)?;
        a.lidt(fword_ptr(SEEN + 0x10))?;
        a.mov(word_ptr(0x100).es(), 0xc0)?;
        a.mov(word_ptr(0x102).es(), 0x800)?;
        a.mov(ax, 0xffff)?;
        a.mov(es, ax)?;
        a.mov(eax, dword_ptr(0x10).es())?;
        a.mov(dword_ptr(SEEN + 4), eax)?;
        a.int(0x40)?;
        a.mov(word_ptr(SEEN + 2), cs)?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        // jmp far dword [BACK]
        a.db(&[0x66, 0xff, 0x2e, BACK as u8, (BACK >> 8) as u8])?;
        while a.assemble(0)?.len() < 0xc0 {
            a.nop()?;
        }
        a.mov(word_ptr(SEEN + 8), sp)?;
        a.iret()?;
        a.assemble(0)
    }
    check(
        |b| {
            let mut back = b.asm.create_label();
            for (place, word) in (BASE..).step_by(4).zip(program()?.chunks(4)) {
                let mut bytes = [0x90; 4];
                bytes[..word.len()].copy_from_slice(word);
                b.poke(place, u32::from_le_bytes(bytes))?;
            }
            b.poke(BASE + SEEN + 8, 0)?;
            b.set_descriptor(0x48, descriptor(BASE, 0xffff, 0x9b, 0))?;
            b.set_descriptor(0x50, descriptor(BASE, 0xffff, 0x93, 0))?;
            b.asm.mov(dword_ptr(ESP), esp)?;
            b.address(back)?;
            b.asm.mov(dword_ptr(BASE + BACK), eax)?;
            b.poke(BASE + BACK + 4, 8)?;
            // jmp far 48:0
            b.asm.db(&[0xea, 0, 0, 0, 0, 0x48, 0])?;
            b.asm.set_label(&mut back)?;
            b.asm.mov(eax, 0x10)?;
            for segment in [ds, es, fs, gs, ss] {
                b.asm.mov(segment, eax)?;
            }
            b.asm.mov(esp, dword_ptr(ESP))?;
            b.load_idt(0x7ff)?;
            b.show_memory("cs", BASE + SEEN)?;
            b.show_memory("at 1 MiB", BASE + SEEN + 4)?;
            b.show_memory("sp", BASE + SEEN + 8)?;
            b.fault("still protected", |_| Ok(()), |b| b.asm.ud2())
        },
        "cs 08000048
         at 1 MiB 1badb002
         sp 00000ffa
         still protected: #06 at +00000000 cs 0008 fl 00010002",
        &[],
    )
}
