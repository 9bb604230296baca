//! Guest code to translate: snippets that use every shape of emitted code, and random instructions.

use iced_x86::code_asm::*;
use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind, MandatoryPrefix, OpCodeTableKind};
use rand::Rng;
use rand::rngs::SmallRng;

use crate::engine::translate::tests::{CODE, DATA};

fn assemble(build: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).unwrap();
    build(&mut a).unwrap();
    a.assemble(CODE as u64).unwrap()
}

/// Snippets by hand; each ends its block.
pub fn snippets() -> Vec<Vec<u8>> {
    let mut all = stack();
    all.extend(branches());
    all.extend(data());
    all.extend(sensitive());
    all
}

fn stack() -> Vec<Vec<u8>> {
    vec![
        assemble(|a| {
            a.lea(esp, dword_ptr(esp - 8))?;
            a.mov(ds, word_ptr(esp + 4))
        }),
        assemble(|a| {
            a.push(ebp)?;
            a.mov(ebp, esp)?;
            a.sub(esp, 16)?;
            a.push(dword_ptr(ebp + 8))?;
            a.push(1234)?;
            a.push(esp)?;
            a.push(fs)?;
            a.pop(dword_ptr(esp + 4))?;
            a.pop(ecx)?;
            a.lea(esp, dword_ptr(esp + 8))?;
            a.leave()?;
            a.ret_1(8)
        }),
        assemble(|a| {
            a.xchg(eax, esp)?;
            a.add(esp, dword_ptr(esp + 4))?;
            a.and(esp, -16)?;
            a.mov(eax, dword_ptr(esp + ecx * 4 + 8))?;
            a.call(dword_ptr(eax + 8))
        }),
    ]
}

fn branches() -> Vec<Vec<u8>> {
    vec![
        assemble(|a| {
            let mut head = a.create_label();
            a.set_label(&mut head)?;
            a.cmp(dword_ptr(esi), 5)?;
            a.jl(head)?;
            a.jecxz(head)?;
            a.loop_(head)?;
            a.jmp(dword_ptr(DATA + eax * 4))
        }),
        assemble(|a| {
            let mut out = a.create_label();
            a.test(eax, eax)?;
            a.je(out)?;
            a.call(out)?;
            a.set_label(&mut out)?;
            a.cpuid()
        }),
        assemble(|a| {
            a.mov(eax, dword_ptr(ebx))?;
            a.jmp(eax)
        }),
        assemble(|a| a.jmp(0x40_0000u64)),
    ]
}

fn data() -> Vec<Vec<u8>> {
    vec![
        assemble(|a| {
            a.mov(eax, dword_ptr(DATA))?;
            a.mov(dword_ptr(DATA + 4), eax)?;
            a.mov(byte_ptr(ebx + esi), ah)?;
            a.movzx(edx, word_ptr(edi + 2))?;
            a.bts(dword_ptr(ebx), ecx)?;
            a.lock().cmpxchg8b(qword_ptr(esi + 16))?;
            a.xchg(dword_ptr(edi), eax)?;
            a.mov(ecx, gs)?;
            a.mov(eax, dword_ptr(0).fs())?;
            a.mov(dword_ptr(eax + 4).gs(), ecx)?;
            a.add(dword_ptr(eax + ebx * 4 + 4).gs(), ecx)?;
            a.imul_3(eax, ebx, 1000)?;
            a.shld(edx, eax, cl)?;
            a.div(dword_ptr(ebp - 8))?;
            a.hlt()
        }),
        assemble(|a| {
            a.cld()?;
            a.rep().movsd()?;
            a.rep().stosb()?;
            a.lodsw()?;
            a.repne().scasb()?;
            a.repe().cmpsd()?;
            a.std()?;
            a.movsb()?;
            a.ret()
        }),
        floating_point(),
    ]
}

/// x87, SSE and AVX instructions.
pub fn floating_point() -> Vec<u8> {
    assemble(|a| {
        a.fld(qword_ptr(esi))?;
        a.fadd(dword_ptr(edi + 4))?;
        a.fnstsw(ax)?;
        a.fistp(dword_ptr(esp + 4))?;
        a.movaps(xmm1, xmmword_ptr(eax + 16))?;
        a.paddd(xmm1, xmm2)?;
        a.cvttss2si(eax, xmm1)?;
        a.movd(ecx, xmm3)?;
        a.ldmxcsr(dword_ptr(esp))?;
        a.vaddps(ymm1, ymm2, ymmword_ptr(ebx + ecx * 8))?;
        a.movntdq(xmmword_ptr(edx), xmm0)?;
        a.jmp(dword_ptr(ebx))
    })
}

/// Codes that 32-bit mode has.
pub fn codes() -> impl Iterator<Item = Code> {
    Code::values().filter(|c| {
        let o = c.op_code();
        o.is_instruction() && o.mode32() && matches!(o.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
    })
}

/// A random encoding of `code`, now and then with prefixes that it does not need.
pub fn instruction(code: Code, rng: &mut SmallRng) -> Option<Vec<u8>> {
    let o = code.op_code();
    let mut bytes = Vec::new();
    if rng.random_ratio(1, 8) {
        bytes.push([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0xf0, 0xf2, 0xf3, 0x66][rng.random_range(0..10)]);
    }
    if o.encoding() == EncodingKind::VEX {
        vex(code, rng, &mut bytes);
    } else {
        legacy(code, &mut bytes);
    }
    let opcode = o.op_code();
    if o.op_code_len() == 2 {
        bytes.push((opcode >> 8) as u8);
    }
    bytes.push(opcode as u8);
    if o.op_code_len() == 1 {
        let mut modrm: u8 = rng.random();
        if o.group_index() >= 0 {
            modrm = modrm & 0xc7 | (o.group_index() as u8) << 3;
        }
        if o.rm_group_index() >= 0 {
            modrm = modrm & 0xf8 | o.rm_group_index() as u8;
        }
        bytes.push(modrm);
    }
    bytes.extend(rng.random::<[u8; 12]>());
    let mut decoder = Decoder::with_ip(32, &bytes, CODE as u64, DecoderOptions::NONE);
    let insn = decoder.decode();
    (insn.code() == code).then(|| bytes[..insn.len()].to_vec())
}

fn legacy(code: Code, bytes: &mut Vec<u8>) {
    let o = code.op_code();
    match o.mandatory_prefix() {
        MandatoryPrefix::P66 => bytes.push(0x66),
        MandatoryPrefix::PF3 => bytes.push(0xf3),
        MandatoryPrefix::PF2 => bytes.push(0xf2),
        _ => {}
    }
    if o.operand_size() == 16 && !bytes.contains(&0x66) {
        bytes.push(0x66);
    }
    if o.fwait() {
        bytes.push(0x9b);
    }
    match o.table() {
        OpCodeTableKind::T0F => bytes.push(0x0f),
        OpCodeTableKind::T0F38 => bytes.extend([0x0f, 0x38]),
        OpCodeTableKind::T0F3A => bytes.extend([0x0f, 0x3a]),
        _ => {}
    }
}

fn vex(code: Code, rng: &mut SmallRng, bytes: &mut Vec<u8>) {
    let o = code.op_code();
    let map = match o.table() {
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => 1,
    };
    let pp = match o.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    let vvvv = if rng.random() { 15 } else { 8 | rng.random_range(0..8u8) };
    bytes.extend([
        0xc4,
        0xc0 | (rng.random::<u8>() & 0x20) | map,
        (o.w() as u8) << 7 | vvvv << 3 | (o.l() as u8) << 2 | pp,
    ]);
}

/// A random block of up to a dozen instructions.
pub fn block(codes: &[Code], rng: &mut SmallRng) -> Vec<u8> {
    let mut program = Vec::new();
    for _ in 0..rng.random_range(1..12) {
        let code = codes[rng.random_range(0..codes.len())];
        program.extend(instruction(code, rng).unwrap_or_else(|| vec![0x90]));
    }
    program.push(0xc3);
    program
}

/// What changes segments and rings.
fn sensitive() -> Vec<Vec<u8>> {
    vec![
        assemble(|a| a.mov(fs, eax)),
        assemble(|a| a.mov(es, esp)),
        assemble(|a| {
            a.push(eax)?;
            a.mov(ds, word_ptr(esi + 4))
        }),
        assemble(|a| {
            a.pop(ebx)?;
            a.pop(gs)
        }),
        assemble(|a| {
            a.push(ebp)?;
            a.sysenter()
        }),
        assemble(|a| a.sysexit()),
        interrupt_return(),
        assemble(|a| {
            a.push(eax)?;
            a.int(0x80)
        }),
        assemble(|a| {
            a.fld(dword_ptr(eax).fs())?;
            a.fst(qword_ptr(ebx + esi * 2).gs())?;
            a.ret()
        }),
    ]
}

/// IRETD with the stack pointer on its way.
pub fn interrupt_return() -> Vec<u8> {
    assemble(|a| {
        a.pop(eax)?;
        a.iretd()
    })
}

/// STI and what it protects, and high bytes where windows are picked. In these, r8 holds guest data for a while, which may go where a guest EIP may: they are not
/// for spoiling.
pub fn shadows() -> Vec<Vec<u8>> {
    vec![
        assemble(|a| {
            a.sti()?;
            a.sysexit()
        }),
        assemble(|a| {
            a.push(eax)?;
            a.sti()?;
            a.ret()
        }),
        assemble(|a| {
            a.mov(ah, byte_ptr(esp + 4))?;
            a.mov(byte_ptr(esp + 8), dh)?;
            a.mov(bh, byte_ptr(eax + ecx).fs())?;
            a.ret()
        }),
        assemble(|a| {
            a.sti()?;
            a.hlt()
        }),
        assemble(|a| {
            a.sti()?;
            a.call(u64::from(CODE) + 0x100)?;
            a.popfd()
        }),
    ]
}
