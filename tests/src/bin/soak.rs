//! `cargo soak`: one guest does the suite's work again and again, for as long as it is told to.
//!
//! Every round (processes, page-table churn, timers, signals, threads, code that writes code, floating point, python) must
//! print what the same binaries print natively, and the monitor's own memory must not grow once its caches are full, which
//! takes some minutes. One line tells of each round.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Parser;
use tests::debian::{Debian, Flavour};
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor, Running};
use tests::processes;
use tests::script::{self, Native};

/// Nothing printed for so long means stuck.
const SILENCE: Duration = Duration::from_secs(900);
/// How much more memory the second half of the rounds may need at most than the first, in bytes.
const MAX_GROWTH: u64 = 8 << 20;
/// Fewer rounds than this may not have filled the caches; growth is then not judged.
const JUDGED: usize = 100;
const PROMPT: &str = "bulkhead# ";

/// Run the test suite's work in one guest for a long time.
#[derive(Parser)]
struct Arguments {
    /// How long to go on, in minutes; one round at least.
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// How much work a round is; 1 is little.
    #[arg(long, default_value_t = 8)]
    scale: u32,
    /// Bulkhead's engine; by default its own choice.
    #[arg(long)]
    engine: Option<String>,
    /// Use the PAE kernel.
    #[arg(long)]
    pae: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let length = Duration::try_from_secs_f64(arguments.minutes * 60.0)?;
    let debian = Debian::open()?;
    let native = Native::new(&debian)?.suite(arguments.scale)?;
    let dir = tempfile::tempdir()?;
    let initrd = image::build(&debian, Contents { suite: true, python: true, ..Contents::default() }, dir.path())?;
    let kernel = debian.kernel(if arguments.pae { Flavour::I686Pae } else { Flavour::I686 })?;
    let guest = Guest { options: vec!["--stats".into()], ..Guest::linux(kernel, initrd) };
    let mut running = Monitor::Bulkhead { engine: arguments.engine }.start(&guest)?;
    running.console.wait_for(PROMPT, SILENCE)?;
    let memory = rounds(&mut running, &native, arguments.scale, length)
        .map_err(|error| format!("{error}\nstandard error of the monitor:\n{}", running.stderr()))?;
    running.console.send("poweroff -f")?;
    let status = running.wait(SILENCE)?;
    println!("{} rounds, {status} after power-off\n{}", memory.len(), running.stderr());
    grown(&memory)
}

/// Repeats the suite until `length` has passed; the monitor's own memory after each round, in bytes.
fn rounds(running: &mut Running, native: &str, scale: u32, length: Duration) -> Result<Vec<u64>, Box<dyn Error>> {
    let start = Instant::now();
    let mut memory = Vec::new();
    while memory.is_empty() || start.elapsed() < length {
        running.console.send(&format!("SUITE_DIR=/suite sh /suite/suite.sh {scale}; cat /proc/uptime"))?;
        let output = running.console.wait_for("=== end", SILENCE)?;
        let uptime = running.console.wait_for(PROMPT, SILENCE)?;
        let different = script::differences(native, &output);
        if !different.is_empty() {
            return Err(format!("round {} differs from native:\n{}", memory.len() + 1, different.join("\n")).into());
        }
        memory.push(processes::own_memory(running.pid()));
        let uptime = uptime.split_whitespace().next().unwrap_or("?");
        let megabytes = memory.last().map_or(0.0, |bytes| *bytes as f64 / f64::from(1 << 20));
        let host = running.started.elapsed().as_secs_f64();
        println!("round {}: {host:.0} s, guest's uptime {uptime} s, own memory {megabytes:.1} MiB", memory.len());
    }
    Ok(memory)
}

/// Whether later rounds needed more memory than earlier ones.
fn grown(memory: &[u64]) -> Result<(), Box<dyn Error>> {
    if memory.len() < JUDGED {
        println!("fewer than {JUDGED} rounds: whether memory grows was not judged");
        return Ok(());
    }
    let (first, second) = memory.split_at(memory.len() / 2);
    match (first.iter().max(), second.iter().max()) {
        (Some(first), Some(second)) if *second > *first + MAX_GROWTH => {
            Err(format!("own memory grew from {first} to {second} bytes").into())
        }
        _ => Ok(()),
    }
}
