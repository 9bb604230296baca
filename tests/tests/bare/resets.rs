//! What ends the guest: a triple fault, the keyboard controller and the reset control register by a reset, the debug
//! exit port by an exit code.

use std::error::Error;
use std::time::Duration;

use iced_x86::code_asm::*;
use tests::bare::harness::bulkhead;
use tests::bare::{Bare, Emit};
use tests::monitor::{Guest, Monitor};

const LIMIT: Duration = Duration::from_secs(30);
/// What `bulkhead run --no-reboot` exits with when the guest resets.
const RESET: i32 = 8;

pub(super) fn resets(build: impl FnOnce(&mut Bare) -> Emit) -> Result<(), Box<dyn Error>> {
    ends(build, RESET, 0)
}

/// Checks that a guest ends by itself, and with which exit codes of Bulkhead and QEMU.
fn ends(build: impl FnOnce(&mut Bare) -> Emit, bulkhead_code: i32, qemu_code: i32) -> Result<(), Box<dyn Error>> {
    let mut bare = Bare::new()?;
    bare.print("ready\n")?;
    build(&mut bare)?;
    bare.print("still here\n")?;
    let dir = tempfile::tempdir()?;
    let kernel = dir.path().join("bare.elf");
    std::fs::write(&kernel, bare.finish()?)?;
    let guest = Guest { kernel, initrd: None, append: String::new(), memory: 64, options: Vec::new() };
    let mut monitors = bulkhead();
    monitors.extend(Monitor::qemu_available().then_some(Monitor::Qemu));
    for monitor in monitors {
        let mut running = monitor.start(&guest)?;
        running.console.wait_for("ready\n", LIMIT)?;
        let status = running.wait(LIMIT)?;
        assert!(!running.console.text().contains("still here"), "{monitor} went on");
        let expected = if monitor == Monitor::Qemu { qemu_code } else { bulkhead_code };
        assert_eq!(status.code(), Some(expected), "{monitor}: {}", running.stderr());
    }
    Ok(())
}

/// No IDT: the first fault, its #GP and the #DF all fail (SDM 3A 6.15, #DF).
#[test]
fn triple_fault() -> Result<(), Box<dyn Error>> {
    resets(|b| b.load_idt(0).and_then(|()| b.asm.ud2()))
}

/// Command FEh pulses the reset line.
#[test]
fn keyboard_controller() -> Result<(), Box<dyn Error>> {
    resets(|b| {
        let mut here = b.asm.create_label();
        b.out(0x64, 0xfe)?;
        b.asm.set_label(&mut here)?;
        b.asm.jmp(here)
    })
}

/// The chipset's register at CF9h: 2, then 6, is a hard reset.
#[test]
fn reset_control_register() -> Result<(), Box<dyn Error>> {
    resets(|b| {
        let mut here = b.asm.create_label();
        b.asm.mov(edx, 0xcf9)?;
        b.asm.mov(al, 2)?;
        b.asm.out(dx, al)?;
        b.asm.mov(al, 6)?;
        b.asm.out(dx, al)?;
        b.asm.set_label(&mut here)?;
        b.asm.jmp(here)
    })
}

/// A byte written to port F4h ends the guest with twice its value plus one.
#[test]
fn debug_exit_codes() -> Result<(), Box<dyn Error>> {
    [0u8, 5, 0x3f].into_iter().try_for_each(|value| {
        let code = i32::from(value) * 2 + 1;
        ends(|b| b.out(0xf4, value), code, code)
    })
}
