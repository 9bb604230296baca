//! Starts the vmm process, sees that it is confined, and only then hands it what it needs.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ipc::ChannelError;
use ipc::control::{DeviceConfig, FromVmm, Prepare, Start, ToVmm};
use nix::time::{ClockId, clock_gettime};
use policy::Layers;

use crate::cli::RunOptions;
use crate::link::{Link, VmmLink};
use crate::logging;
use crate::process::{Process, ProcessError, Program};
use crate::resources::Resources;

/// The vmm program.
const VMM: Program<'static> = Program { file: "bulkhead-vmm", arguments: &[], name: "vmm", cgroup: None };
/// How long a process may take to confine itself. It takes some tens of milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// What a vmm holds when it is confined: the standard descriptors, its control channel, and what it stands on.
const HOLDS: [&str; 6] = ["/dev/null", "/dev/null", "pipe:", "socket:", "/memfd:guest-ram", "anon_inode:[eventfd]"];

/// A running vmm.
#[derive(Debug)]
pub struct Vmm {
    pub process: Process,
    pub link: VmmLink,
    /// The serial port's bytes; non-blocking.
    pub console: UnixStream,
}

/// A vmm that was started, and confines itself.
#[derive(Debug)]
pub struct Spawned {
    process: Process,
    link: VmmLink,
    started_ns: u64,
}

/// Why the vmm could not be started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SpawnError {
    #[error("starting the vmm")]
    Process(#[from] ProcessError),
    #[error("making the vmm's console")]
    Console(#[source] io::Error),
    #[error("talking to the vmm")]
    Channel(#[source] ChannelError),
    #[error("the vmm ended before it was confined; its last words are above")]
    Died,
    #[error("the vmm did not confine itself within {} seconds", PATIENCE.as_secs())]
    Late,
    #[error("{0}")]
    Refused(String),
}

impl From<ChannelError> for SpawnError {
    fn from(error: ChannelError) -> Self {
        if matches!(error, ChannelError::Closed) { Self::Died } else { Self::Channel(error) }
    }
}

/// Starts the vmm, which confines itself, in the control group of this `cgroup.procs`, if there is one. Must be called on the
/// main thread, whose death ends the vmm.
pub fn spawn(options: &RunOptions, cgroup: Option<&Path>, tolerate: &Layers) -> Result<Spawned, SpawnError> {
    let started_ns = monotonic_ns();
    let (mut link, control) = Link::new(VMM.name)?;
    // Queued before the process exists: it finds its numbers waiting.
    let prepare = Prepare {
        memory: options.memory,
        engine: options.engine.clone(),
        cpu: options.cpu.clone(),
        log_filter: logging::filter_text(),
    };
    link.say(&ToVmm::Prepare(prepare), &[])?;
    let process = Process::start(Program { cgroup, ..VMM }, tolerate, control.as_fd())?;
    Ok(Spawned { process, link, started_ns })
}

impl Spawned {
    /// Waits until the vmm says that it is confined, and looks whether it is.
    pub fn verify(&mut self, tolerate: &Layers) -> Result<(), SpawnError> {
        match self.link.await_one(Instant::now() + PATIENCE) {
            Ok(Some(FromVmm::Ready { landlock_proved, missing })) => {
                Ok(self.process.verify(landlock_proved, &missing, &HOLDS, tolerate)?)
            }
            Ok(Some(FromVmm::Ended { outcome, .. })) => Err(SpawnError::Refused(outcome.to_string())),
            // The table permits nothing else now.
            Ok(_) => Err(SpawnError::Late),
            Err(error) => {
                self.process.words.read_last();
                Err(error.into())
            }
        }
    }

    /// Hands over what the machine is made of: the guest begins to run.
    pub fn start(
        mut self,
        options: &RunOptions,
        resources: &Resources,
        devices: Vec<(DeviceConfig, UnixStream)>,
    ) -> Result<Vmm, SpawnError> {
        let (console, their_console) = consoles().map_err(SpawnError::Console)?;
        let (devices, sockets): (Vec<DeviceConfig>, Vec<UnixStream>) = devices.into_iter().unzip();
        let start = Start {
            command_line: options.append.clone(),
            no_reboot: options.no_reboot,
            stats: options.stats,
            started_ns: self.started_ns,
            initrd: resources.initrd.is_some(),
            devices,
        };
        let mut descriptors = vec![resources.kernel.as_fd()];
        descriptors.extend(resources.initrd.as_ref().map(File::as_fd));
        descriptors.push(their_console.as_fd());
        descriptors.extend(sockets.iter().map(AsFd::as_fd));
        self.link.say(&ToVmm::Start(start), &descriptors)?;
        Ok(Vmm { process: self.process, link: self.link, console })
    }
}

/// Both ends of the console, non-blocking: the vmm may not change the flags of what it is given.
fn consoles() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    Ok((ours, theirs))
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or((0, 0), |t| (t.tv_sec() as u64, t.tv_nsec() as u64));
    now.0.wrapping_mul(1_000_000_000).wrapping_add(now.1)
}
