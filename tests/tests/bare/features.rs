//! One coherent processor: what CPUID announces is executed, and what it does not announce is #UD. Also where the operator
//! leaves features out.

use iced_x86::code_asm::*;
use tests::bare::harness::{Outcome, check_with};
use tests::bare::{Bare, Emit, at};

/// Registers of CPUID's answer.
const B: u32 = 0;
const C: u32 = 1;
const D: u32 = 2;
/// Where a handler for #UD goes on.
const NEXT: u32 = at::SCRATCH;

/// A feature: its name, where CPUID has it, and an instruction of it.
type Sample = (&'static str, u32, u32, u32, &'static [u8]);

const SAMPLES: &[Sample] = &[
    ("tsc", 1, D, 4, &[0x0f, 0x31]),
    ("cx8", 1, D, 8, &[0x0f, 0xc7, 0x0d, 0x10, 0x70, 0x18, 0]),
    ("cmov", 1, D, 15, &[0x0f, 0x44, 0xc0]),
    ("mmx", 1, D, 23, &[0x0f, 0xef, 0xc0]),
    ("sse", 1, D, 25, &[0x0f, 0x57, 0xc0]),
    ("sse2", 1, D, 26, &[0x66, 0x0f, 0x57, 0xc0]),
    ("sse3", 1, C, 0, &[0xf2, 0x0f, 0x7c, 0xc0]),
    ("pclmulqdq", 1, C, 1, &[0x66, 0x0f, 0x3a, 0x44, 0xc0, 0]),
    ("ssse3", 1, C, 9, &[0x66, 0x0f, 0x38, 0x1c, 0xc0]),
    ("fma", 1, C, 12, &[0xc4, 0xe2, 0x7d, 0x98, 0xc0]),
    ("sse4.1", 1, C, 19, &[0x66, 0x0f, 0x38, 0x17, 0xc0]),
    ("sse4.2", 1, C, 20, &[0x66, 0x0f, 0x38, 0x37, 0xc0]),
    ("movbe", 1, C, 22, &[0x0f, 0x38, 0xf0, 0x05, 0x10, 0x70, 0x18, 0]),
    ("popcnt", 1, C, 23, &[0xf3, 0x0f, 0xb8, 0xc0]),
    ("aes", 1, C, 25, &[0x66, 0x0f, 0x38, 0xdc, 0xc0]),
    ("xsave", 1, C, 26, &[0x0f, 0x01, 0xd0]),
    ("avx", 1, C, 28, &[0xc5, 0xfc, 0x57, 0xc0]),
    ("f16c", 1, C, 29, &[0xc4, 0xe2, 0x7d, 0x13, 0xc0]),
    ("rdrand", 1, C, 30, &[0x0f, 0xc7, 0xf0]),
    ("bmi1", 7, B, 3, &[0xc4, 0xe2, 0x78, 0xf2, 0xc0]),
    ("avx2", 7, B, 5, &[0xc5, 0xfd, 0xd4, 0xc0]),
    ("bmi2", 7, B, 8, &[0xc4, 0xe2, 0x7b, 0xf7, 0xc0]),
    ("rdseed", 7, B, 18, &[0x0f, 0xc7, 0xf8]),
    ("adx", 7, B, 19, &[0x66, 0x0f, 0x38, 0xf6, 0xc0]),
    ("sha", 7, B, 29, &[0x0f, 0x38, 0xc8, 0xc0]),
    ("rdtscp", 0x8000_0001, D, 27, &[0x0f, 0x01, 0xf9]),
];

/// A handler that notes #UD in EDI and goes on at NEXT.
fn undefined(b: &mut Bare) -> Emit {
    let (mut over, mut handler) = (b.asm.create_label(), b.asm.create_label());
    b.asm.jmp(over)?;
    b.asm.set_label(&mut handler)?;
    b.asm.mov(edi, dword_ptr(NEXT))?;
    b.asm.mov(dword_ptr(esp), edi)?;
    b.asm.mov(edi, 1)?;
    b.asm.iretd()?;
    b.asm.set_label(&mut over)?;
    b.gate(6, 8, handler, 0x8e)
}

/// ESI = 1 if CPUID announces the feature.
fn announced(b: &mut Bare, leaf: u32, register: u32, bit: u32) -> Emit {
    b.asm.mov(eax, leaf)?;
    b.asm.xor(ecx, ecx)?;
    b.asm.cpuid()?;
    match register {
        B => b.asm.mov(esi, ebx)?,
        C => b.asm.mov(esi, ecx)?,
        _ => b.asm.mov(esi, edx)?,
    }
    b.asm.shr(esi, bit)?;
    b.asm.and(esi, 1)
}

/// SSE, and AVX where it is there, are switched on; then each sample is tried, several times.
fn samples(b: &mut Bare, absent: &[&str]) -> Emit {
    undefined(b)?;
    b.cr4_set(0x600)?;
    let mut without = b.asm.create_label();
    announced(b, 1, C, 26)?;
    b.asm.test(esi, esi)?;
    b.asm.je(without)?;
    b.cr4_set(0x4_0000)?;
    announced(b, 1, C, 28)?;
    b.asm.lea(eax, dword_ptr(esi * 4 + 3))?;
    b.asm.xor(ecx, ecx)?;
    b.asm.xor(edx, edx)?;
    b.asm.xsetbv()?;
    b.asm.set_label(&mut without)?;
    b.asm.nop()?;
    for (name, leaf, register, bit, bytes) in SAMPLES {
        let (mut next, mut right, mut again) = (b.asm.create_label(), b.asm.create_label(), b.asm.create_label());
        announced(b, *leaf, *register, *bit)?;
        b.address(next)?;
        b.asm.mov(dword_ptr(NEXT), eax)?;
        b.asm.mov(ebp, 3)?;
        b.asm.set_label(&mut again)?;
        b.asm.xor(edi, edi)?;
        b.asm.xor(ecx, ecx)?;
        b.asm.db(bytes)?;
        b.asm.set_label(&mut next)?;
        b.asm.dec(ebp)?;
        b.asm.jne(again)?;
        b.asm.xor(edi, esi)?;
        b.asm.jne(right)?;
        b.print(&format!("{name} is not what CPUID says\n"))?;
        b.asm.set_label(&mut right)?;
        b.asm.nop()?;
        if absent.contains(name) {
            let mut gone = b.asm.create_label();
            b.asm.test(esi, esi)?;
            b.asm.je(gone)?;
            b.print(&format!("{name} is still there\n"))?;
            b.asm.set_label(&mut gone)?;
            b.asm.nop()?;
        }
    }
    b.print("all were tried\n")
}

#[test]
fn what_is_announced_is_executed_and_nothing_else() -> Outcome {
    let selections: [&[&str]; 4] = [
        &[],
        &["popcnt", "movbe", "aes", "pclmulqdq", "sha", "adx", "rdrand", "rdseed", "rdtscp", "bmi1", "bmi2"],
        &["avx2", "fma", "f16c", "sse4.2", "sse4.1", "ssse3", "sse3", "cmov"],
        &["xsave", "avx", "avx2", "fma", "f16c", "mmx", "sse2"],
    ];
    for absent in selections {
        let names: String = absent.iter().map(|name| format!(",-{name}")).collect();
        let options = ["--cpu".into(), format!("max{names}")];
        check_with(&options, |b| samples(b, absent), "all were tried")?;
    }
    Ok(())
}

/// WRMSR, which faults.
fn refused(b: &mut Bare, name: &str, msr: u32, low: u32, high: u32) -> Emit {
    b.fault(
        name,
        |b| {
            b.asm.mov(ecx, msr)?;
            b.asm.mov(eax, low)?;
            b.asm.mov(edx, high)
        },
        |b| b.asm.wrmsr(),
    )
}

/// Memory type ranges: as many as IA32_MTRRCAP says, each holding what was written, and nothing that is reserved (SDM vol. 3,
/// §11.11). QEMU refuses nothing.
#[test]
fn memory_type_ranges_are_kept_and_checked() -> Outcome {
    const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
    let values: Vec<(u32, u32)> = (0..8)
        .flat_map(|i| [(0x200 + 2 * i, (0x100_0000 * i) | 6), (0x201 + 2 * i, 0xff00_0800)])
        .chain(FIXED.map(|msr| (msr, 0x0605_0401)))
        .chain([(0x2ff, 0xc06)])
        .collect();
    check_with(
        &[],
        |b| {
            b.asm.mov(ecx, 0xfe)?;
            b.asm.rdmsr()?;
            b.show("capabilities")?;
            for (msr, value) in &values {
                b.msr(*msr, *value)?;
            }
            b.asm.xor(esi, esi)?;
            for (msr, value) in &values {
                let mut same = b.asm.create_label();
                b.asm.mov(ecx, *msr)?;
                b.asm.rdmsr()?;
                b.asm.sub(eax, *value as i32)?;
                b.asm.or(eax, edx)?;
                b.asm.je(same)?;
                b.asm.inc(esi)?;
                b.asm.set_label(&mut same)?;
                b.asm.nop()?;
            }
            b.asm.mov(eax, esi)?;
            b.show("others")?;
            b.fault("ninth", |b| b.asm.mov(ecx, 0x210), |b| b.asm.rdmsr())?;
            refused(b, "type 2", 0x200, 2, 0)?;
            refused(b, "beyond 36 bits", 0x201, 0x800, 0x10)?;
            refused(b, "reserved bit", 0x201, 0x400, 0)?;
            refused(b, "fixed type 3", 0x250, 0x0306_0606, 0)?;
            refused(b, "default type 7", 0x2ff, 0xc07, 0)?;
            refused(b, "capabilities", 0xfe, 0, 0)
        },
        &["ninth", "type 2", "beyond 36 bits", "reserved bit", "fixed type 3", "default type 7", "capabilities"]
            .iter()
            .fold("capabilities 00000508\nothers 00000000\n".to_owned(), |text, name| {
                text + &format!("{name}: #13 err 00000000 at +00000000 cs 0008 fl 00010002\n")
            }),
    )
}
