//! Whether an instruction may execute now: CPUID features, CR0, CR4, XCR0 and pending x87 exceptions.

use iced_x86::{CpuidFeature, Instruction};

use super::classify::{Entry, Family};
use crate::cpu::{Flow, Stop, Unsupported, Vcpu, cr0, cr4, seg, vector};
use crate::engine::features;

/// SSE and AVX state enabled in XCR0.
const XCR0_AVX: u64 = 6;

/// The checks that precede any access to memory, in the processor's order of priority.
pub fn check(vcpu: &Vcpu, entry: &Entry, insn: &Instruction) -> Flow<()> {
    let s = &vcpu.state;
    if !entry.features.iter().all(|f| features::has(&vcpu.model, *f)) {
        return Err(Stop::ud());
    }
    let undefined = match entry.family {
        Family::Mmx => s.cr0 & cr0::EM != 0,
        Family::Sse => s.cr0 & cr0::EM != 0 || s.cr4 & cr4::OSFXSR == 0,
        Family::Avx => s.real_or_v8086() || s.cr4 & cr4::OSXSAVE == 0 || s.xcr0 & XCR0_AVX != XCR0_AVX,
        Family::VexGeneral => s.real_or_v8086(),
        Family::X87 | Family::Wait | Family::General | Family::State => false,
    };
    let unavailable = match entry.family {
        Family::X87 => s.cr0 & (cr0::EM | cr0::TS) != 0,
        Family::Wait => s.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS,
        Family::Mmx | Family::Sse | Family::Avx => s.cr0 & cr0::TS != 0,
        Family::VexGeneral | Family::General | Family::State => false,
    };
    match (undefined, unavailable) {
        (true, _) => Err(Stop::ud()),
        (false, true) => Err(Stop::plain(vector::NM)),
        _ if entry.waits(insn) => check_x87(vcpu, insn),
        _ => Ok(()),
    }
}

/// #MF if an unmasked x87 exception is pending. With CR0.NE clear the PC reports it through FERR# and IRQ 13 instead,
/// which the board does not wire.
fn check_x87(vcpu: &Vcpu, insn: &Instruction) -> Flow<()> {
    if !vcpu.state.xsave.x87_pending() {
        return Ok(());
    }
    if vcpu.state.cr0 & cr0::NE != 0 {
        return Err(Stop::plain(vector::MF));
    }
    Err(unsupported(vcpu, insn, "an unmasked x87 exception with CR0.NE = 0 (FERR# and IRQ 13)".into()))
}

/// A stop that names `insn` and what it lacks.
pub fn unsupported(vcpu: &Vcpu, insn: &Instruction, feature: String) -> Stop {
    Stop::Unsupported(Box::new(Unsupported {
        instruction: insn.to_string(),
        cs: vcpu.state.seg[seg::CS].selector,
        eip: start(vcpu, insn),
        feature,
    }))
}

/// Offset of the instruction itself: EIP already points past it.
pub fn start(vcpu: &Vcpu, insn: &Instruction) -> u32 {
    let eip = vcpu.state.eip.wrapping_sub(insn.len() as u32);
    if vcpu.state.seg[seg::CS].big() { eip } else { eip & 0xffff }
}

/// True if this host's processor can run instructions of the feature. An operator may have announced more than that.
pub fn host_has(feature: CpuidFeature) -> bool {
    macro_rules! host {
        ($name:tt) => {
            std::arch::is_x86_feature_detected!($name)
        };
    }
    match feature {
        CpuidFeature::SSE3 => host!("sse3"),
        CpuidFeature::SSSE3 => host!("ssse3"),
        CpuidFeature::SSE4_1 => host!("sse4.1"),
        CpuidFeature::SSE4_2 => host!("sse4.2"),
        CpuidFeature::AES => host!("aes"),
        CpuidFeature::PCLMULQDQ => host!("pclmulqdq"),
        CpuidFeature::SHA => host!("sha"),
        CpuidFeature::AVX => host!("avx"),
        CpuidFeature::AVX2 => host!("avx2"),
        CpuidFeature::FMA => host!("fma"),
        CpuidFeature::F16C => host!("f16c"),
        CpuidFeature::BMI1 => host!("bmi1"),
        CpuidFeature::BMI2 => host!("bmi2"),
        CpuidFeature::ADX => host!("adx"),
        // Every x86-64 processor has the rest.
        _ => true,
    }
}
