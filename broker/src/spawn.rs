//! Starts the vmm process with exactly the descriptors it needs.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::time::{ClockId, clock_gettime};
use vmm::launch::{Channel, DiskConfig, LaunchConfig, LaunchError, VERSION};

use crate::cli::RunOptions;
use crate::disks::VhostUserBlk;
use crate::pidfd;
use crate::resources::Resources;

/// Name of the vmm program, found beside our own.
const VMM: &str = "bulkhead-vmm";

/// A running vmm, as its parent holds it.
#[derive(Debug)]
pub struct Vmm {
    pub child: Child,
    /// Readable when the process has ended.
    pub pidfd: OwnedFd,
    pub control: Channel,
    /// The serial port's bytes; non-blocking.
    pub console: File,
}

/// Why the vmm could not be started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SpawnError {
    #[error("finding out where the bulkhead program itself is")]
    OwnPath(#[source] std::io::Error),
    #[error(
        "{} is missing: bulkhead and bulkhead-vmm belong in one directory (from a checkout, `cargo build --release` \
         makes both)", .0.display()
    )]
    Missing(PathBuf),
    #[error("making sockets for the vmm")]
    Sockets(#[source] nix::Error),
    #[error("starting {}", path.display())]
    Start { path: PathBuf, source: std::io::Error },
    #[error("watching the vmm process: a kernel of 5.3 or later is needed")]
    Watch(#[source] std::io::Error),
    #[error("sending the vmm its configuration")]
    Configure(#[source] LaunchError),
}

/// Starts the vmm; the machine begins to run. Must be called on the main thread, whose death ends the vmm, and before
/// any other thread exists: descriptors are made inheritable for a moment.
pub fn spawn(options: &RunOptions, resources: Resources) -> Result<Vmm, SpawnError> {
    let started_ns = monotonic_ns();
    let path = vmm_path()?;
    let (control, their_control) = pair(SockType::SeqPacket)?;
    let (console, their_console) = pair(SockType::Stream)?;
    fcntl(&console, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(SpawnError::Sockets)?;
    let config = LaunchConfig {
        version: VERSION,
        memory: options.memory,
        command_line: options.append.clone(),
        engine: options.engine.clone(),
        cpu: options.cpu.clone(),
        no_reboot: options.no_reboot,
        stats: options.stats,
        json: options.json,
        started_ns,
        kernel: inheritable(&resources.kernel)?,
        initrd: resources.initrd.as_ref().map(inheritable).transpose()?,
        console: Some(inheritable(&their_console)?),
        disks: resources.disks.iter().zip(0..).map(disk).collect::<Result<_, _>>()?,
    };
    // Queued before the process exists: it finds its configuration waiting.
    let channel = Channel::new(control);
    channel.send(&config).map_err(SpawnError::Configure)?;
    let child = Command::new(&path)
        .args(["--control", &inheritable(&their_control)?.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        // The terminal's own signals are for us to judge.
        .process_group(0)
        .spawn()
        .map_err(|source| SpawnError::Start { path, source })?;
    let pidfd = pidfd::open(child.id()).map_err(SpawnError::Watch)?;
    Ok(Vmm { child, pidfd, control: channel, console: File::from(console) })
}

impl Drop for Vmm {
    /// No way out leaves a vmm behind. One that has been waited for is not signalled.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The launch message's words for disk `index`.
fn disk(((disk, socket), index): (&(VhostUserBlk, UnixStream), usize)) -> Result<DiskConfig, SpawnError> {
    Ok(DiskConfig { name: format!("disk{index}"), socket: inheritable(socket)?, bounce: disk.bounce })
}

fn vmm_path() -> Result<PathBuf, SpawnError> {
    let own = std::env::current_exe().map_err(SpawnError::OwnPath)?;
    let path = own.with_file_name(VMM);
    if path.is_file() { Ok(path) } else { Err(SpawnError::Missing(path)) }
}

fn pair(kind: SockType) -> Result<(OwnedFd, OwnedFd), SpawnError> {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).map_err(SpawnError::Sockets)
}

/// Lets `fd` survive exec, and says its number.
fn inheritable(fd: &impl AsFd) -> Result<RawFd, SpawnError> {
    let fd = fd.as_fd();
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map_err(SpawnError::Sockets)?;
    Ok(fd.as_raw_fd())
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or((0, 0), |t| (t.tv_sec() as u64, t.tv_nsec() as u64));
    now.0.wrapping_mul(1_000_000_000).wrapping_add(now.1)
}
