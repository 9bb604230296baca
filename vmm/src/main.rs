//! The vmm process: started by `bulkhead`, confined by itself, told by its control channel what to run.
//!
//! It opens nothing. Descriptor 3 is the control channel; everything else comes along with messages, after the broker has
//! seen that the process is confined. What must be made before that - guest RAM, the code cache, handlers, timers - is
//! made from numbers that the broker gives, before a byte of the guest is read. Arguments: `--allow-missing LAYER`, as
//! often as needed. Exit codes: [`vmm::outcome`].
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use ipc::ChannelError;
use ipc::control::{FromVmm, Prepare, Start, ToVmm};
use ipc::telemetry::Forward;
use policy::confine::{ConfineError, Confinement, confine};
use policy::layer::UnknownLayer;
use policy::{Layers, Role, last_words};
use tracing_subscriber::prelude::*;
use vmm::Uplink;
use vmm::boot::{BootError, Image, Payload};
use vmm::cpu::{CpuModel, SelectionError};
use vmm::inherit;
use vmm::machine::{Device, Foundation, Machine, MachineError, Parts};
use vmm::outcome::{self, Outcome, cause_chain};

/// Why the machine was not started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("bulkhead-vmm is started by `bulkhead run`, with its control channel as descriptor 3")]
    Usage,
    #[error(transparent)]
    Layer(#[from] UnknownLayer),
    #[error("talking to the broker")]
    Channel(#[from] ChannelError),
    #[error("confining the vmm")]
    Confine(#[from] ConfineError),
    #[error("loading the guest")]
    Boot(#[from] BootError),
    #[error(transparent)]
    Cpu(#[from] SelectionError),
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// How a start ends that leads to no machine: there may be nothing wrong.
enum NoMachine {
    Stopped,
    Failed(StartError),
}

impl<E: Into<StartError>> From<E> for NoMachine {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn main() -> ExitCode {
    // SAFETY: this is the start of main, before anything else is opened.
    let socket = unsafe { inherit::control() };
    let tolerate = tolerated(std::env::args().skip(1));
    let (Some(socket), Ok(tolerate), Ok(())) = (socket, tolerate, last_words::install()) else {
        eprintln!("{}", StartError::Usage);
        return ExitCode::from(outcome::USAGE);
    };
    // Executed by descriptor, the process would be called by a number.
    let _ = nix::sys::prctl::set_name(c"bulkhead-vmm");
    let uplink = Arc::new(Uplink::new(socket));
    let outcome = match prepare(&uplink, &tolerate) {
        Ok((machine, stats)) => machine.run(stats),
        Err(NoMachine::Stopped) => ended(&uplink, Outcome::Stopped),
        Err(NoMachine::Failed(error)) => ended(&uplink, Outcome::StartFailed(cause_chain(&error))),
    };
    ExitCode::from(outcome.exit_code())
}

fn tolerated(mut arguments: impl Iterator<Item = String>) -> Result<Layers, StartError> {
    let mut layers = Layers::new();
    while let Some(argument) = arguments.next() {
        let layer = arguments.next().filter(|_| argument == "--allow-missing").ok_or(StartError::Usage)?;
        layers.insert(layer.parse()?);
    }
    Ok(layers)
}

/// Everything up to the machine, in the order of the conversation: prepare, shed, Ready, and only then the guest.
fn prepare(uplink: &Arc<Uplink>, tolerate: &Layers) -> Result<(Machine, bool), NoMachine> {
    let (ToVmm::Prepare(numbers), _) = uplink.wait()? else { return Err(NoMachine::Stopped) };
    log_to_broker(&numbers, uplink);
    let cpu = numbers.cpu.parse::<CpuModel>().map_err(StartError::from)?;
    let foundation = Foundation::new(numbers.memory, &numbers.engine).map_err(StartError::from)?;
    shed(uplink, &foundation, tolerate)?;
    let (start, descriptors) = match uplink.wait()? {
        (ToVmm::Start(start), descriptors) => (start, descriptors),
        _ => return Err(NoMachine::Stopped),
    };
    let stats = start.stats;
    Ok((assemble(foundation, cpu, start, descriptors, uplink)?, stats))
}

/// From here on the process can make the profile's system calls on what it holds, and nothing else.
fn shed(uplink: &Uplink, foundation: &Foundation, tolerate: &Layers) -> Result<(), StartError> {
    let mut keep = foundation.descriptors().to_vec();
    keep.push(uplink.as_fd());
    let attestation = confine(&Confinement { role: Role::Vmm, keep: &keep, tolerate })?;
    let missing = attestation.missing.iter().map(ToString::to_string).collect();
    Ok(uplink.say(&FromVmm::Ready { landlock_proved: attestation.landlock_proved, missing })?)
}

/// The machine, of what came with the start message: kernel, initrd if there is one, console, devices.
fn assemble(
    foundation: Foundation,
    cpu: CpuModel,
    start: Start,
    descriptors: Vec<OwnedFd>,
    uplink: &Arc<Uplink>,
) -> Result<Machine, StartError> {
    // The channel has checked that there are as many as the message says.
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(StartError::Usage);
    let kernel = Image::new("kernel", File::from(next()?))?;
    let initrd = if start.initrd { Some(Image::new("initrd", File::from(next()?))?) } else { None };
    let console = next()?;
    let devices = start
        .devices
        .into_iter()
        .map(|config| Ok(Device { config, socket: next()? }))
        .collect::<Result<_, StartError>>()?;
    let payload = Payload::identify(kernel, initrd, start.command_line)?;
    let parts = Parts {
        payload,
        cpu,
        console: Some(console),
        devices,
        uplink: uplink.clone(),
        no_reboot: start.no_reboot,
        started_ns: start.started_ns,
    };
    Ok(Machine::new(foundation, parts)?)
}

fn ended(uplink: &Uplink, outcome: Outcome) -> Outcome {
    let report = FromVmm::Ended { outcome: outcome.clone(), stats: Vec::new() };
    if uplink.say(&report).is_err() {
        eprintln!("{outcome}");
    }
    outcome
}

/// Events go to the broker: this process has no log of its own.
fn log_to_broker(numbers: &Prepare, uplink: &Arc<Uplink>) {
    let filter = tracing_subscriber::EnvFilter::new(&numbers.log_filter);
    let uplink = uplink.clone();
    let forward = Forward::new(move |record: &_| uplink.say(&FromVmm::Log(Clone::clone(record))).is_ok());
    // Nothing has set another before.
    let _ = tracing_subscriber::registry().with(filter).with(forward).try_init();
}
