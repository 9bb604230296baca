//! Stage 2: what is to be done with an instruction.
//!
//! *Plain* is an allowlist: instructions that do the same on the host once registers and memory operands are renamed.
//! What is on no list is interpreted: slow, never wrong.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register};

use super::gate::Gate;
use super::mode::Mode;
use crate::cpu::seg;

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Re-emitted with renamed operands.
    Plain,
    /// As `Plain`, and it needs guest x87/SSE/AVX state in host registers.
    FloatingPoint,
    /// PUSH of a register, immediate, memory or segment register.
    Push,
    /// POP into a register or memory.
    Pop,
    /// CALL near, direct.
    Call,
    /// CALL near, indirect.
    CallIndirect,
    /// RET near.
    Return,
    /// JMP near, direct.
    Jump,
    /// JMP near, indirect.
    JumpIndirect,
    /// Jcc.
    JumpIf,
    /// JECXZ or LOOP.
    CountJump,
    /// LEAVE.
    Leave,
    /// MOV from a segment register to a general register.
    ReadSelector,
    /// MOV from CR0, CR2, CR3 or CR4 at ring 0.
    ReadControl,
    /// MOVS, STOS, LODS, SCAS, CMPS.
    String,
    /// CLI at ring 0.
    ClearInterrupts,
    /// STI at ring 0.
    SetInterrupts,
    /// PUSHFD.
    PushFlags,
    /// POPFD at ring 0.
    PopFlags,
    /// RDTSC or RDTSCP.
    TimeStamp,
    /// An instruction that a gate stands for.
    Gate(Gate),
    /// Executed by the interpreter.
    Interpret,
}

/// Classifies `insn`, decoded as 32-bit code, for execution in `mode`.
pub fn classify(insn: &Instruction, mode: Mode) -> Class {
    use Mnemonic::*;
    if uses_16_bit_address(insn) {
        return Class::Interpret;
    }
    match insn.mnemonic() {
        Push => match insn.code() {
            Code::Push_r32 | Code::Push_rm32 | Code::Pushd_imm32 | Code::Pushd_imm8 => Class::Push,
            Code::Pushd_ES | Code::Pushd_CS | Code::Pushd_SS | Code::Pushd_DS | Code::Pushd_FS | Code::Pushd_GS => {
                Class::Push
            }
            _ => Class::Interpret,
        },
        Pop => match insn.code() {
            Code::Pop_r32 | Code::Pop_rm32 if insn.op0_register() != Register::ESP => Class::Pop,
            Code::Popd_ES | Code::Popd_DS | Code::Popd_FS | Code::Popd_GS => load_gate(insn, mode, Gate::Pop),
            _ => Class::Interpret,
        },
        Call => match insn.code() {
            Code::Call_rel32_32 => Class::Call,
            Code::Call_rm32 => Class::CallIndirect,
            _ => Class::Interpret,
        },
        Jmp => match insn.code() {
            Code::Jmp_rel8_32 | Code::Jmp_rel32_32 => Class::Jump,
            Code::Jmp_rm32 => Class::JumpIndirect,
            _ => Class::Interpret,
        },
        Ret if matches!(insn.code(), Code::Retnd | Code::Retnd_imm16) => Class::Return,
        Leave if insn.code() == Code::Leaved => Class::Leave,
        Jecxz if insn.code() == Code::Jecxz_rel8_32 => Class::CountJump,
        Loop if insn.code() == Code::Loop_rel8_32_ECX => Class::CountJump,
        Movsb | Movsw | Stosb | Stosw | Stosd | Lodsb | Lodsw | Lodsd | Scasb | Scasw | Scasd | Cmpsb | Cmpsw => {
            Class::String
        }
        Cli if mode.ring0() => Class::ClearInterrupts,
        Sti if mode.ring0() => Class::SetInterrupts,
        Sysenter if mode.user() => Class::Gate(Gate::Enter),
        Int if insn.code() == Code::Int_imm8 && mode.user() => Class::Gate(Gate::Interrupt(insn.immediate8())),
        Iretd if mode.ring0() => Class::Gate(Gate::Return),
        Sysexit if insn.code() == Code::Sysexitd && mode.ring0() => Class::Gate(Gate::Exit),
        Pushfd => Class::PushFlags,
        Popfd if mode.ring0() => Class::PopFlags,
        Rdtsc | Rdtscp if mode.tsc() => Class::TimeStamp,
        Tzcnt | Andn | Blsi | Blsr | Blsmsk | Bextr | Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx | Shrx
            if mode.bmi() && insn.code().encoding() != EncodingKind::XOP =>
        {
            Class::Plain
        }
        Movsd if insn.code() == Code::Movsd_m32_m32 => Class::String,
        Cmpsd if insn.code() == Code::Cmpsd_m32_m32 => Class::String,
        Mov => match (insn.op0_kind(), insn.op1_kind()) {
            _ if insn.code() == Code::Mov_r32m16_Sreg && insn.op0_kind() == OpKind::Register => Class::ReadSelector,
            _ if insn.code() == Code::Mov_Sreg_r32m16 => load_gate(insn, mode, Gate::Move),
            _ if insn.code() == Code::Mov_r32_cr && mode.ring0() && is_control(insn.op1_register()) => {
                Class::ReadControl
            }
            _ if is_system_mov(insn) => Class::Interpret,
            _ => Class::Plain,
        },
        _ if insn.is_jcc_short_or_near() => match insn.code().is_jcc_short_or_near() && near32(insn) {
            true => Class::JumpIf,
            false => Class::Interpret,
        },
        m if is_plain_integer(m) => match insn.has_lock_prefix() && insn.op0_kind() != OpKind::Memory {
            true => Class::Interpret,
            false => Class::Plain,
        },
        _ if mode.floating_point() && is_floating_point(insn, mode) => Class::FloatingPoint,
        _ => Class::Interpret,
    }
}

fn near32(insn: &Instruction) -> bool {
    insn.op0_kind() == OpKind::NearBranch32
}

/// The gate for a load of DS, ES, FS or GS. SS has an interrupt shadow; at other rings loads are rare.
fn load_gate(insn: &Instruction, mode: Mode, gate: fn(u8) -> Gate) -> Class {
    let which = insn.op0_register().number();
    match mode.ring0() && insn.op0_register().is_segment_register() && ![seg::CS, seg::SS].contains(&which) {
        true => Class::Gate(gate(which as u8)),
        false => Class::Interpret,
    }
}

fn is_control(r: Register) -> bool {
    matches!(r, Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4)
}

fn is_system_mov(insn: &Instruction) -> bool {
    let system = |r: Register| r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr();
    system(insn.op0_register()) || system(insn.op1_register())
}

/// 16-bit effective addresses cannot be encoded in 64-bit mode.
fn uses_16_bit_address(insn: &Instruction) -> bool {
    let is16 = |r: Register| r.is_gpr16();
    match insn.mnemonic() {
        Mnemonic::Jcxz => true,
        _ => (0..insn.op_count()).any(|i| match insn.op_kind(i) {
            OpKind::Memory => {
                is16(insn.memory_base())
                    || is16(insn.memory_index())
                    || (insn.memory_base() == Register::None
                        && insn.memory_index() == Register::None
                        && insn.memory_displ_size() == 2)
            }
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => true,
            _ => false,
        }),
    }
}

/// Integer instructions that are the same on the host.
fn is_plain_integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Add | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Inc
            | Dec
            | Not
            | Neg
            | Mul
            | Imul
            | Div
            | Idiv
            | Test
            | Xchg
            | Movzx
            | Movsx
            | Lea
            | Cmpxchg
            | Cmpxchg8b
            | Xadd
            | Bswap
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shl
            | Sal
            | Shr
            | Sar
            | Shld
            | Shrd
            | Cbw
            | Cwde
            | Cwd
            | Cdq
            | Nop
            | Pause
            | Clc
            | Stc
            | Cmc
            | Cld
            | Std
            | Lahf
            | Sahf
            | Seta
            | Setae
            | Setb
            | Setbe
            | Sete
            | Setg
            | Setge
            | Setl
            | Setle
            | Setne
            | Setno
            | Setnp
            | Setns
            | Seto
            | Setp
            | Sets
            | Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
            | Popcnt
            | Movbe
            | Crc32
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Prefetchnta
            | Prefetchw
            | Lfence
            | Mfence
            | Sfence
            | Endbr32
    )
}

/// x87, MMX, SSE and AVX instructions on data. Those that save or load whole states are interpreted: they would show
/// the host's instruction pointer.
fn is_floating_point(insn: &Instruction, mode: Mode) -> bool {
    use Mnemonic::*;
    if matches!(
        insn.mnemonic(),
        Fnstenv
            | Fstenv
            | Fldenv
            | Fnsave
            | Fsave
            | Frstor
            | Fxsave
            | Fxrstor
            | Xsave
            | Xrstor
            | Xsaveopt
            | Xsavec
            | Xsaves
            | Xrstors
            | Xgetbv
            | Xsetbv
            | Maskmovq
            | Maskmovdqu
            | Vmaskmovdqu
            | Movnti
            | Clflush
            | Clflushopt
            | Clwb
            | Monitor
            | Mwait
    ) || insn.is_vsib()
    {
        return false;
    }
    insn.cpuid_features().iter().all(|f| match f {
        CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 | CpuidFeature::MMX => true,
        CpuidFeature::CMOV => insn.mnemonic() != Cmova || insn.op0_register().is_st(),
        CpuidFeature::SSE
        | CpuidFeature::SSE2
        | CpuidFeature::SSE3
        | CpuidFeature::SSSE3
        | CpuidFeature::SSE4_1
        | CpuidFeature::SSE4_2
        | CpuidFeature::AES
        | CpuidFeature::PCLMULQDQ
        | CpuidFeature::SHA => mode.sse(),
        CpuidFeature::AVX | CpuidFeature::AVX2 | CpuidFeature::FMA | CpuidFeature::F16C => mode.avx(),
        _ => false,
    })
}
