//! The attributes of one thread, from /proc/PID/task/TID/status (proc_pid_status(5)).

use super::VerifyError;
use crate::layer::Layer;

/// What `status` says of a thread, as far as confinement goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Inheritable, permitted, effective, bounding and ambient capabilities.
    pub capabilities: [u64; 5],
    /// no_new_privs is set.
    pub no_new_privs: bool,
    /// Seccomp mode: 2 is a filter.
    pub seccomp: u64,
    /// How many filters there are.
    pub filters: u64,
}

const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

impl Status {
    /// Reads the text of a status file; `path` is for messages.
    pub(super) fn parse(text: &str, path: &str) -> Result<Self, VerifyError> {
        let field = |name: &str, base| {
            let line = text.lines().find(|l| l.split(':').next() == Some(name)).unwrap_or(name);
            let value = line.split(':').nth(1).and_then(|v| u64::from_str_radix(v.trim(), base).ok());
            value.ok_or_else(|| VerifyError::Form { path: path.into(), line: line.into() })
        };
        let mut capabilities = [0; 5];
        for (place, name) in capabilities.iter_mut().zip(SETS) {
            *place = field(name, 16)?;
        }
        let (no_new_privs, seccomp) = (field("NoNewPrivs", 10)? == 1, field("Seccomp", 10)?);
        Ok(Self { capabilities, no_new_privs, seccomp, filters: field("Seccomp_filters", 10)? })
    }

    /// What is not as it must be.
    pub(super) fn findings(&self) -> Vec<(Layer, String)> {
        let mut findings = Vec::new();
        for (set, name) in self.capabilities.into_iter().zip(SETS).filter(|(set, _)| *set != 0) {
            findings.push((Layer::Capabilities, format!("{name} is {set:#x}")));
        }
        if !self.no_new_privs {
            findings.push((Layer::NoNewPrivs, "NoNewPrivs is 0".into()));
        }
        if self.seccomp != 2 || self.filters == 0 {
            findings.push((Layer::Seccomp, format!("mode {}, {} filters", self.seccomp, self.filters)));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFINED: &str = "Name:\tx\nThreads:\t1\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t\
                            0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n\
                            Seccomp:\t2\nSeccomp_filters:\t2\n";

    #[test]
    fn a_confined_thread_has_nothing_to_find() {
        assert_eq!(Status::parse(CONFINED, "x").unwrap().findings(), []);
    }

    #[test]
    fn each_attribute_is_missed_when_it_is_missing() {
        for (from, to, layer) in [
            ("CapEff:\t0000000000000000", "CapEff:\t0000000000000001", Layer::Capabilities),
            ("CapBnd:\t0000000000000000", "CapBnd:\t000001ffffffffff", Layer::Capabilities),
            ("CapAmb:\t0000000000000000", "CapAmb:\t0000000000000400", Layer::Capabilities),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", Layer::NoNewPrivs),
            ("Seccomp:\t2", "Seccomp:\t0", Layer::Seccomp),
            ("Seccomp_filters:\t2", "Seccomp_filters:\t0", Layer::Seccomp),
        ] {
            let text = CONFINED.replace(from, to);
            assert_ne!(text, CONFINED);
            let findings = Status::parse(&text, "x").unwrap().findings();
            assert_eq!(findings.iter().map(|f| f.0).collect::<Vec<_>>(), [layer], "{to}");
        }
        let error = Status::parse(&CONFINED.replace("CapAmb", "CapOther"), "/proc/9/status").unwrap_err();
        assert!(error.to_string().contains("/proc/9/status"), "{error}");
    }
}
