//! A confined process, as its parent holds it: started, looked at, told to end, waited for.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, SysconfVar, sysconf};
use policy::last_words;
use policy::launch::{Launch, LaunchError, Launched};
use policy::layer::UnknownLayer;
use policy::verify::{Verified, VerifyError};
use policy::{Layer, Layers};

use crate::words::Words;

/// What to start, and what messages call it.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Name of the program, found beside our own.
    pub file: &'static str,
    /// Its first arguments.
    pub arguments: &'a [&'a str],
    /// What messages call the process.
    pub name: &'a str,
    /// The `cgroup.procs` of its control group, if it has one of its own.
    pub cgroup: Option<&'a Path>,
}

/// See the module.
#[derive(Debug)]
pub struct Process {
    launched: Launched,
    /// Its end has been taken note of.
    waited: bool,
    /// What it writes to standard error.
    pub words: Words,
}

/// Why a process was not started, or is not to be trusted with anything.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ProcessError {
    #[error("finding out where the bulkhead program itself is")]
    OwnPath(#[source] io::Error),
    #[error(
        "{} is missing: the programs of bulkhead belong in one directory (from a checkout, `cargo build --release` makes \
         them all)", .0.display()
    )]
    Missing(PathBuf),
    #[error("making what connects to it")]
    Connect(#[source] io::Error),
    #[error("starting it")]
    Launch(#[from] LaunchError),
    #[error("verifying its confinement")]
    Verify(#[from] VerifyError),
    #[error("it did not see Landlock deny anything: use a kernel with Landlock, or --allow-missing landlock")]
    Landlock,
    #[error("it says that it lacks the layer {layer}. Remedy: {}; or accept it with --allow-missing {layer}", layer.remedy())]
    Lacks { layer: Layer },
    #[error("it says that it lacks what is no layer")]
    Unknown(#[from] UnknownLayer),
}

impl Process {
    /// Starts `program` with `control` as descriptor 3. Must be called on the main thread, whose death ends the process.
    pub fn start(program: Program<'_>, tolerate: &Layers, control: BorrowedFd<'_>) -> Result<Self, ProcessError> {
        let null = File::options().read(true).write(true).open("/dev/null").map_err(ProcessError::Connect)?;
        let (words, their_words) = io::pipe().map_err(ProcessError::Connect)?;
        let words = Words::new(words, program.name).map_err(|e| ProcessError::Connect(e.into()))?;
        let allowances = tolerate.iter().flat_map(|layer| ["--allow-missing", layer.name()]);
        let arguments = [program.file].into_iter().chain(program.arguments.iter().copied()).chain(allowances);
        let launch = Launch {
            program: beside_us(program.file)?,
            arguments: arguments.map(|a| CString::new(a).unwrap_or_default()).collect(),
            environment: Vec::new(),
            descriptors: vec![null.as_fd(), null.as_fd(), their_words.as_fd(), control],
            tolerate,
            cgroup: program.cgroup,
        };
        let launched = launch.start()?;
        for layer in &launched.missing {
            tracing::warn!("{} runs without the layer {layer}, as was allowed", program.name);
        }
        Ok(Self { launched, waited: false, words })
    }

    /// It says that it is confined, with `landlock_proved` and without the layers `missing`. Believes nothing but what does
    /// not show from outside: looks for itself, and expects it to hold exactly `holds`.
    pub fn verify(
        &self,
        landlock_proved: bool,
        missing: &[String],
        holds: &[&str],
        tolerate: &Layers,
    ) -> Result<(), ProcessError> {
        for layer in admitted(missing, tolerate)? {
            tracing::warn!("process {} says that it lacks the layer {layer}, as was allowed", self.pid());
        }
        if !landlock_proved && !tolerate.contains(&Layer::Landlock) {
            return Err(ProcessError::Landlock);
        }
        let seen = Verified::of(self.pid())?;
        seen.check(tolerate)?;
        seen.check_descriptors(holds)?;
        seen.check_single_threaded()?;
        tracing::debug!("process {}: confined, {} namespaces of its own", seen.pid, seen.own_namespaces.len());
        Ok(())
    }

    /// Its id as we see it.
    pub fn pid(&self) -> Pid {
        self.launched.pid
    }

    /// Namespaces that it was to have and has not.
    pub fn lacks(&self) -> &Layers {
        &self.launched.missing
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.launched.pidfd.as_fd()
    }

    /// How it ended. Waits for that if it has not.
    pub fn wait(&mut self) -> nix::Result<WaitStatus> {
        let status = waitid(Id::PIDFd(self.pidfd()), WaitPidFlag::WEXITED)?;
        self.waited = true;
        Ok(status)
    }

    /// One of its threads waits in the kernel for something that cannot be interrupted: SIGKILL would not end it either.
    pub fn stuck(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        threads.into_iter().any(|thread| state(&thread.path()) == Some('D'))
    }

    /// Processor time that it has used outside the kernel; none if that cannot be read.
    pub fn user_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let ticks = user_ticks(&stat).unwrap_or(0);
        Duration::from_secs_f64(ticks as f64 / ticks_per_second())
    }

    /// Somebody stopped it (SIGSTOP), or traces it.
    pub fn stopped(&self) -> bool {
        matches!(state(format!("/proc/{}", self.pid()).as_ref()), Some('T' | 't'))
    }

    /// Ends it by force. Its end is still to be waited for.
    pub fn kill(&self) {
        self.launched.kill();
    }
}

impl Drop for Process {
    /// No way out leaves a process behind. One that has been waited for is not signalled.
    fn drop(&mut self) {
        if !self.waited {
            self.launched.reap();
        }
    }
}

/// The layers that a process says it lacks. Some do not show from outside (`descriptors`, `speculation`): what is not
/// tolerated is refused on its own word.
fn admitted(missing: &[String], tolerate: &Layers) -> Result<Layers, ProcessError> {
    let layers = missing.iter().map(|name| name.parse::<Layer>()).collect::<Result<Layers, _>>()?;
    match layers.iter().find(|layer| !tolerate.contains(layer)) {
        Some(layer) => Err(ProcessError::Lacks { layer: *layer }),
        None => Ok(layers),
    }
}

/// Whether a process was ended by somebody else: by SIGKILL, which the kernel's out-of-memory killer uses too, or any other
/// signal that no fault of its own raises. It handles those that a fault raises, and tells who sent them.
pub fn ended_from_outside(status: WaitStatus) -> bool {
    use Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
    match status {
        WaitStatus::Signaled(_, signal, _) => {
            ![SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP].contains(&signal)
        }
        WaitStatus::Exited(_, code) => code == last_words::FOREIGN,
        _ => false,
    }
}

/// How a process died. In its PID namespace a process tells of a deadly signal by its exit code.
pub fn manner(status: WaitStatus) -> String {
    match status {
        WaitStatus::Signaled(_, signal, _) => format!("signal {signal}"),
        WaitStatus::Exited(_, last_words::VIOLATION) => "it broke its profile".into(),
        WaitStatus::Exited(_, last_words::FOREIGN) => "a signal of another process".into(),
        WaitStatus::Exited(_, code) => match Signal::try_from(code - 128) {
            Ok(signal) => format!("{signal}, by its own account"),
            Err(_) => format!("exit code {code}"),
        },
        other => format!("{other:?}"),
    }
}

/// A thread's state as /proc has it: the first letter after the name, which is in parentheses and may hold any.
fn state(thread: &Path) -> Option<char> {
    let stat = std::fs::read_to_string(thread.join("stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// Field 14 of a `stat` file (proc_pid_stat(5)); the second, a name in parentheses, may hold anything.
fn user_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(11)?.parse().ok()
}

fn ticks_per_second() -> f64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().map_or(100.0, |ticks| ticks as f64)
}

fn beside_us(name: &str) -> Result<PathBuf, ProcessError> {
    let own = std::env::current_exe().map_err(ProcessError::OwnPath)?;
    let path = own.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(ProcessError::Missing(path)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_says_it_lacks_must_be_tolerated() {
        let said = |names: &[&str], tolerate: &[Layer]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            admitted(&names, &tolerate.iter().copied().collect())
        };
        assert!(said(&[], &[]).unwrap().is_empty());
        let error = said(&["speculation"], &[Layer::Landlock]).unwrap_err();
        assert!(error.to_string().contains("--allow-missing speculation"), "{error}");
        assert_eq!(said(&["speculation"; 99], &[Layer::Speculation]).unwrap().len(), 1);
        assert!(matches!(said(&["nothing", "speculation"], &Layer::ALL), Err(ProcessError::Unknown(_))));
    }
}
