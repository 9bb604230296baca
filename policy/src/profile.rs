//! A role's profile: the system calls it may make, each with its reason, and its resource limits. Plain data, read
//! strictly from TOML; [`compile`](Profile::compile) makes seccomp programs of it.
//!
//! ```toml
//! [[allow]]
//! syscall = "mmap"
//! reason  = "memory and shadow pages; executable memory was mapped before the filter"
//! when    = ["arg2 & 0x4 == 0x0"]
//! ```
//!
//! Calls that no rule allows end the process. Several rules for one call are alternatives; all conditions of a rule must
//! hold. `[[refuse]]` names calls that fail with an error instead, for libraries that have another way. `rare` says why
//! a traced run may not meet a rule; every other rule that nothing uses fails a test.

mod compile;
mod condition;
mod limits;

use serde::Deserialize;
use syscalls::Sysno;
use toml::Spanned;

pub use compile::CompileError;
pub use condition::{Condition, Facts};
pub use limits::Limits;

use crate::role::Role;

/// System calls without which a violation could not be explained: every profile must allow them unconditionally.
const LAST_WORDS: [Sysno; 4] = [Sysno::write, Sysno::gettid, Sysno::rt_sigreturn, Sysno::exit_group];

/// A profile, checked.
#[derive(Debug)]
pub struct Profile {
    /// Whose it is.
    pub role: Role,
    /// Resource limits.
    pub limits: Limits,
    /// What is allowed, in the order of the file.
    pub rules: Vec<Rule>,
    /// What is refused with an error.
    pub refusals: Vec<Refusal>,
    /// Speculation misfeatures to turn off.
    pub speculation: Vec<Speculation>,
}

/// One `[[allow]]` of a profile.
#[derive(Debug)]
pub struct Rule {
    /// The system call.
    pub syscall: Sysno,
    /// Why the role needs it.
    pub reason: String,
    /// Conditions on its arguments, all of which must hold.
    pub when: Vec<Condition>,
    /// Why a traced run may not meet it.
    pub rare: Option<String>,
    /// Line of the file, counted from 1.
    pub line: usize,
}

/// One `[[refuse]]` of a profile: the call fails with `errno`.
#[derive(Debug)]
pub struct Refusal {
    /// The system call.
    pub syscall: Sysno,
    /// Why it is met at all.
    pub reason: String,
    /// What the caller gets.
    pub errno: nix::Error,
}

/// A kind of speculation that prctl(PR_SET_SPECULATION_CTRL) turns off for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Speculation {
    /// PR_SPEC_STORE_BYPASS: reads that overtake older stores (Spectre variant 4).
    StoreBypass,
    /// PR_SPEC_INDIRECT_BRANCH: branch targets that another process trained (Spectre variant 2).
    IndirectBranch,
}

/// What is wrong with a profile.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct ProfileError {
    file: &'static str,
    problem: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    role: String,
    #[serde(default)]
    speculation: Vec<Speculation>,
    limits: Limits,
    allow: Vec<Allow>,
    #[serde(default)]
    refuse: Vec<Refuse>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Allow {
    syscall: Spanned<String>,
    reason: String,
    #[serde(default)]
    when: Vec<String>,
    rare: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refuse {
    syscall: String,
    reason: String,
    errno: String,
}

impl Profile {
    /// The profile of `role`.
    pub fn of(role: Role) -> Result<Self, ProfileError> {
        Self::parse(role, role.text()).map_err(|problem| ProfileError { file: role.file(), problem })
    }

    fn parse(role: Role, text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        if file.role != role.name() {
            return Err(format!("it is for role `{}`, not `{role}`", file.role));
        }
        let rules = file.allow.into_iter().map(|a| a.check(text)).collect::<Result<Vec<_>, _>>()?;
        let refusals = file.refuse.into_iter().map(Refuse::check).collect::<Result<Vec<_>, _>>()?;
        let profile = Self { role, limits: file.limits, rules, refusals, speculation: file.speculation };
        profile.check()?;
        Ok(profile)
    }

    /// Refuses what contradicts itself, or could not explain itself.
    fn check(&self) -> Result<(), String> {
        for rule in &self.rules {
            let same = || self.rules.iter().filter(|r| r.syscall == rule.syscall);
            if rule.when.is_empty() && same().count() > 1 {
                return Err(format!(
                    "line {}: {} is allowed whatever its arguments, and again",
                    rule.line, rule.syscall
                ));
            }
            if self.refusals.iter().any(|r| r.syscall == rule.syscall) {
                return Err(format!("line {}: {} is both allowed and refused", rule.line, rule.syscall));
            }
        }
        for needed in LAST_WORDS {
            if !self.rules.iter().any(|r| r.syscall == needed && r.when.is_empty()) {
                return Err(format!("{needed} must be allowed: a violation could not be explained"));
            }
        }
        Ok(())
    }

    /// The rule that allows a call, as the seccomp program decides it. None if no rule does.
    pub fn rule_for(&self, number: i64, arguments: [u64; 6], facts: Facts) -> Option<&Rule> {
        let matches =
            |rule: &&Rule| rule.syscall.id() as i64 == number && rule.when.iter().all(|c| c.holds(arguments, facts));
        self.rules.iter().find(matches)
    }

    /// True if a call of this number fails with an error rather than ending the process.
    pub fn refuses(&self, number: i64) -> bool {
        self.refusals.iter().any(|r| r.syscall.id() as i64 == number)
    }
}

impl Allow {
    fn check(self, text: &str) -> Result<Rule, String> {
        let line = text[..self.syscall.span().start].lines().count().max(1);
        let at = |problem: String| format!("line {line}: {problem}");
        let syscall = named(self.syscall.get_ref()).map_err(at)?;
        let when = self.when.iter().map(|c| c.parse()).collect::<Result<Vec<Condition>, String>>().map_err(at)?;
        if self.reason.trim().is_empty() || self.rare.as_ref().is_some_and(|r| r.trim().is_empty()) {
            return Err(at(format!("{syscall} has an empty reason")));
        }
        Ok(Rule { syscall, reason: self.reason, when, rare: self.rare, line })
    }
}

impl Refuse {
    fn check(self) -> Result<Refusal, String> {
        let syscall = named(&self.syscall)?;
        let errno = match self.errno.as_str() {
            "ENOSYS" => nix::Error::ENOSYS,
            "EPERM" => nix::Error::EPERM,
            other => return Err(format!("{syscall}: errno `{other}`: ENOSYS or EPERM")),
        };
        Ok(Refusal { syscall, reason: self.reason, errno })
    }
}

fn named(name: &str) -> Result<Sysno, String> {
    name.parse().map_err(|_| format!("`{name}` is no system call of x86-64"))
}

#[cfg(test)]
mod tests;
