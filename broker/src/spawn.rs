//! Starts the vmm process, sees that it is confined, and only then hands it what it needs.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipc::ChannelError;
use ipc::control::{FromVmm, Prepare, Start, ToVmm};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::time::{ClockId, clock_gettime};
use policy::Layers;
use policy::launch::{Launch, LaunchError, Launched};
use policy::verify::{Verified, VerifyError};

use crate::cli::RunOptions;
use crate::link::Link;
use crate::logging;
use crate::resources::Resources;
use crate::words::Words;

/// Name of the vmm program, found beside our own.
const VMM: &str = "bulkhead-vmm";
/// How long a process may take to confine itself. It takes some tens of milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a vmm holds when it is confined: the standard descriptors, its control channel, and what it stands on.
const HOLDS: [&str; 6] = ["/dev/null", "/dev/null", "pipe:", "socket:", "/memfd:guest-ram", "anon_inode:[eventfd]"];

/// A running vmm, as its parent holds it.
#[derive(Debug)]
pub struct Vmm {
    process: Launched,
    /// Its end has been taken note of.
    waited: bool,
    pub link: Link,
    pub words: Words,
    /// The serial port's bytes; non-blocking.
    pub console: UnixStream,
}

/// Why the vmm could not be started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SpawnError {
    #[error("finding out where the bulkhead program itself is")]
    OwnPath(#[source] io::Error),
    #[error(
        "{} is missing: bulkhead and bulkhead-vmm belong in one directory (from a checkout, `cargo build --release` \
         makes both)", .0.display()
    )]
    Missing(PathBuf),
    #[error("making what connects to the vmm")]
    Connect(#[source] io::Error),
    #[error("starting the vmm")]
    Launch(#[from] LaunchError),
    #[error("talking to the vmm")]
    Channel(#[from] ChannelError),
    #[error("waiting for the vmm")]
    Wait(#[source] nix::Error),
    #[error("the vmm ended before it was confined; its last words are above")]
    Died,
    #[error("the vmm did not confine itself within {} seconds", PATIENCE.as_secs())]
    Late,
    #[error("{0}")]
    Refused(String),
    #[error("verifying the vmm's confinement")]
    Verify(#[from] VerifyError),
    #[error("the vmm did not see Landlock deny anything: use a kernel with Landlock, or --allow-missing landlock")]
    Landlock,
}

/// Starts the vmm; the machine begins to run. Must be called on the main thread, whose death ends the vmm.
pub fn spawn(options: &RunOptions, resources: &Resources) -> Result<Vmm, SpawnError> {
    let started_ns = monotonic_ns();
    let tolerate: Layers = options.allow_missing.iter().copied().collect();
    let (mut link, control) = Link::new()?;
    // Queued before the process exists: it finds its numbers waiting.
    let prepare = Prepare {
        memory: options.memory,
        engine: options.engine.clone(),
        cpu: options.cpu.clone(),
        log_filter: logging::filter_text(),
    };
    link.say(&ToVmm::Prepare(prepare), &[])?;
    let (words, their_words) = io::pipe().map_err(SpawnError::Connect)?;
    let process = launch(&tolerate, &their_words, control.as_fd())?;
    drop((control, their_words));
    let (console, their_console) = consoles()?;
    let mut vmm = Vmm { process, waited: false, link, words: own_words(words)?, console };
    vmm.await_ready(&tolerate)?;
    vmm.verify(&tolerate)?;
    let start = Start {
        command_line: options.append.clone(),
        no_reboot: options.no_reboot,
        stats: options.stats,
        started_ns,
        initrd: resources.initrd.is_some(),
        disks: resources.disks.iter().zip(0..).map(|((disk, _), index)| disk.config(index)).collect(),
    };
    let mut descriptors = vec![resources.kernel.as_fd()];
    descriptors.extend(resources.initrd.as_ref().map(File::as_fd));
    descriptors.push(their_console.as_fd());
    descriptors.extend(resources.disks.iter().map(|(_, socket)| socket.as_fd()));
    vmm.link.say(&ToVmm::Start(start), &descriptors)?;
    Ok(vmm)
}

fn launch(tolerate: &Layers, words: &PipeWriter, control: BorrowedFd<'_>) -> Result<Launched, SpawnError> {
    let null = File::options().read(true).write(true).open("/dev/null").map_err(SpawnError::Connect)?;
    let allowances = tolerate.iter().flat_map(|layer| ["--allow-missing", layer.name()]);
    let launch = Launch {
        program: vmm_path()?,
        arguments: [VMM].into_iter().chain(allowances).map(|a| CString::new(a).unwrap_or_default()).collect(),
        environment: Vec::new(),
        descriptors: vec![null.as_fd(), null.as_fd(), words.as_fd(), control],
        tolerate,
    };
    let process = launch.start()?;
    for layer in &process.missing {
        tracing::warn!("the vmm runs without the layer {layer}, as was allowed");
    }
    Ok(process)
}

impl Vmm {
    /// Waits until the vmm says that it is confined.
    fn await_ready(&mut self, tolerate: &Layers) -> Result<(), SpawnError> {
        let until = Instant::now() + PATIENCE;
        loop {
            // Reads whatever came before the end, too.
            match self.link.hear() {
                Ok(Some(FromVmm::Ready { landlock_proved, missing })) => {
                    let excused = tolerate.contains(&policy::Layer::Landlock);
                    missing.iter().for_each(|layer| tracing::warn!("the vmm says that it lacks the layer {layer}"));
                    return if landlock_proved || excused { Ok(()) } else { Err(SpawnError::Landlock) };
                }
                Ok(Some(FromVmm::Ended { outcome, .. })) => return Err(SpawnError::Refused(outcome.to_string())),
                Ok(_) => {}
                Err(error) => {
                    self.words.read();
                    let closed = matches!(error, ChannelError::Closed);
                    return Err(if closed { SpawnError::Died } else { error.into() });
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Err(SpawnError::Late),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(source) => return Err(SpawnError::Wait(source)),
            }
        }
    }

    /// Believes nothing: looks for itself.
    fn verify(&self, tolerate: &Layers) -> Result<(), SpawnError> {
        let seen = Verified::of(self.process.pid)?;
        seen.check(tolerate)?;
        seen.check_descriptors(&HOLDS)?;
        seen.check_single_threaded()?;
        tracing::debug!("vmm {}: confined, {} namespaces of its own", seen.pid, seen.own_namespaces.len());
        Ok(())
    }

    /// Readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd.as_fd()
    }

    /// How it ended. Waits for that if it has not.
    pub fn wait(&mut self) -> nix::Result<WaitStatus> {
        let status = waitid(Id::PIDFd(self.pidfd()), WaitPidFlag::WEXITED)?;
        self.waited = true;
        Ok(status)
    }

    /// Ends it by force.
    pub fn kill(&self) {
        self.process.kill();
    }
}

impl Drop for Vmm {
    /// No way out leaves a vmm behind. One that has been waited for is not signalled.
    fn drop(&mut self) {
        if !self.waited {
            self.process.reap();
        }
    }
}

fn vmm_path() -> Result<PathBuf, SpawnError> {
    let own = std::env::current_exe().map_err(SpawnError::OwnPath)?;
    let path = own.with_file_name(VMM);
    if path.is_file() { Ok(path) } else { Err(SpawnError::Missing(path)) }
}

fn own_words(pipe: PipeReader) -> Result<Words, SpawnError> {
    Words::new(pipe, "vmm").map_err(|e| SpawnError::Connect(e.into()))
}

/// Both ends of the console, non-blocking: the vmm may not change the flags of what it is given.
fn consoles() -> Result<(UnixStream, UnixStream), SpawnError> {
    let make = || {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        Ok((ours, theirs))
    };
    make().map_err(SpawnError::Connect)
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or((0, 0), |t| (t.tv_sec() as u64, t.tv_nsec() as u64));
    now.0.wrapping_mul(1_000_000_000).wrapping_add(now.1)
}
