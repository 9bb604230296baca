//! How far a process may write into a file, set from outside when it is given one.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::unistd::Pid;

/// From now on a write or an allocation of `pid` beyond byte `bytes` of any regular file fails, or ends the process (SIGXFSZ,
/// setrlimit(2)); one with FALLOC_FL_KEEP_SIZE does not everywhere, which is for the profile to deny. Only the soft limit is
/// set, so that we may raise it later without privilege; a confined process cannot.
pub fn limit_file_size(pid: Pid, bytes: u64) -> nix::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives both calls, and no more than it is read or written.
    let done = unsafe {
        match libc::prlimit(pid.as_raw(), libc::RLIMIT_FSIZE, std::ptr::null(), &mut limit) {
            0 => {
                limit.rlim_cur = bytes.min(limit.rlim_max);
                libc::prlimit(pid.as_raw(), libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut())
            }
            failed => failed,
        }
    };
    Errno::result(done).map(drop)
}
