//! Which instructions the guest's processor has: the model's features, as CPUID announces them. Both engines ask here.

use iced_x86::{Code, CpuidFeature, Instruction};

use crate::cpu::{CpuModel, Feature};

/// The guest's name for a CPUID feature; None for those that every model has, and those that none has.
fn name(feature: CpuidFeature) -> Option<Feature> {
    Some(match feature {
        CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 => Feature::Fpu,
        CpuidFeature::TSC => Feature::Tsc,
        CpuidFeature::MSR => Feature::Msr,
        CpuidFeature::CX8 => Feature::Cx8,
        CpuidFeature::SEP => Feature::Sep,
        CpuidFeature::CMOV => Feature::Cmov,
        CpuidFeature::CLFSH => Feature::Clfsh,
        CpuidFeature::MMX => Feature::Mmx,
        CpuidFeature::FXSR => Feature::Fxsr,
        CpuidFeature::SSE => Feature::Sse,
        CpuidFeature::SSE2 => Feature::Sse2,
        CpuidFeature::SSE3 => Feature::Sse3,
        CpuidFeature::SSSE3 => Feature::Ssse3,
        CpuidFeature::SSE4_1 => Feature::Sse41,
        CpuidFeature::SSE4_2 => Feature::Sse42,
        CpuidFeature::POPCNT => Feature::Popcnt,
        CpuidFeature::MOVBE => Feature::Movbe,
        CpuidFeature::LZCNT => Feature::Lzcnt,
        CpuidFeature::BMI1 => Feature::Bmi1,
        CpuidFeature::BMI2 => Feature::Bmi2,
        CpuidFeature::ADX => Feature::Adx,
        CpuidFeature::AES => Feature::Aes,
        CpuidFeature::PCLMULQDQ => Feature::Pclmulqdq,
        CpuidFeature::RDRAND => Feature::Rdrand,
        CpuidFeature::RDSEED => Feature::Rdseed,
        CpuidFeature::RDTSCP => Feature::Rdtscp,
        CpuidFeature::SHA => Feature::Sha,
        CpuidFeature::XSAVE => Feature::Xsave,
        CpuidFeature::AVX => Feature::Avx,
        CpuidFeature::AVX2 => Feature::Avx2,
        CpuidFeature::FMA => Feature::Fma,
        CpuidFeature::F16C => Feature::F16c,
        _ => return None,
    })
}

/// True unless `model` lacks `feature`. XSAVEOPT, XSAVEC and TBM exist on no model.
pub fn has(model: &CpuModel, feature: CpuidFeature) -> bool {
    let absent = matches!(feature, CpuidFeature::XSAVEOPT | CpuidFeature::XSAVEC | CpuidFeature::TBM);
    !absent && name(feature).is_none_or(|f| model.has(f))
}

/// True unless `model` lacks a feature that the instruction needs.
pub fn available(model: &CpuModel, i: &Instruction) -> bool {
    // TBM's BEXTR, with an immediate, is another instruction.
    let other = matches!(i.code(), Code::XOP_Bextr_r32_rm32_imm32);
    !other && i.cpuid_features().iter().all(|f| has(model, *f))
}

/// True if the guest's CPUID announces `feature`: then an instruction that nothing here executes is our gap, not #UD.
pub fn announced(model: &CpuModel, feature: CpuidFeature) -> bool {
    match feature {
        CpuidFeature::INTEL8086 | CpuidFeature::INTEL186 | CpuidFeature::INTEL286 | CpuidFeature::INTEL386 => true,
        CpuidFeature::INTEL486 | CpuidFeature::CPUID => model.has(Feature::Fpu),
        _ => name(feature).is_some_and(|f| model.has(f)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_lacks_what_was_taken_from_it_and_what_rests_on_that() {
        let mut model = CpuModel::default();
        let before = has(&model, CpuidFeature::AVX2);
        model.set(Feature::Xsave, false);
        assert!(!has(&model, CpuidFeature::XSAVE) && !has(&model, CpuidFeature::AVX2), "before: {before}");
        assert!(has(&model, CpuidFeature::SSE2) && has(&model, CpuidFeature::INTEL386));
        assert!(!has(&CpuModel::default(), CpuidFeature::XSAVEC));
        assert!(!announced(&model, CpuidFeature::AVX512F) && announced(&model, CpuidFeature::INTEL486));
    }
}
