//! Who owns which bytes below 1 MiB when the kernel is entered, and where a kernel may be put.

use super::BootError;
use crate::mmu::GuestRam;

/// Interrupt vectors and BIOS data area: below this nothing is loaded.
pub const LOW_FREE: u64 = 0x500;
/// Linux boot_params ("zero page"), 4 KiB.
pub const ZERO_PAGE: u64 = 0x9_0000;
/// Multiboot information, module list, memory map and strings, 4 KiB.
pub const MULTIBOOT_INFO: u64 = 0x9_1000;
/// The command line with its final NUL.
pub const COMMAND_LINE: u64 = 0x9_2000;
/// Room for the command line.
pub const COMMAND_LINE_ROOM: usize = 0x8000;
/// Global descriptor table at entry.
pub const GDT: u64 = 0x9_b000;
/// First byte of the loader's own structures.
pub const LOADER_START: u64 = ZERO_PAGE;
/// Extended BIOS data area, 1 KiB: the end of conventional memory.
pub const EBDA: u64 = 0x9_fc00;
/// Firmware tables (ACPI, MP), up to 1 MiB.
pub const TABLES: u64 = 0xf_0000;
/// Where memory above the legacy area starts.
pub const HIGH_START: u64 = 0x10_0000;

/// Checks that `start..end` is RAM that a kernel may be put into.
pub fn check(what: &'static str, start: u64, end: u64, ram: &GuestRam) -> Result<(), BootError> {
    let overlap = |over| BootError::Overlap { what: what.into(), start, end, over };
    if start < LOW_FREE {
        return Err(overlap("the interrupt vectors and the BIOS data area below 0x500"));
    }
    if start < HIGH_START && end > LOADER_START {
        return Err(overlap("the loader's structures and firmware between 0x90000 and 0x100000"));
    }
    if end < start || end > ram.low_size() {
        return Err(BootError::NoRoom { what, start, end, limit: ram.low_size() });
    }
    Ok(())
}

/// Where the initrd goes: page-aligned, as high as `ceiling` allows, above `floor`.
pub fn place_initrd(size: u64, floor: u64, ceiling: u64) -> Result<u64, BootError> {
    let start = ceiling.checked_sub(size).map(|a| a & !0xfff);
    start.filter(|a| *a >= floor.max(HIGH_START)).ok_or(BootError::InitrdNoRoom {
        size,
        floor: floor.max(HIGH_START),
        ceiling,
    })
}

/// Writes the command line with its NUL.
pub fn write_command_line(line: &str, limit: usize, ram: &GuestRam) -> Result<(), BootError> {
    let limit = limit.min(COMMAND_LINE_ROOM - 1);
    if line.len() > limit {
        return Err(BootError::CommandLineLong { length: line.len(), limit });
    }
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    write(ram, "the command line", COMMAND_LINE, &bytes)
}

/// Writes loader structures, whose addresses are ours: RAM always holds them, since it has 1 MiB at least.
pub fn write(ram: &GuestRam, what: &'static str, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
    let end = gpa.saturating_add(bytes.len() as u64);
    if ram.write(gpa, bytes) { Ok(()) } else { Err(BootError::NoRoom { what, start: gpa, end, limit: ram.low_size() }) }
}
