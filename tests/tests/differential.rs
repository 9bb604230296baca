//! Random instructions, blocks and programs: interpreter against this host's processor, and translator against
//! interpreter at ring 3 and at ring 0, with and without paging.
//!
//! Agreement is to the bit, faults and the order of checks included, with Intel processors that have the features tested;
//! what an instruction leaves undefined, and the few exceptions in `differential::compare`, are not compared.
//!
//! `BULKHEAD_DIFF_SECONDS` is the whole time budget (default 20), `BULKHEAD_DIFF_SEED` the seed, `BULKHEAD_DIFF_ONLY` a part of
//! the name of the instructions to generate, `BULKHEAD_DIFF_TELL` how many kinds of difference are told in full (default 3).

use std::time::Duration;

use tests::differential::{Differential, Kind, Place, Versus};
use tests::generate::Generator;
use tests::generate::codes::Group;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn generator(wanted: impl Fn(Group) -> bool) -> Generator {
    let only = std::env::var("BULKHEAD_DIFF_ONLY").unwrap_or_default().to_lowercase();
    let seed = setting("BULKHEAD_DIFF_SEED", 20_240_601);
    Generator::new(seed, |code, group| wanted(group) && format!("{code:?}").to_lowercase().contains(&only))
}

fn engines(name: &str, kind: Kind, place: Place, share: f64) {
    let generator = generator(|_| true);
    let budget = Duration::from_secs_f64(setting("BULKHEAD_DIFF_SECONDS", 20) as f64 * share);
    let mut versus = Versus::new(generator, kind, place, setting("BULKHEAD_DIFF_SEED", 1));
    let report = versus.run(budget);
    tell(name, &report);
    if setting("BULKHEAD_DIFF_STATS", 0) != 0 {
        println!("{:?}", versus.stats());
    }
    assert_eq!(report.different, 0, "the translator differs from the interpreter");
}

fn tell(name: &str, report: &tests::differential::Report) {
    let total: u64 = report.cases.values().sum();
    println!(
        "{name}: {total} cases {:?}, {} ended by a fault, {} not run, {} different",
        report.cases, report.faults, report.skipped, report.different
    );
    for (kind, (count, _)) in &report.kinds {
        println!("{count:6} {kind}");
    }
    for (kind, (_, example)) in report.kinds.iter().take(setting("BULKHEAD_DIFF_TELL", 3) as usize) {
        println!("{kind}\n{example}\n");
    }
}

fn compare(name: &str, kind: Kind, share: f64, wanted: impl Fn(Group) -> bool) {
    let generator = generator(wanted);
    let variety = generator.variety();
    let budget = Duration::from_secs_f64(setting("BULKHEAD_DIFF_SECONDS", 20) as f64 * share);
    let mut differential = Differential::new(generator, kind).expect("the oracle's child");
    let report = differential.run(budget).expect("the oracle's child");
    tell(&format!("{name}, {variety} instructions"), &report);
    assert_eq!(report.different, 0, "the interpreter differs from the processor");
}

#[test]
fn integer() {
    compare("integer", Kind::Single, 0.3, |g| g == Group::Integer);
}

#[test]
fn x87() {
    compare("x87", Kind::Single, 0.1, |g| g == Group::X87);
}

#[test]
fn sse() {
    compare("MMX, SSE", Kind::Single, 0.15, |g| matches!(g, Group::Mmx | Group::Sse));
}

#[test]
fn avx() {
    compare("AVX", Kind::Single, 0.15, |g| g == Group::Avx);
}

#[test]
fn blocks() {
    compare("blocks", Kind::Block(8), 0.2, |_| true);
}

#[test]
fn damaged() {
    compare("damaged encodings", Kind::Damaged, 0.1, |_| true);
}

#[test]
fn flat_single() {
    engines("flat single", Kind::Single, Place::Flat, 0.05);
}

#[test]
fn flat_blocks() {
    engines("flat blocks", Kind::Block(8), Place::Flat, 0.05);
}

#[test]
fn flat_programs() {
    engines("flat programs", Kind::Program(24), Place::Flat, 0.1);
}

#[test]
fn user_single() {
    engines("user single", Kind::Single, Place::User, 0.05);
}

#[test]
fn user_blocks() {
    engines("user blocks", Kind::Block(8), Place::User, 0.05);
}

#[test]
fn user_programs() {
    engines("user programs", Kind::Program(24), Place::User, 0.1);
}

#[test]
fn kernel_single() {
    engines("kernel single", Kind::Single, Place::Kernel, 0.05);
}

#[test]
fn kernel_blocks() {
    engines("kernel blocks", Kind::Block(8), Place::Kernel, 0.05);
}

#[test]
fn kernel_programs() {
    engines("kernel programs", Kind::Program(24), Place::Kernel, 0.1);
}

#[test]
fn low_kernel_single() {
    engines("low kernel single", Kind::Single, Place::LowKernel, 0.05);
}

#[test]
fn low_kernel_blocks() {
    engines("low kernel blocks", Kind::Block(8), Place::LowKernel, 0.05);
}

#[test]
fn low_kernel_programs() {
    engines("low kernel programs", Kind::Program(24), Place::LowKernel, 0.1);
}

#[test]
fn user_loops_under_interrupts() {
    engines("loops under interrupts", Kind::Loop(12), Place::User, 0.15);
}
