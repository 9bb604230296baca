//! What is tried, by name, and what must come of it.
//!
//! Each attempt is one call that would lead out, or a short chain of them. `call` is the one that the profile must
//! forbid. `without` says what stops it if the filter is not there.
#![allow(unsafe_code)]

use std::arch::asm;
use std::ffi::CStr;

use syscalls::Sysno;

use super::Target;
use super::member::outcome;

/// One way to try.
pub struct Attempt {
    /// What is tried.
    pub name: &'static str,
    /// How the whole confinement answers.
    pub full: Full,
    /// How the other layers answer.
    pub without: Without,
    /// Tries, and returns the error number, 0 for success.
    pub make: fn(Target) -> i32,
}

/// What becomes of an attempt under the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The process ends, naming this system call.
    Violates(Sysno),
    /// The call fails with this error number.
    Fails(i32),
    /// The kernel ends the process at once: not even last words.
    Killed,
}

/// What becomes of an attempt when there is no filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// Another layer makes it fail with one of these.
    Fails(&'static [i32]),
    /// It reaches nothing outside the process's own namespaces; the filter only spares the kernel the exposure.
    Harmless,
}

use Without::{Fails, Harmless};

/// Makes a call on integers.
fn call(number: Sysno, arguments: [i64; 6]) -> i32 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: callers pass numbers, or pointers that are good for the call.
    outcome(unsafe { libc::syscall(number.id().into(), a, b, c, d, e, f) })
}

fn open(path: &CStr, flags: i32) -> i32 {
    call(Sysno::openat, [libc::AT_FDCWD.into(), path.as_ptr() as i64, flags.into(), 0o600, 0, 0])
}

fn open_of(target: Target, rest: &str) -> i32 {
    let path = format!("/proc/{}/{rest}\0", target.lead);
    CStr::from_bytes_with_nul(path.as_bytes()).map_or(-1, |path| open(path, libc::O_RDWR))
}

fn on_path(number: Sysno, path: &CStr) -> i32 {
    call(number, [path.as_ptr() as i64, 0, 0, 0, 0, 0])
}

fn connect(domain: i32, address: *const libc::c_void, length: usize) -> i32 {
    // SAFETY: the callers' addresses are good for their length.
    unsafe {
        let socket = libc::socket(domain, libc::SOCK_STREAM, 0);
        if socket < 0 { outcome(-1) } else { outcome(libc::connect(socket, address.cast(), length as u32).into()) }
    }
}

fn connect_tcp(target: Target) -> i32 {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: target.port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    connect(libc::AF_INET, std::ptr::from_ref(&address).cast(), size_of_val(&address))
}

fn connect_abstract(target: Target) -> i32 {
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    let name = target.port.to_string();
    for (to, from) in address.sun_path[1..].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    connect(libc::AF_UNIX, std::ptr::from_ref(&address).cast(), 2 + 1 + name.len())
}

fn read_memory_of(target: Target) -> i32 {
    let mut byte = 0u8;
    let here = libc::iovec { iov_base: std::ptr::from_mut(&mut byte).cast(), iov_len: 1 };
    // The same address there: the process is looked for before the address is.
    let vector = std::ptr::from_ref(&here) as i64;
    call(Sysno::process_vm_readv, [target.lead.into(), vector, 1, vector, 1, 0])
}

fn raise_core_limit(_: Target) -> i32 {
    let most = libc::rlimit { rlim_cur: u64::MAX, rlim_max: u64::MAX };
    call(Sysno::prlimit64, [0, libc::RLIMIT_CORE.into(), std::ptr::from_ref(&most) as i64, 0, 0, 0])
}

fn map(protection: i32) -> i32 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    call(Sysno::mmap, [0, 4096, protection.into(), flags.into(), -1, 0])
}

/// getpid by the gate of 32-bit programs, whose call numbers are others.
fn gate_of_32_bits(_: Target) -> i32 {
    let returned: i64;
    // SAFETY: the gate saves every register; nothing is pushed.
    unsafe { asm!("int 0x80", inlateout("rax") 20i64 => returned) };
    if returned > 0 { 0 } else { -returned as i32 }
}

const fn violates(name: &'static str, syscall: Sysno, without: Without, make: fn(Target) -> i32) -> Attempt {
    Attempt { name, full: Full::Violates(syscall), without, make }
}

const GONE: Without = Fails(&[libc::ENOENT]);
const FORBIDDEN: Without = Fails(&[libc::EPERM, libc::EACCES]);
const NOBODY: Without = Fails(&[libc::ESRCH, libc::EINVAL]);

/// All of them.
#[rustfmt::skip]
pub const ATTEMPTS: &[Attempt] = &[
    violates("open a file of the host", Sysno::openat, GONE, |_| open(c"/etc/passwd", libc::O_RDONLY)),
    violates("list the root directory", Sysno::openat, FORBIDDEN, |_| open(c"/", libc::O_RDONLY)),
    violates("create a file", Sysno::openat, Fails(&[libc::EACCES, libc::EROFS]), |_| open(c"/x", libc::O_CREAT | libc::O_RDWR)),
    violates("open /dev/kvm", Sysno::openat, GONE, |_| open(c"/dev/kvm", libc::O_RDWR)),
    violates("open by the older call", Sysno::open, GONE, |_| call(Sysno::open, [c"/etc/passwd".as_ptr() as i64, 0, 0, 0, 0, 0])),
    violates("open a file by its handle", Sysno::open_by_handle_at, Fails(&[libc::EPERM, libc::EBADF, libc::EFAULT]), |_| call(Sysno::open_by_handle_at, [3, 0, 0, 0, 0, 0])),
    violates("read the broker's memory", Sysno::openat, GONE, |t| open_of(t, "mem")),
    violates("take a descriptor of the broker by path", Sysno::openat, GONE, |t| open_of(t, "fd/0")),
    violates("take a descriptor of the broker by pidfd", Sysno::pidfd_open, NOBODY, |t| call(Sysno::pidfd_open, [t.lead.into(), 0, 0, 0, 0, 0])),
    violates("read the broker's memory by process_vm_readv", Sysno::process_vm_readv, NOBODY, read_memory_of),
    violates("trace the broker", Sysno::ptrace, Fails(&[libc::ESRCH, libc::EPERM]), |t| call(Sysno::ptrace, [libc::PTRACE_ATTACH.into(), t.lead.into(), 0, 0, 0, 0])),
    violates("kill the broker", Sysno::kill, NOBODY, |t| call(Sysno::kill, [t.lead.into(), libc::SIGKILL.into(), 0, 0, 0, 0])),
    violates("kill everybody", Sysno::kill, NOBODY, |_| call(Sysno::kill, [-1, libc::SIGKILL.into(), 0, 0, 0, 0])),
    violates("kill a thread of the broker", Sysno::tgkill, NOBODY, |t| call(Sysno::tgkill, [t.lead.into(), t.lead.into(), libc::SIGKILL.into(), 0, 0, 0])),
    violates("kill the process group", Sysno::kill, Harmless, |_| call(Sysno::kill, [0, libc::SIGKILL.into(), 0, 0, 0, 0])),
    violates("connect to a TCP port", Sysno::socket, Fails(&[libc::EACCES, libc::ENETUNREACH]), connect_tcp),
    violates("connect to an abstract socket", Sysno::socket, Fails(&[libc::ECONNREFUSED, libc::EPERM]), connect_abstract),
    violates("make a socket pair", Sysno::socketpair, Harmless, |_| call(Sysno::socketpair, [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, [0i32; 2].as_ptr() as i64, 0, 0])),
    violates("make a packet socket", Sysno::socket, FORBIDDEN, |_| call(Sysno::socket, [libc::AF_PACKET.into(), libc::SOCK_RAW.into(), 0, 0, 0, 0])),
    violates("execute a program", Sysno::execve, GONE, |_| on_path(Sysno::execve, c"/bin/sh")),
    violates("execute from a descriptor", Sysno::execveat, Fails(&[libc::EACCES, libc::ENOENT]), |_| call(Sysno::execveat, [3, c"".as_ptr() as i64, 0, 0, libc::AT_EMPTY_PATH.into(), 0])),
    violates("fork", Sysno::clone, Harmless, |_| call(Sysno::clone, [libc::SIGCHLD.into(), 0, 0, 0, 0, 0])),
    violates("fork by the older call", Sysno::fork, Harmless, |_| call(Sysno::fork, [0; 6])),
    Attempt { name: "fork by clone3", full: Full::Fails(libc::ENOSYS), without: Fails(&[libc::EFAULT, libc::EINVAL]), make: |_| call(Sysno::clone3, [0, 88, 0, 0, 0, 0]) },
    Attempt { name: "make threads without end", full: Full::Fails(libc::EAGAIN), without: Fails(&[libc::EAGAIN]), make: threads_without_end },
    violates("make a user namespace", Sysno::unshare, Harmless, |_| call(Sysno::unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0, 0])),
    violates("make a mount namespace", Sysno::unshare, FORBIDDEN, |_| call(Sysno::unshare, [libc::CLONE_NEWNS.into(), 0, 0, 0, 0, 0])),
    violates("make a namespace with a process", Sysno::clone, FORBIDDEN, |_| call(Sysno::clone, [(libc::CLONE_NEWNET | libc::SIGCHLD).into(), 0, 0, 0, 0, 0])),
    violates("enter a namespace", Sysno::setns, Fails(&[libc::EINVAL, libc::EPERM]), |_| call(Sysno::setns, [3, 0, 0, 0, 0, 0])),
    violates("mount", Sysno::mount, FORBIDDEN, |_| call(Sysno::mount, [c"x".as_ptr() as i64, c"/".as_ptr() as i64, c"tmpfs".as_ptr() as i64, 0, 0, 0])),
    violates("make the root writable", Sysno::mount, FORBIDDEN, |_| call(Sysno::mount, [0, c"/".as_ptr() as i64, 0, (libc::MS_REMOUNT | libc::MS_BIND) as i64, 0, 0])),
    violates("unmount", Sysno::umount2, FORBIDDEN, |_| on_path(Sysno::umount2, c"/")),
    violates("change the root", Sysno::chroot, FORBIDDEN, |_| on_path(Sysno::chroot, c"/")),
    violates("turn the root", Sysno::pivot_root, FORBIDDEN, |_| call(Sysno::pivot_root, [c"/".as_ptr() as i64, c"/".as_ptr() as i64, 0, 0, 0, 0])),
    violates("raise a limit", Sysno::prlimit64, FORBIDDEN, raise_core_limit),
    violates("change a limit of the broker", Sysno::prlimit64, NOBODY, |t| call(Sysno::prlimit64, [t.lead.into(), 0, 0, 0, 0, 0])),
    violates("become another user", Sysno::setresuid, Fails(&[libc::EINVAL, libc::EPERM]), |_| call(Sysno::setresuid, [1000, 1000, 1000, 0, 0, 0])),
    violates("take capabilities", Sysno::capset, FORBIDDEN, |_| capabilities()),
    violates("map executable memory", Sysno::mmap, Harmless, |_| map(libc::PROT_READ | libc::PROT_EXEC)),
    violates("map writable and executable memory", Sysno::mmap, Harmless, |_| map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)),
    violates("make memory executable", Sysno::mprotect, Harmless, |_| call(Sysno::mprotect, [0, 0, libc::PROT_EXEC.into(), 0, 0, 0])),
    violates("make a file in memory", Sysno::memfd_create, Harmless, |_| on_path(Sysno::memfd_create, c"x")),
    violates("replace the handler of violations", Sysno::rt_sigaction, Harmless, |_| call(Sysno::rt_sigaction, [libc::SIGSYS.into(), 0, 0, 8, 0, 0])),
    violates("outlive the broker", Sysno::prctl, Harmless, |_| call(Sysno::prctl, [libc::PR_SET_PDEATHSIG.into(), 0, 0, 0, 0, 0])),
    violates("make an io_uring", Sysno::io_uring_setup, Fails(&[libc::EFAULT, libc::ENOSYS, libc::EPERM]), |_| call(Sysno::io_uring_setup, [1, 0, 0, 0, 0, 0])),
    violates("load a BPF program", Sysno::bpf, Fails(&[libc::EPERM, libc::EINVAL]), |_| call(Sysno::bpf, [5, 0, 0, 0, 0, 0])),
    violates("watch the processor's counters", Sysno::perf_event_open, Fails(&[libc::EFAULT, libc::EACCES, libc::EPERM]), |_| call(Sysno::perf_event_open, [0, -1, 0, -1, 0, 0])),
    violates("use the kernel's key ring", Sysno::keyctl, Harmless, |_| call(Sysno::keyctl, [0, -3, 0, 0, 0, 0])),
    violates("load a kernel module", Sysno::init_module, FORBIDDEN, |_| call(Sysno::init_module, [0, 0, 0, 0, 0, 0])),
    violates("reboot", Sysno::reboot, Fails(&[libc::EPERM, libc::EINVAL]), |_| call(Sysno::reboot, [0; 6])),
    violates("set the clock", Sysno::clock_settime, Fails(&[libc::EPERM, libc::EFAULT]), |_| call(Sysno::clock_settime, [0; 6])),
    violates("set the host's name", Sysno::sethostname, FORBIDDEN, |_| call(Sysno::sethostname, [c"x".as_ptr() as i64, 1, 0, 0, 0, 0])),
    violates("reach I/O ports", Sysno::iopl, FORBIDDEN, |_| call(Sysno::iopl, [3, 0, 0, 0, 0, 0])),
    violates("make a device", Sysno::mknodat, Fails(&[libc::EPERM, libc::EACCES, libc::EROFS]), |_| call(Sysno::mknodat, [libc::AT_FDCWD.into(), c"/k".as_ptr() as i64, (libc::S_IFCHR | 0o600).into(), 0x101, 0, 0])),
    violates("type into a terminal", Sysno::ioctl, Fails(&[libc::ENOTTY, libc::EINVAL, libc::EPERM]), |_| call(Sysno::ioctl, [2, libc::TIOCSTI as i64, c"x".as_ptr() as i64, 0, 0, 0])),
    violates("change flags of a shared file", Sysno::fcntl, Harmless, |_| call(Sysno::fcntl, [3, libc::F_SETFL.into(), 0, 0, 0, 0])),
    violates("have signals sent", Sysno::fcntl, Harmless, |_| call(Sysno::fcntl, [3, libc::F_SETOWN.into(), 0, 0, 0, 0])),
    Attempt { name: "use the gate of 32-bit programs", full: Full::Killed, without: Harmless, make: gate_of_32_bits },
];

/// So many that they would be missed elsewhere.
fn threads_without_end(_: Target) -> i32 {
    for _ in 0..4096 {
        let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(|| {
            loop {
                std::thread::park()
            }
        });
        if let Err(error) = thread {
            return error.raw_os_error().unwrap_or(-1);
        }
    }
    0
}

fn capabilities() -> i32 {
    // linux/capability.h: version 3 has two words of each set.
    let header = [0x2008_0522u32, 0];
    let all = [u32::MAX; 6];
    call(Sysno::capset, [header.as_ptr() as i64, all.as_ptr() as i64, 0, 0, 0, 0])
}
