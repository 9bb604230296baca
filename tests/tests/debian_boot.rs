//! Debian 12's own i386 kernels boot to a busybox shell, do the suite's work with the same results as the same binaries
//! have natively, and power off.
//!
//! `BULKHEAD_TEST_MONITOR=qemu` runs the same tests on QEMU instead, which tests the guest image and the suite
//! themselves; `BULKHEAD_TEST_SCALE` sets how much work the suite does.

use std::env;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tests::debian::{Debian, Flavour};
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor};
use tests::script::{self, Native};

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing printed for so long means stuck, even for an interpreter on a busy machine.
const SILENCE: Duration = Duration::from_secs(900);

/// Sections that QEMU 7.2 itself gets wrong: x87 stack underflow and denormal flags, and segment limits.
const QEMU_DIFFERS: &[&str] = &["x87:", "sse:", "threads:"];

/// One guest at a time on each engine: a guest keeps a processor busy, and these tests are not about sharing one.
static INTERPRETED: Mutex<()> = Mutex::new(());
static TRANSLATED: Mutex<()> = Mutex::new(());

fn boots_and_computes(engine: &'static str, flavour: Flavour, append: &str, scale: u32) -> Outcome {
    let scale = env::var("BULKHEAD_TEST_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(scale);
    let monitor = match env::var("BULKHEAD_TEST_MONITOR").as_deref() {
        Ok("qemu") => Monitor::Qemu,
        _ => Monitor::bulkhead(engine),
    };
    let turn = if engine == "interp" { &INTERPRETED } else { &TRANSLATED };
    // A test that failed has released its turn, not spoilt anything.
    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    let debian = Debian::open()?;
    let dir = tempfile::tempdir()?;
    let initrd = image::build(&debian, Contents { suite: true, python: true, ..Contents::default() }, dir.path())?;
    let mut guest = Guest::linux(debian.kernel(flavour)?, initrd);
    guest.append += append;
    let native = Native::new(&debian)?.suite(scale)?;

    let mut running = monitor.start(&guest)?;
    let ran = (|| -> Result<String, Box<dyn Error>> {
        running.console.wait_for("init reached after", SILENCE)?;
        running.console.wait_for("bulkhead# ", SILENCE)?;
        running.console.send(&format!("SUITE_DIR=/suite sh /suite/suite.sh {scale}"))?;
        let output = running.console.wait_for("=== end", SILENCE)?;
        running.console.wait_for("bulkhead# ", SILENCE)?;
        running.console.send("poweroff -f")?;
        Ok(output)
    })();
    let output = ran.map_err(|error| format!("{monitor}: {error}\nstandard error:\n{}", running.stderr()))?;
    let status = running.wait(SILENCE)?;
    let mut different = script::differences(&native, &output);
    if monitor == Monitor::Qemu {
        different.retain(|text| !QEMU_DIFFERS.iter().any(|name| text.starts_with(name)));
    }
    assert!(different.is_empty(), "{monitor} differs from native:\n{}", different.join("\n"));
    assert!(status.success(), "{monitor} ended with {status} after power-off:\n{}", running.stderr());
    Ok(())
}

#[test]
fn kernel_686_interpreted() -> Outcome {
    boots_and_computes("interp", Flavour::I686, "", 1)
}

#[test]
fn kernel_686_pae_interpreted() -> Outcome {
    boots_and_computes("interp", Flavour::I686Pae, "", 1)
}

#[test]
fn kernel_686_translated() -> Outcome {
    boots_and_computes("translate", Flavour::I686, "", 8)
}

#[test]
fn kernel_686_pae_translated() -> Outcome {
    boots_and_computes("translate", Flavour::I686Pae, "", 8)
}

/// The kernel's pages are not global then, and each system call writes CR3 twice.
#[test]
fn kernel_686_pae_with_page_table_isolation_translated() -> Outcome {
    boots_and_computes("translate", Flavour::I686Pae, " pti=on", 2)
}
