//! Which instructions the guest's processor has: the model's features, as CPUID announces them.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic};

use crate::cpu::{Feature, Vcpu};

/// The feature that an integer instruction needs, where a model may lack it.
fn needs(m: Mnemonic) -> Option<Feature> {
    Some(match m {
        Mnemonic::Movbe => Feature::Movbe,
        Mnemonic::Popcnt => Feature::Popcnt,
        Mnemonic::Crc32 => Feature::Sse42,
        Mnemonic::Lzcnt => Feature::Lzcnt,
        Mnemonic::Tzcnt | Mnemonic::Andn | Mnemonic::Bextr => Feature::Bmi1,
        Mnemonic::Blsi | Mnemonic::Blsmsk | Mnemonic::Blsr => Feature::Bmi1,
        Mnemonic::Bzhi | Mnemonic::Mulx | Mnemonic::Pdep | Mnemonic::Pext => Feature::Bmi2,
        Mnemonic::Rorx | Mnemonic::Sarx | Mnemonic::Shlx | Mnemonic::Shrx => Feature::Bmi2,
        Mnemonic::Adcx | Mnemonic::Adox => Feature::Adx,
        Mnemonic::Rdtscp => Feature::Rdtscp,
        Mnemonic::Rdrand => Feature::Rdrand,
        Mnemonic::Rdseed => Feature::Rdseed,
        Mnemonic::Clflush => Feature::Clfsh,
        Mnemonic::Cmpxchg8b => Feature::Cx8,
        Mnemonic::Rdtsc => Feature::Tsc,
        Mnemonic::Sysenter | Mnemonic::Sysexit => Feature::Sep,
        _ => return None,
    })
}

/// True if the guest's processor has the instruction at all.
pub(super) fn available(v: &Vcpu, i: &Instruction) -> bool {
    // TBM's BEXTR, with an immediate, is another instruction.
    let other = matches!(i.code(), Code::XOP_Bextr_r32_rm32_imm32);
    !other && needs(i.mnemonic()).is_none_or(|f| v.model.has(f))
}

/// True if the guest's CPUID announces `feature`: then an instruction that nothing here executes is our gap, not #UD.
pub(super) fn announced(v: &Vcpu, feature: CpuidFeature) -> bool {
    let needed = match feature {
        CpuidFeature::INTEL8086 | CpuidFeature::INTEL186 | CpuidFeature::INTEL286 | CpuidFeature::INTEL386 => {
            return true;
        }
        CpuidFeature::INTEL486 | CpuidFeature::CPUID | CpuidFeature::FPU | CpuidFeature::FPU387 => Feature::Fpu,
        CpuidFeature::MMX => Feature::Mmx,
        CpuidFeature::FXSR => Feature::Fxsr,
        CpuidFeature::SSE => Feature::Sse,
        CpuidFeature::SSE2 => Feature::Sse2,
        CpuidFeature::SSE3 => Feature::Sse3,
        CpuidFeature::SSSE3 => Feature::Ssse3,
        CpuidFeature::SSE4_1 => Feature::Sse41,
        CpuidFeature::SSE4_2 => Feature::Sse42,
        CpuidFeature::AES => Feature::Aes,
        CpuidFeature::PCLMULQDQ => Feature::Pclmulqdq,
        CpuidFeature::SHA => Feature::Sha,
        CpuidFeature::XSAVE => Feature::Xsave,
        CpuidFeature::AVX => Feature::Avx,
        CpuidFeature::AVX2 => Feature::Avx2,
        CpuidFeature::FMA => Feature::Fma,
        CpuidFeature::F16C => Feature::F16c,
        CpuidFeature::CMOV => Feature::Cmov,
        _ => return false,
    };
    v.model.has(needed)
}
