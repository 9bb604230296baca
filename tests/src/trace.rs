//! Watches the system calls of a confined process, by ptrace, from before it executes its program: which rules of its
//! profile are used.
//!
//! The tracer is the thread that calls [`Traced::watch`]; it starts `bulkhead` itself, follows every process and thread
//! that comes of it, and counts what the confined ones of one role ask for. A process counts from when it has installed the
//! last of its filters on, as everything before is not the profile's concern.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use policy::Role;
use policy::profile::{Facts, Profile};

use crate::console::Console;

/// A stop for a system call, under PTRACE_O_TRACESYSGOOD.
const CALL: i32 = libc::SIGTRAP | 0x80;

/// What a traced run used.
#[derive(Debug, Default)]
pub struct Used {
    /// Lines of the profile's rules, with how often each allowed a call.
    pub lines: BTreeMap<usize, u64>,
    /// Calls that were refused with an error, by number.
    pub refused: BTreeSet<i64>,
}

impl Used {
    /// Rules of `profile` that allowed nothing, and do not say why a run need not meet them.
    pub fn unused(&self, profile: &Profile) -> Vec<String> {
        let unused = profile.rules.iter().filter(|rule| rule.rare.is_none() && !self.lines.contains_key(&rule.line));
        unused.map(|rule| format!("{} line {}: {}", profile.role.file(), rule.line, rule.syscall)).collect()
    }
}

/// A program under trace.
pub struct Traced<'a> {
    profile: &'a Profile,
    /// Filters that the profile consists of.
    filters: usize,
    /// Thread group of each thread, and how many filters each group has installed.
    groups: HashMap<Pid, Pid>,
    installed: HashMap<Pid, usize>,
    /// Whether a group is of the profile's role, once it was asked.
    ours: HashMap<Pid, bool>,
    /// Threads that are inside a call.
    inside: BTreeSet<Pid>,
    used: Used,
}

impl<'a> Traced<'a> {
    /// Starts `command` and watches it and what comes of it to its end, while `operate`, on a thread of its own, has its console. Returns its
    /// exit code and what the confined process used.
    pub fn watch(
        mut command: Command,
        profile: &'a Profile,
        operate: impl FnOnce(Console) + Send + 'static,
    ) -> io::Result<(i32, Used)> {
        // SAFETY: between fork and exec the closure makes one system call.
        unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipes to the program"));
        };
        let root = Pid::from_raw(child.id() as i32);
        waitpid(root, None)?;
        std::thread::spawn(move || operate(Console::new(stdin, stdout)));
        let follow = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
        ptrace::setoptions(root, follow | Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACEEXEC)?;
        ptrace::syscall(root, None)?;
        let filters = profile.compile(Facts { pid: 1 }).map_err(io::Error::other)?.len();
        let (groups, installed, inside) = (HashMap::from([(root, root)]), HashMap::new(), BTreeSet::new());
        let traced = Self { profile, filters, groups, installed, ours: HashMap::new(), inside, used: Used::default() };
        traced.follow(root)
    }

    fn follow(mut self, root: Pid) -> io::Result<(i32, Used)> {
        loop {
            let (pid, status) = match wait() {
                Ok(stop) => stop,
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if !libc::WIFSTOPPED(status) {
                // It waited for the processes that it started, which have ended for us before they did for it.
                if pid == root {
                    return Ok((if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }, self.used));
                }
                continue;
            }
            let signal = match libc::WSTOPSIG(status) {
                CALL => {
                    self.call(pid)?;
                    0
                }
                // The first stop of whatever is new, and of an exec.
                libc::SIGSTOP => 0,
                _ if status >> 16 != 0 => 0,
                signal => signal,
            };
            resume(pid, signal)?;
        }
    }

    /// A call begins or ends.
    fn call(&mut self, thread: Pid) -> io::Result<()> {
        if self.inside.remove(&thread) {
            return Ok(());
        }
        self.inside.insert(thread);
        let registers = match ptrace::getregs(thread) {
            Ok(registers) => registers,
            Err(nix::Error::ESRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let group = *self.groups.entry(thread).or_insert_with(|| group_of(thread));
        let number = registers.orig_rax as i64;
        let installed = self.installed.entry(group).or_default();
        if number == libc::SYS_seccomp {
            *installed += 1;
        } else if *installed >= self.filters {
            let r = registers;
            if *self.ours.entry(group).or_insert_with(|| runs(group, self.profile.role)) {
                self.count(number, [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]);
            }
        }
        Ok(())
    }

    fn count(&mut self, number: i64, arguments: [u64; 6]) {
        // In its PID namespace it is number 1.
        match self.profile.rule_for(number, arguments, Facts { pid: 1 }) {
            Some(rule) => *self.used.lines.entry(rule.line).or_default() += 1,
            None => drop(self.used.refused.insert(number)),
        }
    }
}

/// The next stop or end of any traced thread. nix's own knows no real-time signals, which kicks are. What other threads
/// of this program started is theirs to wait for.
fn wait() -> nix::Result<(Pid, i32)> {
    let mut status = 0;
    // SAFETY: writes one integer of ours.
    let pid = nix::errno::Errno::result(unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) })?;
    Ok((Pid::from_raw(pid), status))
}

/// Lets a thread go on to its next call, giving it `signal`, 0 for none.
fn resume(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: integers only.
    let resumed = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid.as_raw(), 0, signal) };
    match nix::errno::Errno::result(resumed) {
        // It was killed in the meantime: its end is reported next.
        Ok(_) | Err(nix::Error::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The process that a thread belongs to.
fn group_of(thread: Pid) -> Pid {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("Tgid:"));
    line.and_then(|l| l.trim().parse().ok()).map_or(thread, Pid::from_raw)
}

/// True if a process runs the program of `role`. The kernel keeps 15 bytes of a name.
fn runs(group: Pid, role: Role) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{group}/comm")).unwrap_or_default();
    !name.trim_end().is_empty() && format!("bulkhead-{role}").starts_with(name.trim_end())
}
