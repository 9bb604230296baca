//! Which instructions this room executes, and how. An allowlist: what no rule here names is not ours.
//!
//! One [`Entry`] per iced `Code`, made once from the decoder's own tables: encoding, CPUID features and operand kinds.
//! An instruction may run natively only if every operand is an x87, MMX, SSE, AVX or 32-bit general register, an
//! immediate, or an ordinary memory operand, and its CPUID features are on the list.

use std::sync::OnceLock;

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, OpCodeOperandKind as Kind, OpKind};

/// Which set of rules says whether the instruction may execute at all (SDM vol. 2, §2.5 and §2.6; vol. 3, §24.25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// x87: #NM by CR0.EM or TS.
    X87,
    /// WAIT: #NM by CR0.MP with TS.
    Wait,
    /// MMX registers only: #UD by CR0.EM, #NM by TS.
    Mmx,
    /// Legacy encoding with XMM registers: as MMX, and #UD without CR4.OSFXSR.
    Sse,
    /// VEX encoding with vector registers: needs CR4.OSXSAVE and XCR0, protected mode; #NM by TS.
    Avx,
    /// VEX encoding with general registers only: needs protected mode.
    VexGeneral,
    /// No condition beyond CPUID.
    General,
    /// FXSAVE, XSAVE and relatives: they check by themselves.
    State,
}

/// Who executes the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// This host's processor, in a stub.
    Native,
    /// x87 control and environment instructions: `control`.
    Control,
    /// FXSAVE, XSAVE, XCR0 and MXCSR instructions: `state`.
    State,
    /// Masked moves and gathers, element by element: `masked`.
    Masked,
    /// CRC32: `crc`.
    Crc,
    /// Fences: one processor sees its own accesses in order.
    Fence,
}

/// What there is to know of one `Code`.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Conditions.
    pub family: Family,
    /// Executor.
    pub action: Action,
    /// Raises a pending x87 exception first: waiting x87 instructions, and whatever touches an MMX register.
    waits: bool,
    /// May name an MMX register.
    mmx: bool,
    /// A misaligned 16- or 32-byte memory operand is #GP(0).
    pub aligned: bool,
    /// An x87 instruction that the last-instruction pointers follow.
    pub tracked: bool,
    /// The instruction's CPUID features.
    pub features: &'static [CpuidFeature],
}

impl Entry {
    /// True if this instruction moves the x87 unit into MMX state: it names an MMX register. Conversions from a 64-bit
    /// memory operand may be written without one.
    pub fn enters_mmx(&self, insn: &Instruction) -> bool {
        let conversion = matches!(insn.code(), Code::Cvtpi2ps_xmm_mmm64 | Code::Cvtpi2pd_xmm_mmm64);
        self.mmx && !(conversion && insn.op1_kind() == OpKind::Memory)
    }

    /// True if a pending x87 exception is raised before this instruction.
    pub fn waits(&self, insn: &Instruction) -> bool {
        self.waits && (!self.mmx || self.enters_mmx(insn))
    }
}

/// The entry of `code`; None if this room does not execute it.
#[inline]
pub fn entry(code: Code) -> Option<&'static Entry> {
    static TABLE: OnceLock<Box<[Option<Entry>]>> = OnceLock::new();
    TABLE.get_or_init(|| Code::values().map(classify).collect()).get(code as usize)?.as_ref()
}

fn classify(code: Code) -> Option<Entry> {
    let op = code.op_code();
    let vex = match op.encoding() {
        EncodingKind::Legacy => false,
        EncodingKind::VEX => true,
        _ => return None,
    };
    let features = code.cpuid_features();
    let kinds: Vec<Kind> = (0..op.op_count()).map(|i| op.op_kind(i)).collect();
    let action = by_hand(code)
        .or_else(|| (native_features(features) && native_operands(code, &kinds)).then_some(Action::Native))?;
    if !(op.mode32() || op.mode16()) || (action == Action::Native && !op.mode64()) {
        return None;
    }
    let x87 =
        features.contains(&CpuidFeature::FPU) || matches!(features, [CpuidFeature::FPU287 | CpuidFeature::FPU387]);
    let family = family(code, features, action, x87, vex, &kinds);
    let touches_mmx = kinds.iter().any(|k| matches!(k, Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem));
    Some(Entry {
        family,
        action,
        mmx: touches_mmx,
        waits: matches!(family, Family::Mmx | Family::Wait) || touches_mmx || (x87 && !non_waiting(code)),
        aligned: requires_alignment(code, vex),
        tracked: x87 && action == Action::Native,
        features,
    })
}

fn family(code: Code, features: &[CpuidFeature], action: Action, x87: bool, vex: bool, kinds: &[Kind]) -> Family {
    use Kind::*;
    let vector = kinds.iter().any(|k| {
        matches!(
            k,
            xmm_reg | xmm_rm | xmm_vvvv | xmm_is4 | xmm_or_mem | ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 | ymm_or_mem
        )
    });
    let mxcsr = matches!(code, Code::Ldmxcsr_m32 | Code::Stmxcsr_m32);
    match action {
        _ if code == Code::Wait => Family::Wait,
        _ if x87 => Family::X87,
        Action::Fence | Action::Crc => Family::General,
        Action::State if !mxcsr && !vex => Family::State,
        _ if vex && (vector || features.contains(&CpuidFeature::AVX)) => Family::Avx,
        _ if vex => Family::VexGeneral,
        _ if vector || mxcsr => Family::Sse,
        _ if kinds.iter().any(|k| matches!(k, mm_reg | mm_rm | mm_or_mem)) || code == Code::Emms => Family::Mmx,
        _ => Family::General,
    }
}

/// Instructions that Rust executes, because the host's own would show host state, or touch more or less memory.
#[rustfmt::skip]
fn by_hand(code: Code) -> Option<Action> {
    use Code::*;
    Some(match code {
        Wait | Fninit | Fnclex | Fneni | Fndisi | Fnsetpm
        | Fldcw_m2byte | Fnstcw_m2byte | Fnstsw_m2byte | Fnstsw_AX
        | Fldenv_m14byte | Fldenv_m28byte | Fnstenv_m14byte | Fnstenv_m28byte
        | Frstor_m94byte | Frstor_m108byte | Fnsave_m94byte | Fnsave_m108byte => Action::Control,
        Fxsave_m512byte | Fxrstor_m512byte | Xsave_mem | Xsaveopt_mem | Xsavec_mem | Xrstor_mem | Xgetbv | Xsetbv
        | Ldmxcsr_m32 | Stmxcsr_m32 | VEX_Vldmxcsr_m32 | VEX_Vstmxcsr_m32 => Action::State,
        Maskmovq_rDI_mm_mm | Maskmovdqu_rDI_xmm_xmm | VEX_Vmaskmovdqu_rDI_xmm_xmm
        | VEX_Vmaskmovps_xmm_xmm_m128 | VEX_Vmaskmovps_ymm_ymm_m256 | VEX_Vmaskmovps_m128_xmm_xmm | VEX_Vmaskmovps_m256_ymm_ymm
        | VEX_Vmaskmovpd_xmm_xmm_m128 | VEX_Vmaskmovpd_ymm_ymm_m256 | VEX_Vmaskmovpd_m128_xmm_xmm | VEX_Vmaskmovpd_m256_ymm_ymm
        | VEX_Vpmaskmovd_xmm_xmm_m128 | VEX_Vpmaskmovd_ymm_ymm_m256 | VEX_Vpmaskmovd_m128_xmm_xmm | VEX_Vpmaskmovd_m256_ymm_ymm
        | VEX_Vpmaskmovq_xmm_xmm_m128 | VEX_Vpmaskmovq_ymm_ymm_m256 | VEX_Vpmaskmovq_m128_xmm_xmm | VEX_Vpmaskmovq_m256_ymm_ymm
        | VEX_Vpgatherdd_xmm_vm32x_xmm | VEX_Vpgatherdd_ymm_vm32y_ymm | VEX_Vpgatherdq_xmm_vm32x_xmm | VEX_Vpgatherdq_ymm_vm32x_ymm
        | VEX_Vpgatherqd_xmm_vm64x_xmm | VEX_Vpgatherqd_xmm_vm64y_xmm | VEX_Vpgatherqq_xmm_vm64x_xmm | VEX_Vpgatherqq_ymm_vm64y_ymm
        | VEX_Vgatherdps_xmm_vm32x_xmm | VEX_Vgatherdps_ymm_vm32y_ymm | VEX_Vgatherdpd_xmm_vm32x_xmm | VEX_Vgatherdpd_ymm_vm32x_ymm
        | VEX_Vgatherqps_xmm_vm64x_xmm | VEX_Vgatherqps_xmm_vm64y_xmm | VEX_Vgatherqpd_xmm_vm64x_xmm | VEX_Vgatherqpd_ymm_vm64y_ymm
        => Action::Masked,
        Crc32_r32_rm8 | Crc32_r32_rm16 | Crc32_r32_rm32 => Action::Crc,
        Sfence | Sfence_F9 | Sfence_FA | Sfence_FB | Sfence_FC | Sfence_FD | Sfence_FE | Sfence_FF
        | Lfence | Lfence_E9 | Lfence_EA | Lfence_EB | Lfence_EC | Lfence_ED | Lfence_EE | Lfence_EF
        | Mfence | Mfence_F1 | Mfence_F2 | Mfence_F3 | Mfence_F4 | Mfence_F5 | Mfence_F6 | Mfence_F7 => Action::Fence,
        _ => return None,
    })
}

/// True if every feature is one whose data instructions may run in a stub.
fn native_features(features: &[CpuidFeature]) -> bool {
    use CpuidFeature::*;
    features.iter().all(|f| {
        matches!(
            f,
            FPU | FPU287
                | FPU387
                | CMOV
                | MMX
                | SSE
                | SSE2
                | SSE3
                | SSSE3
                | SSE4_1
                | SSE4_2
                | AES
                | PCLMULQDQ
                | SHA
                | AVX
                | AVX2
                | FMA
                | F16C
                | BMI1
                | BMI2
                | ADX
        )
    }) && *features != [CMOV]
}

/// True if no operand needs more than a register that the stub carries or its one memory operand.
fn native_operands(code: Code, kinds: &[Kind]) -> bool {
    use Kind::*;
    let register = |k: &Kind| {
        matches!(
            k,
            mm_reg
                | mm_rm
                | mm_or_mem
                | xmm_reg
                | xmm_rm
                | xmm_vvvv
                | xmm_is4
                | xmm_or_mem
                | ymm_reg
                | ymm_rm
                | ymm_vvvv
                | ymm_is4
                | ymm_or_mem
                | r32_reg
                | r32_rm
                | r32_vvvv
                | r32_or_mem
                | st0
                | sti_opcode
        )
    };
    let prefetch = matches!(
        code,
        Code::Prefetchnta_m8
            | Code::Prefetcht0_m8
            | Code::Prefetcht1_m8
            | Code::Prefetcht2_m8
            | Code::Fstenv_m14byte
            | Code::Fstenv_m28byte
            | Code::Fsave_m94byte
            | Code::Fsave_m108byte
            | Code::Fstcw_m2byte
            | Code::Fstsw_m2byte
            | Code::Feni
            | Code::Fdisi
            | Code::Fclex
            | Code::Finit
            | Code::Fsetpm
    );
    !prefetch && kinds.iter().all(|k| register(k) || matches!(k, imm8 | mem))
}

/// x87 instructions that do not raise a pending exception first.
fn non_waiting(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Fninit
            | Fnclex
            | Fneni
            | Fndisi
            | Fnsetpm
            | Fnstcw_m2byte
            | Fnstsw_m2byte
            | Fnstsw_AX
            | Fnstenv_m14byte
            | Fnstenv_m28byte
            | Fnsave_m94byte
            | Fnsave_m108byte
    )
}

/// Legacy SSE demands 16-byte alignment but for the unaligned moves and the string compares; VEX only in the moves that
/// say so by name (SDM vol. 2, tables 2-18 and following).
fn requires_alignment(code: Code, vex: bool) -> bool {
    use Code::*;
    if vex {
        return matches!(
            code,
            VEX_Vmovaps_xmm_xmmm128
                | VEX_Vmovaps_ymm_ymmm256
                | VEX_Vmovaps_xmmm128_xmm
                | VEX_Vmovaps_ymmm256_ymm
                | VEX_Vmovapd_xmm_xmmm128
                | VEX_Vmovapd_ymm_ymmm256
                | VEX_Vmovapd_xmmm128_xmm
                | VEX_Vmovapd_ymmm256_ymm
                | VEX_Vmovdqa_xmm_xmmm128
                | VEX_Vmovdqa_ymm_ymmm256
                | VEX_Vmovdqa_xmmm128_xmm
                | VEX_Vmovdqa_ymmm256_ymm
                | VEX_Vmovntps_m128_xmm
                | VEX_Vmovntps_m256_ymm
                | VEX_Vmovntpd_m128_xmm
                | VEX_Vmovntpd_m256_ymm
                | VEX_Vmovntdq_m128_xmm
                | VEX_Vmovntdq_m256_ymm
                | VEX_Vmovntdqa_xmm_m128
                | VEX_Vmovntdqa_ymm_m256
        );
    }
    !matches!(
        code,
        Movups_xmm_xmmm128
            | Movups_xmmm128_xmm
            | Movupd_xmm_xmmm128
            | Movupd_xmmm128_xmm
            | Movdqu_xmm_xmmm128
            | Movdqu_xmmm128_xmm
            | Lddqu_xmm_m128
            | Pcmpestri_xmm_xmmm128_imm8
            | Pcmpestrm_xmm_xmmm128_imm8
            | Pcmpistri_xmm_xmmm128_imm8
            | Pcmpistrm_xmm_xmmm128_imm8
    )
}
