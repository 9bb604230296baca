//! Attributes of the process itself: limits, capabilities, no_new_privs, speculation.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use caps::CapSet;
use nix::errno::Errno;
use nix::sys::resource::setrlimit;

use super::{ConfineError, Step, missing};
use crate::layer::Layer;
use crate::profile::{Limits, Speculation};

/// How long a thread that has ended may stay listed.
const GONE: Duration = Duration::from_secs(5);

/// Heaps that threads allocate from: the first alone. When one of a thread's own shrinks, glibc asks a file what overcommitting
/// means here (`shrink_heap`), and past eight of them another how many processors there are; no file can be opened then.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 1;

/// Makes a thread and waits until it is gone. With its first thread the C library takes two signals for itself, which it
/// cannot when changing handlers is denied. Its allocator is told all that it would ask the system for later.
pub fn prime_threads() -> Result<(), ConfineError> {
    // SAFETY: takes plain numbers; it fails for numbers that it does not know only.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS)
    };
    let primed = std::thread::Builder::new().spawn(|| {}).map(|thread| drop(thread.join()));
    primed.map_err(ConfineError::Prime)?;
    let deadline = Instant::now() + GONE;
    // A joined thread is still listed for a moment.
    while threads() > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// A filter holds for the threads made after it: there must be no other before.
pub fn single_threaded() -> Result<(), ConfineError> {
    let count = threads();
    if count > 1 { Err(ConfineError::Threads(count)) } else { Ok(()) }
}

/// How many threads there are. Without /proc the process cannot tell, and answers 0; the broker counts again.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Sets hard and soft limits alike, so that they cannot be raised again.
pub fn limit(limits: &Limits) -> Step {
    for (resource, value) in limits.entries() {
        setrlimit(resource, value, value).map_err(|source| missing(Layer::Limits, "setrlimit(2)", source))?;
    }
    Ok(())
}

/// The broker's death is this process's, however it dies.
pub fn die_with_parent() -> Step {
    let set = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    set.map_err(|source| missing(Layer::Limits, "prctl(PR_SET_PDEATHSIG)", source))
}

/// Empties all five sets. The bounding set first: emptying it needs a capability.
pub fn drop_capabilities() -> Step {
    let sets = [CapSet::Bounding, CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted];
    for set in sets {
        // A process that has no privilege at all cannot empty its bounding set; the others are empty, and with
        // no_new_privs no exec fills them.
        if matches!(set, CapSet::Bounding) && !has_setpcap() {
            continue;
        }
        // The crate's errors are texts; the reason is always that the kernel refused.
        let cleared = caps::clear(None, set).map_err(|_| Errno::EPERM);
        cleared.map_err(|source| missing(Layer::Capabilities, "emptying the capability sets", source))?;
    }
    Ok(())
}

fn has_setpcap() -> bool {
    caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP).unwrap_or(false)
}

/// No exec gives privileges from here on; without it an unprivileged process may not install a filter.
pub fn no_new_privileges() -> Step {
    let set = nix::sys::prctl::set_no_new_privs();
    set.map_err(|source| missing(Layer::NoNewPrivs, "prctl(PR_SET_NO_NEW_PRIVS)", source))
}

// linux/prctl.h; libc has the calls but not all of these.
const PR_SPEC_STORE_BYPASS: libc::c_ulong = 0;
const PR_SPEC_INDIRECT_BRANCH: libc::c_ulong = 1;
const PR_SPEC_FORCE_DISABLE: libc::c_ulong = 1 << 3;

/// Turns kinds of speculation off for good. ENXIO, EPERM and ENODEV say that the host decides for everyone (processors
/// that are not affected, `mitigations=` on its command line): there is nothing left to ask for.
pub fn restrain_speculation(kinds: &[Speculation]) -> Step {
    for kind in kinds {
        let which = match kind {
            Speculation::StoreBypass => PR_SPEC_STORE_BYPASS,
            Speculation::IndirectBranch => PR_SPEC_INDIRECT_BRANCH,
        };
        // SAFETY: integers only.
        let set = unsafe { libc::prctl(libc::PR_SET_SPECULATION_CTRL, which, PR_SPEC_FORCE_DISABLE, 0, 0) };
        match Errno::result(set) {
            Ok(_) | Err(Errno::ENXIO | Errno::EPERM | Errno::ENODEV) => {}
            Err(source) => return Err(missing(Layer::Speculation, "prctl(PR_SET_SPECULATION_CTRL)", source)),
        }
    }
    Ok(())
}
