//! The new process between clone and exec, and the few system calls that nix does not have.
//!
//! After clone this is a copy of the broker with one thread: it makes system calls on memory that was prepared before,
//! and does nothing else. In particular it does not allocate.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

/// Descriptors are parked from here on while they are numbered anew, the program's after the others.
const PARKED: RawFd = 200;
/// Where the channel to the broker is meanwhile, or the next that is free: behind all that can be parked.
const CHANNEL: RawFd = 240;

/// What the new process does, prepared.
pub struct Plan<'a> {
    program: RawFd,
    /// Null-terminated, pointing into strings that outlive the plan.
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    descriptors: &'a [RawFd],
    /// It has a user namespace, in which it is to be number 0.
    mapped: bool,
}

/// What the new process was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Waiting for its ids.
    Wait = 1,
    /// Taking its ids.
    Ids,
    /// Arranging to die with the broker.
    Parent,
    /// Numbering its descriptors.
    Descriptors,
    /// Executing its program.
    Execute,
}

impl Stage {
    /// What a failed process reported; None if it reported nothing.
    pub fn decode(report: &[u8]) -> Option<(Self, Errno)> {
        let [stage, errno] = report else { return None };
        let all = [Self::Wait, Self::Ids, Self::Parent, Self::Descriptors, Self::Execute];
        let stage = all.into_iter().find(|s| *s as u8 == *stage)?;
        Some((stage, Errno::from_raw(i32::from(*errno))))
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wait => "waiting for its ids",
            Self::Ids => "taking its ids",
            Self::Parent => "arranging to die with its parent",
            Self::Descriptors => "numbering its descriptors",
            Self::Execute => "executing the program",
        })
    }
}

impl<'a> Plan<'a> {
    /// Prepares. Strings are borrowed for as long as the plan lives.
    pub fn new(
        program: &'a File,
        arguments: &'a [CString],
        environment: &'a [CString],
        descriptors: &'a [RawFd],
        mapped: bool,
    ) -> Self {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (arguments, environment) = (pointers(arguments), pointers(environment));
        Self { program: program.as_raw_fd(), arguments, environment, descriptors, mapped }
    }

    /// Everything up to exec, which returns only if it fails.
    fn carry_out(&self, channel: RawFd) -> (Stage, Errno) {
        let steps: [(Stage, &dyn Fn() -> nix::Result<()>); 5] = [
            (Stage::Wait, &|| wait(channel)),
            (Stage::Ids, &|| self.take_ids()),
            (Stage::Parent, &|| die_with_parent()),
            (Stage::Descriptors, &|| self.number_descriptors()),
            (Stage::Execute, &|| self.execute()),
        ];
        for (stage, step) in steps {
            if let Err(errno) = step() {
                return (stage, errno);
            }
        }
        (Stage::Execute, Errno::ENOEXEC)
    }

    /// Changing ids clears the parent-death signal, so this comes before it.
    fn take_ids(&self) -> nix::Result<()> {
        if !self.mapped {
            return Ok(());
        }
        // The broker's other groups are not for it. Without privilege they cannot be laid down (user_namespaces(7)).
        // SAFETY: a list of no groups.
        match Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) }) {
            Ok(_) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
        // SAFETY: raw calls with integers: the C library's own would signal threads that this process does not have.
        Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) })?;
        // SAFETY: as above.
        Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }).map(drop)
    }

    fn number_descriptors(&self) -> nix::Result<()> {
        // Parking first, so that none is overwritten before its turn, nor the program.
        for (place, from) in (PARKED..).zip(self.descriptors.iter().chain([&self.program])) {
            if park(*from, place)? != place {
                return Err(Errno::EBUSY);
            }
        }
        let count = self.descriptors.len() as RawFd;
        for number in 0..count {
            // SAFETY: integers only; the copy is inherited across exec.
            Errno::result(unsafe { libc::dup2(PARKED + number, number) })?;
        }
        // What the broker itself inherited, and did not mark.
        // SAFETY: integers only.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, count, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
            .map(drop)
    }

    fn execute(&self) -> nix::Result<()> {
        let (arguments, environment) = (self.arguments.as_ptr(), self.environment.as_ptr());
        let program = PARKED + self.descriptors.len() as RawFd;
        // SAFETY: both arrays end with a null pointer, and their strings are alive in this copy of the broker.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_execveat, program, c"".as_ptr(), arguments, environment, libc::AT_EMPTY_PATH)
        })
        .map(drop)
    }
}

/// Makes the process. Returns in the broker alone.
pub fn start(
    plan: &Plan<'_>,
    namespaces: CloneFlags,
    ours: BorrowedFd<'_>,
    theirs: BorrowedFd<'_>,
) -> nix::Result<(Pid, OwnedFd)> {
    let (mut pidfd, channel): (RawFd, RawFd) = (-1, theirs.as_raw_fd());
    let pid = clone(namespaces, Some(&mut pidfd))?;
    if pid == 0 {
        // SAFETY: the broker's end is closed here, so that its death is seen as the end of the channel; the process
        // then ends without running anything that the broker registered for its own end.
        unsafe {
            libc::close(ours.as_raw_fd());
            empty_signal_mask();
            // A group of its own: kill(0) reaches a whole group, whatever PID namespaces its members are in. A session
            // of its own: no terminal to type into.
            libc::setsid();
            // Its number may be one that is given out.
            let channel = park(channel, CHANNEL).unwrap_or(channel);
            let (stage, errno) = plan.carry_out(channel);
            let report = [stage as u8, errno as i32 as u8];
            libc::write(channel, report.as_ptr().cast(), report.len());
            libc::_exit(127)
        }
    }
    // SAFETY: the kernel just gave us this descriptor, close-on-exec, with the process.
    Ok((Pid::from_raw(pid), unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Finds out whether a process with these namespaces can be made, by making one that ends at once.
pub fn probe(namespaces: CloneFlags) -> nix::Result<()> {
    let pid = clone(namespaces, None)?;
    if pid == 0 {
        // SAFETY: ends the copy at once.
        unsafe { libc::_exit(0) }
    }
    nix::sys::wait::waitpid(Pid::from_raw(pid), None).map(drop)
}

/// Sends SIGKILL to the process of a pidfd: never to another that has its number by now.
pub fn kill(pidfd: BorrowedFd<'_>) {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: integers and a null pointer. The error would be that it has ended already.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, none, 0) };
}

/// clone(2) as fork, with namespaces: 0 in the new process.
fn clone(namespaces: CloneFlags, pidfd: Option<&mut RawFd>) -> nix::Result<libc::pid_t> {
    let mut flags = namespaces.bits() as u64 | libc::SIGCHLD as u64;
    let place = pidfd.map_or(std::ptr::null_mut(), |place| {
        flags |= libc::CLONE_PIDFD as u64;
        std::ptr::from_mut(place)
    });
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM and with no stack of its own the new process runs on a copy of this one's memory, as after
    // fork; on x86-64 the third argument is where the pidfd goes.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, none, place, none, none) })?;
    Ok(pid as libc::pid_t)
}

/// A copy of `fd` at `place`, or the next number that is free.
fn park(fd: RawFd, place: RawFd) -> nix::Result<RawFd> {
    // SAFETY: integers only.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, place) })
}

fn wait(channel: RawFd) -> nix::Result<()> {
    let mut go = 0u8;
    // SAFETY: reads at most one byte into one byte.
    match Errno::result(unsafe { libc::read(channel, std::ptr::from_mut(&mut go).cast(), 1) })? {
        1 => Ok(()),
        _ => Err(Errno::EPIPE),
    }
}

fn die_with_parent() -> nix::Result<()> {
    // SAFETY: integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// The broker takes its signals as bytes and has them blocked; the program starts with none blocked.
fn empty_signal_mask() {
    // SAFETY: sigset_t is plain data, initialised by sigemptyset.
    unsafe {
        let mut empty = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(empty.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, empty.as_ptr(), std::ptr::null_mut());
    }
}
