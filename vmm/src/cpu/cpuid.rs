//! CPUID (SDM vol. 2, CPUID): one coherent processor, drawn from [`CpuModel`](super::CpuModel).

use super::{Feature, Vcpu, cr4};
use crate::mmu::PHYSICAL_BITS;

/// Highest basic leaf: XSAVE's.
const MAX_BASIC: u32 = 0xd;
/// Highest extended leaf: address sizes.
const MAX_EXTENDED: u32 = 0x8000_0008;
/// The hypervisor leaves; only the signature, no paravirtual interface.
const HYPERVISOR: u32 = 0x4000_0000;
/// Cache line in bytes.
const LINE: u32 = 64;

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Where each feature's bit is: leaf (subleaf 0), register, bit.
const BITS: &[(Feature, u32, usize, u32)] = {
    use Feature::*;
    &[
        (Fpu, 1, EDX, 0),
        (De, 1, EDX, 2),
        (Pse, 1, EDX, 3),
        (Tsc, 1, EDX, 4),
        (Msr, 1, EDX, 5),
        (Pae, 1, EDX, 6),
        (Mce, 1, EDX, 7),
        (Cx8, 1, EDX, 8),
        (Apic, 1, EDX, 9),
        (Sep, 1, EDX, 11),
        (Mtrr, 1, EDX, 12),
        (Pge, 1, EDX, 13),
        (Mca, 1, EDX, 14),
        (Cmov, 1, EDX, 15),
        (Pat, 1, EDX, 16),
        (Pse36, 1, EDX, 17),
        (Clfsh, 1, EDX, 19),
        (Mmx, 1, EDX, 23),
        (Fxsr, 1, EDX, 24),
        (Sse, 1, EDX, 25),
        (Sse2, 1, EDX, 26),
        (Sse3, 1, ECX, 0),
        (Pclmulqdq, 1, ECX, 1),
        (Ssse3, 1, ECX, 9),
        (Fma, 1, ECX, 12),
        (Sse41, 1, ECX, 19),
        (Sse42, 1, ECX, 20),
        (X2apic, 1, ECX, 21),
        (Movbe, 1, ECX, 22),
        (Popcnt, 1, ECX, 23),
        (TscDeadline, 1, ECX, 24),
        (Aes, 1, ECX, 25),
        (Xsave, 1, ECX, 26),
        (Avx, 1, ECX, 28),
        (F16c, 1, ECX, 29),
        (Rdrand, 1, ECX, 30),
        (Hypervisor, 1, ECX, 31),
        (TscAdjust, 7, EBX, 1),
        (Bmi1, 7, EBX, 3),
        (Avx2, 7, EBX, 5),
        (FdpExceptionOnly, 7, EBX, 6),
        (Smep, 7, EBX, 7),
        (Bmi2, 7, EBX, 8),
        (Erms, 7, EBX, 9),
        (FcsFdsDeprecated, 7, EBX, 13),
        (Rdseed, 7, EBX, 18),
        (Adx, 7, EBX, 19),
        (Sha, 7, EBX, 29),
        (Umip, 7, ECX, 2),
        (SpecCtrl, 7, EDX, 26),
        (FlushL1d, 7, EDX, 28),
        (ArchCapabilities, 7, EDX, 29),
        (Lzcnt, 0x8000_0001, ECX, 5),
        (Nx, 0x8000_0001, EDX, 20),
        (Rdtscp, 0x8000_0001, EDX, 27),
        (InvariantTsc, 0x8000_0007, EDX, 8),
    ]
};

impl Vcpu {
    /// CPUID: EAX, EBX, ECX, EDX. A leaf beyond the highest basic one shows that one, as Intel's processors do.
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match leaf {
            0x8000_0000..=MAX_EXTENDED => self.extended_leaf(leaf),
            HYPERVISOR if self.model.has(Feature::Hypervisor) => signature(HYPERVISOR, b"BulkheadBulk"),
            0..=MAX_BASIC => self.basic_leaf(leaf, subleaf),
            _ => self.basic_leaf(MAX_BASIC, subleaf),
        }
    }

    fn basic_leaf(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match leaf {
            0 => {
                let [max, b, c, d] = signature(MAX_BASIC, b"GenuineIntel");
                // The leaf's order is EBX, EDX, ECX.
                [max, b, d, c]
            }
            1 => self.version_leaf(),
            // Caches are described by leaf 4; prefetch is 64 bytes.
            2 => [0x00fe_ff01, 0xf0, 0, 0],
            4 => self.cache_leaf(subleaf),
            // The APIC timer runs in every sleep state.
            6 => [1 << 2, 0, 0, 0],
            7 if subleaf == 0 => self.feature_leaf(7),
            0xb => self.topology_leaf(subleaf),
            0xd => self.xsave_leaf(subleaf),
            _ => [0; 4],
        }
    }

    fn extended_leaf(&self, leaf: u32) -> [u32; 4] {
        match leaf {
            0x8000_0000 => [MAX_EXTENDED, 0, 0, 0],
            0x8000_0002..=0x8000_0004 => self.brand_leaf(leaf - 0x8000_0002),
            // L2: 1 MiB, 16 ways.
            0x8000_0006 => [0, 0, 1024 << 16 | 8 << 12 | LINE, 0],
            0x8000_0008 => [PHYSICAL_BITS | 32 << 8, 0, 0, 0],
            _ => self.feature_leaf(leaf),
        }
    }

    /// The bits of every feature that is on and shows in `leaf`.
    fn feature_leaf(&self, leaf: u32) -> [u32; 4] {
        let mut registers = [0; 4];
        for (feature, _, register, bit) in BITS.iter().filter(|b| b.1 == leaf) {
            if self.shows(*feature) {
                registers[*register] |= 1 << bit;
            }
        }
        registers
    }

    fn version_leaf(&self) -> [u32; 4] {
        let mut leaf = self.feature_leaf(1);
        leaf[EAX] = self.model.signature;
        leaf[EBX] = (self.index as u32) << 24 | self.model.processors.min(255) << 16 | (LINE / 8) << 8;
        if self.state.cr4 & cr4::OSXSAVE != 0 {
            leaf[ECX] |= 1 << 27;
        }
        if self.model.processors > 1 {
            leaf[EDX] |= 1 << 28;
        }
        leaf
    }

    /// The model's features, less those of a local APIC that the board does not have. One that IA32_APIC_BASE disables
    /// loses its own bit (SDM vol. 3, §10.4.3).
    fn shows(&self, feature: Feature) -> bool {
        let apic_base = || self.bus.apic_msr_read(self.index, super::msr::APIC_BASE);
        self.model.has(feature)
            && match feature {
                Feature::Apic => apic_base().is_some_and(|base| base & 1 << 11 != 0),
                Feature::X2apic | Feature::TscDeadline => apic_base().is_some(),
                _ => true,
            }
    }

    /// Deterministic cache parameters: L1 data and code 32 KiB, L2 1 MiB, L3 16 MiB.
    fn cache_leaf(&self, subleaf: u32) -> [u32; 4] {
        let (kind, level, ways, sets) = match subleaf {
            0 => (1, 1, 8, 64),
            1 => (2, 1, 8, 64),
            2 => (3, 2, 16, 1024),
            3 => (3, 3, 16, 16384),
            _ => return [0; 4],
        };
        let sharing = if level == 3 { self.model.processors.clamp(1, 4096) - 1 } else { 0 };
        let cores = self.model.processors.clamp(1, 64) - 1;
        let self_initializing = 1 << 8;
        [
            kind | level << 5 | self_initializing | sharing << 14 | cores << 26,
            (ways - 1) << 22 | (LINE - 1),
            sets - 1,
            0,
        ]
    }

    /// Extended topology: one thread a core, all cores in one package.
    fn topology_leaf(&self, subleaf: u32) -> [u32; 4] {
        let (level_type, shift, count) = match subleaf {
            0 => (1, 0, 1),
            1 => (2, self.model.processors.max(1).next_power_of_two().trailing_zeros(), self.model.processors),
            _ => return [0, 0, subleaf & 0xff, self.index as u32],
        };
        [shift, count & 0xffff, level_type << 8 | subleaf, self.index as u32]
    }

    /// XSAVE: component sizes in the standard format. No compaction, no supervisor state.
    fn xsave_leaf(&self, subleaf: u32) -> [u32; 4] {
        if !self.model.has(Feature::Xsave) {
            return [0; 4];
        }
        let size = |components: u64| if components & 4 != 0 { 832 } else { 576 };
        let mask = self.model.xcr0_mask();
        match subleaf {
            0 => [mask as u32, size(self.state.xcr0), size(mask), 0],
            2 if mask & 4 != 0 => [256, 576, 0, 0],
            _ => [0; 4],
        }
    }

    fn brand_leaf(&self, part: u32) -> [u32; 4] {
        let mut text = [0u8; 48];
        let n = self.model.brand.len().min(47);
        text[..n].copy_from_slice(&self.model.brand.as_bytes()[..n]);
        std::array::from_fn(|i| word(&text, part as usize * 16 + i * 4))
    }
}

/// A leaf with `eax` and twelve characters in EBX, ECX, EDX.
fn signature(eax: u32, text: &[u8; 12]) -> [u32; 4] {
    [eax, word(text, 0), word(text, 4), word(text, 8)]
}

fn word(text: &[u8], at: usize) -> u32 {
    text[at..at + 4].iter().rev().fold(0, |w, b| w << 8 | *b as u32)
}
