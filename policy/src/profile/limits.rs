//! Resource limits of a role, as setrlimit(2) takes them.

use nix::sys::resource::Resource;
use serde::Deserialize;

/// Hard and soft limit alike. None leaves what was inherited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// RLIMIT_CORE in bytes: 0 keeps guest data out of core files.
    pub core: u64,
    /// RLIMIT_NOFILE: one more than the highest descriptor.
    pub nofile: u64,
    /// RLIMIT_NPROC: threads. Counted in the process's own user namespace (Linux 5.14), so nobody else's are among them.
    pub nproc: u64,
    /// RLIMIT_FSIZE in bytes: how far it may write into a file.
    pub fsize: Option<u64>,
    /// RLIMIT_MEMLOCK in bytes.
    pub memlock: u64,
    /// RLIMIT_MSGQUEUE in bytes.
    pub msgqueue: u64,
}

impl Limits {
    /// Each limit that is to be set, with its value.
    pub fn entries(&self) -> impl Iterator<Item = (Resource, u64)> {
        let fixed = [
            (Resource::RLIMIT_CORE, Some(self.core)),
            (Resource::RLIMIT_NOFILE, Some(self.nofile)),
            (Resource::RLIMIT_NPROC, Some(self.nproc)),
            (Resource::RLIMIT_FSIZE, self.fsize),
            (Resource::RLIMIT_MEMLOCK, Some(self.memlock)),
            (Resource::RLIMIT_MSGQUEUE, Some(self.msgqueue)),
        ];
        fixed.into_iter().filter_map(|(resource, value)| Some((resource, value?)))
    }
}
