//! The process that hostile cases run in, started by `tests/tests/hostile.rs`; see `tests::hostile`.
//!
//! Its argument says which: machines, attacks or files. `BULKHEAD_HOSTILE_SEED` and `BULKHEAD_HOSTILE_CASE` say where to
//! begin, `BULKHEAD_HOSTILE_CHILD_SECONDS` for how long to go on; one case at least is run.

use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tests::hostile::{ATTACKS, Fuzzer, seconds, setting};

/// What a case is.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// A random machine on both engines.
    Machines,
    /// One of the named attacks.
    Attacks,
    /// A random kernel image.
    Files,
}

/// Runs hostile cases in this process.
#[derive(Parser)]
struct Arguments {
    kind: Kind,
}

fn main() -> Result<(), Box<dyn Error>> {
    let budget: f64 = setting("BULKHEAD_HOSTILE_CHILD_SECONDS", 0.0);
    let end = Instant::now() + Duration::try_from_secs_f64(budget)?;
    match Arguments::parse().kind {
        Kind::Machines => run(|_| Instant::now() < end, Fuzzer::case),
        Kind::Files => run(|_| Instant::now() < end, Fuzzer::files),
        Kind::Attacks => {
            let time = seconds(0.4 / ATTACKS.len() as f64);
            let more = |n| budget > 0.0 && n < ATTACKS.len() as u64;
            run(more, |fuzzer, n| fuzzer.attack(n as usize, time))
        }
    }
}

/// Runs cases from `BULKHEAD_HOSTILE_CASE` on while `more`, saying each number before.
fn run(
    mut more: impl FnMut(u64) -> bool,
    mut case: impl FnMut(&mut Fuzzer, u64) -> Result<(), String>,
) -> Result<(), Box<dyn Error>> {
    let mut fuzzer = Fuzzer::new(setting("BULKHEAD_HOSTILE_SEED", 1));
    let mut number: u64 = setting("BULKHEAD_HOSTILE_CASE", 0);
    let mut done = Ok(());
    loop {
        println!("case {number}");
        std::io::stdout().flush()?;
        done = done.and(case(&mut fuzzer, number).map_err(|why| format!("case {number}: {why}")));
        if done.is_err() {
            break;
        }
        number += 1;
        if !more(number) {
            println!("case {number}");
            break;
        }
    }
    println!("tally {}", fuzzer.tally.line());
    Ok(done?)
}
