//! `bulkhead run`: opens, starts, watches, and says how it ended.

use ipc::outcome::{self, Outcome};
use policy::Layers;

use crate::cgroups::{Cgroup, CgroupError};
use crate::cli::{self, RunOptions};
use crate::console::{Console, Kept};
use crate::device::back_end::BackEndError;
use crate::device::{Device, Source};
use crate::devices::Devices;
use crate::logging;
use crate::process::manner;
use crate::quarantine::{Quarantine, QuarantineError};
use crate::relay::Relay;
use crate::resources::{ResourceError, Resources};
use crate::runtime::{self, RuntimeError, Socket};
use crate::signals::StopSignals;
use crate::spawn::{self, SpawnError, Vmm};
use crate::supervise::{End, Supervisor};
use crate::terminal::RawTerminal;

/// Why a machine could not be run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error("the machine was not started")]
    Resources(#[from] ResourceError),
    #[error("the machine was not started")]
    Quarantine(#[from] QuarantineError),
    #[error("the machine was not started")]
    Spawn(#[from] SpawnError),
    #[error("the machine was not started")]
    Runtime(#[from] RuntimeError),
    #[error("the machine was not started")]
    Cgroup(#[from] CgroupError),
    #[error("the machine was not started: {0}")]
    Limits(String),
    #[error("the machine was not started: {0}")]
    Device(String, #[source] BackEndError),
    #[error("the machine was not started: taking signals")]
    Signals(#[source] nix::Error),
    #[error("setting the terminal to raw mode")]
    Terminal(#[source] std::io::Error),
    #[error("watching the vmm")]
    Watch(#[source] std::io::Error),
    #[error(
        "the kernel ended the vmm for want of memory: raise the limit (--limits memory=...), or give less --memory"
    )]
    Starved,
    #[error("the vmm process died without a report ({0}): this is a bug in Bulkhead; its last words are above")]
    Died(String),
}

impl RunError {
    /// The exit code that this error becomes.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Watch(_) | Self::Died(_) | Self::Starved => outcome::VMM_DIED,
            _ => outcome::START_FAILED,
        }
    }
}

/// Runs the machine to its end, says how it ended, and returns the exit code.
pub fn run(options: &RunOptions) -> u8 {
    let (result, api) = match supervised(options) {
        Ok(mut end) => {
            let api = end.api.take();
            (conclude(end, options), api)
        }
        Err(error) => (Err(error), None),
    };
    let code = result.unwrap_or_else(|error| {
        tracing::error!("{}", outcome::cause_chain(&error));
        error.exit_code()
    });
    if let Some(api) = api {
        api.finish();
    }
    logging::finish();
    code
}

fn supervised(options: &RunOptions) -> Result<End, RunError> {
    let mut resources = Resources::open(options)?;
    options.quarantine.iter().try_for_each(Quarantine::prepare)?;
    let output = resources.output.take();
    let signals = StopSignals::new().map_err(RunError::Signals)?;
    let socket = Socket::open(&name(options))?;
    // Outlives the processes in it.
    let limits = options.limits.clone().unwrap_or_default();
    limits.check(options.memory).map_err(RunError::Limits)?;
    let group = Cgroup::make(&socket.name, &limits)?;
    let (vmm, devices) = start(options, resources, group.as_ref())?;
    let stdio = options.console == cli::Console::Stdio;
    let terminal = match stdio {
        true => RawTerminal::enter(std::io::stdin()).map_err(RunError::Terminal)?,
        false => None,
    };
    let console = match options.console {
        cli::Console::Socket => Console::Kept(Kept::default()),
        _ => Console::Relayed(Relay::new(terminal.is_some(), stdio, output)),
    };
    // The terminal is restored before anything more is said.
    Supervisor::new(vmm, devices, group, socket, console, signals).run().map_err(RunError::Watch)
}

/// The name that was given, else the configuration's, else a number that no other machine has.
fn name(options: &RunOptions) -> String {
    let stem = options.config.as_ref().and_then(|path| path.file_stem()?.to_str());
    let own = stem.and_then(|stem| runtime::name(stem).ok());
    options.name.clone().or(own).unwrap_or_else(|| format!("vm-{}", std::process::id()))
}

/// Starts all processes, which confine themselves at the same time, and hands each what it needs once it was verified.
fn start(options: &RunOptions, mut resources: Resources, group: Option<&Cgroup>) -> Result<(Vmm, Devices), RunError> {
    let tolerate: Layers = options.allow_missing.iter().copied().collect();
    let place = group.map(|group| group.child("vmm")).transpose()?;
    let mut vmm = spawn::spawn(options, place.as_deref(), &tolerate)?;
    let mut devices = named(std::mem::take(&mut resources.devices));
    for device in &mut devices {
        device.cgroup = group.map(|group| group.device(&device.name)).transpose()?;
        device.start(&tolerate).map_err(|error| RunError::Device(device.name.clone(), error))?;
    }
    vmm.verify(&tolerate)?;
    let mut connected = Vec::new();
    for device in &mut devices {
        let stream = device.first_connection(&tolerate);
        connected.push((device.config(), stream.map_err(|error| RunError::Device(device.name.clone(), error))?));
    }
    // Kernel and initrd are the vmm's from here on; the images stay, for a device that is to be replaced.
    Ok((
        vmm.start(options, &resources, connected)?,
        Devices::new(devices, tolerate, options.quarantine.clone().unwrap_or_default()),
    ))
}

/// Numbers devices, and calls each by its kind and its number among that.
fn named(sources: Vec<Source>) -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    for source in sources {
        let of_kind = devices.iter().filter(|device| device.name.starts_with(source.stem())).count();
        devices.push(Device::new(devices.len() as u16, format!("{}{of_kind}", source.stem()), source));
    }
    devices
}

/// Says how it ended, prints counters, and finds the exit code.
fn conclude(end: End, options: &RunOptions) -> Result<u8, RunError> {
    if options.stats {
        print_stats(&end.stats, options.json);
    }
    let Some(outcome) = end.outcome else {
        if end.killed {
            return Ok(outcome::STOPPED);
        }
        if end.starved {
            return Err(RunError::Starved);
        }
        return Err(RunError::Died(manner(end.status)));
    };
    match &outcome {
        Outcome::PowerOff | Outcome::DebugExit(_) => tracing::debug!("{outcome}"),
        Outcome::Stopped | Outcome::Reset(_) => tracing::info!("{outcome}"),
        Outcome::Unsupported(_) | Outcome::StartFailed(_) => tracing::error!("{outcome}"),
    }
    Ok(outcome.exit_code())
}

/// Counters go to standard error: standard output is the guest's.
fn print_stats(stats: &[(String, u64)], json: bool) {
    if json {
        let map: serde_json::Map<String, serde_json::Value> =
            stats.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
        return logging::print(&format!("{}\n", serde_json::json!({ "stats": map })));
    }
    let width = stats.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in stats {
        logging::print(&format!("{name:width$}  {value}\n"));
    }
}
