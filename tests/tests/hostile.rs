//! Hostile guests on both engines; see `tests::hostile`.
//!
//! `BULKHEAD_HOSTILE_SECONDS` is the time budget (default 15), `BULKHEAD_HOSTILE_SEED` the seed.

use std::path::Path;
use std::time::Duration;

use tests::hostile::parent::Parent;
use tests::hostile::{ATTACKS, seconds, setting};

fn run(kind: &str, budget: Duration, limit: u64) {
    let program = Path::new(env!("CARGO_BIN_EXE_hostile_child"));
    let parent = Parent { program, kind, seed: setting("BULKHEAD_HOSTILE_SEED", 1), budget, limit };
    let report = parent.run().expect("starting a child");
    println!("{kind}: {} cases; {:?}", report.cases, report.tally);
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
}

#[test]
fn machines() {
    run("machines", seconds(0.5), u64::MAX);
}

#[test]
fn attacks() {
    // How many there are bounds them; each takes its share of the time.
    run("attacks", Duration::from_secs(3600), ATTACKS.len() as u64);
}

#[test]
fn files() {
    run("files", seconds(0.1), u64::MAX);
}
