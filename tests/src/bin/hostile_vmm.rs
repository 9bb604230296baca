//! A vmm in other hands: it is confined as the real one is, is verified, and then does to its broker what the guest's command
//! line says. Run by `tests/tests/hostile_vmm.rs`, as `bulkhead-vmm` beside a copy of `bulkhead`.

use std::error::Error;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

use ipc::Channel;
use ipc::control::{DeviceEvent, FromVmm, ToVmm};
use ipc::outcome::Outcome;
use ipc::telemetry::{Record, Severity};
use policy::confine::{Confinement, confine};
use policy::{Layers, Role, last_words};
use vmm::inherit;
use vmm::machine::Foundation;

/// What would clear a terminal.
const CLEAR: &str = "\u{1b}[2J";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[allow(unsafe_code)]
fn run() -> Result<(), Box<dyn Error>> {
    // SAFETY: the first thing that main does.
    let socket = unsafe { inherit::control() }.ok_or("started by `bulkhead run`")?;
    last_words::install()?;
    let broker = Channel::<FromVmm, ToVmm>::new(socket);
    let (ToVmm::Prepare(numbers), _) = broker.receive()? else { return Err("no numbers".into()) };
    let foundation = Foundation::new(numbers.memory, "interp")?;
    let mut keep = foundation.descriptors().to_vec();
    keep.push(broker.as_fd());
    let attestation = confine(&Confinement { role: Role::Vmm, keep: &keep, tolerate: &Layers::new() })?;
    let lacks = numbers.cpu == "max,-avx2";
    let missing = if lacks { vec!["descriptors".into()] } else { Vec::new() };
    broker.send(&FromVmm::Ready { landlock_proved: attestation.landlock_proved, missing }, &[])?;
    let (ToVmm::Start(start), _descriptors) = broker.receive()? else { return Err("not started".into()) };
    let ended = |outcome, stats| broker.send(&FromVmm::Ended { outcome, stats }, &[]);
    match &start.command_line[..] {
        "flood" => flood(&broker),
        "babble" => babble(&broker),
        "stay" => ended(Outcome::PowerOff, Vec::new())?,
        "hang-up" => {
            drop(broker);
            sleep()
        }
        "escape" => {
            escape(&broker)?;
            return Ok(ended(Outcome::Unsupported(CLEAR.into()), vec![(CLEAR.into(), 7)])?);
        }
        "talk" => return Ok(talk()?),
        other => return Err(format!("{other}: what is that?").into()),
    }
    sleep()
}

fn sleep() -> ! {
    loop {
        std::thread::park();
    }
}

fn log(text: &str) -> FromVmm {
    FromVmm::Log(Record { severity: Severity::Info, text: text.into(), lost: 0 })
}

fn started(protocol: &str) -> FromVmm {
    FromVmm::Started { protocol: protocol.into(), engine: "none".into(), startup_ns: 0 }
}

/// All that may be said often, as fast as it is taken, deaf to what it is told.
fn flood(broker: &Channel<FromVmm, ToVmm>) {
    let _ = broker.send(&started("none"), &[]);
    let device = FromVmm::Device { device: 0, connection: 0, event: DeviceEvent::Restored };
    let all = [log("flood"), FromVmm::Alive(7), device, FromVmm::Rebooted { cause: "flood".into() }];
    loop {
        for message in &all {
            let _ = broker.send(message, &[]);
        }
    }
}

/// Log events as long as they may be, as fast as they are taken.
fn babble(broker: &Channel<FromVmm, ToVmm>) {
    let _ = broker.send(&started("none"), &[]);
    let long = "x".repeat(ipc::telemetry::MAX_TEXT);
    loop {
        let _ = broker.send(&log(&long), &[]);
    }
}

fn escape(broker: &Channel<FromVmm, ToVmm>) -> Result<(), Box<dyn Error>> {
    broker.send(&log(CLEAR), &[])?;
    broker.send(&started(CLEAR), &[])?;
    broker.send(&FromVmm::Rebooted { cause: CLEAR.into() }, &[])?;
    eprintln!("{CLEAR}");
    Ok(())
}

/// More than one read of the broker's takes.
fn talk() -> std::io::Result<()> {
    let lines: String = (0..50).map(|number| format!("line {number} {}\n", "x".repeat(200))).collect();
    std::io::stderr().write_all(format!("{lines}the very last words").as_bytes())
}
