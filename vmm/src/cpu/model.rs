//! What kind of processor the guest sees: a set of features that can be switched, and the figures that identify it.

use std::arch::is_x86_feature_detected as host_has;

/// A feature that CPUID can announce. The place of each bit is in `cpuid`'s table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Feature {
    // What every 32-bit Linux may expect of a processor of this age.
    Fpu,
    De,
    Pse,
    Tsc,
    Msr,
    Pae,
    Mce,
    Cx8,
    Apic,
    Sep,
    Mtrr,
    Pge,
    Mca,
    Cmov,
    Pat,
    Pse36,
    Clfsh,
    Mmx,
    Fxsr,
    Sse,
    Sse2,
    Sse3,
    Ssse3,
    Sse41,
    Sse42,
    Popcnt,
    Movbe,
    Nx,
    X2apic,
    TscDeadline,
    TscAdjust,
    InvariantTsc,
    Rdtscp,
    Umip,
    Erms,
    Hypervisor,
    Smep,
    /// FDP and FOP follow x87 instructions that raise unmasked exceptions only.
    FdpExceptionOnly,
    /// FCS and FDS read as zero.
    FcsFdsDeprecated,
    // Instruction sets that need the host's help.
    Lzcnt,
    Bmi1,
    Bmi2,
    Adx,
    Aes,
    Pclmulqdq,
    Rdrand,
    Rdseed,
    Sha,
    Xsave,
    Avx,
    Avx2,
    Fma,
    F16c,
    // Speculation control.
    SpecCtrl,
    FlushL1d,
    ArchCapabilities,
}

/// Bits of IA32_ARCH_CAPABILITIES (SDM vol. 4, MSR 10Ah).
pub mod arch_capabilities {
    #![allow(missing_docs)]
    pub const RDCL_NO: u64 = 1 << 0;
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    pub const SSB_NO: u64 = 1 << 4;
    pub const MDS_NO: u64 = 1 << 5;
    pub const PSCHANGE_MC_NO: u64 = 1 << 6;
    pub const TAA_NO: u64 = 1 << 8;
    pub const SBDR_SSDP_NO: u64 = 1 << 13;
    pub const FBSDP_NO: u64 = 1 << 14;
    pub const PSDP_NO: u64 = 1 << 15;
    pub const BHI_NO: u64 = 1 << 20;
    pub const PBRSB_NO: u64 = 1 << 24;
    pub const GDS_NO: u64 = 1 << 26;
    pub const RFDS_NO: u64 = 1 << 27;
    pub const ITS_NO: u64 = 1 << 62;
    /// All of the above. A guest's privilege is a virtual value under the translator, so its own barriers buy nothing;
    /// and Bulkhead's threat model already assumes that a guest can read the whole process that executes it.
    pub const DEFAULT: u64 = RDCL_NO
        | IBRS_ALL
        | SKIP_L1DFL_VMENTRY
        | SSB_NO
        | MDS_NO
        | PSCHANGE_MC_NO
        | TAA_NO
        | SBDR_SSDP_NO
        | FBSDP_NO
        | PSDP_NO
        | BHI_NO
        | PBRSB_NO
        | GDS_NO
        | RFDS_NO
        | ITS_NO;
}

/// The processor that a guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// Bit n: the [`Feature`] with number n.
    features: u64,
    /// A feature was switched off.
    reduced: bool,
    /// Family, model and stepping as CPUID.1:EAX shows them.
    pub signature: u32,
    /// Brand string; the first 47 bytes are shown.
    pub brand: String,
    /// IA32_ARCH_CAPABILITIES, shown if [`Feature::ArchCapabilities`] is on.
    pub arch_capabilities: u64,
    /// Processors of the package, for the topology leaves.
    pub processors: u32,
}

impl Default for CpuModel {
    /// Everything that works on this host.
    fn default() -> Self {
        let mut model = Self {
            features: 0,
            reduced: false,
            signature: 0x0008_06f8,
            brand: "Bulkhead virtual CPU".into(),
            arch_capabilities: arch_capabilities::DEFAULT,
            processors: 1,
        };
        for feature in BASE {
            model.set(*feature, true);
        }
        for (feature, present) in host_features() {
            model.set(feature, present);
        }
        // What the host lacks faults on it, and is then interpreted.
        model.reduced = false;
        model
    }
}

/// On by default whatever the host.
const BASE: &[Feature] = {
    use Feature::*;
    &[
        Fpu,
        De,
        Pse,
        Tsc,
        Msr,
        Pae,
        Mce,
        Cx8,
        Apic,
        Sep,
        Mtrr,
        Pge,
        Mca,
        Cmov,
        Pat,
        Pse36,
        Clfsh,
        Mmx,
        Fxsr,
        Sse,
        Sse2,
        Nx,
        X2apic,
        TscDeadline,
        TscAdjust,
        Rdtscp,
        Umip,
        Erms,
        Hypervisor,
        SpecCtrl,
        FlushL1d,
        ArchCapabilities,
        FdpExceptionOnly,
        FcsFdsDeprecated,
    ]
};

/// On by default where the host has them: their instructions run on its own.
fn host_features() -> [(Feature, bool); 21] {
    use Feature::*;
    [
        (Sse3, host_has!("sse3")),
        (Ssse3, host_has!("ssse3")),
        (Sse41, host_has!("sse4.1")),
        (Sse42, host_has!("sse4.2")),
        (Popcnt, host_has!("popcnt")),
        (Movbe, host_has!("movbe")),
        (Lzcnt, host_has!("lzcnt")),
        (Bmi1, host_has!("bmi1")),
        (Bmi2, host_has!("bmi2")),
        (Adx, host_has!("adx")),
        (Aes, host_has!("aes")),
        (Pclmulqdq, host_has!("pclmulqdq")),
        (Rdrand, host_has!("rdrand")),
        (Rdseed, host_has!("rdseed")),
        (Sha, host_has!("sha")),
        (Xsave, host_has!("xsave")),
        (Avx, host_has!("avx")),
        (Avx2, host_has!("avx2")),
        (Fma, host_has!("fma")),
        (F16c, host_has!("f16c")),
        (InvariantTsc, invariant_tsc()),
    ]
}

/// CPUID.80000007H:EDX[8] of the host: its TSC, and so the guest's, ticks at one rate and never stops.
fn invariant_tsc() -> bool {
    let cpuid = core::arch::x86_64::__cpuid;
    cpuid(0x8000_0000).eax >= 0x8000_0007 && cpuid(0x8000_0007).edx & 1 << 8 != 0
}

impl CpuModel {
    /// True if the feature is on and so is everything that it rests on.
    pub fn has(&self, feature: Feature) -> bool {
        use Feature::*;
        let on = self.features & 1 << feature as u8 != 0;
        on && match feature {
            Avx => self.has(Xsave),
            Avx2 | Fma | F16c => self.has(Avx),
            X2apic | TscDeadline => self.has(Apic),
            _ => true,
        }
    }

    /// Switches a feature.
    pub fn set(&mut self, feature: Feature, on: bool) {
        let bit = 1 << feature as u8;
        self.features = if on { self.features | bit } else { self.features & !bit };
        self.reduced |= !on;
    }

    /// True if a feature that the host may have is not the guest's.
    pub fn reduced(&self) -> bool {
        self.reduced
    }

    /// State components that XCR0 may enable: x87 and SSE, and AVX.
    pub fn xcr0_mask(&self) -> u64 {
        if self.has(Feature::Avx) { 7 } else { 3 }
    }
}
