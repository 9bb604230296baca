//! Runs a bare guest on every monitor and compares its report with what the manual says.

use std::env;
use std::error::Error;
use std::time::Duration;

use super::{Bare, Emit};
use crate::monitor::{ENGINES, Guest, Monitor};

/// Nothing printed for so long means stuck.
const SILENCE: Duration = Duration::from_secs(30);

/// What a test returns.
pub type Outcome = Result<(), Box<dyn Error>>;

/// Lines in which QEMU does not do what the manual says. They are checked on Bulkhead alone.
pub type QemuErrs<'a> = &'a [&'a str];

/// Assembles a guest with `build` and checks its report against `expected`, line by line, on Bulkhead's engines and on
/// QEMU. `qemu_errs` names (by their beginnings) lines where QEMU is known to be wrong.
pub fn check(build: impl FnOnce(&mut Bare) -> Emit, expected: &str, qemu_errs: QemuErrs<'_>) -> Outcome {
    let mut monitors = bulkhead();
    if Monitor::qemu_available() {
        monitors.push(Monitor::Qemu);
    } else {
        eprintln!("note: qemu-system-i386 is not installed; this guest is compared with the manual alone");
    }
    check_on(&monitors, build, expected, qemu_errs)
}

/// Bulkhead with each of its engines; none if `BULKHEAD_TEST_MONITOR=qemu` leaves it out.
pub fn bulkhead() -> Vec<Monitor> {
    match env::var("BULKHEAD_TEST_MONITOR").as_deref() {
        Ok("qemu") => Vec::new(),
        _ => ENGINES.iter().map(|engine| Monitor::bulkhead(engine)).collect(),
    }
}

/// Like [`check`], on chosen monitors.
pub fn check_on(
    monitors: &[Monitor],
    build: impl FnOnce(&mut Bare) -> Emit,
    expected: &str,
    qemu_errs: QemuErrs<'_>,
) -> Outcome {
    compare(monitors, &[], build, expected, qemu_errs)
}

/// Like [`check`], on Bulkhead's engines with more arguments for `bulkhead run`.
pub fn check_with(options: &[String], build: impl FnOnce(&mut Bare) -> Emit, expected: &str) -> Outcome {
    compare(&bulkhead(), options, build, expected, &[])
}

fn compare(
    monitors: &[Monitor],
    options: &[String],
    build: impl FnOnce(&mut Bare) -> Emit,
    expected: &str,
    qemu_errs: QemuErrs<'_>,
) -> Outcome {
    let mut bare = Bare::new()?;
    build(&mut bare)?;
    let dir = tempfile::tempdir()?;
    let kernel = dir.path().join("bare.elf");
    std::fs::write(&kernel, bare.finish()?)?;
    let guest = Guest { kernel, initrd: None, append: String::new(), memory: 64, options: options.to_vec() };
    let expected: Vec<_> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    for monitor in monitors {
        let got = run(monitor, &guest)?;
        let wrong = match monitor {
            Monitor::Qemu => {
                let expected: Vec<_> = expected.iter().map(|line| without_rf(line)).collect();
                differences(&expected, &got.iter().map(|line| without_rf(line)).collect::<Vec<_>>(), qemu_errs)
            }
            Monitor::Bulkhead { .. } => differences(&expected, &got, &[]),
        };
        assert!(wrong.is_empty(), "{monitor}:\n{}\nits report:\n{}", wrong.join("\n"), got.join("\n"));
    }
    Ok(())
}

fn run(monitor: &Monitor, guest: &Guest) -> Result<Vec<String>, Box<dyn Error>> {
    let mut running = monitor.start(guest)?;
    let text = running.console.wait_for("end\n", SILENCE);
    let text = text.map_err(|error| format!("{monitor}: {error}\nstandard error:\n{}", running.stderr()))?;
    running.wait(SILENCE)?;
    Ok(text.lines().filter(|line| *line != "end").map(str::to_owned).collect())
}

/// QEMU's translator never sets RF (bit 16) in the flags it pushes for a fault: that bit is checked on Bulkhead alone.
fn without_rf(line: &str) -> String {
    match line.split_once(" fl ") {
        Some((before, after)) if after.len() >= 4 => {
            let bit = match after.as_bytes()[3] {
                b'1' => "0",
                b'3' => "2",
                b'5' => "4",
                b'7' => "6",
                _ => &after[3..4],
            };
            format!("{before} fl {}{bit}{}", &after[..3], &after[4..])
        }
        _ => line.to_owned(),
    }
}

fn differences(expected: &[String], got: &[String], errs: QemuErrs<'_>) -> Vec<String> {
    let lines = expected.len().max(got.len());
    let of = |index: usize| (line(expected, index), line(got, index));
    let wrong = (0..lines).map(of).filter(|(wanted, got)| wanted != got);
    let wrong = wrong.filter(|(wanted, _)| !errs.iter().any(|prefix| wanted.starts_with(prefix)));
    wrong.map(|(wanted, got)| format!("expected {wanted}\ngot      {got}")).collect()
}

fn line(lines: &[String], index: usize) -> &str {
    lines.get(index).map_or("(nothing)", String::as_str)
}
