//! Hostile guests on both engines; see `tests::hostile`.
//!
//! `BULKHEAD_HOSTILE_SECONDS` is the time budget (default 15), `BULKHEAD_HOSTILE_SEED` the seed.

use std::io::Write;
use std::time::{Duration, Instant};

use tests::hostile::parent::Parent;
use tests::hostile::{ATTACKS, Fuzzer};

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn seconds(share: f64) -> Duration {
    Duration::from_secs_f64(setting("BULKHEAD_HOSTILE_SECONDS", 15.0) * share)
}

fn run(child: &str, budget: Duration, limit: u64) {
    let arguments = &[child, "--exact", "--ignored", "--nocapture"];
    let parent = Parent { arguments, seed: setting("BULKHEAD_HOSTILE_SEED", 1), budget, limit };
    let report = parent.run().expect("starting a child");
    println!("{child}: {} cases; {:?}", report.cases, report.tally);
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
}

#[test]
fn machines() {
    run("child_of_machines", seconds(0.5), u64::MAX);
}

#[test]
fn attacks() {
    // How many there are bounds them; each takes its share of the time.
    run("child_of_attacks", Duration::from_secs(3600), ATTACKS.len() as u64);
}

#[test]
fn files() {
    run("child_of_files", seconds(0.1), u64::MAX);
}

/// Loads files for `BULKHEAD_HOSTILE_CHILD_SECONDS`, one case at least.
#[test]
#[ignore = "started by `files`"]
fn child_of_files() {
    let end = Instant::now() + Duration::from_secs_f64(setting("BULKHEAD_HOSTILE_CHILD_SECONDS", 0.0));
    child(|_| Instant::now() < end, Fuzzer::files);
}

/// Runs cases from `BULKHEAD_HOSTILE_CASE` on while `more`.
fn child(mut more: impl FnMut(u64) -> bool, mut case: impl FnMut(&mut Fuzzer, u64) -> Result<(), String>) {
    let mut fuzzer = Fuzzer::new(setting("BULKHEAD_HOSTILE_SEED", 1));
    let mut number: u64 = setting("BULKHEAD_HOSTILE_CASE", 0);
    println!();
    loop {
        println!("case {number}");
        let _ = std::io::stdout().flush();
        if let Err(why) = case(&mut fuzzer, number) {
            println!("tally {}", fuzzer.tally.line());
            panic!("case {number}: {why}");
        }
        number += 1;
        if !more(number) {
            break;
        }
    }
    println!("case {number}");
    println!("tally {}", fuzzer.tally.line());
}

/// Runs cases for `BULKHEAD_HOSTILE_CHILD_SECONDS`, one at least.
#[test]
#[ignore = "started by `machines`"]
fn child_of_machines() {
    let end = Instant::now() + Duration::from_secs_f64(setting("BULKHEAD_HOSTILE_CHILD_SECONDS", 0.0));
    child(|_| Instant::now() < end, Fuzzer::case);
}

/// Runs one attack, or from one on if it has time for more.
#[test]
#[ignore = "started by `attacks`"]
fn child_of_attacks() {
    let time = seconds(0.4 / ATTACKS.len() as f64);
    let all = setting("BULKHEAD_HOSTILE_CHILD_SECONDS", 0.0) > 0.0;
    child(|n| all && n < ATTACKS.len() as u64, |fuzzer, n| fuzzer.attack(n as usize, time));
}
