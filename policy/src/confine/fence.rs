//! Landlock and seccomp: what the kernel refuses whatever the process may still see.

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use nix::errno::Errno;
use seccompiler::BpfProgram;

use super::{Step, missing};
use crate::layer::Layer;

/// Denies every file, TCP port, abstract socket and signal to others that this kernel's Landlock knows of: a ruleset
/// that handles all and allows nothing. Newer kinds of access are denied where the kernel has them.
pub fn landlock() -> Step {
    let fail = |source| missing(Layer::Landlock, "restricting itself with an empty ruleset", source);
    let status = restrict().map_err(|_| fail(Errno::EPERM))?;
    if status == RulesetStatus::NotEnforced { Err(fail(Errno::EOPNOTSUPP)) } else { Ok(()) }
}

fn restrict() -> Result<RulesetStatus, landlock::RulesetError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    Ok(ruleset.restrict_self()?.ruleset)
}

/// The probe: the root directory is there and anyone may list it, so EACCES can only come from Landlock.
pub fn landlock_holds() -> bool {
    let error = std::fs::read_dir("/").map(drop).err().and_then(|e| e.raw_os_error());
    error == Some(libc::EACCES)
}

/// Installs one program for this thread and all that it makes.
pub fn seccomp(program: &BpfProgram) -> nix::Result<()> {
    seccompiler::apply_filter(program).map_err(|error| match error {
        seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e) => {
            e.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
        }
        _ => Errno::EINVAL,
    })
}
