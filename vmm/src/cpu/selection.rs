//! The processor that an operator asks for: `max`, which has all that works on this host, then features to leave out
//! (`-avx2`) or to put back (`+avx2`), in order, separated by commas.
//!
//! Names are the manuals', in lower case. Those of IA32_ARCH_CAPABILITIES say which faults of real processors this one
//! does not have: leaving one out makes a guest defend itself against it.

use super::{CpuModel, Feature, arch_capabilities as arch};

/// What a name stands for.
#[derive(Clone, Copy)]
enum Switch {
    Feature(Feature),
    /// A bit of IA32_ARCH_CAPABILITIES.
    Arch(u64),
}

/// Every name, in the order of the manuals' tables.
const NAMES: &[(&str, Switch)] = {
    use Feature::*;
    use Switch::Feature as F;
    &[
        ("fpu", F(Fpu)),
        ("de", F(De)),
        ("pse", F(Pse)),
        ("tsc", F(Tsc)),
        ("msr", F(Msr)),
        ("pae", F(Pae)),
        ("mce", F(Mce)),
        ("cx8", F(Cx8)),
        ("apic", F(Apic)),
        ("sep", F(Sep)),
        ("mtrr", F(Mtrr)),
        ("pge", F(Pge)),
        ("mca", F(Mca)),
        ("cmov", F(Cmov)),
        ("pat", F(Pat)),
        ("pse36", F(Pse36)),
        ("clfsh", F(Clfsh)),
        ("mmx", F(Mmx)),
        ("fxsr", F(Fxsr)),
        ("sse", F(Sse)),
        ("sse2", F(Sse2)),
        ("sse3", F(Sse3)),
        ("ssse3", F(Ssse3)),
        ("sse4.1", F(Sse41)),
        ("sse4.2", F(Sse42)),
        ("popcnt", F(Popcnt)),
        ("movbe", F(Movbe)),
        ("nx", F(Nx)),
        ("x2apic", F(X2apic)),
        ("tsc-deadline", F(TscDeadline)),
        ("tsc-adjust", F(TscAdjust)),
        ("invariant-tsc", F(InvariantTsc)),
        ("rdtscp", F(Rdtscp)),
        ("umip", F(Umip)),
        ("erms", F(Erms)),
        ("hypervisor", F(Hypervisor)),
        ("lzcnt", F(Lzcnt)),
        ("bmi1", F(Bmi1)),
        ("bmi2", F(Bmi2)),
        ("adx", F(Adx)),
        ("aes", F(Aes)),
        ("pclmulqdq", F(Pclmulqdq)),
        ("rdrand", F(Rdrand)),
        ("rdseed", F(Rdseed)),
        ("sha", F(Sha)),
        ("xsave", F(Xsave)),
        ("avx", F(Avx)),
        ("avx2", F(Avx2)),
        ("fma", F(Fma)),
        ("f16c", F(F16c)),
        ("spec-ctrl", F(SpecCtrl)),
        ("flush-l1d", F(FlushL1d)),
        ("arch-capabilities", F(ArchCapabilities)),
        ("rdcl-no", Switch::Arch(arch::RDCL_NO)),
        ("ibrs-all", Switch::Arch(arch::IBRS_ALL)),
        ("skip-l1dfl-vmentry", Switch::Arch(arch::SKIP_L1DFL_VMENTRY)),
        ("ssb-no", Switch::Arch(arch::SSB_NO)),
        ("mds-no", Switch::Arch(arch::MDS_NO)),
        ("pschange-mc-no", Switch::Arch(arch::PSCHANGE_MC_NO)),
        ("taa-no", Switch::Arch(arch::TAA_NO)),
        ("sbdr-ssdp-no", Switch::Arch(arch::SBDR_SSDP_NO)),
        ("fbsdp-no", Switch::Arch(arch::FBSDP_NO)),
        ("psdp-no", Switch::Arch(arch::PSDP_NO)),
        ("bhi-no", Switch::Arch(arch::BHI_NO)),
        ("pbrsb-no", Switch::Arch(arch::PBRSB_NO)),
        ("gds-no", Switch::Arch(arch::GDS_NO)),
        ("rfds-no", Switch::Arch(arch::RFDS_NO)),
        ("its-no", Switch::Arch(arch::ITS_NO)),
    ]
};

/// Why there is no such processor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// Not a model.
    #[error("there is no CPU model `{0}`: the one there is, `max`, has all that works on this host")]
    Model(String),
    /// Neither + nor -.
    #[error("CPU feature `{0}`: write +{0} to have it or -{0} to leave it out")]
    Sign(String),
    /// Not a feature.
    #[error("there is no CPU feature `{0}`; there are {all}", all = selectable())]
    Unknown(String),
    /// Not on this host.
    #[error("CPU feature `{0}` cannot be had: this host's processor has not got it")]
    Absent(String),
}

/// The names of all that can be switched.
pub fn selectable() -> String {
    NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

impl std::str::FromStr for CpuModel {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, SelectionError> {
        let mut items = text.split(',').map(str::trim);
        let mut model = match items.next() {
            Some("max") => Self::default(),
            other => return Err(SelectionError::Model(other.unwrap_or_default().into())),
        };
        items.try_for_each(|item| model.switch(item))?;
        Ok(model)
    }
}

impl CpuModel {
    fn switch(&mut self, item: &str) -> Result<(), SelectionError> {
        let (on, name) = match (item.strip_prefix('+'), item.strip_prefix('-')) {
            (Some(name), _) => (true, name),
            (_, Some(name)) => (false, name),
            _ => return Err(SelectionError::Sign(item.into())),
        };
        let found = NAMES.iter().find(|(known, _)| *known == name);
        match found.ok_or_else(|| SelectionError::Unknown(name.into()))?.1 {
            Switch::Feature(feature) if on && !Self::default().has(feature) => {
                return Err(SelectionError::Absent(name.into()));
            }
            Switch::Feature(feature) => self.set(feature, on),
            Switch::Arch(bit) if on => self.arch_capabilities |= bit,
            Switch::Arch(bit) => self.arch_capabilities &= !bit,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<CpuModel, SelectionError> {
        text.parse()
    }

    #[test]
    fn features_go_and_come_back() {
        assert_eq!(parse("max"), Ok(CpuModel::default()));
        let model = parse("max,-sse2, -arch-capabilities,-rdcl-no,-mds-no,+mds-no").unwrap();
        assert!(!model.has(Feature::Sse2) && !model.has(Feature::ArchCapabilities) && model.has(Feature::Sse));
        assert_eq!(model.arch_capabilities, arch::DEFAULT & !arch::RDCL_NO);
        assert!(model.reduced() && !parse("max,-rdcl-no").unwrap().reduced());
        assert!(parse("max,-sse2,+sse2").unwrap().has(Feature::Sse2));
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(parse(""), Err(SelectionError::Model("".into())));
        assert_eq!(parse("host,-sse"), Err(SelectionError::Model("host".into())));
        assert_eq!(parse("max,sse"), Err(SelectionError::Sign("sse".into())));
        let unknown = parse("max,-sse9").unwrap_err();
        assert!(unknown.to_string().contains("`sse9`") && unknown.to_string().contains("sse4.2"));
    }

    #[test]
    fn every_name_is_one_thing() {
        for (i, (name, _)) in NAMES.iter().enumerate() {
            assert!(NAMES[..i].iter().all(|(other, _)| other != name), "{name} twice");
            assert!(parse(&format!("max,-{name}")).unwrap() != CpuModel::default(), "-{name} changes nothing");
        }
    }
}
