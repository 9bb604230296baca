//! The power button, as a guest hears of it.

use std::fs;

use iced_x86::code_asm::*;
use tests::bare::{Bare, sel};
use tests::monitor::Monitor;
use tests::operator::{bulkhead, command};

use crate::{Outcome, SILENCE};

/// Registers of the power management block, from PMBASE on as the chipset's firmware sets it.
const STATUS: u32 = 0x600;
const ENABLE: u32 = 0x602;
const CONTROL: u32 = 0x604;
const BUTTON: u32 = 1 << 8;
/// SCI_EN; sleep type 0, which the DSDT calls S5, with SLP_EN.
const ACPI_MODE: u32 = 1;
const OFF: u32 = 1 << 13;

fn write(b: &mut Bare, register: u32, value: u32) -> Result<(), iced_x86::IcedError> {
    b.asm.mov(edx, register)?;
    b.asm.mov(eax, value)?;
    b.asm.out(dx, ax)
}

/// `bulkhead stop` is an interrupt to a guest that listens, which then powers itself off: exit code 0.
#[test]
fn a_guest_that_hears_its_power_button_ends_by_itself() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut b = Bare::new()?;
    let (mut over, mut pressed, mut wait) = (b.asm.create_label(), b.asm.create_label(), b.asm.create_label());
    b.asm.jmp(over)?;
    b.asm.set_label(&mut pressed)?;
    b.asm.mov(edx, STATUS)?;
    b.asm.in_(ax, dx)?;
    b.asm.and(eax, BUTTON as i32)?;
    b.show("pressed")?;
    write(&mut b, STATUS, BUTTON)?;
    write(&mut b, CONTROL, ACPI_MODE | OFF)?;
    b.asm.hlt()?;
    b.asm.set_label(&mut over)?;
    b.asm.nop()?;
    // Input 9 is the slave's second.
    b.gate(0x29, sel::CODE, pressed, 0x8e)?;
    b.out(0x21, 0xfb)?;
    b.out(0xa1, 0xfd)?;
    write(&mut b, CONTROL, ACPI_MODE)?;
    write(&mut b, ENABLE, BUTTON)?;
    b.print("ready\n")?;
    b.asm.sti()?;
    b.asm.set_label(&mut wait)?;
    b.asm.hlt()?;
    b.asm.jmp(wait)?;
    let kernel = dir.path().join("button.elf");
    fs::write(&kernel, b.finish()?)?;

    let mut run = command(dir.path(), &["run", "--name", "button", "--memory", "16M", "--kernel"])?;
    run.arg(&kernel);
    let mut running = Monitor::bulkhead("translate").launch(run)?;
    running.console.wait_for("ready\n", SILENCE)?;
    assert!(bulkhead(dir.path(), &["stop", "button"])?.status.success());
    running.console.wait_for("pressed 00000100\n", SILENCE)?;
    assert_eq!(running.wait(SILENCE)?.code(), Some(0), "{}", running.stderr());
    Ok(())
}
