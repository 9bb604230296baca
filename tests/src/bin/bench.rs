//! `cargo bench-guest`: native, Bulkhead and QEMU side by side, in one run, interleaved; prints ratios of medians.

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use tests::bench::report::{self, Row, mebibytes};
use tests::bench::seat::Seat;
use tests::bench::{OPERATIONS, PROGRAMS, disk, recovery, start};
use tests::debian::{Debian, Flavour};
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor};

/// Measure the same i386 work natively, on Bulkhead and on QEMU's translator.
#[derive(Parser)]
struct Arguments {
    /// Bulkhead's engine; by default its own choice.
    #[arg(long)]
    engine: Option<String>,
    /// Measurements of each work; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only works whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Only this part; by default both.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Kills of a disk's process, and cold starts a tenth as many.
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Use the PAE kernel.
    #[arg(long)]
    pae: bool,
    /// Leave Bulkhead out.
    #[arg(long)]
    no_bulkhead: bool,
    /// Leave QEMU out.
    #[arg(long)]
    no_qemu: bool,
    /// Print JSON with every single time instead of the table.
    #[arg(long)]
    json: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Programs and system operations.
    Processor,
    /// Disks, their processes, and the start of a machine with one.
    Disk,
}

/// The three contenders, in this order; a guest that is left out is none.
struct Seats {
    native: Seat,
    bulkhead: Option<Seat>,
    qemu: Option<Seat>,
}

impl Seats {
    fn each(&mut self) -> impl Iterator<Item = (fn(&mut Row) -> &mut Vec<u64>, &mut Seat)> {
        let native: fn(&mut Row) -> &mut Vec<u64> = |row| &mut row.native;
        let bulkhead: fn(&mut Row) -> &mut Vec<u64> = |row| &mut row.bulkhead;
        let qemu: fn(&mut Row) -> &mut Vec<u64> = |row| &mut row.qemu;
        let guests = self.bulkhead.iter_mut().map(move |seat| (bulkhead, seat));
        let guests = guests.chain(self.qemu.iter_mut().map(move |seat| (qemu, seat)));
        std::iter::once((native, &mut self.native)).chain(guests)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let wanted = |part| arguments.part.is_none_or(|only| only == part);
    let mut value = serde_json::json!({});
    if wanted(Part::Processor) {
        value["processor"] = processor(&arguments)?;
    }
    if wanted(Part::Disk) {
        value["disk"] = disks(&arguments)?;
    }
    if arguments.json {
        println!("{value:#}");
    }
    Ok(())
}

/// Programs and system operations on all contenders; everything measured, which is also printed unless as JSON.
fn processor(arguments: &Arguments) -> Result<serde_json::Value, Box<dyn Error>> {
    let debian = Debian::open()?;
    let dir = tempfile::tempdir()?;
    let kernel = debian.kernel(if arguments.pae { Flavour::I686Pae } else { Flavour::I686 })?;
    let contents = Contents { suite: true, python: true, ..Contents::default() };
    let initrd = image::build(&debian, contents, dir.path())?;
    // Bulkhead's processor reports that it needs no mitigations; QEMU's guest is spared them too.
    let append = "console=ttyS0 mitigations=off".to_owned();
    let guest = Guest { append, options: vec!["--stats".into()], ..Guest::linux(kernel, initrd) };

    let (mut seats, mut rows) = boot(arguments, &debian, &guest)?;
    let memory = seats.bulkhead.as_ref().and_then(Seat::own_memory);
    let idle = seats.bulkhead.as_ref().and_then(|seat| seat.idle_load(Duration::from_secs(3)));
    for (_, seat) in seats.each() {
        seat.run("prepare")?;
    }
    rows.extend(programs(arguments, &mut seats)?);
    rows.extend(operations(arguments, &mut seats)?);
    seats.native.run("clean")?;
    let stats = seats.bulkhead.map(Seat::power_off).transpose()?;
    if !arguments.json {
        print!("{}", report::table(&rows));
        if let Some(memory) = memory {
            println!("bulkhead's own memory after boot: {} (goal: under 64)", mebibytes(memory));
        }
        if let Some(idle) = idle {
            println!("processor time of an idle guest: {:.2} %", idle * 100.0);
        }
        if let Some(stats) = &stats {
            println!(
                "bulkhead's counters (vmm.startup_us is the time to the first guest instruction; goal: under 25 ms):\n{stats}"
            );
        }
    }
    Ok(serde_json::json!({ "rows": rows, "own_memory": memory, "idle_load": idle, "stats": stats }))
}

/// Disks and what belongs to them; everything measured, which is also printed unless as JSON.
fn disks(arguments: &Arguments) -> Result<serde_json::Value, Box<dyn Error>> {
    let rates = disk::measure(arguments.rounds, &arguments.only, !arguments.no_qemu)?;
    eprintln!("{} kills", arguments.kills);
    let pauses = recovery::measure(arguments.kills)?;
    let starts = start::measure(arguments.kills.div_ceil(10))?;
    let starts: Vec<u64> = starts.into_iter().map(nanoseconds).collect();
    if !arguments.json {
        print!("{}{}", rates.table(), recovery::summary(&pauses));
        if let Some(median) = report::median(&starts) {
            println!(
                "`bulkhead run` with a disk to the guest's first word, cold, {} starts: median {} (goal: 150 ms)",
                starts.len(),
                report::human(median)
            );
        }
    }
    Ok(serde_json::json!({ "rates": rates, "kill_pauses_ms": pauses, "starts_ns": starts }))
}

/// Boots every guest as often as there are rounds, in turn, and keeps the last ones.
fn boot(arguments: &Arguments, debian: &Debian, guest: &Guest) -> Result<(Seats, Vec<Row>), Box<dyn Error>> {
    let mut row = Row::new("boot to init", None);
    let mut seats = Seats { native: Seat::native(debian)?, bulkhead: None, qemu: None };
    let bulkhead = Monitor::Bulkhead { engine: arguments.engine.clone() };
    for round in 0..arguments.rounds.max(1) {
        eprintln!("round {}: booting", round + 1);
        (seats.bulkhead, seats.qemu) = (None, None);
        if !arguments.no_bulkhead {
            let (seat, time) = Seat::boot(&bulkhead, guest)?;
            row.bulkhead.push(nanoseconds(time));
            seats.bulkhead = Some(seat);
        }
        if !arguments.no_qemu {
            let (seat, time) = Seat::boot(&Monitor::Qemu, guest)?;
            row.qemu.push(nanoseconds(time));
            seats.qemu = Some(seat);
        }
    }
    Ok((seats, vec![row]))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn programs(arguments: &Arguments, seats: &mut Seats) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut rows = Vec::new();
    for (name, group) in PROGRAMS.iter().filter(|(name, _)| name.contains(&arguments.only)) {
        eprintln!("{name}");
        let mut row = Row::new(name, Some(*group));
        for _ in 0..arguments.rounds {
            for (times, seat) in seats.each() {
                let time = seat.program(name)?;
                times(&mut row).push(time);
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

fn operations(arguments: &Arguments, seats: &mut Seats) -> Result<Vec<Row>, Box<dyn Error>> {
    let wanted: Vec<_> = OPERATIONS.iter().filter(|(name, _)| name.contains(&arguments.only)).collect();
    let mut rows: Vec<_> = wanted.iter().map(|(name, group)| Row::new(name, Some(*group))).collect();
    for round in 0..if rows.is_empty() { 0 } else { arguments.rounds } {
        eprintln!("system operations, round {}", round + 1);
        for (times, seat) in seats.each() {
            for (name, time) in seat.operations(200)? {
                rows.iter_mut().filter(|row| row.name == name).for_each(|row| times(row).push(time));
            }
        }
    }
    Ok(rows)
}
