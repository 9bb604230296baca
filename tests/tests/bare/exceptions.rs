//! Exceptions: vector, error code, saved EIP, saved flags (SDM 3A chapter 6).

use std::error::Error;

use iced_x86::code_asm::*;
use tests::bare::harness::check;
use tests::bare::runtime::FLAG_MASK;
use tests::bare::tables::descriptor;
use tests::bare::{Bare, Emit, at, sel};

type Outcome = Result<(), Box<dyn Error>>;

fn none(_: &mut Bare) -> Emit {
    Ok(())
}

/// A fault saves the faulting instruction's address and sets RF in the saved flags; a trap saves the next one's and does
/// not (6.6 and 17.3.1.1).
#[test]
fn faults_and_traps_of_ring_0() -> Outcome {
    check(
        |b| {
            b.fault("divide by zero", |b| b.asm.xor(ecx, ecx), |b| b.asm.div(ecx))?;
            b.fault("divide overflow", |b| quotient(b, 2, 0, 2), |b| b.asm.div(ecx))?;
            b.fault("signed overflow", |b| quotient(b, -1, i32::MIN, -1), |b| b.asm.idiv(ecx))?;
            b.fault("aam 0", none, |b| b.asm.aam(0))?;
            b.fault("int3", none, |b| b.asm.int3())?;
            b.fault("into", overflow, |b| b.asm.db(&[0xce]))?;
            b.fault("bound", bounds, |b| b.asm.bound(eax, dword_ptr(at::SCRATCH)))?;
            b.fault("ud2", none, |b| b.asm.ud2())?;
            b.fault("lock nop", none, |b| b.asm.db(&[0xf0, 0x90]))?;
            b.fault("lea register", none, |b| b.asm.db(&[0x8d, 0xc0]))?;
            b.fault("int 5", none, |b| b.asm.int(5))?;
            b.fault("16 bytes", none, |b| b.asm.db(&[0x66; 15]).and_then(|()| b.asm.nop()))
        },
        "divide by zero: #00 at +00000000 cs 0008 fl 00010002
         divide overflow: #00 at +00000000 cs 0008 fl 00010002
         signed overflow: #00 at +00000000 cs 0008 fl 00010002
         aam 0: #00 at +00000000 cs 0008 fl 00010002
         int3: #03 at +00000001 cs 0008 fl 00000002
         into: #04 at +00000001 cs 0008 fl 00000002
         bound: #05 at +00000000 cs 0008 fl 00010002
         ud2: #06 at +00000000 cs 0008 fl 00010002
         lock nop: #06 at +00000000 cs 0008 fl 00010002
         lea register: #06 at +00000000 cs 0008 fl 00010002
         int 5: #05 at +00000002 cs 0008 fl 00000002
         16 bytes: #13 err 00000000 at +00000000 cs 0008 fl 00010002",
        &[],
    )
}

fn quotient(b: &mut Bare, high: i32, low: i32, by: i32) -> Emit {
    b.asm.mov(edx, high)?;
    b.asm.mov(eax, low)?;
    b.asm.mov(ecx, by)
}

/// Sets OF.
fn overflow(b: &mut Bare) -> Emit {
    b.asm.mov(al, 0x7f)?;
    b.asm.inc(al)
}

/// Bounds 10 to 20, and 21 in EAX.
fn bounds(b: &mut Bare) -> Emit {
    b.poke64(at::SCRATCH, 20 << 32 | 10)?;
    b.asm.mov(eax, 21)
}

/// What only ring 0 may do, and what the IDT's gates forbid; each with the stack switched to the TSS's.
#[test]
fn protection_of_ring_3() -> Outcome {
    check(
        |b| {
            b.fault_in_ring3("nothing", |b| b.asm.nop())?;
            b.fault_in_ring3("hlt", |b| b.asm.hlt())?;
            b.fault_in_ring3("cli", |b| b.asm.cli())?;
            b.fault_in_ring3("in", |b| b.asm.in_(al, 0x60))?;
            b.fault_in_ring3("mov from cr0", |b| b.asm.mov(eax, cr0))?;
            b.fault_in_ring3("mov to dr7", |b| b.asm.mov(dr7, eax))?;
            b.fault_in_ring3("clts", |b| b.asm.clts())?;
            b.fault_in_ring3("lgdt", |b| b.asm.lgdt(fword_ptr(at::SCRATCH)))?;
            b.fault_in_ring3("ltr", |b| b.asm.ltr(ax))?;
            b.fault_in_ring3("wbinvd", |b| b.asm.wbinvd())?;
            b.fault_in_ring3("rdmsr", |b| b.asm.rdmsr())?;
            b.fault_in_ring3("int 20h", |b| b.asm.int(0x20))?;
            b.fault_in_ring3("int3", |b| b.asm.int3())?;
            b.fault_in_ring3("ds = ring 0", |b| {
                b.asm.mov(eax, u32::from(sel::DATA))?;
                b.asm.mov(ds, eax)
            })?;
            b.fault_in_ring3("jump to ring 0", |b| b.asm.db(&[0xea, 0, 0, 0, 0, 8, 0]))
        },
        "nothing: #31 at +00000003 cs 001b fl 00000002 sp 0023:001c0000
         hlt: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         cli: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         in: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         mov from cr0: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         mov to dr7: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         clts: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         lgdt: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         ltr: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         wbinvd: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         rdmsr: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         int 20h: #13 err 00000102 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         int3: #03 at +00000001 cs 001b fl 00000002 sp 0023:001c0000
         ds = ring 0: #13 err 00000010 at +00000005 cs 001b fl 00010002 sp 0023:001c0000
         jump to ring 0: #13 err 00000008 at +00000000 cs 001b fl 00010002 sp 0023:001c0000",
        &[],
    )
}

/// IOPL and the I/O permission bitmap (SDM 1, 19.5): bit set or beyond the TSS's limit means #GP.
#[test]
fn io_permissions() -> Outcome {
    check(
        |b| {
            // The bitmap begins at 68h and covers ports 0 to 1fh; the byte after it must be there.
            b.set_descriptor(0x40, descriptor(at::TSS, 0x6c, 0x89, 0))?;
            b.asm.mov(eax, 0x40)?;
            b.asm.ltr(ax)?;
            b.poke(at::TSS + 0x64, 0x68 << 16)?;
            b.poke(at::TSS + 0x68, 0xffff_fffe)?;
            b.poke(at::TSS + 0x6c, 0xff)?;
            b.fault_in_ring3("port 0", |b| b.asm.in_(al, 0))?;
            b.fault_in_ring3("port 1", |b| b.asm.in_(al, 1))?;
            b.fault_in_ring3("ports 0 and 1", |b| b.asm.in_(ax, 0))?;
            b.fault_in_ring3("port 60h", |b| b.asm.in_(al, 0x60))?;
            b.poke(at::TSS + 0x64, 0x6c << 16)?;
            b.fault_in_ring3("no bitmap", |b| b.asm.in_(al, 0))
        },
        "port 0: #31 at +00000004 cs 001b fl 00000002 sp 0023:001c0000
         port 1: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         ports 0 and 1: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         port 60h: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000
         no bitmap: #13 err 00000000 at +00000000 cs 001b fl 00010002 sp 0023:001c0000",
        &[],
    )
}

/// Errors met while an exception is delivered: the vector's gate is bad (error code: vector * 8 + 2, plus EXT for what
/// the program did not ask for), a contributory second one becomes #DF with error 0 (6.15, table 6-5).
#[test]
fn delivery_failures() -> Outcome {
    check(
        |b| {
            // Gate 21h: not present. Gate 22h: no gate at all. Gate 23h: its segment is not present.
            gate(b, 0x21, sel::CODE, 0x0e)?;
            b.poke64(at::IDT + 0x22 * 8, 0)?;
            b.set_descriptor(0x40, descriptor(0, 0xf_ffff, 0x1b, 0xc))?;
            gate(b, 0x23, 0x40, 0x8e)?;
            gate(b, 0x24, sel::DATA, 0x8e)?;
            gate(b, 0x25, 0, 0x8e)?;
            b.fault("gate not present", none, |b| b.asm.int(0x21))?;
            b.fault("no gate", none, |b| b.asm.int(0x22))?;
            b.fault("segment not present", none, |b| b.asm.int(0x23))?;
            b.fault("data segment", none, |b| b.asm.int(0x24))?;
            b.fault("null segment", none, |b| b.asm.int(0x25))?;
            b.load_idt(0x25 * 8 + 6)?;
            b.fault("beyond the IDT", none, |b| b.asm.int(0x25))?;
            b.load_idt(0x7ff)?;
            // #DE is contributory, and so is #NP for its gate.
            gate(b, 0, sel::CODE, 0x0e)?;
            // An abort: what RF is in its saved flags is not said.
            b.poke(FLAG_MASK, 0xfffe_f72a)?;
            b.fault("double fault", |b| b.asm.xor(ecx, ecx), |b| b.asm.div(ecx))?;
            b.poke(FLAG_MASK, 0xffff_f72a)?;
            // #UD is benign: a bad gate gives #NP with EXT.
            gate(b, 6, sel::CODE, 0x0e)?;
            b.fault("ud2", none, |b| b.asm.ud2())
        },
        "gate not present: #11 err 0000010a at +00000000 cs 0008 fl 00010002
         no gate: #13 err 00000112 at +00000000 cs 0008 fl 00010002
         segment not present: #11 err 00000040 at +00000000 cs 0008 fl 00010002
         data segment: #13 err 00000010 at +00000000 cs 0008 fl 00010002
         null segment: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         beyond the IDT: #13 err 0000012a at +00000000 cs 0008 fl 00010002
         double fault: #08 err 00000000 at +00000000 cs 0008 fl 00000002
         ud2: #11 err 00000033 at +00000000 cs 0008 fl 00010002",
        &["ud2: "],
    )
}

/// A gate to the reporter of vector 31.
fn gate(b: &mut Bare, vector: u8, selector: u16, access: u8) -> Emit {
    match b.reporter(31) {
        Some(handler) => b.gate(vector, selector, handler, access),
        None => Ok(()),
    }
}

/// #NM by CR0.TS, EM and MP (table 9-3), and #UD for SSE without CR4.OSFXSR.
#[test]
fn coprocessor_traps() -> Outcome {
    check(
        |b| {
            b.cr0_clear(0xc)?;
            b.asm.fninit()?;
            b.cr0_set(8)?;
            b.fault("ts: fld1", none, |b| b.asm.fld1())?;
            b.fault("ts: wait", none, |b| b.asm.wait())?;
            b.cr0_set(2)?;
            b.fault("ts mp: wait", none, |b| b.asm.wait())?;
            b.asm.clts()?;
            b.cr0_set(4)?;
            b.fault("em: fld1", none, |b| b.asm.fld1())?;
            b.fault("em: emms", none, |b| b.asm.emms())?;
            b.cr0_clear(4)?;
            b.fault("no osfxsr: movaps", none, |b| b.asm.movaps(xmm0, xmm1))?;
            b.cr4_set(0x200)?;
            b.fault("misaligned movaps", none, |b| b.asm.movaps(xmm0, xmmword_ptr(at::SCRATCH + 4)))?;
            b.fault("good movaps", none, |b| b.asm.movaps(xmm0, xmmword_ptr(at::SCRATCH)))?;
            // An x87 exception that is not masked waits for the next waiting instruction; NE reports it as #MF.
            b.cr0_set(0x20)?;
            b.poke(at::SCRATCH, 0x37b)?;
            b.fault(
                "x87 divide",
                |b| b.asm.fldcw(word_ptr(at::SCRATCH)),
                |b| {
                    b.asm.fld1()?;
                    b.asm.fldz()?;
                    b.asm.fdivp(st1, st0)?;
                    b.asm.nop()?;
                    b.asm.wait()
                },
            )?;
            b.asm.fninit()?;
            // SSE: #XM once OSXMMEXCPT is set.
            b.cr4_set(0x400)?;
            b.poke(at::SCRATCH, 0x1d80)?;
            b.fault(
                "sse divide",
                |b| b.asm.ldmxcsr(dword_ptr(at::SCRATCH)),
                |b| {
                    b.asm.xorps(xmm0, xmm0)?;
                    b.asm.pcmpeqd(xmm1, xmm1)?;
                    b.asm.psrld(xmm1, 25)?;
                    b.asm.pslld(xmm1, 23)?;
                    b.asm.divps(xmm1, xmm0)
                },
            )
        },
        "ts: fld1: #07 at +00000000 cs 0008 fl 00010002
         ts: wait: none
         ts mp: wait: #07 at +00000000 cs 0008 fl 00010002
         em: fld1: #07 at +00000000 cs 0008 fl 00010002
         em: emms: #06 at +00000000 cs 0008 fl 00010002
         no osfxsr: movaps: #06 at +00000000 cs 0008 fl 00010002
         misaligned movaps: #13 err 00000000 at +00000000 cs 0008 fl 00010002
         good movaps: none
         x87 divide: #16 at +00000007 cs 0008 fl 00010002
         sse divide: #19 at +00000011 cs 0008 fl 00010002",
        // EMMS under EM is #UD; QEMU has no unmasked SSE exceptions either.
        &["em: emms", "sse divide"],
    )
}

/// Alignment checks: ring 3 with CR0.AM and EFLAGS.AC alone; error code 0.
#[test]
fn alignment_checks() -> Outcome {
    let flags = |b: &mut Bare, ac: i32| -> Emit {
        b.asm.push(2 | ac)?;
        b.asm.popfd()?;
        b.asm.mov(eax, dword_ptr(at::SCRATCH + 2))
    };
    check(
        |b| {
            b.fault_in_ring3("ac without am", |b| flags(b, 0x4_0000))?;
            b.cr0_set(0x4_0000)?;
            b.fault_in_ring3("am without ac", |b| flags(b, 0))?;
            b.fault_in_ring3("both", |b| flags(b, 0x4_0000))?;
            b.fault("ring 0", none, |b| flags(b, 0x4_0000))
        },
        "ac without am: #31 at +0000000d cs 001b fl 00040002 sp 0023:001c0000
         am without ac: #31 at +0000000a cs 001b fl 00000002 sp 0023:001c0000
         both: #17 err 00000000 at +00000006 cs 001b fl 00050002 sp 0023:001c0000
         ring 0: none",
        &["both"],
    )
}
