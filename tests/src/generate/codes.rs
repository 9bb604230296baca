//! Which instructions are generated: everything that user-mode code may execute with a result that depends on nothing
//! but the state of the case, and what is privileged, for its exception.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind as Kind};

/// What an instruction is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// General registers, flags, branches, strings, and the exceptions of privileged instructions.
    Integer,
    /// x87.
    X87,
    /// MMX, and SSE on MMX registers.
    Mmx,
    /// SSE to SSE4.2, AES, PCLMULQDQ, SHA.
    Sse,
    /// VEX.
    Avx,
}

/// Every instruction that may be generated, with its group.
pub fn all() -> Vec<(Code, Group)> {
    Code::values().filter_map(|c| group(c).map(|g| (c, g))).collect()
}

/// The group of `code`; None if it may not be generated.
pub fn group(code: Code) -> Option<Group> {
    use CpuidFeature::*;
    let op = code.op_code();
    if !op.mode32() || !op.is_instruction() || excluded(code) {
        return None;
    }
    let vex = match op.encoding() {
        EncodingKind::Legacy => false,
        EncodingKind::VEX => true,
        _ => return None,
    };
    let kinds: Vec<Kind> = (0..op.op_count()).map(|i| op.op_kind(i)).collect();
    if kinds.iter().any(|k| matches!(k, Kind::farbr2_2 | Kind::farbr4_2 | Kind::tr_reg)) {
        return None;
    }
    let features = code.cpuid_features();
    // XRSTOR is not comparable: hosts restore the compacted format too, which the guest's processor does not have.
    if code == Code::Xsave_mem {
        return Some(Group::Sse);
    }
    let known = features.iter().all(|f| {
        matches!(
            f,
            INTEL8086
                | INTEL186
                | INTEL286
                | INTEL386
                | INTEL486
                | CMOV
                | CX8
                | MULTIBYTENOP
                | POPCNT
                | LZCNT
                | BMI1
                | BMI2
                | MOVBE
                | ADX
                | PAUSE
                | CLFSH
                | PREFETCHW
                | FPU
                | FPU287
                | FPU387
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
                | FXSR
                | AVX
                | AVX2
                | FMA
                | F16C
                | MSR
        )
    });
    if !known {
        return None;
    }
    let mm = kinds.iter().any(|k| matches!(k, Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem)) || features == [MMX];
    let vector =
        |f: &CpuidFeature| matches!(f, SSE | SSE2 | SSE3 | SSSE3 | SSE4_1 | SSE4_2 | AES | PCLMULQDQ | SHA | FXSR);
    Some(match () {
        _ if features.iter().any(|f| matches!(f, FPU | FPU287 | FPU387)) || code == Code::Wait => Group::X87,
        _ if vex && !features.iter().any(|f| matches!(f, BMI1 | BMI2)) => Group::Avx,
        _ if mm => Group::Mmx,
        _ if features.iter().any(vector) => Group::Sse,
        _ => Group::Integer,
    })
}

/// Not generated: what enters the kernel or a handler, loads segments, or shows the machine rather than the state.
fn excluded(code: Code) -> bool {
    use Mnemonic::*;
    let segment_load = matches!(
        code,
        Code::Mov_Sreg_rm16
            | Code::Mov_Sreg_r32m16
            | Code::Popw_DS
            | Code::Popd_DS
            | Code::Popw_ES
            | Code::Popd_ES
            | Code::Popw_SS
            | Code::Popd_SS
            | Code::Popw_FS
            | Code::Popd_FS
            | Code::Popw_GS
            | Code::Popd_GS
    );
    let only_with_wait = matches!(
        code,
        Code::Fstenv_m14byte
            | Code::Fstenv_m28byte
            | Code::Fsave_m94byte
            | Code::Fsave_m108byte
            | Code::Fstcw_m2byte
            | Code::Fstsw_m2byte
            | Code::Fstsw_AX
            | Code::Feni
            | Code::Fdisi
            | Code::Fclex
            | Code::Finit
            | Code::Fsetpm
    );
    let far = matches!(code, Code::Call_m1616 | Code::Call_m1632 | Code::Jmp_m1616 | Code::Jmp_m1632);
    segment_load
        || far
        || only_with_wait
        || matches!(
            code.mnemonic(),
            Int | Int1
                | Int3
                | Into
                | Iret
                | Iretd
                | Retf
                | Sysenter
                | Sysexit
                | Syscall
                | Sysret
                | Cpuid
                | Rdtsc
                | Rdpmc
                | Lds
                | Les
                | Lfs
                | Lgs
                | Lss
                | Sgdt
                | Sidt
                | Sldt
                | Str
                | Smsw
                | Lar
                | Lsl
                | Verr
                | Verw
                | Rsm
                | Loadall
                | Xgetbv
                | Umov
                | Ibts
                | Xbts
                | Rdmsr
                | Wrmsr
                | Jmpe
        )
}
