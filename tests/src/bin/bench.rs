//! `cargo bench-guest`: native, Bulkhead and QEMU side by side, in one run, interleaved; prints ratios of medians.

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use tests::bench::report::{self, Row};
use tests::bench::seat::Seat;
use tests::bench::{OPERATIONS, PROGRAMS};
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
    let debian = Debian::open()?;
    let dir = tempfile::tempdir()?;
    let kernel = debian.kernel(if arguments.pae { Flavour::I686Pae } else { Flavour::I686 })?;
    let initrd = image::build(&debian, Contents { suite: true, python: true, disk: None }, dir.path())?;
    // Bulkhead's processor reports that it needs no mitigations; QEMU's guest is spared them too.
    let append = "console=ttyS0 mitigations=off".to_owned();
    let guest = Guest { append, options: vec!["--stats".into()], ..Guest::linux(kernel, initrd) };

    let (mut seats, mut rows) = boot(&arguments, &debian, &guest)?;
    let memory = seats.bulkhead.as_ref().and_then(Seat::own_memory);
    let idle = seats.bulkhead.as_ref().and_then(|seat| seat.idle_load(Duration::from_secs(3)));
    for (_, seat) in seats.each() {
        seat.run("prepare")?;
    }
    rows.extend(programs(&arguments, &mut seats)?);
    rows.extend(operations(&arguments, &mut seats)?);
    seats.native.run("clean")?;
    let stats = seats.bulkhead.map(Seat::power_off).transpose()?;
    if arguments.json {
        let value = serde_json::json!({ "rows": rows, "own_memory": memory, "idle_load": idle, "stats": stats });
        println!("{value:#}");
        return Ok(());
    }
    print!("{}", report::table(&rows));
    if let Some(memory) = memory {
        println!("bulkhead's own memory after boot: {:.1} MiB (goal: under 64)", memory as f64 / f64::from(1 << 20));
    }
    if let Some(idle) = idle {
        println!("processor time of an idle guest: {:.2} %", idle * 100.0);
    }
    if let Some(stats) = stats {
        println!(
            "bulkhead's counters (vmm.startup_us is the time to the first guest instruction; goal: under 25 ms):\n{stats}"
        );
    }
    Ok(())
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
