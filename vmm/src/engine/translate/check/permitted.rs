//! Which instructions on data emitted code may hold. What is on no list is forbidden.
//!
//! The lists are `match`es because those keep a family to a line.
#![allow(clippy::match_like_matches_macro)]

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, Register};

/// What an allowed instruction works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// General registers and memory.
    Integer,
    /// x87, MMX, SSE or AVX state.
    Vector,
}

/// The kind of `insn` if it is allowed as an instruction on guest data.
pub fn permitted(insn: &Instruction) -> Result<Kind, &'static str> {
    if !matches!(insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return Err("an encoding that emitted code does not use");
    }
    // 64-bit operand sizes and what only exists in 64-bit mode.
    if !insn.code().op_code().mode32() {
        return Err("an instruction that 32-bit code does not have");
    }
    if (0..insn.op_count()).any(|i| system(insn.op_register(i))) {
        return Err("a segment, control or debug register is an operand");
    }
    if integer(insn.mnemonic()) {
        return Ok(Kind::Integer);
    }
    match insn.cpuid_features().iter().all(|f| vector(*f)) && !whole_state(insn.mnemonic()) {
        true => Ok(Kind::Vector),
        false => Err("an instruction that is on no list"),
    }
}

fn system(r: Register) -> bool {
    r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr() || r.is_ip() || r.is_bnd() || r.is_k() || r.is_tmm()
}

/// Integer instructions that read and write nothing but their operands and the arithmetic flags.
fn integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    match mnemonic {
        Mov | Movzx | Movsx | Movbe | Movnti | Lea | Xchg | Xadd | Cmpxchg | Cmpxchg8b | Bswap => true,
        Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test | Inc | Dec | Not | Neg => true,
        Mul | Imul | Div | Idiv | Cbw | Cwde | Cwd | Cdq => true,
        Rol | Ror | Rcl | Rcr | Shl | Sal | Shr | Sar | Shld | Shrd => true,
        Bt | Bts | Btr | Btc | Bsf | Bsr | Popcnt | Lzcnt | Tzcnt | Crc32 => true,
        Andn | Bextr | Blsi | Blsmsk | Blsr | Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx | Shrx | Adcx | Adox => {
            true
        }
        Seta | Setae | Setb | Setbe | Sete | Setg | Setge | Setl | Setle => true,
        Setne | Setno | Setnp | Setns | Seto | Setp | Sets => true,
        Cmova | Cmovae | Cmovb | Cmovbe | Cmove | Cmovg | Cmovge | Cmovl | Cmovle => true,
        Cmovne | Cmovno | Cmovnp | Cmovns | Cmovo | Cmovp | Cmovs => true,
        Clc | Stc | Cmc | Cld | Std | Lahf | Sahf => true,
        Nop | Pause | Endbr32 | Lfence | Mfence | Sfence => true,
        Prefetch | Prefetchw | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 => true,
        _ => false,
    }
}

/// Extensions whose instructions work on data registers.
fn vector(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    match feature {
        FPU | FPU287 | FPU387 | CMOV | MMX | SSE | SSE2 | SSE3 | SSSE3 | SSE4_1 | SSE4_2 | SSE4A => true,
        AES | PCLMULQDQ | SHA | GFNI | VAES | VPCLMULQDQ | AVX | AVX2 | FMA | F16C => true,
        _ => false,
    }
}

/// Saves or loads of whole states, which hold the host's instruction pointer, and the stores through RDI.
fn whole_state(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    match mnemonic {
        Fnstenv | Fstenv | Fldenv | Fnsave | Fsave | Frstor | Fxsave | Fxrstor | Fxsave64 | Fxrstor64 => true,
        Fstdw | Fstsg | Frstpm | Fnstdw | Fnstsg => true,
        Maskmovq | Maskmovdqu | Vmaskmovdqu => true,
        _ => false,
    }
}
