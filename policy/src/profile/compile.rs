//! From a profile to seccomp programs.
//!
//! Programs stack, and the sternest verdict wins: end the process before fail, fail before allow. So a call that is to
//! *fail* must be allowed by the main program and refused by one of its own.

use std::collections::BTreeMap;

use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use super::{Condition, Facts, Profile, Rule};

/// The profile could not be compiled.
#[derive(Debug, thiserror::Error)]
#[error("compiling the profile of role {role}")]
pub struct CompileError {
    role: &'static str,
    source: BackendError,
}

impl Profile {
    /// The programs, in the order in which they must be installed: the last one forbids installing more.
    pub fn compile(&self, facts: Facts) -> Result<Vec<BpfProgram>, CompileError> {
        let error = |source| CompileError { role: self.role.name(), source };
        let mut programs = Vec::new();
        for errno in [nix::Error::ENOSYS, nix::Error::EPERM] {
            programs.extend(self.refusing(errno).map_err(error)?);
        }
        programs.push(self.allowing(facts).map_err(error)?);
        Ok(programs)
    }

    /// Calls that fail with `errno`; None if there are none.
    fn refusing(&self, errno: nix::Error) -> Result<Option<BpfProgram>, BackendError> {
        let of_errno = self.refusals.iter().filter(|r| r.errno == errno);
        let rules: BTreeMap<i64, Vec<SeccompRule>> =
            of_errno.map(|r| (i64::from(r.syscall.id()), Vec::new())).collect();
        if rules.is_empty() {
            return Ok(None);
        }
        let refuse = SeccompAction::Errno(errno as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?;
        BpfProgram::try_from(filter).map(Some)
    }

    /// Everything else ends the process, by way of SIGSYS so that it can say why.
    fn allowing(&self, facts: Facts) -> Result<BpfProgram, BackendError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for rule in &self.rules {
            let alternatives = rules.entry(i64::from(rule.syscall.id())).or_default();
            alternatives.extend(conditions(rule, facts)?);
        }
        for refusal in &self.refusals {
            rules.insert(i64::from(refusal.syscall.id()), Vec::new());
        }
        SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
    }
}

/// A rule without conditions is an empty list of alternatives, which matches always.
fn conditions(rule: &Rule, facts: Facts) -> Result<Option<SeccompRule>, BackendError> {
    if rule.when.is_empty() {
        return Ok(None);
    }
    let all = rule.when.iter().map(|c: &Condition| c.compile(facts)).collect::<Result<Vec<_>, _>>()?;
    SeccompRule::new(all).map(Some)
}
