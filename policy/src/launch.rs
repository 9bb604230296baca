//! Starts a program in namespaces of its own.
//!
//! The broker calls this from its main thread, since PR_SET_PDEATHSIG follows the thread that made the process. The new
//! process waits for its id map, takes the ids, numbers its descriptors from 0, and executes the program, which then
//! confines itself (see [`crate::confine`]). Here, nothing of the host is out of reach yet but what a namespace hides.
//!
//! Its ids: number 0 of its user namespace is, outside, a number of its own that nobody else has if the broker may give
//! it one, else the broker's own.

mod child;
mod ids;
mod size;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::layer::{Layer, Layers, MissingLayer};
use child::{Plan, Stage};
pub use size::limit_file_size;

/// What to start.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The program. Executed by descriptor: only the broker needs to reach it by path.
    pub program: PathBuf,
    /// Its arguments, from argv\[0\] on.
    pub arguments: Vec<CString>,
    /// Its whole environment, as `NAME=value`.
    pub environment: Vec<CString>,
    /// Its descriptors: the first becomes 0, the second 1, and so on. Nothing else stays open.
    pub descriptors: Vec<BorrowedFd<'a>>,
    /// Layers that may be missing.
    pub tolerate: &'a Layers,
    /// The `cgroup.procs` of the control group that it is to be in from its first instruction on; else it is in the broker's.
    pub cgroup: Option<&'a Path>,
}

/// A process that was started. Not ended on drop: its owner decides.
#[derive(Debug)]
pub struct Launched {
    /// Its id as the broker sees it.
    pub pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Namespaces that it does not have, though they were wanted.
    pub missing: Layers,
}

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum LaunchError {
    #[error("opening the program {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Missing(#[from] MissingLayer),
    #[error("making the new process's start channel")]
    Channel(#[source] io::Error),
    #[error("making a process: is a limit on processes or memory reached?")]
    Clone(#[source] nix::Error),
    #[error("putting it into a control group by {}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("{stage} in the new process")]
    Child { stage: Stage, source: nix::Error },
}

impl Launch<'_> {
    /// Starts the program. When this returns, it is being executed.
    pub fn start(&self) -> Result<Launched, LaunchError> {
        let open = |source| LaunchError::Open { path: self.program.clone(), source };
        let program = File::open(&self.program).map_err(open)?;
        let (ours, theirs) = UnixStream::pair().map_err(LaunchError::Channel)?;
        let numbers: Vec<RawFd> = self.descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
        let start = |namespaces: CloneFlags| {
            let mapped = namespaces.contains(CloneFlags::CLONE_NEWUSER);
            let plan = Plan::new(&program, &self.arguments, &self.environment, &numbers, mapped);
            child::start(&plan, namespaces, ours.as_fd(), theirs.as_fd())
        };
        let all = Layer::NAMESPACES.into_iter().map(flag).collect::<CloneFlags>();
        let (namespaces, missing, made) = match start(all) {
            Ok(made) => (all, Layers::new(), made),
            Err(error) => {
                let (namespaces, missing) = self.obtainable(error)?;
                (namespaces, missing, start(namespaces).map_err(LaunchError::Clone)?)
            }
        };
        drop(theirs);
        let (pid, pidfd) = made;
        let launched = Launched { pid, pidfd, missing };
        match self.accompany(ours, pid, namespaces.contains(CloneFlags::CLONE_NEWUSER)) {
            Ok(()) => Ok(launched),
            Err(error) => {
                launched.reap();
                Err(error)
            }
        }
    }

    /// Gives the new process its ids, lets it go on, and waits until it executes its program or says why not.
    fn accompany(&self, mut channel: UnixStream, pid: Pid, mapped: bool) -> Result<(), LaunchError> {
        if mapped {
            let error = |source| MissingLayer { layer: Layer::UserNamespace, step: "writing its id map", source };
            ids::map(pid).map_err(error)?;
        }
        if let Some(path) = self.cgroup {
            let entered = File::options().write(true).open(path).and_then(|mut file| write!(file, "{pid}"));
            entered.map_err(|source| LaunchError::Cgroup { path: path.into(), source })?;
        }
        channel.write_all(&[0]).map_err(LaunchError::Channel)?;
        let mut report = Vec::new();
        channel.read_to_end(&mut report).map_err(LaunchError::Channel)?;
        match Stage::decode(&report) {
            None => Ok(()),
            Some((stage, source)) => Err(LaunchError::Child { stage, source }),
        }
    }

    /// The namespaces to be had one by one, when all of them together failed with `error`: those that cannot be made must
    /// be tolerated.
    fn obtainable(&self, error: nix::Error) -> Result<(CloneFlags, Layers), LaunchError> {
        let (mut flags, mut missing) = (CloneFlags::empty(), Layers::new());
        for layer in Layer::NAMESPACES {
            match child::probe(flags | flag(layer)) {
                Ok(()) => flags |= flag(layer),
                Err(_) if self.tolerate.contains(&layer) => drop(missing.insert(layer)),
                Err(source) => return Err(MissingLayer { layer, step: "clone(2)", source }.into()),
            }
        }
        // What failed together and works one by one is no missing layer.
        if missing.is_empty() { Err(LaunchError::Clone(error)) } else { Ok((flags, missing)) }
    }
}

impl Launched {
    /// Sends SIGKILL.
    pub fn kill(&self) {
        child::kill(self.pidfd.as_fd());
    }

    /// Ends it and waits for its end, however long that takes.
    pub fn reap(&self) {
        self.kill();
        // The error would be that somebody waited before.
        let _ = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED);
    }
}

/// The flag of a namespace.
fn flag(layer: Layer) -> CloneFlags {
    match layer {
        Layer::UserNamespace => CloneFlags::CLONE_NEWUSER,
        Layer::MountNamespace => CloneFlags::CLONE_NEWNS,
        Layer::PidNamespace => CloneFlags::CLONE_NEWPID,
        Layer::NetNamespace => CloneFlags::CLONE_NEWNET,
        Layer::IpcNamespace => CloneFlags::CLONE_NEWIPC,
        Layer::UtsNamespace => CloneFlags::CLONE_NEWUTS,
        Layer::CgroupNamespace => CloneFlags::CLONE_NEWCGROUP,
        _ => CloneFlags::empty(),
    }
}

#[cfg(test)]
mod tests;
