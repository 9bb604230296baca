//! The vmm process: started by `bulkhead` with the descriptors it needs, told by its control channel what to run.
//!
//! It opens nothing. `--control N` names the inherited SEQPACKET socket, whose first message is the
//! [`LaunchConfig`](vmm::launch::LaunchConfig); every other descriptor is named there. Exit codes: [`vmm::outcome`].
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::sync::Arc;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use vmm::boot::{BootError, Image, Payload};
use vmm::cpu::{CpuModel, SelectionError};
use vmm::inherit::{Inherited, NotInherited};
use vmm::launch::{Channel, LaunchConfig, LaunchError, Report};
use vmm::machine::{Disk, Machine, MachineError, Parts};
use vmm::outcome::{self, Outcome, cause_chain};

/// Why the machine was not started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("bulkhead-vmm is started by `bulkhead run`, with --control and the number of an inherited socket")]
    Usage,
    #[error(transparent)]
    Descriptor(#[from] NotInherited),
    #[error("taking the launch message")]
    Launch(#[from] LaunchError),
    #[error("loading the guest")]
    Boot(#[from] BootError),
    #[error(transparent)]
    Cpu(#[from] SelectionError),
    #[error(transparent)]
    Machine(#[from] MachineError),
}

fn main() -> ExitCode {
    // The broker's death is ours, however it dies.
    let _ = set_pdeathsig(Signal::SIGKILL);
    // SAFETY: this is the start of main, before anything else is opened, and the only such value.
    let mut inherited = unsafe { Inherited::new() };
    let control = match control_descriptor().and_then(|fd| Ok(inherited.take(fd)?)) {
        Ok(fd) => Channel::new(fd),
        Err(error) => {
            eprintln!("{}", cause_chain(&error));
            return ExitCode::from(outcome::USAGE);
        }
    };
    ExitCode::from(start(control, inherited).exit_code())
}

fn control_descriptor() -> Result<RawFd, StartError> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next().and_then(|n| n.parse().ok()), arguments.next()) {
        (Some("--control"), Some(fd), None) => Ok(fd),
        _ => Err(StartError::Usage),
    }
}

/// Starts and runs what the launch message says. The outcome has been reported when this returns.
fn start(control: Channel, mut inherited: Inherited) -> Outcome {
    let config = control.receive::<LaunchConfig>().and_then(|config| config.validate().map(|()| config));
    let (payload, console, cpu, disks, config) = match config.map_err(StartError::from).and_then(|config| {
        let payload = prepare(&config, &mut inherited)?;
        let console = config.console.map(|fd| inherited.take(fd)).transpose()?;
        let disks = config.disks.iter().map(|disk| {
            let socket = inherited.take(disk.socket)?;
            Ok(Disk { name: disk.name.clone(), socket, bounce: disk.bounce })
        });
        let disks = disks.collect::<Result<Vec<_>, NotInherited>>()?;
        Ok((payload, console, config.cpu.parse::<CpuModel>()?, disks, config))
    }) {
        Ok(prepared) => prepared,
        Err(error) => return failed(&control, &error),
    };
    log_to_stderr(config.json);
    let engine = config.engine.clone();
    let (memory, no_reboot, started_ns) = (config.memory, config.no_reboot, config.started_ns);
    let control = Arc::new(control);
    let parts = Parts { memory, payload, engine, cpu, console, disks, control: control.clone(), no_reboot, started_ns };
    match Machine::new(parts) {
        Ok(machine) => machine.run(config.stats),
        Err(error) => failed(&control, &error.into()),
    }
}

fn prepare(config: &LaunchConfig, inherited: &mut Inherited) -> Result<Payload, StartError> {
    let kernel = Image::new("kernel", File::from(inherited.take(config.kernel)?))?;
    let initrd = match config.initrd {
        Some(fd) => Some(Image::new("initrd", File::from(inherited.take(fd)?))?),
        None => None,
    };
    Ok(Payload::identify(kernel, initrd, config.command_line.clone())?)
}

fn failed(control: &Channel, error: &StartError) -> Outcome {
    let outcome = Outcome::StartFailed(cause_chain(error));
    let report = Report::Ended { outcome: outcome.clone(), stats: Vec::new() };
    if control.send(&report).is_err() {
        eprintln!("{outcome}");
    }
    outcome
}

fn log_to_stderr(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BULKHEAD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match json {
        true => builder.json().init(),
        false => builder.with_ansi(false).without_time().init(),
    }
}
